"""Acknowledge, snooze and resolve: the port behind `POST /api/alerts/{id}/…`.

Invariants: the hub stores and delivers alerts and keeps no state of theirs; without a handler an action is answered
with 501; what a handler raises never reaches the one who asked, and never harms the hub.
"""

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import Annotated, NamedTuple, Protocol

import msgspec

from keepline.errors import Refused
from keepline.telemetry import REGISTRY, event

__all__ = ["ACTIONS", "AlertHandler", "Reply", "perform"]

log = logging.getLogger("keepline.hub")

ALERT_ACTIONS = REGISTRY.counter(
    "hub_alert_actions_total",
    "Acknowledgements and the like by how they were answered.",
    "action",
    "status",
)
ACTIONS = ("ack", "resolve", "snooze")
DEFAULT_SNOOZE_SECONDS = 900.0
LONGEST_SNOOZE_SECONDS = 7 * 86_400.0

Told = Mapping[str, object] | None


class AlertHandler(Protocol):
    """Who keeps the state of alerts; register one to have the actions.

    Each returns what the answer should hold beside the alert's id, or None. A `LookupError` says that there is no such
    alert, a `Refused` that it cannot be done now; both words reach the one who asked.
    """

    async def acknowledge(self, alert_id: str, *, user: str, note: str) -> Told:
        """Somebody has seen it."""
        ...

    async def resolve(self, alert_id: str, *, user: str, note: str) -> Told:
        """It is over."""
        ...

    async def snooze(self, alert_id: str, *, user: str, note: str, seconds: float) -> Told:
        """Be quiet about it for a while."""
        ...


class Reply(NamedTuple):
    """What to answer.

    Attributes:
        status: the HTTP status.
        body: to be sent as JSON.
    """

    status: int
    body: dict[str, object]


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    note: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    seconds: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_SNOOZE_SECONDS)] = (
        DEFAULT_SNOOZE_SECONDS
    )


async def perform(
    handler: AlertHandler | None,
    action: str,
    alert_id: str,
    body: bytes,
    *,
    user: str,
    timeout_seconds: float = 10.0,
) -> Reply:
    """Hand an action to the handler.

    Args:
        handler: who keeps the alerts' state, None when nobody does.
        action: `ack`, `resolve` or `snooze`.
        alert_id: which alert.
        body: empty, or a JSON object with `note` and, to snooze, `seconds` (900 if not said, at most 7 days).
        user: who asked.
        timeout_seconds: for the handler.

    Returns:
        200; 400 for a body that is none; 404 for an unknown action or alert; 409 when the handler says no; 501 without
        a handler; 504 when it does not answer; 500 when it fails.
    """
    if action not in ACTIONS:
        return _error(404, "unknown_action", f"an alert can be given {', '.join(ACTIONS)}")
    reply = await _perform(handler, action, alert_id, body, user, timeout_seconds)
    ALERT_ACTIONS.inc(action, str(reply.status))
    return reply


async def _perform(
    handler: AlertHandler | None,
    action: str,
    alert_id: str,
    body: bytes,
    user: str,
    timeout_seconds: float,
) -> Reply:
    if handler is None:
        return _error(501, "no_handler", "this hub delivers alerts, but nobody keeps their state")
    try:
        request = msgspec.json.decode(body, type=_Request) if body.strip() else _Request()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _error(400, "bad_body", f'{{"note": text, "seconds": number}} is needed: {error}')
    try:
        async with asyncio.timeout(timeout_seconds):
            told = await _call(handler, action, alert_id, request, user)
    except TimeoutError:
        return _failed(504, "timeout", "the alerts' keeper does not answer", action, alert_id)
    except LookupError:
        return _error(404, "unknown_alert", "there is no such alert")
    except Refused as error:
        return _error(409, "refused", str(error))
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        return _failed(500, "handler_failed", "the alerts' keeper failed", action, alert_id, words)
    return Reply(200, {"id": alert_id, "action": action, **(told or {})})


def _call(
    handler: AlertHandler, action: str, alert_id: str, request: _Request, user: str
) -> Awaitable[Told]:
    if action == "ack":
        return handler.acknowledge(alert_id, user=user, note=request.note)
    if action == "resolve":
        return handler.resolve(alert_id, user=user, note=request.note)
    return handler.snooze(alert_id, user=user, note=request.note, seconds=request.seconds)


def _error(status: int, code: str, message: str) -> Reply:
    return Reply(status, {"error": code, "message": message})


def _failed(
    status: int, code: str, message: str, action: str, alert_id: str, error: str = ""
) -> Reply:
    event(
        log,
        logging.ERROR,
        "Alert action failed",
        action=action,
        alert=alert_id,
        error=error or message,
    )
    return _error(status, code, message)
