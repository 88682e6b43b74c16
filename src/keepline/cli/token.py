"""`keepline login` and `keepline token status|get|refresh|watch|history|import|export`."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepline.cli.options import ConfigOption, JsonOption, OptionalName
from keepline.cli.output import say, show_credential, show_json, show_table, write

if TYPE_CHECKING:
    from keepline.credentials.token import Token

__all__ = ["add_to"]

group = typer.Typer(
    help="Look at tokens, renew them, carry them.", no_args_is_help=True, rich_markup_mode=None
)


def add_to(app: typer.Typer) -> None:
    app.command()(login)
    app.add_typer(group, name="token")


def login(
    name: OptionalName = "",
    paste: Annotated[
        bool, typer.Option("--paste", help="Ask for the address that the browser ended at.")
    ] = False,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only print the page's address.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Sign in at the broker; a running daemon takes the token up by itself."""
    from keepline.config import load
    from keepline.daemon.ask import only_name, tell_daemon
    from keepline.daemon.signin import login as sign_in

    settings = load(config)
    name = only_name(settings.credentials, name)

    async def work() -> None:
        token = await sign_in(
            settings,
            name,
            paste=paste,
            open_browser=not no_browser,
            announce=lambda url: say(f"sign in here:\n\n  {url}\n"),
        )
        say(f"signed in: {name}, token {token.fingerprint}, generation {token.generation}")
        if token.signin_deadline is not None:
            say(f"the next sign-in is due by {token.signin_deadline:%Y-%m-%d %H:%M} UTC")
        _say_taken_up(token, await tell_daemon(name))

    asyncio.run(work())


def _say_taken_up(token: "Token", served: "Token | None") -> None:
    if served is None:
        return
    if served.fingerprint == token.fingerprint:
        say("the running daemon has taken it up")
    else:  # it has renewed it at once, or keeps a newer one
        say(f"the running daemon serves token {served.fingerprint}, generation {served.generation}")


@group.command("status")
def status(name: OptionalName = "", config: ConfigOption = None, json: JsonOption = False) -> int:
    """Both clocks of a token: its expiry and the next sign-in. Exit 3 when a person must act."""
    from keepline.cli.exits import DONE, SIGN_IN
    from keepline.daemon.ask import token_status

    told = asyncio.run(token_status(config, name))
    if json:
        show_json(told)
    else:
        show_credential(told)
    return SIGN_IN if told["state"] == "SIGN_IN_REQUIRED" else DONE


@group.command()
def get(
    name: OptionalName = "",
    config: ConfigOption = None,
    json: JsonOption = False,
    newer_than: Annotated[
        int | None,
        typer.Option(metavar="GENERATION", help="The generation that the broker refused."),
    ] = None,
) -> None:
    """Print the access token, for scripts: TOKEN=$(keepline token get schwab)."""
    from keepline.daemon.ask import get_token
    from keepline.relay.local import token_object

    token = asyncio.run(get_token(config, name, newer_than=newer_than))
    if json:
        show_json(token_object(token))
    else:
        write(token.access_token)


@group.command()
def refresh(
    name: OptionalName = "",
    config: ConfigOption = None,
    json: JsonOption = False,
    than: Annotated[
        int | None,
        typer.Option(metavar="GENERATION", help="Do nothing when the token is newer than this."),
    ] = None,
) -> None:
    """Renew the token now: by the running daemon, else directly."""
    from keepline.daemon.ask import refresh_token

    token = asyncio.run(refresh_token(config, name, than=than))
    told = {
        "generation": token.generation,
        "fingerprint": token.fingerprint,
        "expires_at": token.expires_at.isoformat(timespec="seconds"),
    }
    if json:
        show_json(told)
    else:
        write(" ".join(f"{key}={value}" for key, value in told.items()))


@group.command()
def watch(
    name: OptionalName = "",
    json: JsonOption = False,
    count: Annotated[
        int, typer.Option(min=0, metavar="N", help="End after N tokens; 0 goes on for ever.")
    ] = 0,
) -> None:
    """Show each renewal as it happens, fingerprints only; needs the daemon."""
    from keepline.daemon.ask import follow

    async def work() -> None:
        seen = 0
        async for token in follow(name):
            told = {
                "generation": token.generation,
                "fingerprint": token.fingerprint,
                "issued_at": token.issued_at.isoformat(timespec="seconds"),
                "expires_at": token.expires_at.isoformat(timespec="seconds"),
            }
            if json:
                show_json(told, lines=True)
            else:
                write(" ".join(f"{key}={value}" for key, value in told.items()))
            seen += 1
            if seen == count:
                return

    asyncio.run(work())


@group.command()
def history(
    name: OptionalName = "",
    config: ConfigOption = None,
    json: JsonOption = False,
    last: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many.")] = 20,
) -> None:
    """What became of the last renewals, with fingerprints, never tokens."""
    import msgspec

    from keepline.config import load
    from keepline.daemon.ask import only_name
    from keepline.daemon.compose import history_of

    settings = load(config)
    records = history_of(settings, only_name(settings.credentials, name)).read()[-last:]
    if json:
        show_json(msgspec.to_builtins(records))
        return
    if not records:
        say("nothing was renewed yet")
        return
    show_table(
        ("at", "outcome", "generation", "fingerprint", "expires", "reason"),
        [
            (
                f"{r.at:%Y-%m-%d %H:%M:%S}",
                r.outcome,
                r.generation,
                r.fingerprint,
                f"{r.expires_at:%Y-%m-%d %H:%M:%S}",
                r.reason,
            )
            for r in records
        ],
    )


@group.command("import")
def import_(
    name: OptionalName = "",
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Read it here instead of standard input."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Store a token from JSON on standard input: our export, schwab-py's file, or an OAuth answer."""
    from keepline.clock import SYSTEM_CLOCK
    from keepline.config import load
    from keepline.daemon.ask import only_name, save_token, tell_daemon
    from keepline.daemon.tokenfile import from_json
    from keepline.errors import ConfigError
    from keepline.files import read_private

    settings = load(config)
    name = only_name(settings.credentials, name)
    data = sys.stdin.buffer.read() if file is None else read_private(file, on_loose_mode="warn")
    if data is None:
        raise ConfigError("does not exist", file=file)

    async def work() -> None:
        token = await save_token(settings, name, from_json(data, SYSTEM_CLOCK.wall()))
        say(f"stored: {name}, token {token.fingerprint}, generation {token.generation}")
        _say_taken_up(token, await tell_daemon(name))

    asyncio.run(work())


@group.command()
def export(
    name: OptionalName = "",
    config: ConfigOption = None,
    show_secrets: Annotated[
        bool, typer.Option("--show-secrets", help="Print secrets on a terminal, too.")
    ] = False,
) -> None:
    """Print the stored token with its refresh token as JSON, into a file or a pipe."""
    from keepline.cli.output import on_terminal
    from keepline.config import load
    from keepline.daemon.ask import only_name
    from keepline.daemon.compose import store_of
    from keepline.daemon.tokenfile import to_json
    from keepline.errors import ConfigError, SignInRequired

    if on_terminal() and not show_secrets:
        raise ConfigError(
            "this would show secrets on a terminal; write them to a file (umask 077; keepline token export > FILE)"
            " or say --show-secrets"
        )
    settings = load(config)
    name = only_name(settings.credentials, name)
    token = store_of(settings, name).load()
    if token is None:
        raise SignInRequired(f"{name}: no token is stored", credential=name)
    write(to_json(token, name))
