"""The aiohttp session that all streams of one event loop share, and what its failures mean.

Invariants: the session is made by the first borrower and closed by the last; a redirected WebSocket upgrade is refused,
so a token never follows a redirect; no address with its query enters an error. aiohttp comes with the first borrower.
"""

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

from keepline import __version__
from keepline.errors import APIError, PermanentError, TransientError
from keepline.http import mapped_error

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.client_middlewares import ClientHandlerType

__all__ = ["SessionLease", "borrow_session", "dial_error", "refused_upgrade"]

_REDIRECTS = range(300, 400)
_WORDS = {
    401: "the server refused the token (401)",
    403: "the server refused access (403)",
    404: "there is no stream at this address (404)",
    409: "the server says that this connection exists already (409)",
    429: "the server wants fewer connections (429)",
}


class SessionLease:
    """A borrowed session; give it back with `await release()`.

    Attributes:
        session: the shared `aiohttp.ClientSession`.
    """

    __slots__ = ("_shared", "session")

    def __init__(self, shared: "_Shared") -> None:
        self._shared: _Shared | None = shared
        self.session: aiohttp.ClientSession = shared.session
        shared.users += 1

    async def release(self) -> None:
        """Give the session back; the last borrower's closes it. May be called twice."""
        shared, self._shared = self._shared, None
        if shared is None:
            return
        shared.users -= 1
        if shared.users == 0:
            if _SHARED.get(shared.loop) is shared:
                del _SHARED[shared.loop]
            await shared.session.close()

    def __repr__(self) -> str:
        users = self._shared.users if self._shared else 0
        return f"<SessionLease, {users} borrowers>"


class _Shared:
    __slots__ = ("__weakref__", "loop", "session", "users")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.session = _new_session()
        self.users = 0


_SHARED: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Shared]" = (
    weakref.WeakKeyDictionary()
)


def borrow_session() -> SessionLease:
    """The running loop's session for streams: no cookies, no proxy of the environment, no limit of connections."""
    loop = asyncio.get_running_loop()
    shared = _SHARED.get(loop)
    if shared is None:
        shared = _SHARED[loop] = _Shared(loop)
    return SessionLease(shared)


def dial_error(error: BaseException, *, endpoint: str = "") -> APIError:
    """Our error for what kept a stream from connecting.

    Args:
        error: what aiohttp, the system or `TimeoutError` said.
        endpoint: method and path without the query.
    """
    mapped = error if isinstance(error, APIError) else _mapped(error)
    mapped.endpoint = mapped.endpoint or endpoint
    return mapped


def _mapped(error: BaseException) -> APIError:
    import aiohttp

    if isinstance(error, aiohttp.WSServerHandshakeError):
        return refused_upgrade(error.status, error.headers)
    return mapped_error(error, sent=True)


def refused_upgrade(status: int, headers: Any = None) -> APIError:
    """Our error for an HTTP status where a connection was wanted."""
    seconds = _retry_after(headers)
    if status in (401, 403):
        return PermanentError(_WORDS[status], category="auth", status=status, retry_after=seconds)
    if status in (408, 425, 429) or status >= 500:
        words = _WORDS.get(status, f"the server cannot connect us just now ({status})")
        category = "rate_limit" if status == 429 else "timeout" if status == 408 else "server"
        return TransientError(words, category=category, status=status, retry_after=seconds)
    if status in _REDIRECTS:
        return PermanentError(
            f"the server redirects the connection ({status}); give the address that it leads to",
            status=status,
        )
    words = _WORDS.get(status, f"the server answered {status} instead of opening a WebSocket")
    return PermanentError(words, status=status)


def _retry_after(headers: Any) -> float | None:
    text = (headers or {}).get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None


async def _no_redirected_upgrade(
    request: "aiohttp.ClientRequest", handler: "ClientHandlerType"
) -> "aiohttp.ClientResponse":
    # aiohttp follows redirects of an upgrade, with the query and its token, and ws_connect has no switch for it
    answer = await handler(request)
    if "Upgrade" in request.headers and answer.status in _REDIRECTS:
        answer.close()
        raise refused_upgrade(answer.status)
    return answer


def _new_session() -> "aiohttp.ClientSession":
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=10),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"keepline/{__version__}"},
        middlewares=(_no_redirected_upgrade,),
    )
