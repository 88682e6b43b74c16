"""What each table of the configuration is made of: a strict section, a secret, and kinds of values in words."""

from datetime import datetime
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

__all__ = [
    "Count",
    "Delay",
    "Moment",
    "Number",
    "Port",
    "Seconds",
    "Secret",
    "Section",
    "Share",
    "Text",
]

Seconds = Annotated[float, Meta(gt=0, description="a number of seconds above 0")]
Delay = Annotated[float, Meta(ge=0, description="a number of seconds, 0 or more")]
Count = Annotated[int, Meta(ge=1, description="a whole number, 1 or more")]
Number = Annotated[int, Meta(ge=0, description="a whole number, 0 or more")]
Port = Annotated[int, Meta(ge=0, le=65535, description="a port from 0 to 65535")]
Share = Annotated[float, Meta(gt=0, lt=1, description="a number above 0 and below 1")]
Text = Annotated[str, Meta(min_length=1, description="a text that is not empty")]
Moment = Annotated[datetime, Meta(tz=True, description="a date and time with an offset")]


class Secret:
    """A text that shows itself only when asked by name."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "[secret]"


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file; `short` names the one key that a bare string stands for."""

    short: ClassVar[str] = ""
