"""What all transports need of HTTP: one session per connection, the token on each request, every failure mapped once.

Invariants: the token goes to the origin it is meant for and nowhere else, and never in clear text beyond this machine;
no redirect is followed; nothing is sent again behind the caller's back; no error, log line or repr holds the token or
a query; cookies live as long as one connection, because load balancers keep its requests together by them.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from keepline import __version__
from keepline.errors import APIError, ConfigError, CredentialError, PermanentError
from keepline.http import BODY_LIMIT, Headers, mapped_error, redacted_url
from keepline.resilience.classify import error_of, failure_of_answer
from keepline.stream.negotiate import connect_url
from keepline.stream.tokens import StreamTokens
from keepline.stream.transport import require_privacy

__all__ = ["Answer", "HttpDoor", "TokenPlace", "refusal"]

_PORTS = {"http": 80, "https": 443}
_SECRET_FIELDS = ("Authorization", "Cookie")
_CLOSE_SECONDS = (
    5.0  # for the answer to our Close frame; a server that is gone must not hold up a reconnect
)


class TokenPlace(NamedTuple):
    """Where a token may go.

    Attributes:
        source: gives the newest token; None when the endpoint wants none.
        in_query: put it in the query as `access_token` for servers that read only that; otherwise in a header.
    """

    source: StreamTokens | None
    in_query: bool = False


class Answer(NamedTuple):
    """A whole answer: status, header fields and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def refusal(method: str, url: str, answer: Answer) -> APIError:
    """The error for an answer with a status that is not the wanted one; redirects have their own words."""
    endpoint = f"{method} {urlsplit(redacted_url(url)).path}"
    if 300 <= answer.status < 400:
        where = _origin_words(answer.headers.get("location", ""))
        return PermanentError(
            f"{answer.status}: the server wants the request elsewhere{where}, and a token is not carried there: use "
            "that address",
            status=answer.status,
            endpoint=endpoint,
        )
    failure = failure_of_answer(
        answer.status, answer.headers, answer.body, endpoint=endpoint, wall=datetime.now(UTC)
    )
    return error_of(failure, mutation=False, endpoint=endpoint)


