"""The newest token as a header, from whatever holds tokens; no import of credentials.

Invariants: the header of an unchanged token is made once; a token is never part of a message; a wait for a token ends
at the caller's deadline, and a token that is there costs no timer.
"""

import asyncio
import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from keepline.clock import Clock
from keepline.errors import ConfigError, TokenUnavailable

__all__ = [
    "Bearer",
    "TextHolder",
    "TokenHolder",
    "TokenLike",
    "TokenSource",
    "rest_until",
    "secret_of",
    "until",
]

T = TypeVar("T")

_TELLING = 8  # characters: fewer of a token's beginning tell nobody anything


class TokenLike(Protocol):
    """A token with its generation; `keepline.Token` is one."""

    @property
    def access_token(self) -> str: ...
    @property
    def token_type(self) -> str: ...
    @property
    def generation(self) -> int: ...


@runtime_checkable
class TokenHolder(Protocol):
    """What can wait for a newer token than the one that was refused; `keepline.TokenManager` is one."""

    async def get(self, *, newer_than: int | None = None) -> TokenLike: ...


@runtime_checkable
class TextHolder(Protocol):
    """What knows the newest token's text."""

    async def get_token(self) -> str: ...


TokenSource: TypeAlias = TokenHolder | TextHolder | Callable[[], Awaitable[str]]
"""Whatever gives tokens: `await get(newer_than=...)`, `await get_token()`, or an async callable."""


class Bearer:
    """The `Authorization` header of the newest token, beside headers that never change.

    Attributes:
        token: the last one sent, None before the first.
        current: the headers with it.
        bare: the headers without any.
        fetch: begins to ask for the newest token, None without a source.

    Args:
        source: None sends none.
        headers: sent with every request.

    Raises:
        ConfigError: the source is none of the three kinds.
    """

    __slots__ = ("_source", "bare", "current", "fetch", "token", "waits_for_newer")

    def __init__(self, source: TokenSource | None, headers: Mapping[str, str]) -> None:
        self._source = source
        self.token: TokenLike | str | None = None
        self.bare = headers
        self.current = headers
        self.fetch: Callable[[], Coroutine[Any, Any, TokenLike | str]] | None
        self.fetch, self.waits_for_newer = _fetcher(source)

    def headers(self, token: TokenLike | str) -> Mapping[str, str]:
        """All headers with this token's; the same object while the token is the same.

        Raises:
            TokenUnavailable: the token is an empty text.
        """
        if token is not self.token:
            kind = "Bearer" if isinstance(token, str) else token.token_type
            if not (text := secret_of(token)):
                raise TokenUnavailable("the token source gave an empty token")
            self.current = {**self.bare, "Authorization": f"{kind} {text}"}
            self.token = token
        return self.current

    async def newer(self, clock: Clock, seconds: float, sent: TokenLike | str | None) -> bool:
        """Wait for a newer token than the one that was sent; False when the source has none.

        Args:
            clock: whose seconds count.
            seconds: how long to wait at most.
            sent: the token that was refused; another call may have sent a newer one meanwhile.

        Raises:
            TimeoutError: none came in time.
            CredentialError: none can come.
        """
        if isinstance(self._source, TokenHolder) and not isinstance(sent, (str, type(None))):
            await until(clock, seconds, self._source.get(newer_than=sent.generation))
            return True
        if self.fetch is None or sent is None:
            return False
        return secret_of(await until(clock, seconds, self.fetch())) != secret_of(sent)

    def hide(self, text: str, sent: TokenLike | str | None = None) -> str:
        """The text without the newest token and the one sent, nor a beginning of them where a quote was cut off."""
        for token in (self.token, sent):
            if token is not None and (secret := secret_of(token)):
                text = _without(text, secret)
        return text

    def __str__(self) -> str:
        if self._source is None:
            return "none"
        kind = (
            "waits for a newer one after a 401"
            if self.waits_for_newer
            else "asked again after a 401"
        )
        return f"{_name_of(self._source)}, {kind}"


def secret_of(token: TokenLike | str) -> str:
    """The token's text."""
    return token if isinstance(token, str) else token.access_token


def _without(text: str, secret: str) -> str:
    head, *tails = text.split(secret[:_TELLING])
    return head + "".join("[redacted]" + tail[_common(tail, secret[_TELLING:]) :] for tail in tails)


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _fetcher(source: Any) -> tuple[Callable[[], Coroutine[Any, Any, Any]] | None, bool]:
    if source is None:
        return None, False
    if isinstance(source, TokenHolder):
        return _as_coroutine(source.get), True
    if isinstance(source, TextHolder):
        return _as_coroutine(source.get_token), False
    if callable(source):
        return _as_coroutine(source), False
    raise ConfigError(
        "an object with `await get_token()` or an async callable is needed,"
        f" not {type(source).__name__}",
        key="tokens",
    )


def _as_coroutine(function: Callable[[], Awaitable[T]]) -> Callable[[], Coroutine[Any, Any, T]]:
    if inspect.iscoroutinefunction(function):
        return function

    async def fetch() -> T:
        return await function()

    return fetch


def _name_of(source: object) -> str:
    return getattr(source, "__qualname__", None) or type(source).__name__


async def until(clock: Clock, seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine for at most `seconds` of the clock; one that need not wait costs no timer and no task.

    Raises:
        TimeoutError: the time was up first; the coroutine was cancelled.
    """
    try:
        waits_for = work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    return await rest_until(clock, seconds, work, waits_for)


async def rest_until(
    clock: Clock, seconds: float, work: Coroutine[Any, Any, T], waits_for: Any
) -> T:
    """Await the rest of a coroutine that was begun by hand and gave `waits_for`; else as `until`."""
    if seconds == float("inf"):
        return await _rest(work, waits_for)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as scope:
        bell = asyncio.ensure_future(clock.sleep(seconds))
        bell.add_done_callback(ring := lambda _: scope.reschedule(loop.time()))
        try:
            return await _rest(work, waits_for)
        finally:
            bell.remove_done_callback(ring)
            bell.cancel()


@types.coroutine
def _rest(work: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """Go on with a coroutine that was begun by hand and waits for something."""
    try:
        while True:
            try:
                value = yield waits_for
            except BaseException as error:  # whatever is thrown at us is meant for it
                waits_for = work.throw(error)
            else:
                waits_for = work.send(value)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
