"""A SignalR server that costs next to nothing: it negotiates, shakes hands, and writes a recorded session as it stands.

`python -m bench.stream_server ENCODING COUNT` prints its address, sends to every connection COUNT events (0: none) with
a WebSocket frame for each, and ends with its standard input.
"""

import asyncio
import base64
import hashlib
import json
import sys

from bench.stream_traffic import frames

_SALT = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _BINARY = 0x81, 0x82
_WRITE = 1 << 18  # bytes at a time


def framed(payload: bytes, *, first: int) -> bytes:
    """One WebSocket frame."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 1 << 16:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


class Server:
    """Answers negotiations and upgrades; anything else is none of its business."""

    def __init__(self, encoding: str, count: int) -> None:
        first = _TEXT if encoding == "json" else _BINARY
        self._hello = framed(b"{}\x1e", first=first)
        self._all = b"".join(framed(frame, first=first) for frame in frames(count, encoding))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *rest = head.decode().split("\r\n")
                fields = dict(each.split(": ", 1) for each in rest if ": " in each)
                headers = {name.lower(): value for name, value in fields.items()}
                if line.startswith("POST"):
                    await self._negotiate(reader, writer, int(headers.get("content-length", 0)))
                else:
                    await self._stream(reader, writer, headers["sec-websocket-key"])
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _negotiate(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int
    ) -> None:
        await reader.readexactly(size)
        offered = [{"transport": "WebSockets", "transferFormats": ["Text", "Binary"]}]
        body = json.dumps(
            {"negotiateVersion": 1, "connectionId": "a", "connectionToken": "b", "availableTransports": offered}
        ).encode()  # fmt: skip
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )

    async def _stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str
    ) -> None:
        accept = base64.b64encode(hashlib.sha1((key + _SALT).encode()).digest())
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        await reader.read(4096)  # the handshake
        writer.write(self._hello)
        view = memoryview(self._all)
        for begin in range(0, len(view), _WRITE):
            writer.write(view[begin : begin + _WRITE])
            await writer.drain()
        while await reader.read(1 << 16):  # until the client goes
            pass


async def main(encoding: str, count: int) -> None:
    server = await asyncio.start_server(Server(encoding, count).serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hub", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
