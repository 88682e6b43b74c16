"""A client for tests of hubs in other processes: settings with cheap passwords, tokens, and messages as they come."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import jwt
import msgspec

from keepline.hub.opening import GateSettings
from keepline.hub.settings import HubConfig

SECRET = "a secret that only this test's hub and its issuer share"


def settings(directory: Path, **more: Any) -> HubConfig:
    """A hub with every file in a directory of its own, and any free port."""
    gate = GateSettings(directory=directory, secret=SECRET, argon2id=(64, 1, 1))
    usual = {"port": 0, "directory": directory, "gate": gate, "drain_seconds": 0}
    return HubConfig(**{**usual, **more})


def add_ann(directory: Path) -> None:
    """The user of these tests; touches files."""
    users = GateSettings(directory=directory, argon2id=(64, 1, 1)).users()
    users.load()
    words = "correct-horse-7-staple"
    users.add("ann", words, role="admin", account="", now=time.time() - 60)


def token(user: str = "ann", role: str = "admin") -> str:
    """A good one."""
    now = int(time.time())
    claims = {"sub": user, "role": role, "account": "", "iss": "keepline", "aud": "keepline-hub"}
    claims |= {"iat": now, "exp": now + 3600}
    return jwt.encode(claims, SECRET, "HS256", headers={"kid": "configured"})


class Watcher:
    """One connection.

    Attributes:
        messages: everything that came, in order.
        code: of the close frame.
    """

    def __init__(self, url: str, bearer: str | None = None) -> None:
        self.messages: list[dict[str, Any]] = []
        self.code: int | None = None
        self._url = url
        self._bearer = token() if bearer is None else bearer
        self._at = 0

    async def __aenter__(self) -> "Watcher":
        self._session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {self._bearer}"})
        try:
            self._socket = await self._session.ws_connect(f"{self._url}/ws/analytics")
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._socket.close()
        await self._session.close()

    async def ask(self, **request: Any) -> None:
        await self._socket.send_str(msgspec.json.encode(request).decode())

    async def subscribe(self, *channels: str, **more: Any) -> dict[str, Any]:
        await self.ask(action="subscribe", channels=channels, **more)
        for channel in channels:
            told = await self._subscribed(channel)
        return told

    async def _subscribed(self, channel: str) -> dict[str, Any]:
        return await self.until(lambda m: m["type"] == "subscribed" and m["channel"] == channel)

    async def alive(self) -> None:
        """Prove that the connection still answers."""
        mark = os.urandom(4).hex()
        await self.ask(action="ping", id=mark)
        await self.kind("pong", id=mark)

    async def kind(self, kind: str, **data: Any) -> dict[str, Any]:
        """The next message of this type, with these fields in its data."""
        return await self.until(
            lambda m: m["type"] == kind and all(m["data"].get(k) == v for k, v in data.items())
        )

    async def holds(self, key: str, **data: Any) -> dict[str, Any]:
        """Return the value of a key, of a snapshot or a message, once it has these fields."""

        def value(message: dict[str, Any]) -> dict[str, Any]:
            whole = message["data"]["items"] if message["type"] == "snapshot" else [message]
            found = [each["data"] for each in whole if each.get("key") == key]
            return next((f for f in found if all(f.get(k) == v for k, v in data.items())), {})

        return value(await self.until(value))

    async def until(self, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The next message of which this is true; those before it are passed over."""
        async with asyncio.timeout(30):
            while True:
                while self._at < len(self.messages):
                    self._at += 1
                    if wanted(self.messages[self._at - 1]):
                        return self.messages[self._at - 1]
                assert await self._read(), f"the end, with {self.code}: {self.messages[-3:]}"

    async def end(self) -> int | None:
        """Read until the hub has hung up: the code it gave."""
        async with asyncio.timeout(30):
            while await self._read():
                pass
        return self.code

    async def _read(self) -> bool:
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            self.messages += msgspec.json.decode(message.data)
            return True
        self.code = self._socket.close_code
        return False
