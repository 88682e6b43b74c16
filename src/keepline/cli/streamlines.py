"""What a stream tells as lines: JSON for programs, a time, a name and words for people; and which lines are wanted."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keepline.daemon.watching import Told

__all__ = ["Only", "as_object", "as_words"]

_KINDS = {
    "events": "event",
    "quotes": "quote",
    "trades": "trade",
    "depth": "depth",
    "orders": "order",
    "fills": "fill",
    "positions": "position",
    "accounts": "account",
    "discrepancies": "discrepancy",
    "candles": "candle",
    "activities": "activity",
}
_LEVELS_IN_WORDS = 3


class Only:
    """Which lines are wanted.

    Args:
        words: kinds (`quotes`, `fills`, …) and parts of instruments' names; none wants everything.
    """

    def __init__(self, words: Iterable[str] = ()) -> None:
        lowered = [word.lower() for word in words]
        self._kinds = {_KINDS[word] for word in lowered if word in _KINDS}
        self._instruments = [word for word in lowered if word not in _KINDS]

    def wants(self, told: "Told") -> bool:
        """Whether a line is to be shown; an instrument's name says nothing about what has no instrument."""
        if self._kinds and told.kind not in self._kinds:
            return False
        name = _instrument(told.value).lower()
        return not self._instruments or not name or any(word in name for word in self._instruments)


def as_object(told: "Told") -> dict[str, Any]:
    """The line for programs."""
    import msgspec

    if told.kind == "discrepancy":  # a named tuple
        fields = msgspec.to_builtins(told.value._asdict())
    else:
        fields = msgspec.to_builtins(told.value)
    if "kind" in fields:  # what kind of event, of discrepancy, of activity
        fields = {told.kind: fields.pop("kind"), **fields}
    at = told.at.isoformat(timespec="milliseconds")
    return {"arrived": at, "stream": told.stream, "kind": told.kind, **_without(fields, "stream")}


def as_words(told: "Told") -> str:
    """The line for people."""
    words = f"{told.at:%H:%M:%S}.{told.at.microsecond // 1000:03d}  {told.stream}"
    value = told.value
    if told.kind == "event":
        about = " ".join(word for word in (value.channel, value.key) if word)
        rest = ": ".join(word for word in (about, value.reason) if word)
        return f"{words}  {value.kind.value.upper()}  {rest}".rstrip()
    if told.kind == "depth":
        return f"{words}  depth  {_instrument(value)}  {_levels(value)}"
    if told.kind == "discrepancy":
        return f"{words}  discrepancy  {value}"
    fields = _without(as_object(told), "arrived", "stream", "kind")
    said = (f"{k}={v}" for k, v in fields.items() if v not in (None, "", [], {}))
    return f"{words}  {told.kind}  {' '.join(said)}"


def _instrument(value: Any) -> str:
    for name in ("instrument", "symbol", "key"):
        if isinstance(found := getattr(value, name, ""), str) and found:
            return found
    return ""


def _levels(book: Any) -> str:
    sides = []
    for name, levels in (("bids", book.bids), ("asks", book.asks)):
        shown = " ".join(f"{level.size:g}@{level.price:g}" for level in levels[:_LEVELS_IN_WORDS])
        more = len(levels) - _LEVELS_IN_WORDS
        sides.append(f"{name} {shown or '-'}{f' and {more} more' if more > 0 else ''}")
    return "  ".join(sides)


def _without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}
