"""Which types the values of calls, results and items have, so that they are decoded once, straight into them.

Invariants: target names are compared without regard to case; an entry that msgspec cannot decode is refused when it
is made, never when a message arrives; what was derived from the targets is forgotten as soon as one changes.
"""

import weakref
from typing import Any

import msgspec

from keepline.errors import ConfigError

__all__ = ["Types", "misfit"]


class Types:
    """A table of expected types; the same one serves any number of decoders."""

    __slots__ = ("_derived", "_results", "_targets")

    def __init__(self) -> None:
        self._targets: dict[str, tuple[Any, ...]] = {}
        self._results: dict[str, Any] = {}
        self._derived: weakref.WeakSet[_Derived] = weakref.WeakSet()

    def expect(self, target: str, *argument_types: Any) -> None:
        """Decode the arguments of a target into these types, one for each; a call with another number of them fails.

        Args:
            target: the method's name in any case.
            argument_types: what msgspec can decode: `str`, `float`, a Struct, `list[Struct]`, `Any`, …; an earlier
                entry for the target is replaced.

        Raises:
            ConfigError: msgspec cannot decode one of the types.
        """
        for kind in argument_types:
            _check(kind, f"an argument of {target!r}")
        self._targets[target.lower()] = argument_types
        self.changed()

    def copy(self) -> "Types":
        """The same targets in a table of its own; ids of results belong to one connection and stay behind."""
        table = Types()
        table._targets = dict(self._targets)
        return table

    def forget(self, target: str) -> None:
        """Decode a target's arguments as plain values again; unknown targets are left alone."""
        if self._targets.pop(target.lower(), None) is not None:
            self.changed()

    def derived(self) -> dict[Any, Any]:
        """An empty dictionary for what is worked out from the targets; each change of them empties it again."""
        derived = _Derived()
        self._derived.add(derived)
        return derived

    def changed(self) -> None:
        """Forget what was derived: a target changed here, or what is done with it elsewhere."""
        for derived in self._derived:
            derived.clear()

    def arguments(self, target: str) -> tuple[Any, ...] | None:
        """The expected types of a target's arguments, None for plain values."""
        return self._targets.get(target.lower())

    def expect_result(self, call_id: str, result_type: Any) -> None:
        """Decode the result, or each item, that arrives under an id into this type.

        Raises:
            ConfigError: msgspec cannot decode the type.
        """
        if result_type is not Any:
            _check(result_type, "a result")
            self._results[call_id] = result_type

    def forget_result(self, call_id: str) -> None:
        """The call or stream is over; unknown ids are left alone."""
        self._results.pop(call_id, None)

    def result(self, call_id: str) -> Any:
        """The expected type under an id, `Any` for plain values."""
        return self._results.get(call_id, Any)


class _Derived(dict[Any, Any]):
    __slots__ = ("__weakref__",)
    __hash__ = object.__hash__  # type: ignore[assignment] # one among others, whatever it holds


def misfit(expected: tuple[Any, ...] | None, given: int, error: Exception) -> str:
    """Why arguments do not fit: their number when that differs from the expected one, else the decoder's words."""
    if expected is None:
        return f"the arguments cannot be read: {error}"
    if given != len(expected):
        return f"{given} argument(s) arrived where {len(expected)} are expected"
    return f"an argument has another type than expected: {error}"


def _check(kind: Any, what: str) -> None:
    try:
        msgspec.json.Decoder(kind)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what} cannot be decoded into {kind!r}: {error}") from error
