"""What can be asked of Schwab's streamer, as topics with the silence that each may keep.

Invariants: pure data; a service that nobody knew when this was written cannot be asked for; a key with a comma, which
would be two, is refused.
"""

from keepline.brokers.checks import text
from keepline.brokers.schwab.streamer_fields import (
    ACCOUNT_ACTIVITY,
    BOOKS,
    CHARTS,
    FIELDS,
    LEVEL_ONE,
    all_fields,
)
from keepline.brokers.schwab.streamer_wire import ACTIVITY_KEY, NOTICES, UNREADABLE
from keepline.errors import ConfigError
from keepline.stream.calendar import CME_FUTURES, US_EQUITIES, SessionCalendar
from keepline.stream.port import Policy, Topic

__all__ = [
    "activity_topic",
    "service_of_book",
    "service_of_chart",
    "service_of_quote",
    "topic_of",
    "unasked_topic",
]

_CADENCES = {
    **dict.fromkeys(LEVEL_ONE, 120.0),
    **dict.fromkeys(BOOKS, 120.0),
    **dict.fromkeys(CHARTS, 180.0),
}
"""Seconds of silence that are still normal in a session: a thin share trades less often than a busy one."""

_NEWEST_COUNTS = (*LEVEL_ONE, *BOOKS)


def topic_of(
    service: str, key: str, *, cadence: float | None = None, fields: str | None = None
) -> Topic:
    """A topic of any service.

    Args:
        service: of `streamer_fields.FIELDS`.
        key: a symbol as Schwab writes it; of a screener `PREFIX_SORTFIELD_FREQUENCY`.
        cadence: seconds of silence that are normal in a session; by default what fits the service.
        fields: numbers with commas; all of the service by default.

    Raises:
        ConfigError: there is no such service, or the key is none.
    """
    if service not in FIELDS:
        raise ConfigError(f"is one of {', '.join(FIELDS)}, not {service!r}", key="service")
    text(key, "symbol")
    if "," in key or key != key.strip():
        raise ConfigError(f"is one symbol, not {key!r}", key="symbol")
    policy: Policy = "conflate" if service in _NEWEST_COUNTS else "never"
    seconds = cadence if cadence is not None else _CADENCES.get(service)
    asked = ("SUBS", key, fields or all_fields(service))
    return Topic(service, asked, ("UNSUBS", key), key, policy, seconds, _session_of(service))


def activity_topic() -> Topic:
    """What happens to the orders of the user's accounts: nothing for days when nothing is traded."""
    return topic_of(ACCOUNT_ACTIVITY, ACTIVITY_KEY)


def unasked_topic(channel: str) -> Topic:
    """What comes without asking: `NOTICES` and `UNREADABLE`."""
    if channel not in (NOTICES, UNREADABLE):
        raise ConfigError(f"is {NOTICES} or {UNREADABLE}, not {channel!r}", key="channel")
    return Topic(channel)


def service_of_quote(symbol: str) -> str:
    """Which level-one service has a symbol: `/ESZ26` is a future, `./OZCZ26C565` its option, `EUR/USD` a pair."""
    if symbol.startswith("./"):
        return "LEVELONE_FUTURES_OPTIONS"
    if symbol.startswith("/"):
        return "LEVELONE_FUTURES"
    if len(symbol) == 7 and symbol[3] == "/":
        return "LEVELONE_FOREX"
    if len(symbol) == 21 and symbol[-8:].isdigit():
        return "LEVELONE_OPTIONS"
    return "LEVELONE_EQUITIES"


def service_of_chart(symbol: str) -> str:
    """Which chart service has a symbol."""
    return "CHART_FUTURES" if symbol.startswith("/") else "CHART_EQUITY"


def service_of_book(exchange: str) -> str:
    """Which book an exchange name means: `nasdaq`, `nyse` or `options`.

    Raises:
        ConfigError: there is no such book.
    """
    service = f"{str(exchange).upper()}_BOOK"
    if service not in BOOKS:
        raise ConfigError(f"is nasdaq, nyse or options, not {exchange!r}", key="exchange")
    return service


def _session_of(service: str) -> SessionCalendar | None:
    if "FUTURES" in service:
        return CME_FUTURES
    return None if service in ("LEVELONE_FOREX", ACCOUNT_ACTIVITY) else US_EQUITIES
