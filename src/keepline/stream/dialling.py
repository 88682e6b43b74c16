"""From an endpoint's address to an open transport: negotiate, follow redirects, fall back to the next transport.

Invariants: each transport that is tried has a negotiation of its own, because a failed start uses the connection up;
the token is asked for anew at each step and carried to no origin but its own; refusals that concern the caller (401,
403, 429) end the dialling at once, no other transport would fare better.
"""

import ssl
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from keepline.errors import APIError, ConfigError, PermanentError, TransientError
from keepline.stream.negotiate import (
    Negotiated,
    NegotiateError,
    Redirect,
    choose_transports,
    connect_url,
    negotiate_url,
    read_reply,
)
from keepline.stream.transport import Transport, checked_transports
from keepline.stream.transport_events import EventsTransport
from keepline.stream.transport_http import HttpDoor, TokenPlace, refusal
from keepline.stream.transport_polling import PollingTransport
from keepline.stream.transport_websocket import WebSocketTransport

__all__ = ["Dialled", "Dialler"]

_MOST_REDIRECTS = 10
_POINTLESS_ELSEWHERE = frozenset({401, 403, 429})
_NEGOTIATE_HEADERS = {"X-Requested-With": "XMLHttpRequest"}


class Dialled(NamedTuple):
    """An open transport and what was agreed.

    Attributes:
        transport: open, nothing read from it yet.
        connection_id: the public name of the connection, None when negotiation was skipped.
        stateful: a lost transport may be reattached.
        door: where the transport leads.
        url: with the secret `id`.
    """

    transport: Transport
    connection_id: str | None
    stateful: bool
    door: HttpDoor
    url: str

    def __repr__(self) -> str:  # the address holds the connection's secret
        return f"<Dialled {self.transport!r} connection {self.connection_id}>"


