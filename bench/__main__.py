"""`python -m bench [NAME ...] [--quick]`: run the benches and print one table; exit 1 when a bar is missed."""

import argparse
import importlib
import platform
import sys

from bench import Row

MODULES = (
    "imports",
    "credentials",
    "relay",
    "daemon",
    "resilience_limits",
    "resilience_calls",
    "orders",
    "streams",
    "hub",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {' '.join(MODULES)}")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, for a first look")
    options = parser.parse_args()
    if unknown := set(options.names) - set(MODULES):
        parser.error(
            f"no bench named {', '.join(sorted(unknown))}; there are: {', '.join(MODULES)}"
        )
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {platform.system()} {platform.release()}\n"
    )
    rows: list[Row] = []
    for name in options.names or MODULES:
        print(f"## {name}\n", flush=True)
        found = importlib.import_module(f"bench.{name}").run(options.quick)
        show(found)
        rows += found
    missed = [row for row in rows if not row.met]
    print(
        f"{len(rows)} figures, {len(missed)} bars missed"
        + "".join(f"\n  missed: {row.name}" for row in missed)
    )
    return 1 if missed else 0


def show(rows: list[Row]) -> None:
    print("| figure | value | bar |")
    print("| --- | ---: | ---: |")
    for row in rows:
        sign = "≥" if row.at_least else "≤"
        bar = (
            ""
            if row.bar is None
            else f"{sign} {row.bar:g} {row.unit}" + ("" if row.met else " **missed**")
        )
        print(f"| {row.name} | {row.value:,.4g} {row.unit} | {bar} |")
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
