"""The desk's four messages as they go over the wire: camelCase, plain numbers, checked.

Invariants: a decider; a value that is no finite number, or a word that is not in its table, is a `ConfigError` that
names the argument; what came as Decimal leaves as a number.
"""

import enum
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from keepline.desk.risk import risk_level, utilization_pct
from keepline.errors import ConfigError

__all__ = [
    "DECISIONS",
    "PROVIDER_STATES",
    "SEVERITIES",
    "SIDES",
    "alert",
    "exposure_change",
    "provider_metrics",
    "routing_decision",
]

DECISIONS = ("ABOOK", "BBOOK", "HYBRID", "PARTIAL_HEDGE", "REJECT")
PROVIDER_STATES = ("connected", "degraded", "disconnected")
SEVERITIES = ("info", "warning", "error", "critical")
SIDES = ("buy", "sell")
MOST_ITEMS = 1000
"""Rows of one table in a message."""
LONGEST_TEXT = 10_000
_DEEPEST = 8

Data = dict[str, Any]


def routing_decision(
    symbol: object,
    side: object,
    volume: object,
    decision: object,
    lp: object,
    execution_time_ms: object,
    spread: object,
    slippage: object,
) -> Data:
    """The data of a `routing-decision`."""
    return {
        "symbol": _text(symbol, "symbol"),
        "side": _word(side, SIDES, "side"),
        "volume": _number(volume, "volume", least=0.0),
        "routingDecision": _word(decision, DECISIONS, "decision"),
        "lpSelected": None if lp is None else _text(lp, "lp", empty=True) or None,
        "executionTimeMs": _maybe(execution_time_ms, "execution_time_ms", least=0.0),
        "spread": _maybe(spread, "spread"),
        "slippage": _maybe(slippage, "slippage"),
    }


def provider_metrics(
    name: object,
    status: object,
    avg_spread: object,
    execution_quality: object,
    latency_ms: object,
    quotes_per_second: object,
    reject_rate: object,
    uptime: object,
) -> Data:
    """The data of `lp-metrics`."""
    return {
        "lpName": _text(name, "name"),
        "status": _word(status, PROVIDER_STATES, "status"),
        "avgSpread": _maybe(avg_spread, "avg_spread"),
        "executionQuality": _maybe(execution_quality, "execution_quality"),
        "latencyMs": _maybe(latency_ms, "latency_ms", least=0.0),
        "quotesPerSecond": _maybe(quotes_per_second, "quotes_per_second", least=0.0),
        "rejectRate": _maybe(reject_rate, "reject_rate", least=0.0),
        "uptime": _maybe(uptime, "uptime", least=0.0),
    }


def exposure_change(
    total: object, net: object, limit: object, by_symbol: object, by_lp: object
) -> Data:
    """The data of an `exposure-change`, with what it uses of the limit and how risky that is."""
    total_number = _number(total, "total")
    net_number = _number(net, "net")
    limit_number = _maybe(limit, "limit", least=0.0)
    return {
        "totalExposure": total_number,
        "netExposure": net_number,
        "exposureLimit": limit_number,
        "utilizationPct": utilization_pct(net_number, limit_number),
        "riskLevel": risk_level(net_number, limit_number).value,
        "bySymbol": _table(by_symbol, "by_symbol"),
        "byLP": _table(by_lp, "by_lp"),
    }


def alert(
    severity: object,
    category: object,
    title: object,
    message: object,
    source: object,
    action_items: object,
) -> Data:
    """The data of an `alert`."""
    return {
        "severity": _word(severity, SEVERITIES, "severity"),
        "category": _text(category, "category"),
        "title": _text(title, "title"),
        "message": _text(message, "message", empty=True),
        "source": _text(source, "source", empty=True),
        "actionItems": _items(action_items),
    }


def _text(value: object, name: str, *, empty: bool = False) -> str:
    if isinstance(value, enum.Enum):
        value = value.value
    if not isinstance(value, str):
        raise ConfigError(f"a text is needed, not {type(value).__name__}", key=name)
    if not (empty or value.strip()) or len(value) > LONGEST_TEXT or not _is_text(value):
        raise ConfigError(f"a text of 1 to {LONGEST_TEXT} characters is needed", key=name)
    return value


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _word(value: object, table: tuple[str, ...], name: str) -> str:
    """The table's spelling, however it is written: `A-Book`, `abook`, an enum."""
    plain = _squeezed(_text(value, name))
    for word in table:
        if _squeezed(word) == plain:
            return word
    raise ConfigError(f"one of {', '.join(table)} is needed", key=name)


def _squeezed(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _number(value: object, name: str, *, least: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ConfigError(f"a number is needed, not {type(value).__name__}", key=name)
    try:
        number = float(value)
    except (OverflowError, ValueError):  # an integer beyond all floats, a signalling NaN
        number = math.nan
    if not math.isfinite(number) or number < least:
        wanted = "a finite number" if least == -math.inf else f"a finite number from {least:g} up"
        raise ConfigError(f"{wanted} is needed", key=name)
    return int(value) if isinstance(value, int) else number


def _maybe(value: object, name: str, *, least: float = -math.inf) -> float | None:
    return None if value is None else _number(value, name, least=least)


def _table(value: object, name: str) -> Any:
    """Exposure by symbol or provider: a mapping of numbers, or rows as the caller has them."""
    if value is None:
        return {}
    if not isinstance(value, Mapping | list | tuple):
        raise ConfigError(
            f"a mapping of names to numbers is needed, not {type(value).__name__}", key=name
        )
    if len(value) > MOST_ITEMS:
        raise ConfigError(f"at most {MOST_ITEMS} rows, not {len(value)}", key=name)
    return _plain(value, name, _DEEPEST)


def _plain(value: object, name: str, depth: int) -> Any:
    if depth == 0:
        raise ConfigError("it is nested too deeply", key=name)
    if isinstance(value, Mapping):
        return {_text(k, name): _plain(v, f"{name}[{k!r}]", depth - 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{name}[{i}]", depth - 1) for i, each in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | enum.Enum):
        return _text(value, name, empty=True)
    return _number(value, name)


def _items(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError("a list of texts is needed", key="action_items")
    items = [_text(item, f"action_items[{i}]") for i, item in enumerate(value)]
    if len(items) > MOST_ITEMS:
        raise ConfigError(f"at most {MOST_ITEMS} items, not {len(items)}", key="action_items")
    return items
