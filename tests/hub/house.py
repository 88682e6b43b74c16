"""A real hub on loopback for tests from outside: its settings, tokens for it, and a peer that is strict (wsproto).

The peer reads through wsproto, which fails on whatever a server may not send, and writes either through it or, byte by
byte, what a good client would never send.
"""

import asyncio
import contextlib
import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jwt
import msgspec
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.extensions import PerMessageDeflate

from keepline.hub.opening import GateSettings, IssuerSettings
from keepline.hub.settings import HubConfig

SECRET = "a secret that only this test's hub and its issuer share"
ISSUER, AUDIENCE = "desk", "keepline-hub"
TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x2, 0x0, 0x8, 0x9, 0xA


def settings(directory: Path, **more: Any) -> HubConfig:
    """A hub with every file in a directory of its own, any free port and cheap passwords."""
    desk = IssuerSettings(
        issuer=ISSUER, audiences=(AUDIENCE,), algorithms=("HS256",), secret=SECRET
    )
    gate = {
        "directory": directory,
        "issuers": (desk,),
        "argon2id": (64, 1, 1),
        **more.pop("gate", {}),
    }
    return HubConfig(
        **{
            "port": 0,
            "directory": directory,
            "gate": GateSettings(**gate),
            "drain_seconds": 0,
            **more,
        }
    )


def claims(user: str = "ann", role: str = "admin", **more: Any) -> dict[str, Any]:
    """What a good token says; None takes a claim away."""
    now = int(time.time())
    base = {
        "sub": user,
        "role": role,
        "account": "",
        "iss": ISSUER,
        "aud": AUDIENCE,
        "iat": now,
        "exp": now + 3600,
    }
    return {name: value for name, value in {**base, **more}.items() if value is not None}


