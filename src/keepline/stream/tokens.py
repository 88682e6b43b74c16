"""Where a stream asks for its token, anew at each connect, whatever holds it.

Invariants: the stream knows nothing of credentials; after a refusal a newer token than the refused one is asked for,
where the holder can wait for one; no token is part of a repr or an error.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from keepline.errors import ConfigError, TokenUnavailable
from keepline.resilience.bearer import TextHolder, TokenHolder, TokenLike, TokenSource, secret_of

__all__ = ["StreamTokenSource", "StreamTokens"]

StreamTokenSource: TypeAlias = TokenSource | Callable[[], str | Awaitable[str]] | str
"""`await get(newer_than=…)`, `await get_token()`, a callable (sync or async), or a token that never changes."""


class StreamTokens:
    """A callable that gives the newest token, and can be told that the last one was refused.

    Args:
        source: whatever holds tokens.

    Raises:
        ConfigError: the source is none of the kinds that are understood.
    """

    __slots__ = ("_last", "_refused", "_source")

    def __init__(self, source: StreamTokenSource) -> None:
        if not (isinstance(source, str | TokenHolder | TextHolder) or callable(source)):
            raise ConfigError(
                "an object with `await get_token()`, a callable or a text is needed,"
                f" not {type(source).__name__}",
                key="token",
            )
        self._source = source
        self._last: TokenLike | str | None = None
        self._refused: TokenLike | str | None = None

    def refused(self) -> None:
        """The server refused the last token: the next call asks for a newer one."""
        self._refused = self._last

    def is_last(self, token: TokenLike | str) -> bool:
        """Whether this token is the one that was handed out last."""
        return self._last is not None and secret_of(self._last) == secret_of(token)

    def hidden_in(self, frame: bytes | str) -> bytes | str:
        """A frame without the last token, as long as it was: a server may repeat what it was told, in its errors."""
        secret = "" if self._last is None else secret_of(self._last)
        if isinstance(frame, str):
            return frame.replace(secret, "*" * len(secret)) if secret else frame
        hidden = secret.encode()
        return frame.replace(hidden, b"*" * len(hidden)) if hidden else frame

    async def __call__(self) -> str:
        """The newest token's text.

        Raises:
            TokenUnavailable: the source gave an empty text.
            CredentialError: the source has none, and says why.
        """
        token = self._last = await self._ask()
        self._refused = None  # not before: a source that has no newer one yet is asked for it again
        text = secret_of(token)
        if not text:
            raise TokenUnavailable("the token source gave an empty token")
        return text

    async def _ask(self) -> TokenLike | str:
        source, refused = self._source, self._refused
        if isinstance(source, str):
            return source
        if isinstance(source, TokenHolder):
            known = None if refused is None or isinstance(refused, str) else refused.generation
            return await source.get(newer_than=known)
        if isinstance(source, TextHolder):
            return await source.get_token()
        given = source()
        return await given if inspect.isawaitable(given) else given

    def __repr__(self) -> str:
        return f"<StreamTokens of {type(self._source).__name__}>"
