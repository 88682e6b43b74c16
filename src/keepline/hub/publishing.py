"""The words of `POST /api/publish` for both of its ends: lines of JSON, the answer, keys that make a repeat harmless.

Invariants: a decider; a message is one line; a bad line costs that line alone; the answer to a key is given again, word
for word, for as long as it is kept, and never to another user or another body.
"""

import enum
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec

from keepline.errors import ConfigError, ProtocolError

__all__ = [
    "IDEMPOTENCY_SECONDS",
    "LONGEST_WORD",
    "Answered",
    "Begin",
    "Draft",
    "Flaw",
    "Idempotency",
    "answer_body",
    "encode_draft",
    "read_answer",
    "read_drafts",
    "read_no",
]

LONGEST_WORD = 128
"""Characters of a channel, a type, a key, an id and an idempotency key."""
IDEMPOTENCY_SECONDS = 300.0
"""For how long a hub gives the same answer to the same key."""
_LONGEST_WORDS = 300

Word = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_WORD)]


class Draft(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A message as a publisher writes it.

    Attributes:
        channel: where to.
        type: what it is.
        data: its JSON.
        key: what it is about, on a channel that keeps the newest per key.
        id: by what it is recognised when it comes again.
    """

    channel: Word
    type: Word
    data: msgspec.Raw
    key: Word | None = None
    id: Word | None = None


class Flaw(NamedTuple):
    """A line that was not published.

    Attributes:
        line: its number, from 1.
        code: for programs: `bad_json`, `bad_message`, `too_many_lines`, or one of the hub's own.
        message: for people, without what the line held.
    """

    line: int
    code: str
    message: str


class Answered(NamedTuple):
    """What became of a request.

    Attributes:
        accepted: lines that are published (stored, on a channel that drops nothing).
        duplicates: lines among them whose id was known: they were not published again.
        refused: the others.
    """

    accepted: int
    duplicates: int = 0
    refused: Sequence[Flaw] = ()


def encode_draft(
    channel: str,
    type: str,
    data: bytes,
    *,
    key: str | None = None,
    id: str | None = None,
) -> bytes:
    """One line, without its newline.

    Args:
        channel: where to.
        type: what it is.
        data: its JSON text.
        key: what it is about.
        id: by what it is recognised when it comes again.

    Raises:
        ConfigError: a word is none, or longer than 128 characters.
    """
    for name, word in (("channel", channel), ("type", type), ("key", key), ("id", id)):
        if word is not None or name in ("channel", "type"):
            _check_word(name, word)
    draft = Draft(channel, type, msgspec.Raw(data), key, id)
    try:
        return msgspec.json.encode(draft)
    except UnicodeEncodeError:
        raise ConfigError("half of a surrogate pair is no text", key="message") from None


def read_drafts(
    body: bytes, *, lines: bool = True, most: int = 1000
) -> tuple[list[tuple[int, Draft]], list[Flaw]]:
    """The messages of a request with their line numbers, and what is wrong with the other lines.

    Args:
        body: one JSON object per line; empty lines are skipped.
        lines: False takes the whole body for one object, however it is broken into lines.
        most: a body with more messages is refused whole.
    """
    parts = body.split(b"\n") if lines else [body]
    numbered = [(number, part) for number, part in enumerate(parts, 1) if part.strip()]
    if len(numbered) > most:
        words = f"at most {most} messages in one request, not {len(numbered)}"
        return [], [Flaw(numbered[most][0], "too_many_lines", words)]
    good: list[tuple[int, Draft]] = []
    bad: list[Flaw] = []
    for number, part in numbered:
        read = _read_draft(number, part)
        if isinstance(read, Flaw):
            bad.append(read)
        else:
            good.append((number, read))
    return good, bad


def answer_body(answered: Answered) -> bytes:
    """The JSON text of an answer."""
    refused = [flaw._asdict() for flaw in answered.refused]
    return msgspec.json.encode(
        {"accepted": answered.accepted, "duplicates": answered.duplicates, "refused": refused}
    )


class _Refusal(msgspec.Struct):
    line: int
    code: str = ""
    message: str = ""


class _Body(msgspec.Struct):
    accepted: int
    duplicates: int = 0
    refused: list[_Refusal] = []


def read_answer(body: bytes) -> Answered:
    """What a hub answered.

    Raises:
        ProtocolError: it is not a hub's answer.
    """
    try:
        told = msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProtocolError("the answer is not a hub's: look at the address") from None
    refused = [Flaw(each.line, each.code, each.message) for each in told.refused]
    return Answered(told.accepted, told.duplicates, refused)


class _No(msgspec.Struct):
    error: str
    message: str


def read_no(status: int, body: bytes) -> Flaw:
    """Why a hub refused a request whole, in its own words; in ours when it is no hub that answered.

    Args:
        status: the HTTP status.
        body: of the answer.
    """
    try:
        told = msgspec.json.decode(body, type=_No)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Flaw(1, f"status_{status}", "it was refused")
    message = "".join(each for each in told.message if each.isprintable())
    return Flaw(1, told.error[:LONGEST_WORD], message[:_LONGEST_WORDS])


class Begin(enum.Enum):
    """What a key says about a request that comes in."""

    NEW = "new"
    RUNNING = "running"
    MISMATCH = "mismatch"


class _Known:
    __slots__ = ("answer", "at", "digest")

    def __init__(self, digest: bytes, at: float) -> None:
        self.digest = digest
        self.at = at
        self.answer: bytes | None = None


class Idempotency:
    """Which requests were answered already.

    Args:
        capacity: keys kept; the oldest leaves when there is one more.
        lifetime_seconds: for how long a key is kept.
    """

    def __init__(
        self, *, capacity: int = 10_000, lifetime_seconds: float = IDEMPOTENCY_SECONDS
    ) -> None:
        if capacity < 1 or not lifetime_seconds > 0:
            raise ConfigError("at least one key must be kept for a positive time", key="capacity")
        self._capacity = capacity
        self._lifetime = lifetime_seconds
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()

    def begin(self, user: str, key: str, digest: bytes, now: float) -> "Begin | bytes":
        """Ask before a request is worked on.

        Args:
            user: whose key it is.
            key: as the request names it.
            digest: of the request's body.
            now: seconds on a clock that only moves forward.

        Returns:
            NEW: work on it, then `finish` or `forget`; RUNNING: it is being worked on; MISMATCH: the key belongs to
            another body; bytes: the answer that was given, to give again.
        """
        self._expire(now)
        known = self._known.get((user, key))
        if known is None:
            self._known[user, key] = _Known(digest, now)
            if len(self._known) > self._capacity:
                self._known.popitem(last=False)
            return Begin.NEW
        if known.digest != digest:
            return Begin.MISMATCH
        return Begin.RUNNING if known.answer is None else known.answer

    def finish(self, user: str, key: str, answer: bytes) -> None:
        """Keep the answer for a request that comes again."""
        known = self._known.get((user, key))
        if known is not None:
            known.answer = answer

    def forget(self, user: str, key: str) -> None:
        """The request failed and nothing of it was published: the key is free again."""
        self._known.pop((user, key), None)

    def _expire(self, now: float) -> None:
        while self._known:
            oldest = next(iter(self._known.values()))
            if oldest.at + self._lifetime > now:
                return
            self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return f"<Idempotency {len(self._known)} of {self._capacity} keys>"


def _read_draft(number: int, line: bytes) -> Draft | Flaw:
    try:
        line.decode()  # msgspec looks into no text of a Raw, and no frame may carry what is not UTF-8
        return msgspec.json.decode(line, type=Draft)
    except msgspec.ValidationError as error:
        return Flaw(number, "bad_message", str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Flaw(number, "bad_json", "this line is not a JSON object")


def _check_word(name: str, word: object) -> None:
    if not isinstance(word, str) or not 0 < len(word) <= LONGEST_WORD:
        raise ConfigError(f"a text of 1 to {LONGEST_WORD} characters is needed", key=name)
