"""The table of what can go wrong at the sandbox, and the reading of a fault that somebody asks for.

Invariants: every kind has a line here and one in the reference; a parameter has the kind of its default; what is not
known is refused with the list of what is.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from keepline.errors import ConfigError

__all__ = [
    "DIALS",
    "HUBS",
    "KINDS",
    "MUTATIONS",
    "ROUTES",
    "STREAMS",
    "Fault",
    "Kind",
    "number",
    "read",
]

ISSUING = ("token", "login", "validate")
MUTATIONS = ("order", "modify", "cancel", "close")
"""What changes something at the market: placing, changing (at Schwab: replacing), cancelling, closing a position."""

DIALS = ("negotiate", "websocket", "events", "polling", "send")
"""How a hub is reached: the question for an id, then one transport's GET, and the POST of those that only listen."""

ROUTES = (*ISSUING, "logout", "authorize", "api", *MUTATIONS, "query", "history", *DIALS)
"""The groups of addresses that a fault may be limited to with `on`."""

HUBS = ("user_hub", "market_hub", "test_hub")
"""Hubs, whose open connections a fault may strike."""

STREAMS = (*HUBS, "streamer")
"""Everything that pushes."""

_LARGEST_SKEW = 1e9
_LARGEST_FRAME = 256 << 20  # bytes, of which this process has to hold several copies
_WHOLE = ("error_code", "size", "bytes", "action")
_MOST: Mapping[str, float] = {"part": 1, "bytes": _LARGEST_FRAME}

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "what": ("access", "all"),
    "policy": ("refuse", "accept", "original"),
    "answer": ("error", "html", "cut"),
    "how": ("abort", "bye", "close", "close_reconnect"),
    "form": ("completion", "item", "call", "sequence", "unknown_type", "not_json", "not_utf8"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A line of the table.

    Attributes:
        words: what the request suffers.
        parameters: what may be said beside `count`, `seconds` and `on`, with the defaults.
        on: the routes that suffer unless told otherwise.
        may: the routes that `on` may name.
        lasting: without count and seconds it stays until cleared; otherwise it strikes once.
        answers: it takes the venue's place or cuts its answer, so only one such fault strikes a request.
        at_once: it is done when it is asked for, and over.
    """

    words: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    on: tuple[str, ...] = ISSUING
    may: tuple[str, ...] = ROUTES
    lasting: bool = False
    answers: bool = True
    at_once: bool = False


def _stream(
    words: str,
    parameters: Mapping[str, object] | None = None,
    *,
    on: tuple[str, ...] = STREAMS,
    lasting: bool = False,
    at_once: bool = False,
) -> Kind:
    return Kind(words, parameters or {}, on, on, lasting, answers=False, at_once=at_once)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "refuse": Kind(
            "the broker says no: an OAuth error, success=false from ProjectX, a 400 from Schwab",
            {"code": "invalid_grant", "status": 400, "error_code": 3, "description": "refused by a fault"},
        ),
        "5xx": Kind("the server answers with a server error", {"status": 503}),
        "html": Kind("an HTML page instead of JSON, as in an outage of Schwab", {"status": 403}),
        "429": Kind("too many requests, with Retry-After when told", {"retry_after": None}),
        "outage": Kind("the connection is cut before any work", {}, ROUTES, lasting=True),
        "answer_lost": Kind("the venue does the work, then cuts the connection", {}),
        "order_answer_lost": Kind("the same for what changes orders", {}, MUTATIONS, MUTATIONS),
        "late_accept": Kind("an error is answered now, the work is done later",
                            {"after": 8.0, "answer": "error", "status": 504, "error_code": None,
                             "description": "a fault of the sandbox"},
                            ("order",), MUTATIONS),
        "partial_fill_then_cut": Kind("a part is filled, then the connection is cut; the rest is filled later",
                                      {"part": 0.5, "after": 5.0}, ("order",), ("order", "modify", "close")),
        "duplicate_tag": Kind("what a customTag that was used before gets", {"policy": "accept"},
                              ("order",), ("order",), lasting=True, answers=False),
        "no_location": Kind("Schwab's 201 does not name the new order", {}, ("order", "modify"),
                            ("order", "modify"), answers=False),
        "slow": Kind("the answer comes late", {"delay": 5.0}, lasting=True, answers=False),
        "rotate": Kind("refresh tokens rotate, or not, whatever the setting", {"enabled": True},
                       ("token",), lasting=True, answers=False),
        "no_refresh_token": Kind("the answer holds no refresh token", {}, ("token",), answers=False),
        "clock_skew": Kind("the venue's clock is ahead, or behind when negative", {"skew": 3600.0},
                           ROUTES, lasting=True, answers=False),
        "revoke": Kind("at once: access tokens die early (`access`), or every sign-in too (`all`)",
                       {"what": "all"}, (), at_once=True),
        "redirect": Kind("the way leads to another address, with a new token when wanted",
                         {"url": "", "new_token": False}, ("negotiate",), ("negotiate",)),
        "negotiate_error": Kind("a refusal inside of a 200", {"description": "refused by a fault"},
                                ("negotiate",), ("negotiate",)),
        "legacy_negotiate": Kind("the answer of the old ASP.NET SignalR", {}, ("negotiate",), ("negotiate",)),
        "unasked_stateful": Kind("stateful reconnect is granted that nobody asked for", {},
                                 ("negotiate",), ("negotiate",), answers=False),
        "offered": Kind("only these transports are offered, by name with commas", {"transports": "LongPolling"},
                        ("negotiate",), ("negotiate",), lasting=True, answers=False),
        "handshake_error": _stream("the handshake is refused", {"description": "refused by a fault"}, on=HUBS),
        "accept_then_close": _stream("the connection ends right after its handshake",
                                     {"after": 0.0, "how": "close_reconnect"}),
        "cut_stream": _stream("open connections end", {"how": "abort", "error": ""}, at_once=True),
        "cut_on_call": _stream("a call ends its connection", {"how": "abort", "method": ""}),
        "call_fails": _stream("a call is answered with an error", {"method": "", "description": ""}),
        "expiry_close": _stream("a connection ends with its token", on=HUBS, lasting=True),
        "displaced": _stream("GatewayLogout is sent, then the connection ends", {"how": "close"},
                             on=("user_hub", "market_hub"), at_once=True),
        "silent": _stream("no event comes, though pings and answers do", {"answers": True}, lasting=True),
        "black_hole": _stream("nothing comes, not even a ping", lasting=True),
        "slow_frames": _stream("what is sent comes late", {"delay": 1.0}, lasting=True),
        "split_frames": _stream("messages come in pieces", {"size": 7}, on=HUBS, lasting=True),
        "glued_frames": _stream("messages come together in one frame", {"wait": 1.0}, lasting=True),
        "oversize_frame": _stream("a huge message comes before an event", {"bytes": 10_485_760}),
        "strange_message": _stream("what no client expects comes before an event", {"form": "completion"}, on=HUBS),
        "ack_stall": _stream("messages are never acknowledged", on=HUBS, lasting=True),
        "duplicate_events": _stream("an event comes twice", {"event": ""}),
        "reordered_events": _stream("an event comes after the next one", {"event": ""}),
        "missing_events": _stream("an event is lost", {"event": ""}),
        "wrapped_events": _stream("events of the user hub come as {action, data}", {"action": 1},
                                  on=("user_hub",), lasting=True),
        "streamer_code": _stream("the streamer says a code and ends: 12 another session, 30 stopped, 3 the token, 20",
                                 {"code": 12, "description": "said by a fault"}, on=("streamer",), at_once=True),
        "fill_while_away": _stream("connections of the user hub and the streamer are cut, then working orders filled",
                                   {"part": 1.0}, on=("user_hub", "streamer"), at_once=True),
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


def read(description: Mapping[str, object], *, now: float) -> Fault:
    """The fault that a description asks for.

    Raises:
        ConfigError: an unknown fault or parameter, or a value of the wrong kind; says what is known.
    """
    name = description.get("fault")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(name, str):
        raise ConfigError(f"no such fault: {name!r}; known: {', '.join(KINDS)}", key="fault")
    given = {key: value for key, value in description.items() if key != "fault"}
    _refuse_unknown(given, known=("count", "seconds", "on", *kind.parameters))
    count, seconds = given.pop("count", None), given.pop("seconds", None)
    on = _routes(given.pop("on", None), kind) or kind.on
    if count is None and seconds is None and not kind.lasting:
        count = 1
    return Fault(
        name,
        {**kind.parameters, **{key: _checked(kind, key, value) for key, value in given.items()}},
        on if kind.on else (),
        math.inf if seconds is None else now + _positive("seconds", seconds),
        None if count is None else int(_positive("count", count, whole=True)),
    )


def number(value: object, key: str = "") -> float:
    """A finite number, and no text.

    Raises:
        ConfigError: it is none; names `key`.
    """
    try:
        found = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if isinstance(value, str) or not math.isfinite(found):
        raise ConfigError(f"a number is needed, not {str(value)[:40]!r}", key=key)
    return found


def _refuse_unknown(given: Collection[str], *, known: Iterable[str]) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"unknown here; known: {', '.join(known)}", key=str(key))


def _routes(value: object, kind: Kind) -> tuple[str, ...]:
    routes = (value,) if isinstance(value, str) else value
    if routes is None:
        return ()
    wanted = tuple(routes) if isinstance(routes, list | tuple) else ()
    if not wanted or not all(
        route in kind.may for route in wanted
    ):  # [] is a mistake, not everything
        raise ConfigError(f"names of routes are needed: {', '.join(kind.may)}", key="on")
    return wanted


def _checked(kind: Kind, key: str, value: object) -> object:
    """A parameter's value, of the kind of its default."""
    default = kind.parameters[key]
    choices = _CHOICES.get(key)
    if choices is not None and value not in choices:
        raise ConfigError(f"{' or '.join(choices)} is needed", key=key)
    if isinstance(default, bool | str):
        if type(value) is not type(default):
            wanted = "true or false" if isinstance(default, bool) else "a text"
            raise ConfigError(f"{wanted} is needed, not {value!r}", key=key)
        return value
    if key == "status":
        return _status(value)
    if key == "code":
        return int(_positive(key, value, whole=True))
    if value is None and default is None:
        return None
    if key in _WHOLE:
        return int(_positive(key, value, whole=True, most=_MOST.get(key, math.inf)))
    if key == "skew":
        return _skew(value)
    return _positive(key, value, most=_MOST.get(key, math.inf))


def _skew(value: object) -> float:
    found = number(value, "skew")
    if abs(found) > _LARGEST_SKEW:  # beyond it the calendar ends
        raise ConfigError(f"at most {_LARGEST_SKEW:g} s ahead or behind", key="skew")
    return found


def _status(value: object) -> int:
    found = number(value, "status")
    if not 200 <= found <= 599:
        raise ConfigError(f"an HTTP status from 200 to 599 is needed, not {value!r}", key="status")
    return int(found)


def _positive(key: str, value: object, *, whole: bool = False, most: float = math.inf) -> float:
    found = number(value, key)
    if found < 0 or found > most or (whole and (found < 1 or found != int(found))):
        wanted = "a whole number from 1" if whole else "a number from 0"
        wanted += " up" if most == math.inf else f" to {most:.15g}"
        raise ConfigError(f"{wanted} is needed, not {value!r}", key=key)
    return found
