"""With which code a connection ends, in one table; the range says whether to come back.

Invariants: 3000-3499 means "come back, with a growing pause", 3500-3999 "do not, a person or a program must change
something first"; codes below 3000 are RFC 6455's and mean what they mean there: a client that was closed normally, or
that sent what is wrong, does not come back, for the same would happen again. From 3000 on a client needs no list, only
the range, so that an old client handles a new code. The numbers 3000, 3003 and 3008, which IANA has given away, are
not used.
"""

from enum import IntEnum

__all__ = ["CLOSE_WORDS", "CloseCode", "comes_back", "may_be_received", "may_be_sent"]


class CloseCode(IntEnum):
    """Every code that the hub sends."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED = 1003
    BAD_DATA = 1007
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL = 1011

    SHUTTING_DOWN = 3001
    TOKEN_EXPIRED = 3002
    SLOW = 3010
    NO_PONG = 3011
    LOST_PLACE = 3012
    FLOODING = 3013
    FAILED = 3014
    TOO_MANY_CONNECTIONS = 3015

    BAD_TOKEN = 3500
    NOT_SIGNED_IN = 3501
    REVOKED = 3502
    TOO_MANY_OFFENCES = 3503
    FORBIDDEN = 3504
    OTHER_USER = 3505


CLOSE_WORDS: dict[CloseCode, str] = {
    CloseCode.NORMAL: "closed as asked",
    CloseCode.GOING_AWAY: "the other side is leaving",
    CloseCode.PROTOCOL_ERROR: "a frame breaks the WebSocket protocol",
    CloseCode.UNSUPPORTED: "binary messages are not understood here; send text",
    CloseCode.BAD_DATA: "a text message is not valid UTF-8, or cannot be inflated",
    CloseCode.POLICY: "a rule of this server was broken",
    CloseCode.TOO_BIG: "a message is larger than the limit",
    CloseCode.INTERNAL: "the server failed",
    CloseCode.SHUTTING_DOWN: "the hub restarts; come back after a random pause",
    CloseCode.TOKEN_EXPIRED: "the token has expired; come back with a newer one",
    CloseCode.SLOW: "the client reads too slowly; come back and resume",
    CloseCode.NO_PONG: "no answer to pings; come back and resume",
    CloseCode.LOST_PLACE: "the hub lost this connection's place; come back and resume",
    CloseCode.FLOODING: "too many messages per second; come back slower",
    CloseCode.FAILED: "the hub failed on this connection; come back and resume",
    CloseCode.TOO_MANY_CONNECTIONS: "too many connections of this user or address; come back later",
    CloseCode.BAD_TOKEN: "the token is not valid; sign in",
    CloseCode.NOT_SIGNED_IN: "no token was presented in time; sign in",
    CloseCode.REVOKED: "the access of this user was withdrawn",
    CloseCode.TOO_MANY_OFFENCES: "too many messages that were not understood; correct the client",
    CloseCode.FORBIDDEN: "this origin or role has no access here",
    CloseCode.OTHER_USER: "the new token is of another user; open a connection of its own",
}
"""What a code means, short enough for the reason of a close frame (123 bytes)."""


_FINAL = frozenset({1000, 1002, 1003, 1007, 1008, 1009, 1010})
"""RFC 6455's codes after which a client does not come back."""


def comes_back(code: int) -> bool:
    """Whether a client that was closed with this code should connect again."""
    if 3000 <= code <= 4999:
        return code % 1000 < 500
    return code not in _FINAL


def may_be_sent(code: int) -> bool:
    """Whether a code may stand in a close frame (RFC 6455 §7.4): 1004-1006 and 1015 never, nor 1016-2999."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


may_be_received = may_be_sent
"""A peer is held to the same list; any other code is answered with 1002."""
