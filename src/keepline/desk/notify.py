"""Four functions by which a trading program tells the desk what happens, from any thread.

Invariants: they never raise into the trader and never wait; what is not published is counted, and logged at the first,
the tenth, the hundredth … time. Where messages go is whatever has `publish(channel, type, data, *, key, id)`: a hub, or
a publisher to one.
"""

import inspect
import logging
import secrets
import threading
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Protocol

from keepline.desk import shapes
from keepline.errors import ConfigError
from keepline.telemetry import REGISTRY, event

__all__ = [
    "Publisher",
    "notify_alert",
    "notify_exposure_change",
    "notify_lp_status_change",
    "notify_routing_decision",
    "use_publisher",
]

log = logging.getLogger("keepline.desk")

NOTIFICATIONS = REGISTRY.counter(
    "desk_notifications_total",
    "Calls of the notify functions by what became of them.",
    "type",
    "outcome",
)

Number = int | float | Decimal


class Publisher(Protocol):
    """Where notifications go: `AnalyticsHub` and `HubPublisher` are such."""

    def publish(
        self, channel: str, type: str, data: Any, *, key: str | None = None, id: str | None = None
    ) -> Any:
        """Take a message, without waiting."""
        ...


class _Desk:
    """The process's publisher and what was said about failures."""

    def __init__(self) -> None:
        self.publisher: Publisher | None = None
        self.lock = threading.Lock()
        self.failures: dict[tuple[str, str], int] = {}


_desk = _Desk()


def use_publisher(publisher: Publisher | None) -> Publisher | None:
    """Say where the notify functions go.

    Args:
        publisher: an `AnalyticsHub`, a `HubPublisher`, or any object with such a `publish`; None to stop.

    Returns:
        The one that was used before.

    Raises:
        ConfigError: it has no `publish`, or one that would have to be awaited.
    """
    if publisher is not None:
        publish = getattr(publisher, "publish", None)
        if not callable(publish) or isinstance(publisher, type):
            raise ConfigError(
                "an object with publish(channel, type, data, key=…, id=…) is needed, such as a hub",
                key="publisher",
            )
        if inspect.iscoroutinefunction(publish):
            raise ConfigError(
                "its publish() would have to be awaited, and a trader does not wait: give one that returns at once",
                key="publisher",
            )
    with _desk.lock:
        before, _desk.publisher = _desk.publisher, publisher
        _desk.failures.clear()
    return before


def notify_routing_decision(
    symbol: str,
    side: str,
    volume: Number,
    decision: str,
    lp: str | None,
    execution_time_ms: Number | None,
    spread: Number | None,
    slippage: Number | None,
) -> bool:
    """An order was routed.

    Args:
        symbol: the instrument.
        side: `buy` or `sell`.
        volume: in the desk's own unit, lots as a rule.
        decision: ABOOK, BBOOK, HYBRID, PARTIAL_HEDGE or REJECT.
        lp: the liquidity provider, None without one.
        execution_time_ms: milliseconds from decision to fill, None when there was none.
        spread: at that moment.
        slippage: positive is a cost.

    Returns:
        True when a publisher took it.
    """
    return _notify(
        "routing-metrics",
        "routing-decision",
        lambda: shapes.routing_decision(
            symbol, side, volume, decision, lp, execution_time_ms, spread, slippage
        ),
    )


def notify_lp_status_change(
    name: str,
    status: str,
    avg_spread: Number | None,
    execution_quality: Number | None,
    latency_ms: Number | None,
    quotes_per_second: Number | None,
    reject_rate: Number | None,
    uptime: Number | None,
) -> bool:
    """A liquidity provider's state and figures; the newest per provider counts.

    Args:
        name: the provider.
        status: `connected`, `degraded` or `disconnected`.
        avg_spread: time-weighted.
        execution_quality: 0 to 1.
        latency_ms: milliseconds from order to answer.
        quotes_per_second: as it sends them.
        reject_rate: rejected of sent.
        uptime: as the desk measures it.

    Returns:
        True when a publisher took it.
    """
    return _notify(
        "lp-performance",
        "lp-metrics",
        lambda: shapes.provider_metrics(
            *(name, status, avg_spread, execution_quality),
            *(latency_ms, quotes_per_second, reject_rate, uptime),
        ),
        key_of="lpName",
    )


def notify_exposure_change(
    total: Number,
    net: Number,
    limit: Number | None,
    by_symbol: Mapping[str, Any] | None,
    by_lp: Mapping[str, Any] | None,
) -> bool:
    """The house's exposure; how risky it is comes from `keepline.desk.risk`.

    Args:
        total: gross.
        net: long minus short.
        limit: of the net exposure; None for none.
        by_symbol: exposure by instrument.
        by_lp: exposure by liquidity provider.

    Returns:
        True when a publisher took it.
    """
    return _notify(
        "exposure-updates",
        "exposure-change",
        lambda: shapes.exposure_change(total, net, limit, by_symbol, by_lp),
        key="total",
    )


def notify_alert(
    severity: str,
    category: str,
    title: str,
    message: str,
    source: str,
    action_items: Iterable[str] | None,
) -> bool:
    """Somebody should look; alerts are stored before they are delivered, and never dropped.

    Args:
        severity: `info`, `warning`, `error` or `critical`.
        category: what it is about, for example `exposure`.
        title: one line.
        message: the whole story.
        source: who noticed.
        action_items: what to do.

    Returns:
        True when a publisher took it.
    """
    return _notify(
        "alerts",
        "alert",
        lambda: shapes.alert(severity, category, title, message, source, action_items),
        id=secrets.token_hex(12),
    )


def _notify(
    channel: str,
    type: str,
    make: Any,
    *,
    key: str | None = None,
    key_of: str | None = None,
    id: str | None = None,
) -> bool:
    publisher = _desk.publisher
    try:
        data = make()
    except Exception as error:  # also what a value's own methods raise
        return _failed(type, "invalid", _words(error))
    if publisher is None:
        return _failed(
            type,
            "no_publisher",
            "nothing is published before use_publisher(hub) was called",
        )
    try:
        taken = publisher.publish(
            channel, type, data, key=data[key_of] if key_of is not None else key, id=id
        )
    except Exception as error:
        return _failed(type, "failed", _words(error))
    if taken is False:
        return _failed(type, "refused", "the publisher has no room left, or is closed")
    NOTIFICATIONS.inc(type, "published")
    return True


def _failed(type: str, outcome: str, words: str) -> bool:
    """Count it; say it at the first, the tenth, the hundredth … time."""
    NOTIFICATIONS.inc(type, outcome)
    of = ("", outcome) if outcome == "no_publisher" else (type, outcome)
    with _desk.lock:
        times = _desk.failures[of] = _desk.failures.get(of, 0) + 1
    once = outcome == "no_publisher"
    if times == 1 or (not once and str(times).rstrip("0") == "1"):
        fields = {"type": type, "outcome": outcome, "times": times, "reason": words}
        event(log, logging.WARNING, "Notification not published", **fields)
    return False


def _words(error: Exception) -> str:
    try:
        return (
            str(error) if isinstance(error, ConfigError) else f"{error.__class__.__name__}: {error}"
        )
    except Exception:  # an exception whose own text fails
        return error.__class__.__name__