def token(user: str = "ann", role: str = "admin", **more: Any) -> str:
    """A good token, unless something else is said."""
    return jwt.encode(claims(user, role, **more), SECRET, "HS256")


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: int | None = None,
    width: int | None = None,
) -> bytes:
    """One client frame, right or wrong in any way: `length` lies about it, `width` writes it in 2 or 8 bytes."""
    size = len(payload) if length is None else length
    width = width or (0 if size < 126 else 2 if size < 65536 else 8)
    head = bytes([fin << 7 | rsv << 4 | opcode])
    marked = masked << 7
    head += {
        0: lambda: bytes([marked | size]),
        2: lambda: bytes([marked | 126]) + size.to_bytes(2),
        8: lambda: bytes([marked | 127]) + size.to_bytes(8),
    }[width]()
    if not masked:
        return head + payload
    key = os.urandom(4)
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def deflated(payload: bytes, level: int = 9) -> bytes:
    """A message as RFC 7692 sends it, on its own."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    return (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH)).removesuffix(
        b"\x00\x00\xff\xff"
    )


class Peer:
    """One connection: everything that comes in goes through wsproto.

    Attributes:
        messages: the hub's messages, in order.
        frames: how many messages each text frame held.
        pongs: payloads, in order.
        code, reason: of the close frame; None before.
        status, fields, body: of the handshake's answer.
        deflate: whether compression was agreed upon.
        taken: bytes that came.
        ended: whether the hub has hung up.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self.messages: list[dict[str, Any]] = []
        self.frames: list[int] = []
        self.pongs: list[bytes] = []
        self.pings: list[bytes] = []
        self.code: int | None = None
        self.reason: str | None = None
        self.status = 0
        self.fields: dict[str, str] = {}
        self.subprotocol: str | None = None
        self.deflate = False
        self.body = b""
        self.ended = False
        self.taken = 0
        self.at = 0
        self._text = ""

    @classmethod
    async def open(
        cls,
        port: int,
        bearer: str | None = None,
        *,
        deflate: PerMessageDeflate | None = None,
        subprotocols: Sequence[str] = (),
        fields: Iterable[tuple[str, str]] = (),
        target: str = "/ws/analytics",
        host: str = "",
    ) -> "Peer":
        """Connect and shake hands; `status` says how it went."""
        peer = cls(*await asyncio.open_connection("127.0.0.1", port))
        extra = [(name.encode(), value.encode()) for name, value in fields]
        if bearer is not None:
            extra.append((b"Authorization", b"Bearer " + bearer.encode()))
        asked = Request(
            host=host or f"127.0.0.1:{port}",
            target=target,
            extensions=[deflate] if deflate else [],
            subprotocols=list(subprotocols),
            extra_headers=extra,
        )
        peer.write(peer.protocol.send(asked))
        while not peer.status and not peer.ended:
            await peer.read()
        return peer

    def write(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    def ask(self, **request: Any) -> None:
        """One request as JSON."""
        self.write(frame(TEXT, msgspec.json.encode(request)))

    async def read(self) -> None:
        """Take what comes next, and answer pings."""
        try:
            data = await self.reader.read(65536)
        except ConnectionError:
            data = b""
        if not data:
            self.ended = True
            return
        self.taken += len(data)
        self.protocol.receive_data(data)
        for happened in self.protocol.events():
            self._happened(happened)

    async def until(self, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The next message of which this is true; those before it are passed over."""
        while True:
            while self.at < len(self.messages):
                self.at += 1
                if wanted(self.messages[self.at - 1]):
                    return self.messages[self.at - 1]
            assert not self.ended, (
                f"the end, with {self.code} {self.reason!r}: {self.messages[-3:]}"
            )
            await self.read()

    async def kind(self, kind: str, **data: Any) -> dict[str, Any]:
        """The next message of this type, with these fields in its data."""
        return await self.until(
            lambda message: (
                message["type"] == kind
                and all(message["data"].get(name) == value for name, value in data.items())
            )
        )

    async def subscribed(self, *channels: str, **more: Any) -> None:
        self.ask(action="subscribe", channels=list(channels), **more)
        for channel in channels:
            await self.until(
                lambda message, channel=channel: (
                    message["type"] == "subscribed" and message["channel"] == channel
                )
            )

    async def alive(self) -> None:
        """Prove that the connection still answers."""
        mark = os.urandom(4).hex()
        self.ask(action="ping", id=mark)
        await self.kind("pong", id=mark)

    async def end(self) -> int | None:
        """Read until the hub has closed the TCP connection: the code it gave."""
        while not self.ended:
            await self.read()
        return self.code

    async def leave(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def __aenter__(self) -> "Peer":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    def _happened(self, happened: object) -> None:
        match happened:
            case AcceptConnection():
                self.status, self.subprotocol = 101, happened.subprotocol
                self._fields(happened.extra_headers)
                self.deflate = bool(happened.extensions)
            case RejectConnection():
                self.status = happened.status_code
                self._fields(happened.headers)
            case RejectData():
                self.body += happened.data
            case TextMessage():
                self._text += happened.data
                if happened.message_finished:
                    batch = msgspec.json.decode(self._text)
                    assert isinstance(batch, list), batch
                    self.frames.append(len(batch))
                    self.messages += batch
                    self._text = ""
            case BytesMessage():
                raise AssertionError("the hub sends text alone")
            case Ping():
                self.pings.append(bytes(happened.payload))
                self.write(frame(PONG, bytes(happened.payload)))
            case Pong():
                self.pongs.append(bytes(happened.payload))
            case CloseConnection():
                assert self.code is None, "a second close frame"
                self.code, self.reason = happened.code, happened.reason
                self.write(frame(CLOSE, int(happened.code).to_bytes(2)))

    def _fields(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        self.fields = {name.decode().lower(): value.decode() for name, value in fields}


class RawAnswer:
    """The answer to a raw HTTP request: status, fields, body."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1]) if first.startswith("HTTP/") else 0
        self.fields: Mapping[str, str] = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }


async def raw(port: int, request: bytes, *, until: bytes = b"\r\n\r\n") -> RawAnswer:
    """Send bytes, read up to the end of the answer's head (or of the connection), and hang up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b""
    try:
        writer.write(request)
        while until not in data:
            more = await reader.read(65536)
            if not more:
                break
            data += more
    except ConnectionError:
        pass
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return RawAnswer(data)


def handshake(port: int, bearer: str | None = None, **changes: str | None) -> bytes:
    """A handshake as text, with fields changed, added (`_` for `-`) or, with None, left out."""
    fields: dict[str, str | None] = {
        "host": f"127.0.0.1:{port}",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version": "13",
        "authorization": bearer and f"Bearer {bearer}",
    }
    first = changes.pop("first", None) or "GET /ws/analytics HTTP/1.1"
    fields.update({name.replace("_", "-"): value for name, value in changes.items()})
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([first, *lines, "", ""]).encode()
