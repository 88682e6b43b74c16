"""What the messages of all brokers share: values that grow with the broker, moments that are always aware.

Invariants: a value of an enum that nobody knew when this was written is kept, not refused; a moment without an offset
is UTC; an amount is a finite number; field names are ours, the wire's are derived.
"""

from datetime import UTC
from decimal import Decimal
from enum import IntEnum, StrEnum
from functools import cache
from typing import ClassVar, Self

from msgspec import Struct, structs
from msgspec.structs import force_setattr

_LARGEST_EXPONENT = (
    30  # beyond every price and every balance; sums of what is larger are no longer exact
)

__all__ = ["Message", "OpenIntEnum", "OpenStrEnum"]


class OpenIntEnum(IntEnum):
    """Numbers with names; one without a name is kept: `OrderStatus(42).name` is `UNKNOWN_42`."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, int) or isinstance(value, bool):
            return None
        kept = int.__new__(cls, value)
        kept._name_, kept._value_ = f"UNKNOWN_{value}", value
        return kept

    @property
    def is_known(self) -> bool:
        """Whether the number has a name here."""
        return self._value_ in type(self)._value2member_map_


class OpenStrEnum(StrEnum):
    """Words; one that is not in the list is kept: `OrderStatus("NEW_WORD").name` is `NEW_WORD`."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        kept = str.__new__(cls, value)
        kept._name_, kept._value_ = value, value
        return kept

    @property
    def is_known(self) -> bool:
        """Whether the word is in the list."""
        return self._value_ in type(self)._value2member_map_


class Message(Struct, frozen=True, kw_only=True, rename="camel", repr_omit_defaults=True):
    """A part of an answer: unknown fields are passed over, `moments` names the fields that hold instants."""

    moments: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in self.moments:
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                force_setattr(self, name, moment.replace(tzinfo=UTC))
        for name in _amounts(type(self)):
            amount = getattr(self, name)
            if amount is not None and not (
                amount.is_finite() and amount.adjusted() <= _LARGEST_EXPONENT
            ):
                # a text such as "NaN" is a Decimal to the decoder
                raise ValueError(f"{name} is no amount: {str(amount)[:40]}")


@cache
def _amounts(kind: type[Struct]) -> tuple[str, ...]:
    """The names of the fields that may hold a Decimal."""
    found = structs.fields(kind)
    return tuple(f.name for f in found if f.type in (Decimal, Decimal | None))
