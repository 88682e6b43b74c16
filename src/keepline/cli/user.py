"""`keepline user add|list|remove`: who may sign in at the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepline.cli.options import ConfigOption, JsonOption
from keepline.cli.output import say, show_json, show_table

if TYPE_CHECKING:
    from keepline.hub.users import UsersFile

__all__ = ["add_to"]

group = typer.Typer(help="Who may sign in at the hub.", no_args_is_help=True, rich_markup_mode=None)

UserArgument = Annotated[str, typer.Argument(metavar="NAME", help="The user's name.")]
UsersOption = Annotated[
    Path | None,
    typer.Option("--users", metavar="FILE", help="The users file; else the configured one."),
]


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="user")


@group.command()
def add(
    name: UserArgument,
    role: Annotated[
        str,
        typer.Option("--role", metavar="ROLE", help="admin, trader, viewer, service, or yours."),
    ],
    account: Annotated[
        str, typer.Option("--account", metavar="ACCOUNT", help="The account in their tokens.")
    ] = "",
    password_file: Annotated[
        Path | None,
        typer.Option(
            "--password-file",
            metavar="FILE",
            help="Its first line is the password; else it is asked for, or read from standard input.",
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="A new password, role and account for a user who is there already."
        ),
    ] = False,
    users: UsersOption = None,
    config: ConfigOption = None,
) -> None:
    """Add a user; the password is asked for, or comes on standard input or in a file."""
    from keepline.clock import SYSTEM_CLOCK

    file = _users_file(users, config)
    password = _password(password_file)
    now = SYSTEM_CLOCK.wall().timestamp()
    user = file.add(name, password, role=role, account=account, now=now, replace=replace)
    say(f"{'replaced' if replace else 'added'}: {user.name}, {user.role}, in {file.path}")
    _note_role(role, config)


@group.command("list")
def list_(users: UsersOption = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show the users, never a password or its hash."""
    from datetime import UTC, datetime

    book = _users_file(users, config).load()
    rows = [
        {
            "name": user.name,
            "role": user.role,
            "account": user.account,
            "disabled": user.disabled,
            "created_at": datetime.fromtimestamp(user.created_at, UTC).isoformat(
                timespec="seconds"
            ),
        }
        for user in book.users.values()
    ]
    if json:
        show_json(rows)
    elif not rows:
        say("there are no users yet; keepline user add NAME --role viewer")
    else:
        show_table(tuple(rows[0]), [tuple(row.values()) for row in rows])


@group.command()
def remove(
    name: UserArgument,
    disable: Annotated[
        bool, typer.Option("--disable", help="Only lock the user out; the name stays taken.")
    ] = False,
    sign_out: Annotated[
        bool,
        typer.Option(
            "--sign-out", help="Only end the user's tokens, also those of another issuer."
        ),
    ] = False,
    users: UsersOption = None,
    config: ConfigOption = None,
) -> None:
    """Remove a user and end their tokens; a running hub closes their connections within seconds."""
    from keepline.clock import SYSTEM_CLOCK
    from keepline.errors import ConfigError

    if disable and sign_out:
        raise ConfigError("give one of --disable, --sign-out")
    file = _users_file(users, config)
    now = SYSTEM_CLOCK.wall().timestamp()
    if sign_out:
        file.revoke(name, now=now)
        say(f"signed out: {name}")
    elif disable:
        file.disable(name, now=now)
        say(f"disabled: {name}")
    else:
        file.remove(name, now=now)
        say(f"removed: {name}")


def _users_file(named: Path | None, config: Path | None) -> "UsersFile":
    from keepline.config import load
    from keepline.daemon.hubdoors import hub_users
    from keepline.hub.users import UsersFile

    return hub_users(load(config, required=False)) if named is None else UsersFile(named)


def _note_role(role: str, config: Path | None) -> None:
    from keepline.config import load
    from keepline.daemon.hubdoors import roles_with_rights

    known = roles_with_rights(load(config, required=False))
    if role not in known:
        say(f"note: {role} has no rights; [hub] rights gives some, or take {', '.join(known)}")


def _password(file: Path | None) -> str:
    import sys

    from keepline.errors import ConfigError
    from keepline.files import read_private

    if file is not None:
        data = read_private(file, on_loose_mode="warn", system=True)
        if data is None:
            raise ConfigError("does not exist; write the password there, mode 600", file=file)
    elif sys.stdin.isatty():
        return _asked()
    else:
        data = sys.stdin.buffer.readline(4096)
    try:
        return data.decode().partition("\n")[0].removesuffix("\r")
    except UnicodeDecodeError:
        raise ConfigError("the password is not UTF-8 text", file=file) from None


def _asked() -> str:
    import getpass

    from keepline.errors import ConfigError

    password = getpass.getpass("password: ")
    if getpass.getpass("again: ") != password:
        raise ConfigError("the two passwords differ: nothing was changed")
    return password
