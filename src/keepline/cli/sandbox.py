"""`keepline sandbox serve|fault`."""

from typing import Annotated

import typer

from keepline.cli.options import ConfigOption, JsonOption
from keepline.cli.output import say, show_json, write

__all__ = ["add_to"]

group = typer.Typer(
    help="A broker on loopback for trying out, with faults on demand.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

UrlOption = Annotated[
    str, typer.Option("--url", metavar="URL", help="Another sandbox than the configured one.")
]


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="sandbox")


@group.command()
def serve(
    host: Annotated[str | None, typer.Option(metavar="HOST", help="A loopback address.")] = None,
    port: Annotated[int | None, typer.Option(metavar="PORT", help="0 takes a free one.")] = None,
    access_lifetime: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Of an access token.")
    ] = None,
    refresh_lifetime: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Of a refresh token.")
    ] = None,
    rotate: Annotated[
        bool | None, typer.Option(help="Whether a refresh answers with a new refresh token.")
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="For which a rotated refresh token still works."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="The same seed, the same tokens.")
    ] = None,
    config: ConfigOption = None,
) -> int:
    """Play the broker until a signal."""
    import asyncio

    from keepline.cli.exits import exit_code_of_signal
    from keepline.config import load
    from keepline.daemon.stage import serve_sandbox

    flags = {
        "sandbox.host": host,
        "sandbox.port": port,
        "sandbox.access_lifetime": access_lifetime,
        "sandbox.refresh_lifetime": refresh_lifetime,
        "sandbox.rotate": rotate,
        "sandbox.grace": grace,
        "sandbox.seed": seed,
    }
    settings = load(config, flags=flags, required=False)

    def open_(url: str) -> None:
        write(f"sandbox at {url}")
        say("app key sandbox-key, secret sandbox-secret; user sandbox, api key sandbox-api-key")

    return exit_code_of_signal(asyncio.run(serve_sandbox(settings.sandbox, opened=open_)))


@group.command()
def fault(
    name: Annotated[str, typer.Argument(metavar="[FAULT]", help="Which one.")] = "",
    parameters: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="count, seconds, on (routes with commas), and the fault's own.",
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show those in force.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="End them all.")] = False,
    url: UrlOption = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Put a fault in force at a running sandbox: keepline sandbox fault outage seconds=30."""
    import asyncio

    from keepline.config import load
    from keepline.daemon.stage import ask_faults, fault_description
    from keepline.errors import ConfigError

    if not url:
        sandbox = load(config, required=False).sandbox
        url = f"http://{sandbox.host}:{sandbox.port}"
    if sum((bool(name), list_, clear)) != 1:
        raise ConfigError("give one of FAULT, --list, --clear")
    if clear:
        told = asyncio.run(ask_faults(url, "DELETE"))
    elif list_:
        told = asyncio.run(ask_faults(url, "GET"))
    else:
        told = asyncio.run(ask_faults(url, "POST", fault_description(name, parameters or [])))
    if json:
        show_json(told)
        return
    for item in told if isinstance(told, list) else [told]:
        write(
            " ".join(f"{key}={_plain(value)}" for key, value in item.items() if value is not None)
        )
    if told == []:
        say("no fault is in force")


def _plain(value: object) -> str:
    """A value as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
