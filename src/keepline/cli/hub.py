"""`keepline hub publish|tail`."""

import asyncio
import contextlib
import json as _json
from pathlib import Path
from typing import Annotated, Any

import typer

from keepline.cli.options import ConfigOption, JsonOption
from keepline.cli.output import say, show_fields, show_json, write

__all__ = ["add_to"]

group = typer.Typer(
    help="Publish to a hub, and follow its channels.", no_args_is_help=True, rich_markup_mode=None
)

UrlOption = Annotated[
    str,
    typer.Option(
        "--url",
        metavar="URL",
        help="The hub; else KEEPLINE_HUB_URL, the [hub] of the configuration.",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", metavar="FILE", help="Its token, mode 600; else KEEPLINE_HUB_TOKEN."
    ),
]
TokenInput = Annotated[
    bool, typer.Option("--token-stdin", help="The token is the first line of standard input.")
]


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="hub")


@group.command()
def publish(
    channel: Annotated[
        str, typer.Option(metavar="NAME", help="Publish one message; its data is standard input.")
    ] = "",
    type_: Annotated[str, typer.Option("--type", metavar="TYPE", help="Of that message.")] = "",
    key: Annotated[str, typer.Option(metavar="TEXT", help="What it is about.")] = "",
    id_: Annotated[
        str, typer.Option("--id", metavar="TEXT", help="By what it is known when it comes again.")
    ] = "",
    url: UrlOption = "",
    token_file: TokenFile = None,
    token_stdin: TokenInput = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Publish lines of JSON from standard input: {"channel": …, "type": …, "data": …}. Exit 1 when one is refused."""
    from keepline.cli.exits import DONE, FAILED, exit_code_of_signal
    from keepline.daemon import hubtalk
    from keepline.daemon.run import until_signal
    from keepline.errors import ConfigError

    if bool(channel) != bool(type_) or ((key or id_) and not channel):
        raise ConfigError("--channel and --type belong together, --key and --id to them")
    address = hubtalk.hub_url(url, config)
    done = hubtalk.Published()

    async def work() -> None:
        token = await hubtalk.read_hub_token(token_file, from_input=token_stdin)
        lines = hubtalk.lines_of()
        if channel:
            lines = hubtalk.just(await hubtalk.one_message(channel, type_, key, id_))
        await hubtalk.publish(address, token, lines, done)

    try:
        number = asyncio.run(until_signal(work()))
    finally:
        told = {"accepted": done.accepted, "duplicates": done.duplicates}
        if json:
            show_json({**told, "refused": [flaw._asdict() for flaw in done.refused]})
        elif done.accepted or done.refused:
            for flaw in done.refused:
                say(f"line {flaw.line} refused: {flaw.message} ({flaw.code})")
            show_fields({**told, "refused": len(done.refused)})
    if number is not None:
        return exit_code_of_signal(number)
    if not (done.accepted or done.refused):
        raise ConfigError("nothing to publish; give lines of JSON on standard input")
    return FAILED if done.refused else DONE


@group.command()
def tail(
    channels: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CHANNEL]…",
            help="All that the token may follow, if not said.",
            show_default=False,
        ),
    ] = None,
    types: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Only these; repeatable.")
    ] = None,
    keys: Annotated[
        list[str] | None, typer.Option("--key", metavar="TEXT", help="Only these; repeatable.")
    ] = None,
    seconds: Annotated[
        float, typer.Option("--for", min=0.0, metavar="SECONDS", help="End after this time.")
    ] = 0.0,
    count: Annotated[int, typer.Option(min=0, metavar="N", help="End after so many.")] = 0,
    url: UrlOption = "",
    token_file: TokenFile = None,
    token_stdin: TokenInput = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Follow channels as a screen does; after a break it goes on where it was."""
    from keepline.cli.exits import DONE, exit_code_of_signal
    from keepline.daemon import hubtalk
    from keepline.daemon.run import until_signal
    from keepline.hub.tail import Tail

    address = hubtalk.hub_url(url, config)

    async def work() -> None:
        token = await hubtalk.read_hub_token(token_file, from_input=token_stdin)
        following = Tail(
            address,
            token,
            channels or await hubtalk.channels_of(address, token),
            types=types or (),
            keys=keys or (),
            note=lambda words: say(f"note: {words}"),
        )
        shown = 0
        async with (
            hubtalk.for_a_while(seconds),
            contextlib.aclosing(following.messages()) as messages,
        ):
            async for message in messages:
                _show(message, json=json)
                shown += 1
                if shown == count:
                    return

    number = asyncio.run(until_signal(work()))
    return DONE if number is None else exit_code_of_signal(number)


def _show(message: dict[str, Any], *, json: bool) -> None:
    if json:
        show_json(message, lines=True)
        return
    known = (message.get(name) for name in ("timestamp", "channel", "offset", "type", "key"))
    data = _json.dumps(message.get("data"), ensure_ascii=False)
    write(" ".join([*(str(each) for each in known if each not in (None, "")), data]))
