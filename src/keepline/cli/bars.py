"""`keepline bars`."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepline.cli.options import ConfigOption, JsonOption
from keepline.cli.output import say, show_json, write

if TYPE_CHECKING:
    from keepline.brokers.windows import Progress
    from keepline.config import Settings
    from keepline.daemon.download import BarsWanted

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    app.command()(bars)


def bars(
    symbol: Annotated[
        str,
        typer.Argument(
            metavar="SYMBOL", help="AAPL, MNQ (the active contract), MNQU6 or CON.F.US.MNQ.U26."
        ),
    ],
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="WHEN",
            help="2026-01-05, 2026-01-05T14:30Z, or so long ago: 90min, 12h, 5d, 2w.",
        ),
    ] = "1d",
    to: Annotated[str, typer.Option("--to", metavar="WHEN", help="The same, or now.")] = "now",
    unit: Annotated[
        str, typer.Option(metavar="UNIT", help="second, minute, hour, day, week or month.")
    ] = "minute",
    number: Annotated[int, typer.Option(min=1, metavar="N", help="Units in a bar.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=".csv or .parquet; else CSV on standard output."),
    ] = None,
    broker: Annotated[
        str,
        typer.Option(metavar="NAME", help="As in [brokers.NAME]; not needed when there is one."),
    ] = "",
    live: Annotated[
        bool, typer.Option("--live", help="ProjectX: of the live data subscription.")
    ] = False,
    extended: Annotated[
        bool, typer.Option("--extended", help="Schwab: before and after regular hours, too.")
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Download bars of any span: keepline bars MNQ --from 30d --out mnq.parquet."""
    from keepline.clock import SYSTEM_CLOCK
    from keepline.config import load
    from keepline.daemon.clients import broker_named
    from keepline.daemon.download import BarsWanted, instant, save_bars

    settings = load(config)
    name = broker_named(settings, broker)
    now = SYSTEM_CLOCK.wall()
    start, end = instant(from_, now, key="--from"), instant(to, now, key="--to")
    wanted = BarsWanted(symbol, start, end, unit, number, live, extended)
    with _progress(symbol) as tell:
        if out is None:
            return asyncio.run(_print(settings, name, wanted, tell, json=json))
        saved = asyncio.run(save_bars(settings, name, wanted, out, tell=tell))
    told = {
        "file": str(out),
        "rows": saved.rows,
        "first": saved.first and saved.first.isoformat(),
        "last": saved.last and saved.last.isoformat(),
    }
    if json:
        show_json(told)
    else:
        write(f"{saved.rows} bars from {told['first'] or '-'} to {told['last'] or '-'} in {out}")
    return None


async def _print(
    settings: "Settings",
    broker: str,
    wanted: "BarsWanted",
    tell: "Callable[[Progress], object]",
    *,
    json: bool,
) -> None:
    import csv

    from keepline.brokers.barfile import COLUMNS, as_row
    from keepline.daemon.download import stream_bars

    rows = csv.writer(sys.stdout, lineterminator="\n")
    told = json  # the heading waits for the first answer, so that an error stands alone
    async for chunk in stream_bars(settings, broker, wanted, tell=tell):
        if not told:
            rows.writerow(COLUMNS)
            told = True
        for row in map(as_row, chunk):
            if json:
                show_json(dict(zip(COLUMNS, row, strict=True)), lines=True)
            else:
                rows.writerow(row)
    if not told:
        rows.writerow(COLUMNS)


@contextmanager
def _progress(symbol: str) -> "Iterator[Callable[[Progress], object]]":
    """A bar on a terminal, lines in a pipe; beside the result, on standard error."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} bars"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(symbol, total=1.0, rows=0)
        yield lambda at: shown.update(task, completed=at.share, rows=at.rows)


class _Lines:
    """One line for each tenth of a download that takes several calls."""

    def __init__(self) -> None:
        self._tenth = 0

    def __call__(self, at: "Progress") -> None:
        tenth = at.done * 10 // at.total
        if at.total > 1 and tenth > self._tenth:
            self._tenth = tenth
            say(f"{at.share:.0%}  {at.rows} bars, until {at.until:%Y-%m-%d %H:%M} UTC")
