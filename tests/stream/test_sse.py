"""Server-sent events: data lines, comments, damaged streams."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.stream.messages import Malformed
from keepline.stream.sse import EventReader, write_event


def read(data: bytes, step: int) -> list[bytes | Malformed]:
    reader = EventReader()
    return [
        event for at in range(0, len(data), step) for event in reader.feed(data[at : at + step])
    ]


STREAMS: list[tuple[bytes, list[bytes]]] = [
    (b"\r\n", [b""]), (b":\r\n\r\n", [b""]), (b"data: A\r\n\r\n", [b"A"]), (b"data: \r\r\n\r\n", [b"\r"]),
    (b"data: A\rB\r\n\r\n", [b"A\rB"]), (b":c\r\ndata: A\r\n:c\r\ndata: B\r\n\r\n", [b"A\nB"]),
    (b"data: A\r\n\r\ndata: ", [b"A"]), (b"data: A\r\n\r\n:open", [b"A"]),
    (b"data: A\r\n\r\ndata: B\r\n\r\n", [b"A", b"B"]),
    (b":\r\ndata: {}\x1e\r\n\r\ndata: 1\x1e2\x1e\r\n\r\n", [b"{}\x1e", b"1\x1e2\x1e"]),
    (b"", []), (b":", []), (b":c\r\n", []), (b"data:", []), (b"data: \r", []), (b"data: A\r\n", []),
    (b"data: A\r\n\r", []), (b"data: A\r\nda", []),
]  # fmt: skip


@pytest.mark.parametrize(("data", "events"), STREAMS)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_events_are_read_however_they_are_split(
    data: bytes, events: list[bytes], step: int
) -> None:
    assert read(data, step) == events


DAMAGED = [
    b"data: A\n", b"data: A\n\n", b"data: A\r\n\n", b"foo: A\r\n", b"data:A\r\n", b"dat\r\n", b"data: A\r\nid: 1\r\n",
    b"data: A\r\n\rx", b"data: A\nB\r\n", b"\rx",
]  # fmt: skip


@pytest.mark.parametrize("data", DAMAGED)
@pytest.mark.parametrize("step", [1, 1000])
def test_a_damaged_stream_is_malformed_and_nothing_follows(data: bytes, step: int) -> None:
    *before, last = read(data + b"data: later\r\n\r\n", step)
    assert before == []
    assert isinstance(last, Malformed)


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(
    "data", [b"data: 123456789", b"data: 123\r\ndata: 456\r\n", b"data: 123456789\r\n\r\n"]
)
def test_an_event_above_the_limit_is_malformed(data: bytes, step: int) -> None:
    reader = EventReader(max_event_bytes=12)
    assert reader.feed(b"data: 12\r\n\r\n") == [b"12"]
    events = [
        event for at in range(0, len(data), step) for event in reader.feed(data[at : at + step])
    ]
    assert [type(event) for event in events] == [Malformed]


WRITTEN = [
    (b"", b"\r\n"), (b"A", b"data: A\r\n\r\n"), (b"A\r\nB", b"data: A\r\ndata: B\r\n\r\n"),
    (b"A\nB", b"data: A\r\ndata: B\r\n\r\n"), (b"A\n", b"data: A\r\ndata: \r\n\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "wire"), WRITTEN)
def test_an_event_is_written_line_by_line(data: bytes, wire: bytes) -> None:
    assert write_event(data) == wire


@given(
    st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\r", b"")), max_size=5),
    st.integers(1, 9),
)
def test_what_is_written_is_read(events: list[bytes], step: int) -> None:
    assert read(b"".join(map(write_event, events)), step) == events
