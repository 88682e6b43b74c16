"""Follows channels of a hub from a terminal or a program: connects, subscribes, resumes after a break.

Invariants: the first connection fails at once and says why; later ones are tried again for ever with growing pauses,
unless the hub says not to come back; the token leaves in the `Authorization` header alone.
"""

import ssl
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import APIError, PermanentError, ProtocolError, SignInRequired, TransientError
from keepline.http import mapped_error, redacted_url
from keepline.hub.closecodes import CLOSE_WORDS, CloseCode, comes_back
from keepline.hub.following import Following, Note
from keepline.resilience.backoff import Backoff
from keepline.resilience.classify import parse_retry_after

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Tail"]

LARGEST_FRAME = 16 << 20
HEARTBEAT_SECONDS = 25.0

_BACKOFF = Backoff((0.5, 1.0, 2.0, 4.0, 8.0), steady=15.0, jitter=0.5)
_SIGN_IN = frozenset({CloseCode.BAD_TOKEN, CloseCode.NOT_SIGNED_IN, CloseCode.REVOKED})


class Tail:
    """The messages of some channels, as they come.

    Args:
        url: the hub, for example `http://127.0.0.1:7999`.
        token: a JWT.
        channels: their names.
        types: only messages of these types.
        keys: only messages of these keys.
        note: is told what a person should know beside the messages: breaks, gaps, refused channels.
        ssl_context: whom to trust; None is the system's store.
        clock: for pauses.

    Example:
        >>> async for message in Tail("http://127.0.0.1:7999", token, ["alerts"]).messages():
        ...     print(message["data"]["title"])
    """

    def __init__(
        self,
        url: str,
        token: str,
        channels: Sequence[str],
        *,
        types: Iterable[str] = (),
        keys: Iterable[str] = (),
        note: Callable[[str], object] = lambda _: None,
        ssl_context: ssl.SSLContext | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.url = redacted_url(url).rstrip("/")
        self._token = token
        self._following = Following(channels, types=types, keys=keys)
        self._note = note
        self._ssl = ssl_context
        self._clock = clock
        self._failures = 0
        self._been_there = False

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        """Each message once, for as long as the hub lets us.

        An item of a snapshot is shown as the message that it was, with `"snapshot": true`.

        Raises:
            SignInRequired: the token is not (or no longer) good.
            TransientError: the hub cannot be reached; only before the first connection.
            PermanentError: the hub said not to come back, or refuses every channel.
        """
        import aiohttp

        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._ssl or True),
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            while True:
                wait: float | None = None
                try:
                    async for message in self._connection(session):
                        yield message
                except TransientError as error:
                    if not self._been_there:
                        raise
                    wait = error.retry_after
                    self._note(str(error))
                self._failures += 1
                pause = _BACKOFF.delay(self._failures, self._clock.chance())
                await self._clock.sleep(max(pause, wait or 0.0))

    async def _connection(
        self, session: "aiohttp.ClientSession"
    ) -> AsyncGenerator[dict[str, Any], None]:
        socket = await self._connect(session)
        try:
            await socket.send_str(self._following.request().decode())
            self._been_there = True
            async for frame in socket:
                for shown in self._shown(frame):
                    if isinstance(shown, Note):
                        self._note(shown)
                    else:
                        self._failures = 0
                        yield shown
        finally:
            await socket.close()
        self._ended(socket.close_code)

    def _shown(self, frame: "aiohttp.WSMessage") -> list[dict[str, Any] | Note]:
        if not isinstance(frame.data, str):
            return []
        try:
            return self._following.frame(frame.data)
        except ProtocolError as error:
            return [Note(str(error))]

    async def _connect(self, session: "aiohttp.ClientSession") -> "aiohttp.ClientWebSocketResponse":
        import aiohttp

        try:
            return await session.ws_connect(
                f"{self.url}/ws/analytics",
                headers={"Authorization": f"Bearer {self._token}"},
                heartbeat=HEARTBEAT_SECONDS,
                max_msg_size=LARGEST_FRAME,
            )
        except aiohttp.WSServerHandshakeError as error:
            raise self._refused(error) from None
        except (OSError, aiohttp.ClientError) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> APIError:
        mapped = mapped_error(error, sent=False)
        mapped.endpoint = self.url
        return mapped

    def _refused(self, error: "aiohttp.WSServerHandshakeError") -> Exception:
        words = f"{self.url} answered {error.status} to the WebSocket handshake"
        if error.status == 401:
            return self._sign_in(words)
        if error.status == 429 or error.status >= 500:
            said = error.headers.get("Retry-After") if error.headers else None
            asked = parse_retry_after(said, wall=self._clock.wall())
            return TransientError(
                words, category="server", status=error.status, retry_after=asked.seconds
            )
        return PermanentError(words, status=error.status)

    def _ended(self, code: int | None) -> None:
        """Raise when the hub said not to come back."""
        known = code in CloseCode.__members__.values()
        words = CLOSE_WORDS[CloseCode(code or 0)] if known else f"closed with code {code}"
        if code in _SIGN_IN:
            raise self._sign_in(words)
        if code is not None and not comes_back(code):
            raise PermanentError(f"{self.url}: {words}", code=str(code))
        self._note(f"{words}; connecting again")

    def _sign_in(self, words: str) -> SignInRequired:
        return SignInRequired(words, command=f"curl -d @login.json {self.url}/login")

    def __repr__(self) -> str:
        return f"<Tail {self.url} {self._following!r}>"
