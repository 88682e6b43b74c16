"""Where ProjectX's connections come from: a new one for each attempt, with its own reader.

Invariants: connections of one endpoint share what must outlive them (merged quotes, who displaced us), and nothing
else; the token is asked for anew at each connect, for it is part of the address.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal, Protocol, TypeAlias
from urllib.parse import urlsplit

from keepline.brokers.projectx.displaced import Displaced
from keepline.brokers.projectx.quotes import QuoteMerger
from keepline.brokers.projectx.stream_link import ProjectXLink, Read
from keepline.brokers.projectx.stream_messages import LOGOUT, USER_EVENTS, market_types
from keepline.brokers.projectx.stream_reading import Doubt, Heard, MarketReader, UserReader
from keepline.clock import Clock
from keepline.errors import ConfigError
from keepline.stream.port import Link, Lost
from keepline.stream.tokens import StreamTokens, StreamTokenSource

__all__ = ["Endpoint", "ProjectXLinks", "Tap"]

Endpoint: TypeAlias = Literal["user", "market"]


class Tap(Protocol):
    """Gets the frames of one connection and its end, as `Recorder.connection` gives it."""

    def __call__(self, frame: bytes | str, at: float) -> None:
        """A frame arrived at `at` (boottime seconds)."""
        ...

    def snapshot(self, told: str, at: float) -> None:
        """The broker was asked what the connection cannot tell."""
        ...

    def lost(self, reason: str, at: float) -> None:
        """The connection ended."""
        ...


# gives back what nobody has: it must be answered and does nothing
_PROBES: Final[Mapping[Endpoint, tuple[Any, ...]]] = {
    "user": ("UnsubscribeOrders", 0),
    "market": ("UnsubscribeContractQuotes", "none"),
}
_AS_THE_SAMPLE: Final[Mapping[str, Any]] = {
    "transports": ("websockets",),
    "skip_negotiation": True,
    "token_in": "query",
}


class ProjectXLinks:
    """Makes connections to both endpoints.

    Args:
        tokens: what gives the newest token.
        base_url: the firm's real-time gateway.
        quotes: where quotes are merged.
        levels: how many prices of each side a book is told with.
        heard: gets each event of accounts, before anything else does.
        doubt: is told of events that could not be read.
        connect: makes the connections; SignalR ones by default.
        record: begins the recording of a new connection: `Recorder.connection`; None records nothing.
        clock: time.
        options: of `SignalRConnection`, over those of ProjectX's own sample.

    Attributes:
        tokens: of each endpoint, so that it can be told that one was refused.

    Raises:
        ConfigError: the address is none, or an option makes no sense.
    """

    def __init__(
        self,
        tokens: StreamTokenSource,
        base_url: str,
        *,
        quotes: QuoteMerger,
        levels: int,
        heard: Callable[[Heard], object],
        doubt: Callable[[Doubt], object],
        connect: Callable[[Endpoint], Link] | None,
        record: Callable[[str], Tap] | None,
        clock: Clock,
        **options: Any,
    ) -> None:
        if not urlsplit(base_url).hostname:
            raise ConfigError(
                f"is the address of a real-time gateway, not {base_url!r}", key="base_url"
            )
        if type(levels) is not int or levels < 1:
            raise ConfigError(f"is a whole number from 1 up, not {levels!r}", key="levels")
        self.tokens: dict[Endpoint, StreamTokens] = {
            "user": StreamTokens(tokens),
            "market": StreamTokens(tokens),
        }
        self._base_url = base_url.rstrip("/")
        self._quotes, self._levels = quotes, levels
        self._heard, self._doubt = heard, doubt
        self._connect = connect
        self._record = record
        self._clock = clock
        self._options = {**_AS_THE_SAMPLE, **options}
        self._user_tap: Tap | None = None
        self._displaced: dict[Endpoint, Displaced] = {"user": Displaced(), "market": Displaced()}
        if connect is None:
            self._signalr(
                "user", None
            )  # an option that makes no sense is said now, not at each connect

    def link(self, endpoint: Endpoint) -> ProjectXLink:
        """A new connection, not open yet."""
        tap = None if self._record is None else self._record(endpoint)
        if endpoint == "user":
            self._user_tap = tap
        connect = self._connect
        return ProjectXLink(
            self._signalr(endpoint, tap) if connect is None else connect(endpoint),
            read=UserReader().read if endpoint == "user" else self._market_reader(),
            doubt=self._doubt,
            displaced=self._displaced[endpoint],
            heard=self._heard if endpoint == "user" else None,
            ended=None if tap is None else partial(self._recorded, tap),
        )

    def note_snapshot(self, told: str) -> None:
        """Record what the accounts looked like, beside the frames of their connection."""
        if self._user_tap is not None:
            self._user_tap.snapshot(told, self._clock.boottime())

    def _market_reader(self) -> Read:
        reader, wall = MarketReader(self._quotes, levels=self._levels), self._clock.wall
        return lambda channel, arguments: reader.read(channel, arguments, wall())

    def _recorded(self, tap: Tap, lost: Lost) -> None:
        tap.lost(lost.reason, self._clock.boottime())

    def _signalr(self, endpoint: Endpoint, tap: Tap | None) -> Link:
        from keepline.stream.signalr_link import SignalRLink

        tokens = self.tokens[endpoint]
        return SignalRLink(
            f"{self._base_url}/hubs/{endpoint}",
            tokens,
            types=_types(endpoint, self._options.get("encoding", "json")),
            probe=_PROBES[endpoint],
            clock=self._clock,
            tap=tap and (lambda frame, at: tap(tokens.hidden_in(frame), at)),
            **self._options,
        )

    def __repr__(self) -> str:
        return f"<ProjectXLinks {self._base_url}>"


def _types(endpoint: Endpoint, encoding: str) -> Mapping[str, tuple[Any, ...]]:
    events = dict.fromkeys(USER_EVENTS, ()) if endpoint == "user" else market_types(encoding)
    return {LOGOUT: (), **events}
