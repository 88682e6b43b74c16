"""How a hub is reached, as a decider: negotiation, and which request belongs to which connection.

Invariants: a connection has one transport for its life; a stateful one may be taken up again within its window, any
other is gone with its transport; the same seed gives the same ids; what is gone is answered 404 for ever.

Source: measured at an ASP.NET Core 9.0 server; the transport protocols of SignalR.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from keepline.sandbox.venue import Reply

__all__ = ["WINDOW", "Endpoint", "Place", "Seat", "Transport"]

WINDOW = 15.0
"""Seconds in which a connection without a transport can be taken up again (`DisconnectTimeout`)."""


class Transport(Enum):
    """The three ways, by the names of negotiation."""

    WEBSOCKETS = "WebSockets"
    EVENTS = "ServerSentEvents"
    POLLING = "LongPolling"


_FORMATS = {
    Transport.WEBSOCKETS: ("Text", "Binary"),
    Transport.EVENTS: ("Text",),
    Transport.POLLING: ("Text", "Binary"),
}


class Place(Enum):
    """Where a connection stands."""

    NEW = "negotiated, no transport yet"
    ATTACHED = "a transport carries it"
    DETACHED = "its transport went; it waits for another"
    GONE = "over"


@dataclass(slots=True)
class Seat:
    """One connection as the endpoint knows it.

    Attributes:
        id: public.
        token: what `?id=` has to say: the id itself in version 0.
        stateful: whether stateful reconnect was granted.
        transport: that carries it, None before the first.
        place: where it stands.
        until: when it is gone unless a transport comes; infinite while one is there.
    """

    id: str
    token: str
    stateful: bool = False
    transport: Transport | None = None
    place: Place = Place.NEW
    until: float = float("inf")


class Endpoint:
    """The connections of one hub; `now` is the server's time in seconds.

    Args:
        name: of the hub.
        seed: of the ids.
    """

    def __init__(self, name: str, *, seed: int) -> None:
        self._name, self._seed = name, seed
        self._seats: dict[str, Seat] = {}
        self._made = 0

    @property
    def seats(self) -> int:
        """Connections that are not over, those to come included."""
        return len(self._seats)

    def negotiate(
        self,
        query: Mapping[str, str],
        *,
        now: float,
        offered: Sequence[str] | None = None,
        unasked: bool = False,
    ) -> Reply:
        """`POST …/negotiate`.

        Args:
            query: of the request.
            now: the server's time.
            offered: names of the transports to offer, None for all.
            unasked: grant stateful reconnect though nobody asked for it.
        """
        version = _version(query.get("negotiateVersion", "0"))
        if isinstance(version, str):
            return Reply(200, {"error": version})
        asked = query.get("useStatefulReconnect", "").lower() == "true"
        seat = self._sit(versioned=version > 0, stateful=asked or unasked, until=now + WINDOW)
        found: dict[str, object] = {"negotiateVersion": min(version, 1), "connectionId": seat.id}
        if version > 0:
            found["connectionToken"] = seat.token
        if seat.stateful:
            found["useStatefulReconnect"] = True
        found["availableTransports"] = [
            {"transport": transport.value, "transferFormats": list(formats)}
            for transport, formats in _FORMATS.items()
            if offered is None or transport.value in offered
        ]
        return Reply(200, found)

    def attach(self, token: str | None, transport: Transport, *, now: float) -> Seat | int:
        """The connection that a transport's GET may carry, or the status that refuses it.

        Args:
            token: of the query, None without one, which a WebSocket alone may do (negotiation skipped).
            transport: of the request.
            now: the server's time.
        """
        if token is None:
            if transport is not Transport.WEBSOCKETS:
                return 400
            seat = self._sit(versioned=True, stateful=False, until=now)
        else:
            known = self.find(token, now=now)
            if known is None:
                return 404
            seat = known
        if seat.transport not in (None, transport):
            return 409
        if seat.place is Place.ATTACHED and transport is not Transport.POLLING:
            return 409
        seat.transport, seat.place, seat.until = transport, Place.ATTACHED, float("inf")
        return seat

    def find(self, token: str | None, *, now: float) -> Seat | None:
        """The connection of a token, None when there is none or its window is over."""
        self.sweep(now=now)
        return self._seats.get(token or "")

    def sender(self, token: str | None, *, now: float) -> Seat | int:
        """The connection that a POST speaks for, or the status that refuses it."""
        if token is None:
            return 400
        seat = self.find(token, now=now)
        if seat is None or seat.transport is None:
            return 404
        return 405 if seat.transport is Transport.WEBSOCKETS else seat

    def deleted(self, token: str | None, *, now: float) -> Seat | int:
        """The connection that a DELETE ends, or the status that refuses it."""
        if token is None:
            return 400
        seat = self.find(token, now=now)
        if seat is None:
            return 404
        return seat if seat.transport is Transport.POLLING else 400

    def detach(self, seat: Seat, *, keep: bool, now: float) -> None:
        """Its transport is gone; `keep` it for another one to come."""
        if not keep:
            self.drop(seat)
        elif seat.place is not Place.GONE:
            seat.place, seat.until = Place.DETACHED, now + WINDOW

    def drop(self, seat: Seat) -> None:
        """It is over."""
        seat.place = Place.GONE
        self._seats.pop(seat.token, None)

    def sweep(self, *, now: float) -> list[Seat]:
        """Those whose window has just ended."""
        ended = [seat for seat in self._seats.values() if seat.until <= now]
        for seat in ended:
            self.drop(seat)
        return ended

    def _sit(self, *, versioned: bool, stateful: bool, until: float) -> Seat:
        self._made += 1
        public = self._secret("id")
        token = self._secret("token") if versioned else public
        seat = Seat(public, token, stateful, until=until)
        self._seats[token] = seat
        return seat

    def _secret(self, kind: str) -> str:
        digest = hashlib.sha256(f"{self._seed}:{self._name}:{kind}:{self._made}".encode()).digest()
        return base64.urlsafe_b64encode(digest[:16]).decode().rstrip("=")


def _version(text: str) -> int | str:
    """The version that a query asks for, or the error that answers it."""
    try:
        version = int(text)
    except ValueError:
        return "The client requested a non-integer protocol version."
    if version < 0:
        return f"The client requested version '{version}', but the server does not support this version."
    return version
