"""What is looked at before anything is sent: amounts, prices, texts and moments, each with a sentence that names it.

Invariants: pure functions; what they refuse is a `ConfigError` with the argument's name as its key; no number reaches
the wire other than the caller wrote it.
"""

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from keepline.errors import ConfigError

__all__ = [
    "amount",
    "id_number",
    "moment",
    "neighbours",
    "number",
    "price",
    "seconds",
    "span",
    "text",
    "wire_moment",
    "wire_number",
]

_DIGITS = 15
"""A JSON number is read as a double nearly everywhere; so many digits survive that."""

_LARGEST_ID = 2**63 - 1
_ID_DIGITS = 19
_LONGEST = 28  # zeros at the end included; the default context rounds what is longer


def number(value: object, key: str) -> Decimal:
    """The value as a finite Decimal; a float counts as what it prints.

    Raises:
        ConfigError: a text, a bool, NaN, infinite, or more digits than a JSON number carries, before or behind the
            point.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ConfigError(f"is a number such as Decimal('21000.25'), not {value!r:.80}", key=key)
    # of a float what it prints; an int's digits are not printed, Python refuses to with thousands of them
    found = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if not found.is_finite():
        raise ConfigError(f"is a finite number, not {found}", key=key)
    # no normalize(): it rounds; 1E+999999 has one digit, and a million on the wire
    if found and (
        found.adjusted() >= _DIGITS
        or found.adjusted() < -_DIGITS
        or len(found.as_tuple().digits) > _LONGEST
        or len(found.normalize().as_tuple().digits) > _DIGITS
    ):
        raise ConfigError(f"has more than {_DIGITS} digits: {found:.6g}", key=key)
    return found


def amount(value: object, key: str, *, whole: bool = False) -> Decimal:
    """A quantity above 0.

    Args:
        value: the quantity.
        key: its name.
        whole: contracts and shares that cannot be divided.

    Raises:
        ConfigError: 0, negative, or a fraction of what has none.
    """
    found = number(value, key)
    if found <= 0:
        raise ConfigError(f"is above 0, not {found}", key=key)
    if whole and found != found.to_integral_value():
        raise ConfigError(f"is a whole number, not {found}", key=key)
    return found


def price(
    value: object, key: str, *, tick: Decimal | None = None, above_zero: bool = False
) -> Decimal:
    """A price on the tick.

    Args:
        value: the price.
        key: its name.
        tick: the smallest step, None when it is not known.
        above_zero: refuse a negative one (some futures have traded below zero).

    Raises:
        ConfigError: 0, off the tick, or negative where that cannot be; names the nearest prices that would do.
    """
    found = number(value, key)
    if found == 0 or (above_zero and found < 0):
        raise ConfigError(f"{found} is no price{' above 0' if above_zero else ''}", key=key)
    if beside := neighbours(found, tick, key):
        raise ConfigError(
            f"{found} is off the tick of {tick}; the nearest prices are {beside[0]} and {beside[1]}",
            key=key,
        )
    return found


def neighbours(value: Decimal, tick: Decimal | None, key: str) -> tuple[Decimal, Decimal] | None:
    """The multiples of the tick below and above a price that is none; None when it is one, or the tick is not known.

    Args:
        value: finite.
        tick: None, 0, negative, NaN and infinite are not known.
        key: the price's name.

    Raises:
        ConfigError: so far from the tick's size that nothing can be said of it.
    """
    if tick is None or not tick.is_finite() or tick <= 0:
        return None
    try:
        if not value % tick:
            return None
        below = value // tick * tick  # towards zero, in a Decimal
    except InvalidOperation:
        raise ConfigError(f"{value} is no price at a tick of {tick}", key=key) from None
    if value < 0:
        below -= tick
    return below, below + tick


def wire_number(value: Decimal) -> int | float:
    """The number as JSON carries it: `Decimal("0.1")` goes out as 0.1, a whole one without a point."""
    return int(value) if value == value.to_integral_value() else float(value)


def text(value: object, key: str) -> str:
    """A text that is not empty.

    Raises:
        ConfigError: something else.
    """
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"is a text that is not empty, not {value!r}", key=key)
    return value


def id_number(value: object, key: str) -> int:
    """A broker's id: a whole number above 0 of at most 64 bits, or its digits as a text.

    Raises:
        ConfigError: something else.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _ID_DIGITS:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST_ID:
        beyond = type(value) is int and value > 0
        told = "one beyond 64 bits" if beyond else repr(value)[:80]
        raise ConfigError(f"is a whole number above 0, not {told}", key=key)
    return value


def seconds(value: object, key: str) -> float:
    """A finite number of seconds above 0.

    Raises:
        ConfigError: something else.
    """
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not 0 < value < float("inf"):  # type: ignore[operator]
        raise ConfigError(f"is a number of seconds above 0, not {value!r}", key=key)
    return float(value)  # type: ignore[arg-type]


def moment(value: object, key: str) -> datetime:
    """The moment in UTC.

    Raises:
        ConfigError: no datetime, or one that does not say of which zone it is.
    """
    if not isinstance(value, datetime):
        raise ConfigError(f"is a datetime with a time zone, not {value!r}", key=key)
    if value.tzinfo is None or value.utcoffset() is None:
        raise ConfigError(
            f"{value.isoformat(' ')} says nothing of its time zone; give it one,"
            " for example tzinfo=timezone.utc",
            key=key,
        )
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ConfigError(
            f"{value.isoformat(' ')} is beyond the calendar in UTC", key=key
        ) from None


def span(start: object, end: object) -> tuple[datetime, datetime]:
    """Both ends of a time span in UTC.

    Raises:
        ConfigError: one is no aware datetime, or the end is not after the start.
    """
    begin, finish = moment(start, "start"), moment(end, "end")
    if begin >= finish:
        raise ConfigError(
            f"{finish:%Y-%m-%d %H:%M:%S} UTC is not after the start, {begin:%Y-%m-%d %H:%M:%S} UTC",
            key="end",
        )
    return begin, finish


def wire_moment(instant: datetime) -> str:
    """A UTC moment with milliseconds and a Z that is true."""
    return f"{instant.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"
