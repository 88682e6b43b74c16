"""The short way from bytes to handlers does what the long way does, however the bytes come."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from keepline.stream.codec import Codec, Types, codec
from keepline.stream.dispatch import Dispatch
from keepline.stream.handshake import write_response
from keepline.stream.messages import (
    Completion,
    Invocation,
    Message,
    Ping,
)
from keepline.stream.messages import (
    Sequence as SequenceMessage,
)
from keepline.stream.straight import straight
from keepline.stream.wire import HubWire
from keepline.stream.wire_events import Closed, CloseReason, Stray, WireEvent

JSON, PACK = codec("json"), codec("messagepack")
each_codec = pytest.mark.parametrize("encoding", [JSON, PACK], ids=lambda encoding: encoding.name)


class Tick(msgspec.Struct, frozen=True):
    symbol: str
    last: float


class Picky(msgspec.Struct):
    a: int

    def __post_init__(self) -> None:
        if self.a < 0:
            raise LookupError("not this one")


TICK = {"symbol": "NQ", "last": 2}
NAMES = ["GatewayQuote", "GATEWAYQUOTE", "GatewayUserOrderA", "GatewayUserOrderB", "T", "x" * 40]


class Counting(HubWire):
    """Knows how many frames went through it."""

    frames = 0

    def receive(self, data: bytes | str, now: float) -> list[WireEvent]:
        self.frames += 1
        return super().receive(data, now)


class End:
    """An open conversation, the handlers of its calls, and what they saw."""

    def __init__(self, encoding: Codec, *, short: bool, **options: Any) -> None:
        self.types = Types()
        self.seen: list[Any] = []
        self.encoding = encoding
        self.dispatch = Dispatch(
            self.types,
            failed=lambda call, error: self.seen.append((call, str(error))),
            returned=lambda call, value: self.seen.append((call, value)),
        )
        self.wire = Counting(encoding, types=self.types, **options)
        self.wire.open(0.0)
        self.wire.receive(write_response(), 0.0)
        self.wire.take()
        self._receive = straight(self.wire, self.dispatch) if short else self._long

    def _long(self, data: bytes | str, now: float) -> Sequence[WireEvent]:
        return self.dispatch.deliver(self.wire.receive(data, now))

    def on(self, target: str, *types: Any) -> Callable[[], None]:
        return self.dispatch.on(target, self._note, *types)

    def _note(self, *arguments: Any) -> Any:
        self.seen.append(arguments)
        if arguments and arguments[0] == "raise":
            raise LookupError("as asked")
        return "given back" if arguments and arguments[0] == "return" else None

    def hears(self, data: bytes | str, now: float = 1.0) -> list[WireEvent]:
        return list(self._receive(data, now))

    def says(self, *messages: Message, now: float = 1.0) -> list[WireEvent]:
        return self.hears(b"".join(map(self.encoding.encode, messages)), now)


values = some.one_of(
    some.integers(-3, 3), some.sampled_from(["raise", "return", "a\x1eb}"]), some.just(TICK)
)
calls = some.builds(
    Invocation,
    some.sampled_from(NAMES),
    some.lists(values, max_size=2),
    some.sampled_from([None, None, None, "s1"]),
    some.sampled_from([(), (), ("u",)]),
    some.sampled_from([None, None, {"a": "]}"}]),
)
messages = some.one_of(calls, calls, some.just(Ping()), some.just(Completion("9", 1)))
damage = some.sampled_from([b"", b"", b"", b"", b"\x1e", b"}", b"\x90", b"\x7f", b"[]\x1e"])


@given(
    encoding=some.sampled_from([JSON, PACK]),
    sent=some.lists(some.tuples(some.lists(messages, min_size=1, max_size=2), damage), max_size=12),
    cuts=some.lists(some.integers(0, 60), max_size=3),
    typed=some.booleans(),
)
def test_whatever_arrives_the_short_way_does_what_the_long_way_does(
    encoding: Codec, sent: list[tuple[list[Message], bytes]], cuts: list[int], typed: bool
) -> None:
    ends = [End(encoding, short=short, max_message_bytes=200) for short in (True, False)]
    for end in ends:
        end.on("GatewayQuote", *([str, Tick] if typed else []))
        end.on("gatewayuserordera", *([Picky] if typed else []))
        for name in ("t", "gatewayuserorderb", "x" * 40):
            end.on(name)
            end.on(name)
    frames = [b"".join(map(encoding.encode, glued)) + more for glued, more in sent]
    for cut in cuts:
        frames = [part for frame in frames for part in (frame[:cut], frame[cut:]) if part]
    for number, frame in enumerate(frames):
        short, long = (end.hears(frame, float(number)) for end in ends)
        assert short == long
    for what in ("phase", "heard", "deadline"):
        assert getattr(ends[0].wire, what) == getattr(ends[1].wire, what)
    assert ends[0].seen == ends[1].seen
    assert ends[0].wire.take() == ends[1].wire.take()


QUOTE = Invocation("GatewayQuote", ["NQ", TICK])


def known(encoding: Codec, **options: Any) -> End:
    """An end whose next quote is known already."""
    end = End(encoding, short=True, **options)
    end.on("gatewayquote", str, Tick)
    end.says(QUOTE)
    end.seen.clear()
    end.wire.frames = 0
    return end


@each_codec
def test_a_call_that_was_seen_before_reaches_its_handlers_past_the_wire(encoding: Codec) -> None:
    end = known(encoding)
    assert end.says(QUOTE, now=7.0) == end.says(QUOTE, now=8.0) == []
    assert end.seen == [("NQ", Tick("NQ", 2.0))] * 2
    assert end.wire.frames == 0
    assert end.wire.heard == 8.0


@each_codec
def test_names_with_the_same_first_letters_are_told_apart(encoding: Codec) -> None:
    end = End(encoding, short=True)
    for name in NAMES:
        end.on(name)
    for _ in range(3):
        end.seen.clear()
        for number, name in enumerate(NAMES[1:]):
            end.says(Invocation(name, [number]))
        assert end.seen == [
            (0,),
            (0,),
            (1,),
            (2,),
            (3,),
            (4,),
        ]  # the first is there in two spellings


@each_codec
def test_other_handlers_and_types_count_from_the_next_frame(encoding: Codec) -> None:
    end = known(encoding)
    remove = end.on("GATEWAYQUOTE")
    for _ in range(2):
        end.says(QUOTE)
    assert len(end.seen) == 4
    remove()
    end.types.forget("GatewayQuote")
    for _ in range(2):
        end.says(QUOTE)
    assert end.seen[4:] == [("NQ", TICK)] * 2


@each_codec
def test_what_is_counted_always_goes_through_the_wire(encoding: Codec) -> None:
    end = known(encoding, stateful=True)
    for _ in range(2):
        end.says(QUOTE)
    assert end.wire.frames == 2
    assert end.wire.can_reattach
    end.says(SequenceMessage(2))  # the server says again what was heard
    end.says(QUOTE)
    assert len(end.seen) == 2


@each_codec
def test_behind_the_beginning_of_a_message_a_known_call_is_not_one(encoding: Codec) -> None:
    end = known(encoding)
    frame = encoding.encode(QUOTE)
    assert end.hears(frame[:9]) == []
    (closed,) = end.hears(frame)
    assert isinstance(closed, Closed)
    assert closed.reason is CloseReason.MALFORMED
    assert end.says(QUOTE) == end.seen == []


@each_codec
@pytest.mark.parametrize("over", [HubWire.close, lambda wire: wire.lost(2.0)])
def test_after_the_end_nothing_is_delivered(
    encoding: Codec, over: Callable[[HubWire], object]
) -> None:
    end = known(encoding)
    over(end.wire)
    assert end.says(QUOTE) == end.seen == []


@each_codec
def test_what_happens_beside_known_calls_is_told(encoding: Codec) -> None:
    end = known(encoding)
    assert end.says(Completion("9")) == [Stray("completion", "9")]
    assert end.says(QUOTE, Completion("9"), QUOTE) == [Stray("completion", "9")]
    assert len(end.seen) == 2


@each_codec
@pytest.mark.parametrize("excess", [0, 1])
def test_a_known_call_may_be_as_large_as_allowed_and_not_a_byte_larger(
    encoding: Codec, excess: int
) -> None:
    call = Invocation("T", ["x" * 100])
    frame = encoding.encode(call)
    size = len(frame) - (1 if encoding.binary else 0)
    end = End(encoding, short=True, max_message_bytes=size - excess)
    end.on("T")
    end.says(Invocation("T", ["x"]))
    end.seen.clear()
    events = end.hears(frame)
    assert (end.seen, len(events)) == (([], 1) if excess else ([("x" * 100,)], 0))


def test_a_length_of_more_than_two_bytes_takes_the_long_way() -> None:
    end = End(PACK, short=True)
    end.on("T")
    for size in (3, 16_000, 17_000):
        end.seen.clear()
        for _ in range(2):
            assert end.says(Invocation("T", ["x" * size])) == []
        assert end.seen == [("x" * size,)] * 2
    # what seems to be a length of two bytes goes on with the bytes of a known beginning
    body = PACK.encode(Invocation("T", ["x" * 17_000]))[3:]
    lie = bytes([len(body) & 0x7F | 0x80, len(body) >> 7]) + body
    end.seen.clear()
    assert (end.hears(lie), end.seen) == ([], [])


@each_codec
def test_a_peer_that_invents_names_fills_no_memory(encoding: Codec) -> None:
    end = End(encoding, short=True)
    kept = list(end.types._derived)
    for number in range(1500):
        end.says(Invocation(f"T{number}", []))
    assert max(map(len, kept)) == 1024
    assert end.says(Invocation("T1499", [])) == []


@each_codec
def test_a_byte_that_is_wrong_means_what_it_means_on_the_long_way(encoding: Codec) -> None:
    frame = encoding.encode(QUOTE)
    for at in range(len(frame)):
        for byte in {0, 1, 0x1E, 0x7D, 0x7F, 0x80, 0x90, 0xC0, frame[at] ^ 1, frame[at] - 1 & 0xFF}:
            wrong = frame[:at] + bytes([byte]) + frame[at + 1 :]
            ends = [End(encoding, short=short) for short in (True, False)]
            for end in ends:
                end.on("gatewayquote", str, Tick)
                end.says(QUOTE)
            assert ends[0].hears(wrong) == ends[1].hears(wrong)
            assert ends[0].seen == ends[1].seen
