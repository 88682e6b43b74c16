"""Streams that go up: item by item as there is room, ended whatever happens, and never longer than they should."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from keepline.stream.codec import codec
from keepline.stream.uploads import Uploads, split
from keepline.stream.wire import HubWire


class Line:
    """A wire that is open, and what would be written."""

    def __init__(self) -> None:
        self.wire = HubWire(codec("json"))
        self.room = asyncio.Event()
        self.room.set()
        self.written: list[bytes] = []
        self.wire.open(0.0)
        self.wire.receive(b"{}\x1e", 0.0)
        self.wire.take()

    def push(self) -> None:
        self.written += self.wire.take()


async def count(number: int) -> AsyncIterator[int]:
    for item in range(number):
        yield item


def test_streams_among_the_arguments_get_ids_in_order() -> None:
    line = Line()
    left, right = count(1), count(1)
    plain, streams = split([1, left, "x", right], line.wire)
    assert plain == [1, "x"]
    assert list(streams.values()) == [left, right]
    assert len(set(streams)) == 2


async def test_items_wait_for_room_and_the_end_is_said() -> None:
    line = Line()
    line.room.clear()
    (task,) = Uploads(lambda: line).begin({"7": count(2)})
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert line.written == [b'{"type":2,"invocationId":"7","item":0}\x1e']
    line.room.set()
    await task
    assert line.written[1:] == [
        b'{"type":2,"invocationId":"7","item":1}\x1e',
        b'{"type":3,"invocationId":"7"}\x1e',
    ]


async def test_a_failure_and_a_cancellation_are_said_and_close_the_iterator(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed: list[str] = []

    async def broken(name: str) -> AsyncIterator[int]:
        try:
            yield 1
            if name == "fails":
                raise ValueError("secret")
            await asyncio.Event().wait()
        finally:
            closed.append(name)

    line = Line()
    uploads = Uploads(lambda: line)
    uploads.begin({"1": broken("fails"), "2": broken("waits")})
    for _ in range(5):
        await asyncio.sleep(0)
    await uploads.stop()
    await uploads.stop()
    ends = [text for text in line.written if b'"type":3' in text]
    assert ends == [
        b'{"type":3,"invocationId":"1","error":"the upload failed (ValueError)"}\x1e',
        b'{"type":3,"invocationId":"2","error":"the upload was cancelled"}\x1e',
    ]
    assert sorted(closed) == ["fails", "waits"]
    assert "Stream upload failed" in caplog.text
    assert not uploads.tasks


@pytest.mark.parametrize("how", ["no line", "closed line"])
async def test_an_upload_without_a_connection_ends_quietly(how: str) -> None:
    line = Line()
    line.wire.close()
    uploads = Uploads(lambda: None if how == "no line" else line)
    (task,) = uploads.begin({"1": count(3)})
    await task
    line.push()
    assert not [text for text in line.written if b'"item"' in text]


async def test_an_item_that_cannot_be_sent_ends_the_upload_in_words() -> None:
    async def odd() -> AsyncIterator[object]:
        yield object()

    line = Line()
    (task,) = Uploads(lambda: line).begin({"1": odd()})
    await task
    assert line.written == [
        b'{"type":3,"invocationId":"1","error":"the upload failed (ConfigError)"}\x1e'
    ]


async def test_an_iterator_without_aclose_is_fine() -> None:
    class Plain:
        def __aiter__(self) -> "Plain":
            return self

        async def __anext__(self) -> int:
            raise ValueError

    line = Line()
    (task,) = Uploads(lambda: line).begin({"1": Plain()})
    await task
    assert b"the upload failed (ValueError)" in line.written[0]


async def test_an_iterator_is_closed_when_its_item_waits_for_room() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    line = Line()
    line.room.clear()
    items = endless()
    uploads = Uploads(lambda: line)
    uploads.begin({"1": items})
    await asyncio.sleep(0)
    await uploads.stop()
    assert closed.is_set()