class Dialler:
    """Makes transports to one endpoint.

    Args:
        url: the endpoint, http(s) or ws(s).
        place: the token and where it goes.
        transports: our names of those that may be used.
        skip_negotiation: go straight to a WebSocket; there is no connection id then, and no stateful reconnect.
        stateful: ask for stateful reconnect.
        binary: the encoding needs binary frames.
        headers: sent with each request.
        ssl_context: whom to trust.
        max_message_bytes: a larger frame ends a connection.
        timeout_seconds: for each step.

    Raises:
        ConfigError: the address is none, a transport is not known, or the options exclude each other.
    """

    def __init__(
        self,
        url: str,
        *,
        place: TokenPlace,
        transports: Sequence[str],
        skip_negotiation: bool,
        stateful: bool,
        binary: bool,
        headers: Mapping[str, str] | None,
        ssl_context: ssl.SSLContext | None,
        max_message_bytes: int,
        timeout_seconds: float,
    ) -> None:
        self._url = connect_url(url)
        self._wanted = checked_transports(transports, skip=skip_negotiation, stateful=stateful)
        self._skip = skip_negotiation
        self._stateful = stateful and "websockets" in self._wanted
        self._binary = binary
        self._max_bytes = max_message_bytes
        self._seconds = timeout_seconds
        self._door = HttpDoor(
            self._url,
            token=place,
            headers=headers,
            ssl_context=ssl_context,
            timeout_seconds=timeout_seconds,
        )

    async def dial(self) -> Dialled:
        """An open transport, the first that works in the server's order.

        Raises:
            TransientError: it may work in a moment; status and retry_after as the server said.
            PermanentError: it will not work unchanged.
            CredentialError: the token source has no token.
        """
        failed: dict[str, APIError] = {}
        while True:
            door = self._door.again()
            try:
                url, agreed, names = await self._agree(door)
                left = [name for name in names if name not in failed]
                if not left:  # the server offers less than a moment ago
                    raise _all_failed(failed)
                transport = self._transport(left[0], door, url)
            except BaseException:
                await door.close()
                raise
            try:
                await transport.open()
            except APIError as error:
                await transport.close()
                failed[left[0]] = error
                if len(left) == 1 or error.status in _POINTLESS_ELSEWHERE:
                    raise _all_failed(failed) from error
            except BaseException:
                await transport.close()
                raise
            else:
                stateful = bool(agreed and agreed.stateful and transport.name == "websockets")
                identity = agreed.connection_id if agreed else None
                return Dialled(transport, identity, stateful, door, url)

    async def reattach(self, lost: Dialled) -> Dialled:
        """A new WebSocket for a connection that the server still keeps: no negotiation, a fresh token.

        Raises:
            APIError: the server keeps it no longer (404), or cannot be reached.
        """
        door = lost.door.again()
        transport = self._transport("websockets", door, lost.url)
        try:
            await transport.open()
        except BaseException:
            await transport.close()
            raise
        return lost._replace(transport=transport, door=door)

    def _transport(self, name: str, door: HttpDoor, url: str) -> Transport:
        text, limit = not self._binary, self._max_bytes
        if name == "websockets":
            return WebSocketTransport(door, url, text=text, max_message_bytes=limit)
        if name == "events":
            return EventsTransport(
                door, url, max_message_bytes=limit, timeout_seconds=self._seconds
            )
        return PollingTransport(door, url, text=text, max_message_bytes=limit)

    async def _agree(self, door: HttpDoor) -> tuple[str, Negotiated | None, Sequence[str]]:
        if self._skip:
            return self._url, None, ("websockets",)
        url, agreed = await self._negotiate(door)
        names = choose_transports(agreed.transports, self._wanted, binary=self._binary)
        if isinstance(names, NegotiateError):
            raise _negotiate_failure(url, names)
        return connect_url(url, agreed.connection_token), agreed, names

    async def _negotiate(self, door: HttpDoor) -> tuple[str, Negotiated]:
        url = self._url
        for _ in range(_MOST_REDIRECTS + 1):
            reply = await self._ask(door, url)
            if isinstance(reply, Negotiated):
                return url, reply
            url = _followed(door, url, reply)
        raise PermanentError(
            f"the server sent us on more than {_MOST_REDIRECTS} times", endpoint=_endpoint(url)
        )

    async def _ask(self, door: HttpDoor, url: str) -> Negotiated | Redirect:
        address = negotiate_url(url, stateful=self._stateful)
        answer = await door.request(
            "POST", address, body=b"", fresh_token=True, headers=_NEGOTIATE_HEADERS
        )
        if answer.status != 200:
            raise refusal("POST", address, answer)
        kind = answer.headers.get("content-type", "")
        reply = read_reply(answer.body, content_type=kind, stateful=self._stateful)
        if isinstance(reply, NegotiateError):
            raise _negotiate_failure(url, reply)
        return reply

    def __repr__(self) -> str:
        return f"<Dialler {self._door!r}, {', '.join(self._wanted)}>"


def _followed(door: HttpDoor, url: str, reply: Redirect) -> str:
    """The new address, after its token (if any) has taken the place of ours."""
    try:
        target = connect_url(reply.url)
        door.redirected(target, reply.access_token)
    except ConfigError as error:
        raise PermanentError(
            f"the server sends us on to an address that cannot be used: {error}",
            endpoint=_endpoint(url),
        ) from None
    return target


def _negotiate_failure(url: str, error: NegotiateError) -> APIError:
    kind = PermanentError if error.permanent else TransientError
    return kind(error.reason, status=200, endpoint=_endpoint(url))


def _endpoint(url: str) -> str:
    return f"POST {urlsplit(negotiate_url(url)).path}"


def _all_failed(failed: Mapping[str, APIError]) -> APIError:
    """One error for all transports: the last one's kind, with the words of each."""
    last = list(failed.values())[-1]
    if len(failed) == 1:
        return last
    words = "; ".join(f"{name}: {error}" for name, error in failed.items())
    return type(last)(
        f"no transport works: {words}",
        category=last.category,
        status=last.status,
        retry_after=last.retry_after,
        sent=last.sent,
    )
