"""The one HTTP session: every status is an answer, every other end is one of our errors.

Invariants: a mutation leaves at most once and follows no redirect; `sent=False` is said only when the request provably
never left; no query, user part or body of ours enters an error; foreign exceptions end here. Cookies are not kept and
neither `.netrc` nor a proxy of the environment is consulted: nothing is sent that the caller did not write.
"""

import json as _json
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from keepline import __version__
from keepline.errors import APIError, Closed, ConfigError, PermanentError, ProtocolError
from keepline.errors import TransientError as Transient

if TYPE_CHECKING:  # aiohttp costs 100 ms at import: it is loaded by the first request
    import asyncio
    from types import SimpleNamespace

    import aiohttp
    from aiohttp.client_middlewares import ClientHandlerType

__all__ = ["BODY_LIMIT", "Headers", "HttpSession", "Response", "mapped_error", "redacted_url"]

BODY_LIMIT = 4 << 20
"""Bytes of an answer that we are willing to hold; an issuer's are a few thousand."""

_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
_PORTS = {"http": 80, "https": 443}


class Headers(Mapping[str, str]):
    """Header fields, found in any spelling; a repeated field is joined with a comma (RFC 9110 §5.3)."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, str] | None = None) -> None:
        self._fields: dict[str, str] = {}
        for name, value in (fields or {}).items():
            known = self._fields.get(name.lower())
            self._fields[name.lower()] = value if known is None else f"{known}, {value}"

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:  # a Set-Cookie or a Location may hold a secret
        return f"<Headers {', '.join(self._fields)}>"


@dataclass(frozen=True, slots=True)
class Response:
    """What the other side answered, whatever the status.

    Attributes:
        status: the HTTP status.
        headers: the header fields, found in any spelling.
        body: the decompressed bytes; kept out of the repr, since a token may be in them.
        url: where the answer came from, without user part, query and fragment.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    url: str

    @property
    def text(self) -> str:
        """The body as UTF-8; what is not becomes the replacement character."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ProtocolError: it is not JSON.
        """
        try:
            return _json.loads(self.body)
        except (ValueError, RecursionError):
            raise ProtocolError(
                f"{self.url} answered {self.status} with something that is not JSON"
            ) from None


def redacted_url(url: str) -> str:
    """The address without user part, query and fragment: fit for a log.

    Raises:
        ConfigError: it is not an http or https address.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme not in _PORTS:
        raise ConfigError("an http:// or https:// address with a host is needed", key="url")
    name = f"[{host}]" if ":" in host else host
    place = name if port in (None, _PORTS[parts.scheme]) else f"{name}:{port}"
    return f"{parts.scheme}://{place}{parts.path or '/'}"


class HttpSession:
    """One connection pool; made by the first request, on the loop that makes it.

    Args:
        timeout_seconds: the default for a whole request, from connecting to the last byte.
        ssl_context: whom to trust; None is the system's store (OpenSSL reads `SSL_CERT_FILE`).
    """

    def __init__(
        self, *, timeout_seconds: float = 30.0, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        if not 0 < timeout_seconds < float("inf"):
            raise ConfigError(
                f"a positive number of seconds is needed, not {timeout_seconds!r}",
                key="timeout_seconds",
            )
        self._timeout = timeout_seconds
        self._ssl = ssl_context
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> "HttpSession":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; a later request opens new ones."""
        session, self._session, self._loop = self._session, None, None
        if session is not None:
            await session.close()

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: object = None,
        form: Mapping[str, str] | None = None,
        content: bytes | None = None,
        timeout_seconds: float | None = None,
    ) -> Response:
        """Send one request and read its whole answer.

        GET, HEAD and OPTIONS follow redirects (the `Authorization` field stays within its origin) and may be sent again
        when a kept connection turns out to be dead. Everything else is a mutation: sent once, a redirect is the answer.

        Args:
            method: the HTTP method.
            url: where to; its query may hold secrets, it is never logged.
            headers: header fields.
            params: added to the query.
            json: sent as a JSON body when not None.
            form: sent as an urlencoded form when not None.
            content: sent as it is when not None; name its `Content-Type` in `headers`.
            timeout_seconds: for this request instead of the session's.

        Raises:
            ConfigError: the address is not one.
            TransientError: no whole answer; category `network` or `timeout`, `sent` False only when it never left.
            PermanentError: the certificate is not trusted, or redirects go in a circle.
        """
        method = method.upper()
        endpoint = f"{method} {urlsplit(redacted_url(url)).path}"
        session = self._open()
        progress = _Progress()
        content_type, body = _body(json, form, content)
        if params:
            url = f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(params)}"
        harmless = method in _HARMLESS
        foreign = _foreign_errors()
        try:
            return await self._exchange(
                session.request(
                    method,
                    _verbatim(url),
                    headers={**content_type, **(headers or {})},
                    data=body,
                    timeout=_timeout(self._timeout if timeout_seconds is None else timeout_seconds),
                    allow_redirects=harmless,
                    middlewares=() if harmless else (_send_once,),
                    trace_request_ctx=progress,
                )
            )
        except APIError as error:
            error.endpoint = endpoint
            raise
        except foreign as error:
            cause = error.__cause__ if isinstance(error, _ConnectionLost) else error
            mapped = mapped_error(cause, sent=progress.sent)
            mapped.endpoint = endpoint
            # the others may spell out the whole address, query included
            raise mapped from (cause if isinstance(cause, OSError) else None)

    async def _exchange(self, request: "aiohttp.client._RequestContextManager") -> Response:
        async with request as answer:
            body = bytearray()
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > BODY_LIMIT:
                    raise Transient(
                        f"the answer is larger than {BODY_LIMIT >> 20} MiB",
                        category="server",
                        status=answer.status,
                    )
            return Response(
                answer.status, _headers(answer), bytes(body), redacted_url(str(answer.url))
            )

    def _open(self) -> "aiohttp.ClientSession":
        import asyncio

        loop = asyncio.get_running_loop()
        if self._session is None:
            self._session, self._loop = _new_session(self._ssl), loop
        elif self._loop is not loop:
            raise Closed("this HTTP session belongs to another event loop; close() it there first")
        return self._session

    def __repr__(self) -> str:
        return f"<HttpSession {'open' if self._session else 'not connected'}, timeout {self._timeout:g} s>"


