"""`keepline demo`."""

import asyncio
from typing import Annotated

import typer

from keepline.cli.output import say, write

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    auto: Annotated[
        bool, typer.Option("--auto", help="Play to the end, without a terminal; about 15 s.")
    ] = False,
) -> int:
    """See it work, without an account: a sandbox broker, the daemon, two bots, a desk with its page, an outage."""
    from keepline.cli.exits import DONE, FAILED, INTERRUPTED
    from keepline.daemon.demo import Demo

    async def play() -> tuple[bool, bool]:
        showing = Demo(write)
        await showing.play(auto=auto)
        return showing.ended, showing.result.ok

    ended, ok = asyncio.run(play())
    if not auto:
        return DONE
    if not ended:
        return INTERRUPTED
    if not ok:
        say("keepline: the demo did not go as it should; please report it")
    return DONE if ok else FAILED
