"""Records and lengths: where one message ends and the next begins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.stream.framing import (
    Oversize,
    RecordSplitter,
    frame_binary,
    read_length,
    write_length,
)

LENGTHS = [
    (0, "00"), (1, "01"), (53, "35"), (127, "7f"), (128, "8001"), (5248, "8029"), (16383, "ff7f"), (16384, "808001"),
    (49374, "de8103"), (2**31 - 1, "ffffffff07"),
]  # fmt: skip


@pytest.mark.parametrize(("length", "text"), LENGTHS)
def test_a_length_has_seven_bits_in_each_byte(length: int, text: str) -> None:
    data = bytes.fromhex(text)
    assert write_length(length) == data
    assert read_length(b"xx" + data + b"\x01", 2) == (length, 2 + len(data))
    assert [read_length(data[:cut], 0) for cut in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize(
    "text", ["ffffffffff", "8080808008", "8080808080", "ffffffffffff", "ffffffff08"]
)
def test_a_length_beyond_two_gibibytes_is_refused(text: str) -> None:
    with pytest.raises(Oversize, match="announces"):
        read_length(bytes.fromhex(text), 0)


@given(st.integers(0, 2**31 - 1))
def test_every_length_is_read_as_it_was_written(length: int) -> None:
    data = write_length(length)
    assert read_length(data, 0) == (length, len(data))


def test_a_binary_frame_is_the_length_and_the_body() -> None:
    assert frame_binary(b"ABC") == b"\x03ABC"


SPLITS = [
    (b"", []), (b"ABC", []), (b"\x1e", [b""]), (b"\x1e\x1e", [b"", b""]), (b"Hello\x1e", [b"Hello"]),
    (b"Hello,\x1eWorld!\x1e", [b"Hello,", b"World!"]), (b"ABC\x1eXYZ", [b"ABC"]),
]  # fmt: skip


@pytest.mark.parametrize(("data", "records"), SPLITS)
def test_a_separator_ends_a_record(data: bytes, records: list[bytes]) -> None:
    assert RecordSplitter().feed(data) == records
    splitter = RecordSplitter()
    assert [r for i in range(len(data)) for r in splitter.feed(data[i : i + 1])] == records
    assert splitter.empty == (data[-1:] in (b"", b"\x1e"))


@given(st.lists(st.binary(max_size=6), max_size=8))
def test_chunks_give_what_the_whole_gives(chunks: list[bytes]) -> None:
    splitter = RecordSplitter()
    assert [r for c in chunks for r in splitter.feed(c)] == b"".join(chunks).split(b"\x1e")[:-1]


@pytest.mark.parametrize(
    "chunks",
    [[b"12345"], [b"12345\x1e"], [b"1\x1e12345\x1e"], [b"123", b"45\x1e"], [b"123", b"45"]],
)
def test_a_record_above_the_limit_is_refused(chunks: list[bytes]) -> None:
    assert RecordSplitter(5).feed(b"1234\x1e1234\x1e") == [b"1234", b"1234"]
    splitter = RecordSplitter(5)
    *first, last = chunks
    for chunk in first:
        splitter.feed(chunk)
    with pytest.raises(Oversize, match="bytes arrived"):
        splitter.feed(last)


def test_what_was_begun_can_be_forgotten() -> None:
    splitter = RecordSplitter()
    splitter.feed(b"lost")
    splitter.clear()
    assert splitter.empty
    assert splitter.feed(b"kept\x1e") == [b"kept"]
