"""What a client may be told is wrong, in one table of codes and words.

Invariants: a code never changes its meaning; an offence is a value, because nothing that a peer sends raises.
"""

from enum import StrEnum

import msgspec

__all__ = ["ERROR_WORDS", "ErrorCode", "Offence"]


class ErrorCode(StrEnum):
    """The codes of `error` messages."""

    BAD_JSON = "bad_json"
    NOT_AN_OBJECT = "not_an_object"
    UNKNOWN_ACTION = "unknown_action"
    BAD_REQUEST = "bad_request"
    BINARY = "binary"
    TOO_LARGE = "too_large"
    BAD_CHANNEL = "bad_channel"
    UNKNOWN_CHANNEL = "unknown_channel"
    TOO_MANY_CHANNELS = "too_many_channels"
    NOT_SUBSCRIBED = "not_subscribed"
    BAD_RESUME = "bad_resume"
    BAD_RATE = "bad_rate"
    RATE_LIMITED = "rate_limited"
    FORBIDDEN = "forbidden"
    BAD_TOKEN = "bad_token"  # noqa: S105 - the name of an error
    OTHER_USER = "other_user"
    BAD_DATA = "bad_data"
    UNAVAILABLE = "unavailable"


ERROR_WORDS: dict[ErrorCode, str] = {
    ErrorCode.BAD_JSON: "the message is not JSON",
    ErrorCode.NOT_AN_OBJECT: 'the message is not a JSON object; send {"action": ...}',
    ErrorCode.UNKNOWN_ACTION: "the action is not known; known are subscribe, unsubscribe, refresh, rate, ping",
    ErrorCode.BAD_REQUEST: "a field of the message has the wrong type or is missing",
    ErrorCode.BINARY: "binary messages are not understood here; send text",
    ErrorCode.TOO_LARGE: "the message is larger than the limit",
    ErrorCode.BAD_CHANNEL: "channels is a list of names, each a text of 1 to 255 characters",
    ErrorCode.UNKNOWN_CHANNEL: "there is no channel of this name; GET /api/channels lists them",
    ErrorCode.TOO_MANY_CHANNELS: "more channels than one connection may have",
    ErrorCode.NOT_SUBSCRIBED: "this connection is not subscribed to the channel",
    ErrorCode.BAD_RESUME: 'resume maps subscribed channels to {"epoch": text, "offset": whole number from 0 up}',
    ErrorCode.BAD_RATE: "rate is a number of frames per second from 0.1 to 1000, or null for the default",
    ErrorCode.RATE_LIMITED: "too many messages per second; this one was ignored",
    ErrorCode.FORBIDDEN: "this role may not do that",
    ErrorCode.BAD_TOKEN: "the token is not valid",
    ErrorCode.OTHER_USER: "the new token is of another user",
    ErrorCode.BAD_DATA: "the data is not JSON that every reader understands (NaN and Infinity are not)",
    ErrorCode.UNAVAILABLE: "the hub cannot do that just now; try again",
}
"""What a code means, to a person."""


class Offence(msgspec.Struct, frozen=True):
    """Something that a client may not do, to be answered with an `error` message.

    Attributes:
        code: which of the table.
        words: what, where and what to do.
        channel: which channel it concerns, None when none.
        id: the client's own id of the request, None when it gave none or it could not be read.
    """

    code: ErrorCode
    words: str
    channel: str | None = None
    id: str | int | None = None

    @classmethod
    def of(
        cls,
        code: ErrorCode,
        detail: str = "",
        *,
        channel: str | None = None,
        id: str | int | None = None,
    ) -> "Offence":
        """An offence in the table's words, with a detail behind them."""
        words = ERROR_WORDS[code] + (f": {detail}" if detail else "")
        return cls(code, words, channel, id)