def mapped_error(error: BaseException | None, *, sent: bool = True) -> APIError:
    """Our error for aiohttp's, in words of ours: theirs may hold the address with its query.

    Args:
        error: what aiohttp or the system raised.
        sent: whether the request may have left.
    """
    import aiohttp

    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return PermanentError(_certificate_words(error), category="network", sent=False)
    if isinstance(error, aiohttp.TooManyRedirects):
        return PermanentError("the server redirects in a circle", category="client")
    category = "timeout" if isinstance(error, TimeoutError) else "network"
    for kind, words in _WORDS:
        if isinstance(error, getattr(aiohttp, kind, TimeoutError)):
            return Transient(words(error), category=category, sent=sent)
    return Transient(
        f"the connection failed ({type(error).__name__})", category=category, sent=sent
    )


class _Progress:
    """How far a request came; aiohttp hands it to the trace below."""

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent = False


class _ConnectionLost(Exception):
    """Carries aiohttp's error past its own second try."""


async def _headers_leave(_: object, context: "SimpleNamespace", __: object) -> None:
    # fired after connecting and just before the first byte is written
    context.trace_request_ctx.sent = True


async def _send_once(
    request: "aiohttp.ClientRequest", handler: "ClientHandlerType"
) -> "aiohttp.ClientResponse":
    # aiohttp repeats PUT and DELETE by itself when a kept connection dies under them
    # (`retry_persistent_connection` in ClientSession._request); a mutation of ours is never doubled behind our back
    import aiohttp

    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _ConnectionLost from error


def _new_session(context: ssl.SSLContext | None) -> "aiohttp.ClientSession":
    import aiohttp

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(_headers_leave)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context or True),
        cookie_jar=aiohttp.DummyCookieJar(),
        # some brokers answer 401 to a request without product and version
        headers={"User-Agent": f"keepline/{__version__}"},
        trace_configs=[trace],
    )


def _foreign_errors() -> tuple[type[Exception], ...]:
    import aiohttp

    return (OSError, aiohttp.ClientError, _ConnectionLost)


def _timeout(seconds: float) -> "aiohttp.ClientTimeout":
    import aiohttp

    return aiohttp.ClientTimeout(total=seconds)


def _verbatim(url: str) -> Any:
    from yarl import URL

    return URL(url, encoded=True)  # what the caller encoded is not encoded a second time


def _body(
    json: object, form: Mapping[str, str] | None, content: bytes | None
) -> tuple[dict[str, str], bytes | None]:
    if sum(each is not None for each in (json, form, content)) > 1:
        raise TypeError("a request has one body: json, form or content")
    if content is not None:
        return {"Content-Type": "application/octet-stream"}, content
    if json is not None:
        return {"Content-Type": "application/json"}, _json.dumps(json).encode()
    if form is not None:
        return {"Content-Type": "application/x-www-form-urlencoded"}, urlencode(form).encode()
    return {}, None


def _headers(answer: "aiohttp.ClientResponse") -> Headers:
    return Headers(answer.headers)


def _certificate_words(error: Any) -> str:
    reason = getattr(error.certificate_error, "verify_message", "") or "it does not fit the name"
    return (
        f"the certificate of {error.host}:{error.port} is not trusted ({reason}): check the address and this machine's "
        "clock; an authority of your own is named with SSL_CERT_FILE"
    )


def _reason(error: Any) -> str:
    number = getattr(error, "errno", None)
    if number and number > 0:
        return os.strerror(number)  # asyncio's own words hold an address as a tuple
    return str(getattr(error, "strerror", None) or type(error).__name__)


_WORDS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("ConnectionTimeoutError", lambda _: "no connection in time"),
    ("TimeoutError", lambda _: "no answer in time"),
    ("ClientConnectorDNSError", lambda e: f"the name {e.host} was not found"),
    ("ClientSSLError", lambda e: f"the TLS handshake with {e.host}:{e.port} failed"),
    ("ClientConnectorError", lambda e: f"cannot connect to {e.host}:{e.port}: {_reason(e)}"),
    ("ServerDisconnectedError", lambda _: "the server closed the connection without an answer"),
    ("ClientPayloadError", lambda _: "the connection ended in the middle of the answer"),
    ("ClientResponseError", lambda _: "the answer is not HTTP"),
    ("ClientOSError", lambda e: f"the connection was lost: {_reason(e)}"),
)
"""aiohttp's exceptions from the special to the general; TimeoutError is the built-in one."""