class HttpDoor:
    """The HTTP side of one connection; `close` lets go of all of it, `abort` without a goodbye.

    Args:
        url: the endpoint as configured: its origin is the one that the token is meant for.
        token: the token and its place.
        headers: sent with each request, `Authorization` and `Cookie` to the origin alone.
        ssl_context: whom to trust; None is the system's store.
        timeout_seconds: for connecting, and for each answer but a long poll's.

    Raises:
        ConfigError: the address is none, or would carry a token in clear text beyond this machine.
    """

    def __init__(
        self,
        url: str,
        *,
        token: TokenPlace | None = None,
        headers: Mapping[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        timeout_seconds: float = 15.0,
    ) -> None:
        redacted_url(url)
        self._origin = _origin(url)
        self._token = token or TokenPlace(None)
        if self._token.source is not None:
            require_privacy(url)
        self._home = self._origin
        self._headers = dict(headers or {})
        self._ssl = ssl_context
        self._seconds = timeout_seconds
        self._connector: _Connector | None = None
        self._session: aiohttp.ClientSession | None = None
        self._cookies: aiohttp.CookieJar | None = None
        self._last_token: str | None = None

    def redirected(self, url: str, token: str | None) -> None:
        """From now on requests go to another address, with its own token; without one ours stays at home.

        Raises:
            ConfigError: the address is none, or would carry a token in clear text beyond this machine.
        """
        redacted_url(url)
        if token is not None:
            require_privacy(url)
            self._token = TokenPlace(StreamTokens(token), self._token.in_query)
            self._origin = _origin(url)
            self._last_token = None

    def again(self) -> "HttpDoor":
        """A new door with the same token and cookies for the same origin, after redirects: for another connect."""
        door = HttpDoor(
            self._origin,
            token=self._token,
            headers=self._headers,
            ssl_context=self._ssl,
            timeout_seconds=self._seconds,
        )
        door._cookies = self._cookies
        door._home = self._home
        return door

    async def request(
        self, method: str, url: str, *, body: bytes | None = None, seconds: float | None = None,
        fresh_token: bool = False, headers: Mapping[str, str] | None = None, max_bytes: int = BODY_LIMIT,
    ) -> Answer:  # fmt: skip
        """Send one request and read its whole answer, whatever the status.

        A 401 is answered once by asking for a newer token (such a request "has not been applied", RFC 9110 §15.5.2),
        unless this request's token was fresh.

        Raises:
            TransientError: no whole answer.
            PermanentError: the certificate is not trusted, or the answer is larger than `max_bytes`.
        """
        answer = await self._once(method, url, body, seconds, fresh_token, headers, max_bytes)
        if answer.status == 401 and not fresh_token and self._token.source is not None:
            self._token.source.refused()
            return await self._once(method, url, body, seconds, True, headers, max_bytes)
        return answer

    async def _once(
        self, method: str, url: str, body: bytes | None, seconds: float | None, fresh: bool,
        headers: Mapping[str, str] | None, max_bytes: int,
    ) -> Answer:  # fmt: skip
        limit = aiohttp.ClientTimeout(total=seconds or self._seconds)
        request = self.opened(method, url, limit, body=body, fresh_token=fresh, headers=headers)
        async with request as answer:
            held = bytearray()
            async for chunk in answer.content.iter_any():
                held += chunk
                if len(held) > max_bytes:
                    raise PermanentError(
                        f"the answer is larger than {max_bytes} bytes",
                        category="server",
                        status=answer.status,
                        endpoint=f"{method} {urlsplit(url).path}",
                    )
            return Answer(answer.status, Headers(answer.headers), bytes(held))

    @asynccontextmanager
    async def opened(
        self, method: str, url: str, timeout: aiohttp.ClientTimeout, *, body: bytes | None = None,
        fresh_token: bool = True, headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:  # fmt: skip
        """An answer whose body is still to be read; failures inside the block are mapped too.

        Raises:
            APIError: the request or the reading failed.
        """
        address, fields = await self._addressed(url, fresh=fresh_token)
        fields.update(headers or {})
        try:
            async with self._open().request(
                method, address, data=body, headers=fields, timeout=timeout,
                allow_redirects=False, middlewares=(_send_once,),
            ) as answer:  # fmt: skip
                yield answer
        except (aiohttp.ClientError, OSError, _ConnectionLost) as error:
            raise self._mapped(method, url, error) from _cause(error)

    async def websocket(
        self, url: str, *, max_bytes: int
    ) -> "aiohttp.ClientWebSocketResponse[bool]":
        """Upgrade to a WebSocket; text frames come as bytes, and no timer runs per message.

        Raises:
            TransientError: it may work in a moment; status and retry_after as the server said.
            PermanentError: it will not work unchanged: another kind of server, a refused token, a bad certificate.
        """
        address, fields = await self._addressed(url, fresh=True)
        try:
            async with asyncio.timeout(self._seconds):
                return await self._open().ws_connect(
                    address, headers=fields, max_msg_size=max_bytes, decode_text=False,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
                )  # fmt: skip
        except aiohttp.WSServerHandshakeError as error:
            raise _no_upgrade(url, error) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._mapped("GET", url, error) from _cause(error)

    async def close(self) -> None:
        """Close what is open; may be called twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def abort(self) -> None:
        """Drop the sockets as they are: no Close frame, no TLS goodbye, nothing that waits in a buffer is sent."""
        if self._connector is not None:
            self._connector.abort()
        await self.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._cookies = self._cookies or aiohttp.CookieJar(unsafe=True)
            self._connector = _Connector(ssl=self._ssl or True)
            self._session = aiohttp.ClientSession(
                connector=self._connector,
                cookie_jar=self._cookies,
                headers={"User-Agent": f"keepline/{__version__}"},
                middlewares=(_stay,),
            )
        return self._session

    async def _addressed(self, url: str, *, fresh: bool) -> tuple[URL, CIMultiDict[str]]:
        """The address and the header fields with the token, if it may go there."""
        fields = self._own(url)
        if self._token.source is not None and _origin(url) == self._origin:
            if fresh or self._last_token is None:
                self._last_token = await _ask(self._token.source)
            if self._token.in_query:
                url = connect_url(url, access_token=self._last_token)
            else:
                fields["Authorization"] = f"Bearer {self._last_token}"
        return URL(url, encoded=True), fields

    def _own(self, url: str) -> CIMultiDict[str]:
        """The caller's own header fields; behind a redirect to another origin without those that are secret."""
        fields = CIMultiDict(self._headers)
        if _origin(url) != self._home:
            for name in _SECRET_FIELDS:
                fields.pop(name, None)
        return fields

    @staticmethod
    def _mapped(method: str, url: str, error: BaseException) -> APIError:
        cause = error.__cause__ if isinstance(error, _ConnectionLost) else error
        mapped = mapped_error(cause)
        mapped.endpoint = f"{method} {urlsplit(redacted_url(url)).path}"
        return mapped

    def __repr__(self) -> str:  # neither the token nor the query
        return f"<HttpDoor {self._origin}, {'open' if self._session else 'not connected'}>"


class _ConnectionLost(Exception):
    """Carries aiohttp's error past its own second try."""


async def _send_once(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
    # aiohttp repeats GET and DELETE by itself when a kept connection dies under them; a poll that is repeated behind
    # our back may hide that the answer to the first one, with its messages, is gone
    try:
        answer: aiohttp.ClientResponse = await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _ConnectionLost from error
    return answer


async def _stay(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
    # aiohttp follows the redirects of an upgrade, with the query and its token, and ws_connect has no switch for it
    answer: aiohttp.ClientResponse = await handler(request)
    if 300 <= answer.status < 400:
        answer.close()
        raise aiohttp.WSServerHandshakeError(
            answer.request_info, (), status=answer.status, headers=answer.headers
        )
    return answer


class _Connector(aiohttp.TCPConnector):
    """Knows its sockets, so that they can be dropped without a goodbye."""

    _newest: asyncio.Transport | None = None

    async def connect(self, *args: Any, **kwargs: Any) -> aiohttp.connector.Connection:
        connection = await super().connect(*args, **kwargs)
        self._newest = connection.transport
        return connection

    def abort(self) -> None:
        if self._newest is not None:
            self._newest.abort()


async def _ask(tokens: StreamTokens) -> str:
    token = await tokens()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise CredentialError(
            "the token holds characters that no header can carry: it is not a bearer token"
        )
    return token


def _origin(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}:{parts.port or _PORTS.get(parts.scheme, 0)}"


def _origin_words(url: str) -> str:
    try:
        return f" ({redacted_url(url)})"
    except ConfigError:
        return ""


def _no_upgrade(url: str, error: aiohttp.WSServerHandshakeError) -> APIError:
    """Why a WebSocket was not given: a status by itself, or an answer that is not an upgrade."""
    answer = Answer(error.status, Headers(error.headers or {}), b"")
    if error.status == 101 or 200 <= error.status < 300:
        return PermanentError(
            f"answered {error.status} without a proper change to WebSocket: is this the address of a SignalR "
            "endpoint, and does nothing in between (a proxy) speak plain HTTP?",
            status=error.status,
            endpoint=f"GET {urlsplit(redacted_url(url)).path}",
        )
    return refusal("GET", url, answer)


def _cause(error: BaseException) -> BaseException | None:
    cause = error.__cause__ if isinstance(error, _ConnectionLost) else error
    return cause if isinstance(cause, OSError) else None  # the others may spell out the query
