"""Parts of a daemon for tests: credentials that answer on command, and the daemon's socket in a private directory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from keepline.credentials.token import Token
from keepline.daemon.socket import LocalSocket


def token(generation: int = 1, text: str = "") -> Token:
    return Token(
        text or f"access-{generation}",
        f"refresh-{generation}",
        expires_at=datetime(2030, 1, 1, tzinfo=UTC),
        issued_at=datetime(2029, 1, 1, tzinfo=UTC),
        generation=generation,
    )


class Source:
    """A credential whose answers the test decides."""

    def __init__(self, current: Token | None = None) -> None:
        self.current = current
        self.error: Exception | None = None
        self.wait: asyncio.Event | None = None
        self.asked: list[tuple[str, int | None]] = []
        self.cancelled = 0
        self.subscribers: list[Callable[[Token], Any]] = []

    async def get(self, *, newer_than: int | None = None) -> Token:
        return await self._answer("get", newer_than)

    async def force_refresh(self, *, than: int | None = None) -> Token:
        return await self._answer("refresh", than)

    def subscribe(self, callback: Callable[[Token], Any]) -> Callable[[], None]:
        self.subscribers.append(callback)
        return lambda: self.subscribers.remove(callback)

    def publish(self, new: Token) -> None:
        self.current = new
        for callback in list(self.subscribers):
            callback(new)

    async def _answer(self, what: str, generation: int | None) -> Token:
        self.asked.append((what, generation))
        try:
            if self.wait is not None:
                await self.wait.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        assert self.current is not None
        return self.current


@pytest.fixture
def source() -> Source:
    return Source(token(1))


@pytest.fixture
async def local(clean_environment: Path, source: Source) -> AsyncIterator[LocalSocket]:
    """A listening socket with one credential, `schwab`."""
    path = clean_environment / "run" / "daemon.sock"
    server = LocalSocket(path, {"schwab": source}, lambda: {"credentials": {"schwab": {}}})
    await server.start()
    yield server
    await server.stop()
