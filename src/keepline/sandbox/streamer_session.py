"""One connection to the sandbox's streamer as a decider: login, commands, subscriptions, heartbeats, and its end.

Requests and `now` go in, frames come out. Invariants: nothing but LOGIN works before the login; of commands that came
before an answer the first works and the others fail; a quote tells changed fields alone; a connection without
subscriptions ends after `idle` seconds.

Source: Schwab's Streamer API guide; the `notify` that ends a connection is what clients in the field recorded.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from keepline.sandbox.streamer_feed import SERVICES, Activity, Line, StreamerFeed

__all__ = ["MOST_KEYS", "PATH", "Identity", "StreamerSession", "StreamerTimes"]

PATH = "/ws"
"""Where `userPreference` sends clients."""

MOST_KEYS = 500
"""Keys that one connection may subscribe."""

_VERBS = {"SUBS": 22, "UNSUBS": 23, "ADD": 24, "VIEW": 25}  # and the code of one that fails
_ACTIVITY = "ACCT_ACTIVITY"
_FAILED = "The command failed"

Frame = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What `userPreference` tells a client to say.

    Attributes:
        customer: `schwabClientCustomerId`.
        correlation: `schwabClientCorrelId`.
        channel: `schwabClientChannel`.
        function: `schwabClientFunctionId`.
    """

    customer: str = "sandbox-customer"
    correlation: str = "5a4e0b0c-0000-4000-8000-000000000001"
    channel: str = "N9"
    function: str = "APIAPP"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamerTimes:
    """Seconds.

    Attributes:
        idle: without subscriptions, after which a connection ends.
        heartbeat: between two heartbeats.
        tick: between two looks at the market.
        answer: to work on a command; another one that comes in the meantime fails.
    """

    idle: float = 30.0
    heartbeat: float = 10.0
    tick: float = 1.0
    answer: float = 0.0


@dataclass(slots=True)
class _Service:
    fields: tuple[str, ...]
    told: dict[str, Line] = field(default_factory=dict)  # by key: what the client knows


@dataclass(frozen=True, slots=True)
class _Request:
    service: str
    command: str
    number: str
    parameters: Mapping[str, object]
    known: bool  # customer and correlation are those of userPreference


