"""`keepline stream watch|record|replay`."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepline.cli.options import ConfigOption, JsonOption
from keepline.cli.output import say, show_fields, show_json, write

if TYPE_CHECKING:
    from keepline.daemon.streams import KeptStream
    from keepline.daemon.watching import Played, Show, Told
    from keepline.stream.recorder import Recorder

__all__ = ["add_to"]

group = typer.Typer(
    help="Watch a stream, record it, play a recording again.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

StreamName = Annotated[
    str,
    typer.Argument(
        metavar="[NAME]",
        help="The stream, as in [stream.NAME]; not needed when there is only one.",
        show_default=False,
    ),
]
Seconds = Annotated[
    float,
    typer.Option(
        "--for",
        min=0.0,
        metavar="SECONDS",
        help="End after this time at the latest.",
        show_default=False,
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="TOPIC",
        help="events, quotes, trades, depth, orders, fills, positions, accounts, discrepancies, candles, activities,"
        " or a part of an instrument's name; several are possible.",
    ),
]

_LINE_SECONDS = 10.0
_LOOK_SECONDS = 0.5


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="stream")


@group.command()
def watch(
    name: StreamName = "",
    seconds: Seconds = 0.0,
    only: OnlyOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Show what a stream tells and what may be believed of it: keepline stream watch topstep --only quotes."""
    from keepline.config import load
    from keepline.daemon import watching

    settings = load(config)
    work = watching.watch(
        settings, watching.stream_named(settings, name), _shown(only, json=json), seconds=seconds
    )
    return _run(work)


@group.command()
def record(
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new file; .klrec.gz is the custom.")],
    name: StreamName = "",
    seconds: Seconds = 0.0,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Record every frame of a stream with its arrival time: keepline stream record topstep --out monday.klrec.gz."""
    from keepline.config import load
    from keepline.daemon import watching
    from keepline.daemon.streams import recorder_of

    settings = load(config)
    name = watching.stream_named(settings, name)
    recorder = recorder_of(settings, name, out)
    assert recorder is not None
    streams: list[KeptStream] = []

    def tell() -> str:
        state = streams[0].state.value if streams else "asking"
        live = "live" if streams and streams[0].is_live else state
        missed = f", {recorder.missed:,} missed" if recorder.missed else ""
        return f"{recorder.frames:,} frames{missed}  {live}"

    def event(told: "Told") -> None:
        if told.kind == "event" and not told.value.channel:
            from keepline.cli.streamlines import as_words

            say(as_words(told))

    async def work() -> None:
        async with recorder, _progress(f"recording {name}", tell):
            await watching.watch(
                settings, name, event, recorder=recorder, seconds=seconds, opened=streams.append
            )

    try:
        return _run(work())
    finally:
        if recorder.started:
            _tell_recorded(recorder, json=json)


@group.command()
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recording.")],
    speed: Annotated[
        str, typer.Option(metavar="N", help="1 is the pace of the day, max as fast as it goes.")
    ] = "1",
    seconds: Seconds = 0.0,
    only: OnlyOption = None,
    json: JsonOption = False,
) -> int:
    """Play a recording through the code that reads live: keepline stream replay monday.klrec.gz --speed max."""
    from keepline.cli.exits import DONE, FAILED
    from keepline.daemon import watching

    pace = watching.speed_of(speed)
    counts: list[Played] = []

    def tell() -> str:
        if not counts or counts[0].last is None:
            return "opening"
        return f"{counts[0].messages:,} messages  {counts[0].last:%Y-%m-%d %H:%M:%S} UTC"

    async def work() -> None:
        async with _progress(f"playing {file}", tell, quiet=sys.stdout.isatty()):
            shown = _shown(only, json=json)
            await watching.replay(file, shown, speed=pace, seconds=seconds, opened=counts.append)

    code = _run(work())
    if not counts:  # interrupted before it was open
        return code
    played = counts[0]
    last = f" to {played.last:%Y-%m-%d %H:%M:%S} UTC" if played.last is not None else ""
    say(
        f"{played.messages} messages in {played.frames} frames of {played.connections} connections,"
        f" {played.first:%Y-%m-%d %H:%M:%S}{last}"
    )
    if played.damage is not None:
        say(f"keepline: {played.damage}")
        return FAILED if code == DONE else code
    return code


def _tell_recorded(recorder: "Recorder", *, json: bool) -> None:
    """What is in the file; an empty one is taken away, so that the next try may have its name."""
    size = recorder.path.stat().st_size if recorder.path.exists() else 0
    if not recorder.frames or not size:
        recorder.path.unlink(missing_ok=True)
        why = "nothing could be written" if recorder.frames else "nothing came"
        say(f"{why}, so nothing was recorded")
        return
    told = {
        "file": str(recorder.path),
        "frames": recorder.frames,
        "missed": recorder.missed,
        "bytes": size,
    }
    show_json(told) if json else show_fields(told)


def _shown(only: list[str] | None, *, json: bool) -> "Show":
    from keepline.cli.streamlines import Only, as_object, as_words

    wanted = Only(only or ())

    def show(told: "Told") -> None:
        if not wanted.wants(told):
            return
        if json:
            show_json(as_object(told), lines=True)
        else:
            write(as_words(told))

    return show


def _run(work: Coroutine[Any, Any, object]) -> int:
    from keepline.cli.exits import DONE, exit_code_of_signal
    from keepline.daemon.run import until_signal

    number = asyncio.run(until_signal(work))
    return DONE if number is None else exit_code_of_signal(number)


@asynccontextmanager
async def _progress(
    title: str, tell: Callable[[], str], *, quiet: bool = False
) -> AsyncIterator[None]:
    """One line that changes on a terminal, a line now and then in a pipe; on standard error."""
    task = None if quiet else asyncio.create_task(_tell_progress(title, tell))
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _tell_progress(title: str, tell: Callable[[], str]) -> None:
    from keepline.clock import SYSTEM_CLOCK

    began = SYSTEM_CLOCK.boottime()
    with _line() as (show, pause):
        while True:
            await SYSTEM_CLOCK.sleep(pause)
            show(f"{title}  {SYSTEM_CLOCK.boottime() - began:.0f} s  {tell()}")


@contextmanager
def _line() -> Iterator[tuple[Callable[[str], object], float]]:
    if not sys.stderr.isatty():
        yield say, _LINE_SECONDS
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield status.update, _LOOK_SECONDS
