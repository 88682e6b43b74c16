"""What clients say: JSON text to typed requests, or to an offence in words.

Invariants: nothing that a client sends raises; what is understood is decoded once; the way of finding out what is wrong
is taken only when something is.
"""

from typing import Annotated, Any, TypeAlias

import msgspec

from keepline.hub.offences import ErrorCode, Offence

__all__ = [
    "Ping",
    "Position",
    "Rate",
    "Refresh",
    "Request",
    "Subscribe",
    "Unsubscribe",
    "parse",
]

MOST_LISTED = 1000
"""Channels in one request: more are refused before they are looked at one by one."""

Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Names: TypeAlias = Annotated[list[Name], msgspec.Meta(max_length=MOST_LISTED)]
Id: TypeAlias = Annotated[str, msgspec.Meta(max_length=64)] | int | None
Token: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]


class Position(msgspec.Struct, frozen=True):
    """The last message of a channel that a client has seen."""

    epoch: Annotated[str, msgspec.Meta(max_length=64)]
    offset: Annotated[int, msgspec.Meta(ge=0)]


class Subscribe(msgspec.Struct, frozen=True, tag_field="action", tag="subscribe"):
    """Wants channels; `resume` says where it left off, by channel."""

    channels: Names
    resume: dict[Name, Position] = {}
    id: Id = None


class Unsubscribe(msgspec.Struct, frozen=True, tag_field="action", tag="unsubscribe"):
    """Wants these channels no more."""

    channels: Names
    id: Id = None


class Refresh(msgspec.Struct, frozen=True, tag_field="action", tag="refresh"):
    """Presents a newer token of the same user on the same connection."""

    token: Token
    id: Id = None


class Rate(msgspec.Struct, frozen=True, tag_field="action", tag="rate"):
    """Wants at most this many frames per second; null for the hub's own pace."""

    rate: Annotated[float, msgspec.Meta(ge=0.1, le=1000)] | None
    id: Id = None


class Ping(msgspec.Struct, frozen=True, tag_field="action", tag="ping"):
    """Wants a `pong`: browsers have no other way to notice a dead link."""

    id: Id = None


Request: TypeAlias = Subscribe | Unsubscribe | Refresh | Rate | Ping

_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_KINDS: dict[str, Any] = {
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "refresh": Refresh,
    "rate": Rate,
    "ping": Ping,
}
_BLAME = {"channels": ErrorCode.BAD_CHANNEL, "resume": ErrorCode.BAD_RESUME, "rate": ErrorCode.BAD_RATE,
          "token": ErrorCode.BAD_TOKEN}  # fmt: skip


def parse(text: bytes | str) -> Request | Offence:
    """The request in a text message."""
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError as error:
        return _complaint(text, str(error))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Offence.of(ErrorCode.BAD_JSON, str(error)[:200])


def _complaint(text: bytes | str, why: str) -> Offence:
    try:
        whole = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Offence.of(ErrorCode.BAD_JSON)
    if not isinstance(whole, dict):
        return Offence.of(ErrorCode.NOT_AN_OBJECT)
    own = whole.get("id")
    own = own if isinstance(own, (str, int)) and len(str(own)) <= 64 else None
    action = whole.get("action")
    if not isinstance(action, str) or action not in _KINDS:
        return Offence.of(ErrorCode.UNKNOWN_ACTION, id=own)
    channels = whole.get("channels")
    if isinstance(channels, list) and len(channels) > MOST_LISTED:
        return Offence.of(ErrorCode.TOO_MANY_CHANNELS, f"{len(channels)} in one request", id=own)
    for field, code in _BLAME.items():
        if f"`$.{field}" in why or f"field `{field}`" in why:
            return Offence.of(code, id=own)
    return Offence.of(ErrorCode.BAD_REQUEST, why, id=own)
