"""The options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ConfigOption", "JsonOption", "NameArgument", "OptionalName"]

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration; else KEEPLINE_CONFIG, ./keepline.toml, the user's.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The credential, as in [credentials.NAME].")
]
OptionalName = Annotated[
    str,
    typer.Argument(
        metavar="[NAME]",
        help="The credential; not needed when there is only one.",
        show_default=False,
    ),
]
