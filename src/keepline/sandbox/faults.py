"""The sandbox's faults in force: a decider that says what a request suffers now.

Invariants: a fault ends by its count, its seconds or by hand; of several that answer in the venue's place the first one
strikes and only it is used up, so faults line up as a script; those that only change an answer all apply at once.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from keepline.sandbox.book import Terms
from keepline.sandbox.faulttable import KINDS, ROUTES, Fault, Kind, number, read
from keepline.sandbox.venue import Reply

__all__ = ["KINDS", "ROUTES", "Fault", "Faults", "Kind", "Plan"]

_HTML = "<html><head><title>Access Denied</title></head><body><h1>Access Denied</h1></body></html>"
_TRADING = ("order", "modify", "cancel", "close", "query", "history")


@dataclass(frozen=True, slots=True)
class Plan:
    """What one request suffers.

    Attributes:
        delay: seconds before the answer.
        skew: seconds that the venue's clock is ahead.
        reply: sent in the venue's place.
        cut: the connection is cut, before any work.
        lose: the connection is cut, after the work.
        later: seconds after which the work is done, though the answer says otherwise; None for at once.
        rotate: whether this refresh rotates, None as the setting says.
        without: fields that the answer loses.
        offered: the transports that a hub offers, None for all.
        unasked: whether a hub grants stateful reconnect that nobody asked for.
        terms: what the market makes of the request.
        struck: the names of the faults that did it.
    """

    delay: float = 0.0
    skew: float = 0.0
    reply: Reply | None = None
    cut: bool = False
    lose: bool = False
    later: float | None = None
    rotate: bool | None = None
    without: frozenset[str] = frozenset()
    offered: tuple[str, ...] | None = None
    unasked: bool = False
    terms: Terms = Terms()  # noqa: RUF009 - frozen
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
        fault = read(description, now=now)
        if not KINDS[fault.name].at_once:
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

    def plan(self, route: str, *, now: float, broker: str = "") -> Plan:
        """What a request to this route suffers; the faults that strike are counted down.

        Args:
            route: of `ROUTES`.
            now: the server's time in seconds.
            broker: `projectx` or `schwab`, whose words a refusal takes.
        """
        plan = Plan()
        for index, fault in enumerate(self.in_force(now=now)):
            kind = KINDS[fault.name]
            taken = plan.reply is not None or plan.cut or plan.lose
            if route not in fault.on or (kind.answers and taken):
                continue
            struck = (*plan.struck, fault.name)
            plan = replace(_strike(plan, fault, route, broker), struck=struck)
            self._spend(index)
        return plan

    def strike(
        self,
        names: Collection[str],
        route: str,
        *,
        now: float,
        where: Callable[[Fault], bool] = lambda _: True,
    ) -> dict[str, Fault]:
        """The oldest fault of each of these names that strikes a stream here and now; each is counted down.

        Args:
            names: of `KINDS`.
            route: of `STREAMS` or `ROUTES`.
            now: the server's time in seconds.
            where: which of them mean this.
        """
        found: dict[str, Fault] = {}
        for index, fault in enumerate(self.in_force(now=now)):
            if (
                fault.name in names
                and fault.name not in found
                and route in fault.on
                and where(fault)
            ):
                found[fault.name] = fault
                self._spend(index)
        return found

    def _spend(self, index: int) -> None:
        fault = self._active[index]
        if fault.left is not None:
            self._active[index] = replace(fault, left=fault.left - 1)


def _strike(plan: Plan, fault: Fault, route: str, broker: str) -> Plan:
    said = fault.parameters
    match fault.name:
        case "outage":
            return replace(plan, cut=True)
        case "answer_lost" | "order_answer_lost":
            return replace(plan, lose=True)
        case "late_accept":
            plan = replace(plan, later=number(said["after"]))
            if said["answer"] == "cut":
                return replace(plan, lose=True)
            return replace(plan, reply=_reply(fault, route, broker))
        case "partial_fill_then_cut":
            part, pause = number(said["part"]), number(said["after"])
            return replace(plan, lose=True, terms=replace(plan.terms, part=part, pause=pause))
        case "duplicate_tag":
            return replace(plan, terms=replace(plan.terms, duplicates=str(said["policy"])))
        case "no_location":
            return replace(plan, terms=replace(plan.terms, location=False))
        case "slow":
            return replace(plan, delay=plan.delay + number(said["delay"]))
        case "rotate":
            return replace(plan, rotate=bool(said["enabled"]))
        case "no_refresh_token":
            return replace(plan, without=plan.without | {"refresh_token"})
        case "offered":
            names = tuple(name.strip() for name in str(said["transports"]).split(","))
            return replace(plan, offered=names)
        case "unasked_stateful":
            return replace(plan, unasked=True)
        case "clock_skew":
            skew = plan.skew + number(said["skew"])
            return replace(plan, skew=skew, terms=replace(plan.terms, skew=skew))
        case _:
            return replace(plan, reply=_reply(fault, route, broker))


def _reply(fault: Fault, route: str, broker: str) -> Reply:
    said = fault.parameters
    match fault.name:
        case "429":
            wait = said["retry_after"]
            headers = {} if wait is None else {"Retry-After": f"{number(wait):g}"}
            return Reply(429, {"message": "too many requests"}, headers)
        case "refuse":
            return _refusal(said, route, broker)
        case "redirect" | "legacy_negotiate" | "negotiate_error":
            return Reply(200, _negotiated(fault))
    status = int(number(said["status"]))
    if fault.name == "html" or said.get("answer") == "html":
        return Reply(status, _HTML)
    if said.get("error_code") is not None and broker == "projectx":
        return Reply(200, _envelope(said["error_code"], said["description"]))
    return Reply(status, {"message": said.get("description", "a fault of the sandbox")})


def _refusal(said: Mapping[str, object], route: str, broker: str) -> Reply:
    status, words = int(number(said["status"])), said["description"]
    if route in _TRADING and broker == "schwab":
        return Reply(status, {"message": words, "errors": [words]})
    if route in ("token", "authorize", "api"):
        return Reply(status, {"error": said["code"], "error_description": words})
    token = {"login": "token", "validate": "newToken"}.get(route)
    return Reply(200, {**({token: None} if token else {}), **_envelope(said["error_code"], words)})


def _negotiated(fault: Fault) -> dict[str, object]:
    """What stands where a hub's offer should be; the server fills in the empty address and token of a redirect."""
    said = fault.parameters
    if fault.name == "redirect":
        token = {"accessToken": ""} if said["new_token"] else {}
        return {"url": said["url"], "availableTransports": [], **token}
    if fault.name == "negotiate_error":
        return {"error": said["description"]}
    return {
        "Url": "/signalr",
        "ConnectionToken": "legacy",
        "ConnectionId": "legacy",
        "KeepAliveTimeout": 20.0,
        "DisconnectTimeout": 30.0,
        "ConnectionTimeout": 110.0,
        "TryWebSockets": True,
        "ProtocolVersion": "1.5",
        "TransportConnectTimeout": 5.0,
    }


def _envelope(code: object, words: object) -> dict[str, object]:
    return {"success": False, "errorCode": code, "errorMessage": words}
