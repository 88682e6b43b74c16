"""Where a request carries its token: the Authorization field, the WebSocket subprotocols, or the query.

Invariants: at most one token counts; the same text given in several ways is one token, two different ones are refused;
the answer to the subprotocols is the protocol's name and never the token.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

from keepline.hub.refusals import Refusal, RefusalCode, refuse

__all__ = ["LONGEST_TOKEN", "SUBPROTOCOL", "Presented", "Way", "chosen_subprotocol", "presented"]

SUBPROTOCOL = "keepline.v1"
"""What a client offers and the hub answers."""

LONGEST_TOKEN = 8192
"""Characters; a longer one is refused unread."""

_BEARER = "bearer."
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


class Way(StrEnum):
    """How a token came; in the order of precedence."""

    AUTHORIZATION = "authorization"
    SUBPROTOCOL = "subprotocol"
    QUERY = "query"


class Presented(Struct, frozen=True):
    """A token as it was presented.

    Attributes:
        token: the text, not verified.
        way: the first of the ways in which it came.
    """

    token: str
    way: Way

    def __repr__(self) -> str:
        return f"<Presented by {self.way}>"


def presented(
    *,
    authorization: Sequence[str] = (),
    protocols: Sequence[str] = (),
    query: Sequence[str] = (),
) -> Presented | Refusal:
    """The one token of a request.

    Args:
        authorization: every `Authorization` field; another scheme than Bearer is not ours and does not count.
        protocols: every `Sec-WebSocket-Protocol` field, each a list with commas.
        query: every `token` parameter of the query, decoded.

    Returns:
        The token; `no_token` when there is none, `conflicting_tokens` when there are two different ones, `bad_token`
        when it is too long or has not the form of one.
    """
    found = [(text, Way.AUTHORIZATION) for text in _bearers(authorization)]
    offered = _offered(protocols)
    found += [
        (text[len(_BEARER) :], Way.SUBPROTOCOL) for text in offered if text.startswith(_BEARER)
    ]
    found += [(text, Way.QUERY) for text in query]
    if not found:
        return refuse(RefusalCode.NO_TOKEN)
    if len({text for text, _ in found}) > 1:
        return refuse(RefusalCode.CONFLICTING_TOKENS)
    token, way = found[0]
    if len(token) > LONGEST_TOKEN or not _TOKEN.fullmatch(token):
        return refuse(RefusalCode.BAD_TOKEN)
    return Presented(token, way)


def chosen_subprotocol(protocols: Sequence[str]) -> str | None:
    """What to answer to the offered subprotocols: ours when it was offered, else none."""
    return SUBPROTOCOL if SUBPROTOCOL in _offered(protocols) else None


def _bearers(fields: Sequence[str]) -> list[str]:
    split = [field.strip().partition(" ") for field in fields]
    return [rest.strip() for scheme, _, rest in split if scheme.lower() == "bearer"]


def _offered(fields: Sequence[str]) -> list[str]:
    return [item.strip() for field in fields for item in field.split(",") if item.strip()]
