"""Parts of a daemon for tests: credentials that answer on command, a sandbox broker, and settings that point to it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from keepline import config
from keepline.config import Settings
from keepline.credentials.token import Token
from keepline.daemon.socket import LocalSocket
from keepline.sandbox.server import SandboxServer


def token(generation: int = 1, text: str = "") -> Token:
    now = datetime.now(UTC)
    return Token(
        text or f"access-{generation}",
        f"refresh-{generation}",
        expires_at=now + timedelta(hours=1),
        issued_at=now,
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


@pytest.fixture
async def sandbox() -> AsyncIterator[SandboxServer]:
    async with SandboxServer() as server:
        yield server


@pytest.fixture
def configure(clean_environment: Path, sandbox: SandboxServer) -> Callable[..., Settings]:
    """Write keepline.toml for the sandbox, with its app file and a storage key, and load it."""

    def write(more: str = "", schwab: str = "", metrics: str = "") -> Settings:
        for name, text in (
            ("app.yaml", "app_key: sandbox-key\napp_secret: sandbox-secret\n"),
            ("key", "a storage key for tests"),
        ):
            (clean_environment / name).write_text(text)
            (clean_environment / name).chmod(0o600)
        file = clean_environment / "keepline.toml"
        file.write_text(
            f'[credentials.schwab]\nbase_url = "{sandbox.url}"\napp_config = "app.yaml"\n'
            f'token_file = "tokens.json"\nstorage_key_file = "key"\nretry_delays = [0.05]\n{schwab}\n'
            f'[telemetry]\nmetrics = "{metrics}"\n{more}\n'
        )
        return config.load(file, environ={})

    return aside(write)


def aside(work: Callable[..., Any]) -> Callable[..., Any]:
    """The function run by a thread that the caller waits for: a test may block its loop, our code may not."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work, *args, **kwargs).result()

    return run
