"""`keepline init`, `config check|show|path`, `version`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from keepline.cli.options import ConfigOption, JsonOption
from keepline.cli.output import say, show_fields, show_json, write

__all__ = ["add_to"]

group = typer.Typer(
    help="Check, show or locate the configuration.", no_args_is_help=True, rich_markup_mode=None
)


class Place(StrEnum):
    """What `config path` knows."""

    socket = "socket"
    daemon = "daemon"
    runtime = "runtime"
    config = "config"
    data = "data"


def add_to(app: typer.Typer) -> None:
    app.command()(init)
    app.add_typer(group, name="config")
    app.command()(version)


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="Where to write it.")] = Path(
        "keepline.toml"
    ),
) -> None:
    """Write a commented configuration; never over an existing one."""
    from keepline.config.template import write_template

    write_template(file)
    say(f"wrote {file}; edit it, then run `keepline doctor`")


@group.command()
def check(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Say whether the configuration is right, down to the files that it names."""
    from keepline.config import load
    from keepline.daemon.compose import check_settings

    settings = load(config)
    check_settings(settings)
    counts = {"credentials": list(settings.credentials), "relay": list(settings.relay)}
    if json:
        show_json({"ok": True, "file": settings.file, **counts})
    else:
        named = "; ".join(f"{what}: {', '.join(names) or 'none'}" for what, names in counts.items())
        write(f"{settings.file or 'environment'}: ok; {named}")


@group.command()
def show(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Print the settings in effect, defaults and environment included, secrets hidden."""
    from keepline.config import load
    from keepline.config.template import as_toml

    shown = load(config).show()
    if json:
        show_json(shown)
    else:
        write(as_toml(shown))


@group.command()
def path(
    place: Annotated[Place | None, typer.Argument(help="One of them, bare.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Print where things are: the bot's socket, the daemon's, runtime and data directory, configuration."""
    from keepline.config import find
    from keepline.files import runtime_directory
    from keepline.relay.address import default_socket_path

    found = find(config)
    base = Path.cwd() if found is None else found.absolute().parent
    places = {
        Place.socket: default_socket_path(),
        Place.daemon: runtime_directory() / "daemon.sock",
        Place.runtime: runtime_directory(),
        Place.config: "" if found is None else found.absolute(),
        Place.data: base / "data",
    }
    if place is not None and not json:
        write(str(places[place]))
    elif json:
        show_json({p.value: str(where) for p, where in places.items() if place in (None, p)})
    else:
        show_fields({p.value: where for p, where in places.items()})


def version(json: JsonOption = False) -> None:
    """Print the version."""
    import platform

    import keepline

    if json:
        show_json({"version": keepline.__version__, "python": platform.python_version()})
    else:
        write(f"keepline {keepline.__version__} (Python {platform.python_version()})")