class StreamerSession:
    """One connection.

    Args:
        feed: what there is to tell.
        accepts: whether a token opens the API at a time.
        who: what clients have to say.
        times: how long things take.
        now: when it began.
    """

    def __init__(
        self,
        feed: StreamerFeed,
        *,
        accepts: Callable[[str, float], bool],
        who: Identity,
        times: StreamerTimes,
        now: float,
    ) -> None:
        self._feed, self._accepts, self._who, self._times = feed, accepts, who, times
        self._waiting: list[_Request | None] = []  # None is what nobody can read
        self._services: dict[str, _Service] = {}
        self._idle_since = self._beat_at = now
        self.logged_in = False
        self.over = False

    @property
    def keys(self) -> int:
        """How many keys are subscribed."""
        return sum(len(service.told) for service in self._services.values())

    def receive(self, text: str | bytes, now: float) -> int:
        """Take a frame in; how many requests are in it. They wait for `answers`."""
        requests = _requests(text, self._who)
        self._waiting.extend(requests)
        return len(requests)

    @property
    def commands(self) -> list[str]:
        """The commands that wait for `answers`."""
        return [request.command for request in self._waiting if request is not None]

    def answers(self, now: float, *, failing: Collection[str] = ()) -> list[Frame]:
        """What there is to say to all requests that wait; all but the first came in parallel.

        Args:
            now: the venue's time.
            failing: commands that a fault lets fail.
        """
        waiting, self._waiting = self._waiting, []
        may = self.logged_in
        frames: list[Frame] = []
        for place, request in enumerate(waiting):
            if self.over:
                break
            if request is not None and request.command in failing:
                frames.append(self._said(request, _VERBS.get(request.command, 9), _FAILED, now))
            else:
                frames += self._answer(request, parallel=place > 0, may=may, now=now)
        return frames

    def tick(
        self, now: float, activities: Sequence[Activity] = (), *, quiet: bool = False
    ) -> list[Frame]:
        """What is to be sent at a look at the market: news, a heartbeat, or the end of an idle connection.

        Args:
            now: the venue's time.
            activities: since the last look.
            quiet: no news; quotes are caught up with later, activities are not.
        """
        if self.over:
            return []
        frames = [] if quiet or not self.logged_in else self.news(now, activities)
        frames += self.pulse(now)
        if self._services:
            self._idle_since = now
        elif now - self._idle_since >= self._times.idle:
            frames.append(self.ended(30, "Stop streaming due to empty subscription", now=now))
        return frames

    def pulse(self, now: float) -> list[Frame]:
        """A heartbeat when it is time for one."""
        if now - self._beat_at < self._times.heartbeat:
            return []
        self._beat_at = now
        return [{"notify": [{"heartbeat": str(int(now * 1000))}]}]

    def news(self, now: float, activities: Sequence[Activity] = ()) -> list[Frame]:
        """What changed for the subscriptions."""
        frames = []
        for name, service in self._services.items():
            if name == _ACTIVITY:
                key = next(iter(service.told))
                lines = [activity.line(key) for activity in activities]
            else:
                lines = self._lines(name, service, service.told, now)
            if lines:
                frames.append(_data(name, lines, now))
        return frames

    def ended(self, code: int, words: str, *, now: float) -> Frame:
        """The code that ends the connection."""
        self.over = True
        told = {"code": code, "msg": words}
        return {"notify": [{"service": "ADMIN", "timestamp": int(now * 1000), "content": told}]}

    # ------------------------------------------------------------------------------------------------------ requests

    def _answer(
        self, request: _Request | None, *, parallel: bool, may: bool, now: float
    ) -> list[Frame]:
        if request is None:
            return [self._said(_NOBODY, 21, "Bad command formatting", now)]
        if request.service == "ADMIN":
            return self._admin(request, now)
        if not may or not request.known:
            return [self._said(request, 20, "Streamer connection not found", now)]
        code, words = self._refusal(request, parallel=parallel)
        if code:
            return [self._said(request, code, words, now)]
        frames = [self._said(request, 0, f"{request.command} command succeeded", now)]
        return frames + self._done(request, now)

    def _admin(self, request: _Request, now: float) -> list[Frame]:
        if request.command == "LOGOUT":
            self.over = True
            return [self._said(request, 0, "SUCCESS", now)]
        if request.command != "LOGIN" or not _says(request, self._who):
            return [self._said(request, 21, "Bad command formatting", now)]
        self.logged_in = self._accepts(str(request.parameters["Authorization"]), now)
        self.over = not self.logged_in
        if self.over:
            words = "Login Denied.: token is invalid or has expired."
            return [self._said(request, 3, words, now)]
        return [self._said(request, 0, "server=sandbox-1;status=NP", now)]

    def _refusal(self, request: _Request, *, parallel: bool) -> tuple[int, str]:
        command, service = request.command, request.service
        if service not in SERVICES:
            return 11, f"Service {service[:40]} is not available"
        only_subs = service == _ACTIVITY and command not in ("SUBS", "UNSUBS")
        if command not in _VERBS or only_subs or not _is_whole(request):
            return 21, "Bad command formatting"
        if parallel:
            return _VERBS[command], f"{command} command failed"
        if command in ("SUBS", "ADD") and self._keys_after(request) > MOST_KEYS:
            return 19, "Reached symbol limit"
        if command == "VIEW" and service not in self._services:
            return 25, "VIEW command failed"
        return 0, ""

    def _keys_after(self, request: _Request) -> int:
        known = self._services.get(request.service)
        had = set(known.told) if known else set()
        kept = had if request.command == "ADD" else set()
        return self.keys - len(had) + len(kept | set(_keys(request)))

    def _done(self, request: _Request, now: float) -> list[Frame]:
        name, keys = request.service, _keys(request)
        service = self._services.get(name)
        if request.command == "UNSUBS":
            self._end(name, keys)
            return []
        if service is None or request.command == "SUBS":
            service = self._services[name] = _Service(())
        service.fields = tuple(_listed(request, "fields"))
        if request.command == "VIEW":
            return []
        if name == _ACTIVITY:
            service.told = {keys[0]: {}}
            greeting = Activity(0, "", "SUBSCRIBED", "").line(keys[0])
            return [_data(name, [greeting], now)]
        fresh = dict.fromkeys(keys)
        service.told.update({key: {} for key in fresh})
        lines = self._lines(name, service, fresh, now)
        return [_data(name, lines, now)] if lines else []

    def _end(self, name: str, keys: Iterable[str]) -> None:
        service = self._services.get(name)
        if service is None:
            return
        for key in keys:
            service.told.pop(key, None)
        if not service.told:
            del self._services[name]

    # ---------------------------------------------------------------------------------------------------------- data

    def _lines(self, name: str, service: _Service, keys: Iterable[str], now: float) -> list[Line]:
        lines = []
        for key in keys:
            whole = self._feed.line(name, key, now=now)
            if whole is None:
                continue
            known = service.told[key]
            wanted = {number: whole[number] for number in service.fields if number in whole}
            changed = {n: value for n, value in wanted.items() if known.get(n) != value}
            if not self._feed.is_news(changed) or (name == "CHART_EQUITY" and _same(known, whole)):
                continue
            service.told[key] = whole
            # a quote tells what changed; a book and a candle are whole
            told = changed if name == "LEVELONE_EQUITIES" else wanted
            told = {n: value for n, value in told.items() if n != "0"}
            lines.append({"key": key, **({} if known else {"delayed": False}), **told})
        return lines

    def _said(self, request: _Request, code: int, words: str, now: float) -> Frame:
        return {
            "response": [
                {
                    "service": request.service,
                    "command": request.command,
                    "requestid": request.number,
                    "SchwabClientCorrelId": self._who.correlation,
                    "timestamp": int(now * 1000),
                    "content": {"code": code, "msg": words},
                }
            ]
        }


