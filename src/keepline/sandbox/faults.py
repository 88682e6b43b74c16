"""The sandbox's faults: one table of what can go wrong, and a decider that says what a request suffers now.

Invariants: a fault ends by its count, its seconds or by hand; of several that answer in the venue's place the first one
strikes and only it is used up, so faults line up as a script; those that only change an answer all apply at once.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from keepline.errors import ConfigError
from keepline.sandbox.venue import Reply

__all__ = ["KINDS", "ROUTES", "Fault", "Faults", "Kind", "Plan"]

ROUTES = ("token", "login", "validate", "logout", "authorize", "api")
"""The groups of addresses that a fault may be limited to with `on`."""

ISSUING = ("token", "login", "validate")

_HTML = "<html><head><title>Access Denied</title></head><body><h1>Access Denied</h1></body></html>"


@dataclass(frozen=True, slots=True)
class Kind:
    """A line of the table.

    Attributes:
        words: what the request suffers.
        parameters: what may be said beside `count`, `seconds` and `on`, with the defaults.
        on: the routes that suffer unless told otherwise.
        lasting: without count and seconds it stays until cleared; otherwise it strikes once.
        answers: it takes the venue's place, so only one such fault strikes a request.
    """

    words: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    on: tuple[str, ...] = ISSUING
    lasting: bool = False
    answers: bool = True


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "refuse": Kind(
            "the issuer says no: an OAuth error, or success=false from ProjectX",
            {"code": "invalid_grant", "status": 400, "error_code": 3, "description": "refused by a fault"},
        ),
        "5xx": Kind("the server answers with a server error", {"status": 503}),
        "html": Kind("an HTML page instead of JSON, as in an outage of Schwab", {"status": 403}),
        "429": Kind("too many requests, with Retry-After when told", {"retry_after": None}),
        "outage": Kind("the connection is cut before any work", {}, ROUTES, lasting=True),
        "answer_lost": Kind("the venue does the work, then cuts the connection", {}),
        "slow": Kind("the answer comes late", {"delay": 5.0}, lasting=True, answers=False),
        "rotate": Kind("refresh tokens rotate, or not, whatever the setting", {"enabled": True},
                       ("token",), lasting=True, answers=False),
        "no_refresh_token": Kind("the answer holds no refresh token", {}, ("token",), answers=False),
        "clock_skew": Kind("the venue's clock is ahead, or behind when negative", {"skew": 3600.0},
                           ROUTES, lasting=True, answers=False),
        "revoke": Kind("at once: access tokens die early (`access`), or every sign-in too (`all`)",
                       {"what": "all"}, ()),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault in force.

    Attributes:
        name: of `KINDS`.
        parameters: all of the kind, with what was said.
        on: the routes that suffer.
        until: the server's time at which it ends, infinite when only count or hand ends it.
        left: how many requests it still strikes, None when it does not count.
    """

    name: str
    parameters: Mapping[str, object]
    on: tuple[str, ...]
    until: float = math.inf
    left: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What one request suffers.

    Attributes:
        delay: seconds before the answer.
        skew: seconds that the venue's clock is ahead.
        reply: sent in the venue's place.
        cut: the connection is cut, before any work.
        lose: the connection is cut, after the work.
        rotate: whether this refresh rotates, None as the setting says.
        without: fields that the answer loses.
        struck: the names of the faults that did it.
    """

    delay: float = 0.0
    skew: float = 0.0
    reply: Reply | None = None
    cut: bool = False
    lose: bool = False
    rotate: bool | None = None
    without: frozenset[str] = frozenset()
    struck: tuple[str, ...] = ()


class Faults:
    """Those in force, oldest first."""

    def __init__(self) -> None:
        self._active: list[Fault] = []

    def add(self, description: Mapping[str, object], *, now: float) -> Fault:
        """Put a fault in force.

        Args:
            description: `fault` names it; `count`, `seconds`, `on` and the kind's parameters are optional.
            now: the server's time in seconds.

        Raises:
            ConfigError: an unknown fault or parameter, or a value of the wrong kind; says what is known.
        """
        fault = _read(description, now=now)
        if fault.on:  # `revoke` is over when it is done
            self._active.append(fault)
        return fault

    def clear(self) -> int:
        """End all; how many there were."""
        count = len(self._active)
        self._active.clear()
        return count

    def in_force(self, *, now: float) -> list[Fault]:
        """Those that still strike."""
        self._active = [fault for fault in self._active if now < fault.until and fault.left != 0]
        return list(self._active)

    def plan(self, route: str, *, now: float) -> Plan:
        """What a request to this route suffers; the faults that strike are counted down."""
        plan = Plan()
        for index, fault in enumerate(self.in_force(now=now)):
            kind = KINDS[fault.name]
            taken = plan.reply is not None or plan.cut or plan.lose
            if route not in fault.on or (kind.answers and taken):
                continue
            plan = replace(_strike(plan, fault, route), struck=(*plan.struck, fault.name))
            if fault.left is not None:
                self._active[index] = replace(fault, left=fault.left - 1)
        return plan


def _strike(plan: Plan, fault: Fault, route: str) -> Plan:
    said = fault.parameters
    match fault.name:
        case "outage":
            return replace(plan, cut=True)
        case "answer_lost":
            return replace(plan, lose=True)
        case "slow":
            return replace(plan, delay=plan.delay + _number(said["delay"]))
        case "rotate":
            return replace(plan, rotate=bool(said["enabled"]))
        case "no_refresh_token":
            return replace(plan, without=plan.without | {"refresh_token"})
        case "clock_skew":
            return replace(plan, skew=plan.skew + _number(said["skew"]))
        case _:
            return replace(plan, reply=_reply(fault, route))


def _reply(fault: Fault, route: str) -> Reply:
    said = fault.parameters
    match fault.name:
        case "5xx":
            return Reply(int(_number(said["status"])), {"message": "a fault of the sandbox"})
        case "html":
            return Reply(int(_number(said["status"])), _HTML)
        case "429":
            wait = said["retry_after"]
            headers = {} if wait is None else {"Retry-After": f"{_number(wait):g}"}
            return Reply(429, {"message": "too many requests"}, headers)
        case _ if route in ("token", "authorize", "api"):
            body = {"error": said["code"], "error_description": said["description"]}
            return Reply(int(_number(said["status"])), body)
        case _:
            token = {"login": "token", "validate": "newToken"}.get(route)
            body = {token: None} if token else {}
            return Reply(200, {**body, "success": False, "errorCode": said["error_code"],
                               "errorMessage": said["description"]})  # fmt: skip


def _read(description: Mapping[str, object], *, now: float) -> Fault:
    name = description.get("fault")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(name, str):
        raise ConfigError(f"no such fault: {name!r}; known: {', '.join(KINDS)}", key="fault")
    given = {key: value for key, value in description.items() if key != "fault"}
    _refuse_unknown(given, known=("count", "seconds", "on", *kind.parameters))
    count, seconds = given.pop("count", None), given.pop("seconds", None)
    on = _routes(given.pop("on", None)) or kind.on
    if count is None and seconds is None and not kind.lasting:
        count = 1
    return Fault(
        name,
        {**kind.parameters, **{key: _checked(kind, key, value) for key, value in given.items()}},
        on if kind.on else (),
        math.inf if seconds is None else now + _positive("seconds", seconds),
        None if count is None else int(_positive("count", count, whole=True)),
    )


def _refuse_unknown(given: Collection[str], *, known: Iterable[str]) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"unknown here; known: {', '.join(known)}", key=str(key))


def _routes(value: object) -> tuple[str, ...]:
    routes = (value,) if isinstance(value, str) else value
    if routes is None:
        return ()
    if not isinstance(routes, list | tuple) or not all(route in ROUTES for route in routes):
        raise ConfigError(f"names of routes are needed: {', '.join(ROUTES)}", key="on")
    return tuple(routes)


def _checked(kind: Kind, key: str, value: object) -> object:
    """A parameter's value, of the kind of its default."""
    default = kind.parameters[key]
    if key == "what" and value not in ("access", "all"):
        raise ConfigError("access or all is needed", key=key)
    if isinstance(default, bool | str):
        if type(value) is not type(default):
            wanted = "true or false" if isinstance(default, bool) else "a text"
            raise ConfigError(f"{wanted} is needed, not {value!r}", key=key)
        return value
    if key == "status":
        return _status(value)
    if value is None and default is None:
        return None
    if key == "error_code":
        return int(_positive(key, value, whole=True))
    return _number(value, key) if key == "skew" else _positive(key, value)


def _status(value: object) -> int:
    number = _number(value, "status")
    if not 200 <= number <= 599:
        raise ConfigError(f"an HTTP status from 200 to 599 is needed, not {value!r}", key="status")
    return int(number)


def _positive(key: str, value: object, *, whole: bool = False) -> float:
    number = _number(value, key)
    if number < 0 or (whole and (number < 1 or number != int(number))):
        wanted = "a whole number from 1 up" if whole else "a number from 0 up"
        raise ConfigError(f"{wanted} is needed, not {value!r}", key=key)
    return number


def _number(value: object, key: str = "") -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, str) or not math.isfinite(number):
        raise ConfigError(f"a number is needed, not {str(value)[:40]!r}", key=key)
    return number
