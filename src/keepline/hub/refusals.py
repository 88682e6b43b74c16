"""Every no of the hub's doors as a value: a code for programs, words for people, never a secret.

Invariants: each code has one HTTP status and says whether coming back may help; words are ours alone, so nothing that a
stranger sent is repeated to others or to the log.
"""

from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

__all__ = ["Refusal", "RefusalCode", "refuse"]


class RefusalCode(StrEnum):
    """Why not; the values are public and stay."""

    NO_TOKEN = "no_token"  # noqa: S105
    CONFLICTING_TOKENS = "conflicting_tokens"
    BAD_TOKEN = "bad_token"  # noqa: S105
    BAD_ALGORITHM = "bad_algorithm"
    BAD_SIGNATURE = "bad_signature"
    BAD_CLAIMS = "bad_claims"
    BAD_ISSUER = "bad_issuer"
    BAD_AUDIENCE = "bad_audience"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    UNKNOWN_KEY = "unknown_key"
    KEYS_UNAVAILABLE = "keys_unavailable"
    REVOKED = "revoked"
    OTHER_USER = "other_user"
    FORBIDDEN = "forbidden"
    BAD_CHANNEL = "bad_channel"
    BAD_ORIGIN = "bad_origin"
    BAD_HOST = "bad_host"
    BAD_CREDENTIALS = "bad_credentials"
    THROTTLED = "throttled"
    BUSY = "busy"


class _Meaning(NamedTuple):
    status: int
    words: str
    come_back: bool = False


_MEANINGS = {
    RefusalCode.NO_TOKEN: _Meaning(401, "a token is needed: sign in with POST /login"),
    RefusalCode.CONFLICTING_TOKENS: _Meaning(400, "more than one token was given: give one"),
    RefusalCode.BAD_TOKEN: _Meaning(401, "this is not a token that can be read"),
    RefusalCode.BAD_ALGORITHM: _Meaning(401, "tokens signed in this way are not accepted here"),
    RefusalCode.BAD_SIGNATURE: _Meaning(401, "the token's signature does not hold"),
    RefusalCode.BAD_CLAIMS: _Meaning(401, "the token lacks a claim or one has the wrong form"),
    RefusalCode.BAD_ISSUER: _Meaning(401, "the token's issuer is not trusted here"),
    RefusalCode.BAD_AUDIENCE: _Meaning(401, "the token is meant for somebody else"),
    RefusalCode.EXPIRED: _Meaning(401, "the token has expired: get a new one", True),
    RefusalCode.NOT_YET_VALID: _Meaning(
        401, "the token is from the future: compare the clocks of issuer and hub", True
    ),
    RefusalCode.UNKNOWN_KEY: _Meaning(401, "the token is signed with a key that is not known here"),
    RefusalCode.KEYS_UNAVAILABLE: _Meaning(
        503, "the issuer's keys cannot be had just now: try again in a moment", True
    ),
    RefusalCode.REVOKED: _Meaning(401, "the token is no longer valid: sign in again"),
    RefusalCode.OTHER_USER: _Meaning(
        403, "a refresh must be for the same user: open a new connection for another"
    ),
    RefusalCode.FORBIDDEN: _Meaning(403, "your role does not allow this"),
    RefusalCode.BAD_CHANNEL: _Meaning(
        400, "a channel's name is 1 to 64 of a-z, 0-9 and dashes, a letter or digit first"
    ),
    RefusalCode.BAD_ORIGIN: _Meaning(
        403, "pages of this origin may not connect: it is not in allowed_origins"
    ),
    RefusalCode.BAD_HOST: _Meaning(
        421, "this hub does not go by that name: it is not in allowed_hosts"
    ),
    RefusalCode.BAD_CREDENTIALS: _Meaning(401, "user name or password is wrong"),
    RefusalCode.THROTTLED: _Meaning(429, "too many failed sign-ins: wait before the next", True),
    RefusalCode.BUSY: _Meaning(429, "too many sign-ins at once: try again in a moment", True),
}


class Refusal(Struct, frozen=True):
    """A no.

    Attributes:
        code: why, for programs.
        words: why, for people; holds nothing secret and nothing that the peer sent.
        retry_after: seconds until a new try makes sense, None when time alone does not help.
    """

    code: RefusalCode
    words: str
    retry_after: float | None = None

    @property
    def status(self) -> int:
        """The HTTP status that says the same."""
        return _MEANINGS[self.code].status

    @property
    def come_back(self) -> bool:
        """Whether a client should try again, with a new token or later; else trying again is pointless."""
        return _MEANINGS[self.code].come_back


def refuse(code: RefusalCode, words: str = "", *, retry_after: float | None = None) -> Refusal:
    """A refusal in the code's usual words, or in better ones."""
    return Refusal(code, words or _MEANINGS[code].words, retry_after)