_NOBODY = _Request("ADMIN", "", "", {}, known=False)


def _requests(text: str | bytes, who: Identity) -> list[_Request | None]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return [None]
    found = body.get("requests", [body]) if isinstance(body, dict) else None
    if not isinstance(found, list) or not found:
        return [None]
    return [_request(item, who) for item in found]


def _request(item: object, who: Identity) -> _Request | None:
    if not isinstance(item, dict):
        return None
    names = [item.get(name) for name in ("service", "command")]
    number, parameters = item.get("requestid"), item.get("parameters", {})
    if not all(isinstance(name, str) for name in names) or not isinstance(parameters, dict):
        return None
    if not isinstance(number, (str, int)):
        return None
    said = (item.get("SchwabClientCustomerId"), item.get("SchwabClientCorrelId"))
    known = said == (who.customer, who.correlation)
    return _Request(str(names[0]), str(names[1]), str(number), parameters, known)


def _says(request: _Request, who: Identity) -> bool:
    wanted = {"SchwabClientChannel": who.channel, "SchwabClientFunctionId": who.function}
    said = request.parameters
    return (
        request.known
        and isinstance(said.get("Authorization"), str)
        and all(said.get(name) == value for name, value in wanted.items())
    )


def _is_whole(request: _Request) -> bool:
    """Whether keys and fields are there."""
    if request.command != "VIEW" and not _keys(request):
        return False
    if request.command == "UNSUBS":
        return True
    fields = _listed(request, "fields")
    return bool(fields) and all(number.isdecimal() for number in fields)


def _keys(request: _Request) -> list[str]:
    return _listed(request, "keys")


def _listed(request: _Request, name: str) -> list[str]:
    said = request.parameters.get(name)
    return (
        [part.strip() for part in said.split(",") if part.strip()] if isinstance(said, str) else []
    )


def _same(known: Line, whole: Line) -> bool:
    return known.get("7") == whole["7"]


def _data(service: str, lines: Sequence[Line], now: float) -> Frame:
    told = {"service": service, "timestamp": int(now * 1000), "command": "SUBS"}
    return {"data": [{**told, "content": list(lines)}]}
