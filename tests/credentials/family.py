"""Many processes on one credential: a zygote to fork them from, a sandbox that rotates, and a store on disk."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from keepline.credentials.issuer import SchwabIssuer
from keepline.credentials.manager import TokenManager
from keepline.credentials.storage import TokenStorage
from keepline.credentials.token import Token
from keepline.sandbox.server import SandboxServer

__all__ = ["KEY", "Zygote", "manager_on", "store_at", "stored", "zygote"]

KEY = "a passphrase of the tests"


class Zygote:
    """The other end of `zygote.py`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def begin(self, path: Path, url: str, **command: Any) -> list[int]:
        """Fork children on this store; their pids."""
        line = {"path": str(path), "url": url, "key": KEY, "fallback": str(path.parent), **command}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        return (await self._line())["pids"]

    async def end(self) -> tuple[list[dict[str, Any]], list[int]]:
        """What the children said, and how they ended (a negative number is the signal)."""
        said = []
        while "done" not in (line := await self._line()):
            said.append(line)
        return said, line["done"]

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the zygote has died; its error output tells why"
        return json.loads(line)


@contextlib.asynccontextmanager
async def zygote() -> AsyncIterator[Zygote]:
    """A process to fork token managers from."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("zygote.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Zygote(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too, even stopped ones
        await process.communicate()


def store_at(path: Path, **options: Any) -> TokenStorage:
    """The store that the children use too."""
    return TokenStorage(
        path, key=KEY, credential="schwab", fallback_directory=path.parent, **options
    )


def stored(
    path: Path, sandbox: SandboxServer, *, age: float, store: TokenStorage | None = None
) -> Token:
    """Sign in at the sandbox and store the token, `age` seconds old."""
    token = sandbox.issue()
    back = timedelta(seconds=age)
    token = replace(
        token, issued_at=token.issued_at - back, expires_at=token.expires_at - back, generation=1
    )
    (store or store_at(path)).store(token)
    return token


@contextlib.asynccontextmanager
async def manager_on(
    path: Path, sandbox: SandboxServer, **config: object
) -> AsyncIterator[TokenManager]:
    """A fresh manager on the same store, as a restarted program makes it."""
    issuer = SchwabIssuer("sandbox-key", "sandbox-secret", base_url=sandbox.url)
    store = await asyncio.to_thread(store_at, path)
    try:
        async with TokenManager({"name": "schwab", **config}, issuer, storage=store) as manager:
            yield manager
    finally:
        await issuer.close()
