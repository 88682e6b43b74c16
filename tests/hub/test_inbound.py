"""Rules of client frames, however the bytes are cut."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
from tests.hub.house import BINARY, CONTINUATION, PING, PONG, TEXT, frame

from keepline.hub.inbound import FrameRules

CONTROL = st.builds(frame, st.sampled_from([PING, PONG]), st.binary(max_size=125))
SIZES = st.sampled_from([0, 1, 125, 126, 200, 65_535, 65_536])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Good data frames with control frames between fragments."""
    parts = draw(st.lists(SIZES, min_size=1, max_size=4))
    found = b""
    for at, size in enumerate(parts):
        opcode = CONTINUATION if at else draw(st.sampled_from([TEXT, BINARY]))
        found += b"".join(draw(st.lists(CONTROL, max_size=2)))
        rsv = 0 if at else draw(st.sampled_from([0, 4]))
        found += frame(opcode, b"\x00" * size, fin=at == len(parts) - 1, rsv=rsv)
    return found


BROKEN = [
    frame(TEXT, b"x", masked=False),
    frame(PING, masked=False),
    frame(PING, rsv=4),
    frame(CONTINUATION, b"x"),
    frame(TEXT, fin=False) + frame(TEXT),
    frame(TEXT, length=1 << 63, width=8),
]


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[first:last] for first, last in itertools.pairwise(places)]


@given(st.lists(messages(), max_size=4), st.lists(st.integers(0, 1 << 20), max_size=20))
def test_good_frames_hold_however_they_are_cut(parts: list[bytes], at: list[int]) -> None:
    rules = FrameRules()
    assert all(rules.holds(data) for data in cut(b"".join(parts), at))


@given(
    st.lists(messages(), max_size=2),
    st.sampled_from(BROKEN),
    st.lists(st.integers(0, 1 << 20), max_size=20),
)
def test_a_broken_frame_is_found_behind_any_good_ones(
    before: list[bytes], broken: bytes, at: list[int]
) -> None:
    rules = FrameRules()
    assert not all(rules.holds(data) for data in cut(b"".join(before) + broken, at))


def test_byte_by_byte() -> None:
    rules = FrameRules()
    good = frame(TEXT, b"x" * 70_000, fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"y")
    assert all(rules.holds(good[at : at + 1]) for at in range(len(good)))
    assert not all(rules.holds(bytes([byte])) for byte in frame(TEXT, b"x", masked=False))
