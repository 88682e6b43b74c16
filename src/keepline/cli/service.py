"""`keepline run` without the command line's own weight: a daemon holds no option parser and no colours for months.

Invariant: the plain forms of the options that typer declares are read here alike; everything else (help, a mistake) is
left to typer. Typer with what it imports and rich cost 20 MB of the daemon's memory.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from keepline.cli.exits import exit_code_of_cycles, exit_code_of_signal

__all__ = ["FLAGS", "parse", "serve", "without"]

FLAGS = {
    "--log-level": "telemetry.log_level",
    "--log-format": "telemetry.log_format",
    "--metrics": "telemetry.metrics",
    "--workers": "hub.workers",
}
"""Options that stand for a setting."""

_CONFIG = ("--config", "-c")


def parse(arguments: Sequence[str]) -> tuple[Path | None, bool, dict[str, object]] | None:
    """Configuration, once, and settings; None when typer should have a look."""
    config: Path | None = None
    once = False
    flags: dict[str, object] = {}
    rest = list(arguments)
    while rest:
        option, separator, value = rest.pop(0).partition("=")
        if option == "--once" and not separator:
            once = True
            continue
        if option not in FLAGS and option not in _CONFIG:
            return None
        if not separator:
            if not rest:
                return None
            value = rest.pop(0)
        if option in FLAGS:
            flags[FLAGS[option]] = value
        else:
            config = Path(value)
    return config, once, flags


def serve(config: Path | None, once: bool, flags: Mapping[str, object]) -> int:
    """Run the daemon, or one cycle.

    Raises:
        KeeplineError: it cannot; says why.
    """
    from keepline.config import load
    from keepline.daemon.loop import run_on_loop
    from keepline.daemon.run import run, run_once
    from keepline.telemetry import setup_logging

    settings = load(config, flags={key: _typed(key, value) for key, value in flags.items()})
    telemetry = settings.telemetry
    with without("rich"):  # structlog would import it for colours that a log never has
        setup_logging(
            telemetry.log_level, log_file=telemetry.log_file, log_format=telemetry.log_format
        )
    if once:
        return exit_code_of_cycles(run_on_loop(run_once(settings)))
    return exit_code_of_signal(run_on_loop(run(settings)))


def _typed(key: str, value: object) -> object:
    """A number as the file would give it; what is none is refused with its key."""
    if key == "hub.workers" and isinstance(value, str) and value.isdecimal():
        return int(value)
    return value


@contextmanager
def without(package: str) -> Iterator[None]:
    """Let imports of a package fail meanwhile, unless it is there already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # so the import system spells "not there"
    try:
        yield
    finally:
        del sys.modules[package]
