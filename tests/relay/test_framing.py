"""Where a message ends, whatever way its bytes arrive."""

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.relay import framing
from keepline.relay.framing import Cut, Framer

OBJECT = b'{"a":"x","b":{"c":[1,{"d":"}\\"{"}]}}'


def whole(framer, *chunks):
    return [
        (f.data, f.newline) for chunk in chunks for f in framer.feed(chunk) if f.cut is Cut.WHOLE
    ]


@pytest.mark.parametrize(
    ("chunks", "messages"),
    [
        ([b"token\n"], [(b"token", True)]),
        ([b"token\r\n"], [(b"token", True)]),
        ([b"  token \n"], [(b"token", True)]),
        ([b"to", b"ken", b"\n"], [(b"token", True)]),
        ([b"one\ntwo\n"], [(b"one", True), (b"two", True)]),
        ([b"token"], []),
        ([OBJECT], [(OBJECT, False)]),
        ([OBJECT + b"\n"], [(OBJECT, True)]),
        ([OBJECT + b" \r\n"], [(OBJECT, True)]),
        ([OBJECT, b"\n"], [(OBJECT, False)]),
        ([OBJECT, b"\n", OBJECT + b"\n"], [(OBJECT, False), (OBJECT, True)]),
        ([OBJECT + OBJECT], [(OBJECT, False), (OBJECT, False)]),
        ([OBJECT + b"\n" + OBJECT], [(OBJECT, True), (OBJECT, False)]),
        ([OBJECT + b"\n\n\ntoken\n"], [(OBJECT, True), (b"token", True)]),
        ([b'{\n  "a": 1\n}\n'], [(b'{\n  "a": 1\n}', True)]),
        ([b'{"a":"\\', b'"}"}'], [(b'{"a":"\\"}"}', False)]),
        ([b'{"a":"\\', b'\\"}'], [(b'{"a":"\\\\"}', False)]),
        ([b'{"a":"{{{"}'], [(b'{"a":"{{{"}', False)]),
    ],
)
def test_a_message_ends_at_a_newline_or_at_the_close_of_an_object(chunks, messages):
    assert whole(Framer(8192), *chunks) == messages


@pytest.mark.parametrize(
    ("chunk", "cut"),
    [
        (b"\n", Cut.EMPTY),
        (b"  \r\n", Cut.EMPTY),
        (b"x" * 101, Cut.TOO_LARGE),
        (b"x" * 101 + b"\n", Cut.TOO_LARGE),
        (b'{"a":"' + b"x" * 100, Cut.TOO_LARGE),
        (b'{"a":"' + b"x" * 100 + b'"}', Cut.TOO_LARGE),
        (b'{"a":"x\ny"}', Cut.BROKEN),
        (b'{"a":"x\x00y"}', Cut.BROKEN),
        (b'{"a":1}token\n', Cut.BROKEN),
        (b'{"a":1}}', Cut.BROKEN),
    ],
)
def test_what_is_no_message_is_named_and_ends_the_framing(chunk, cut):
    assert Framer(100).feed(chunk)[-1].cut is cut


def test_a_message_of_exactly_the_limit_is_whole_in_one_piece_and_in_two():
    assert whole(Framer(100), b"x" * 100 + b"\n") == [(b"x" * 100, True)]
    assert whole(Framer(100), b"x" * 100, b"\n") == [(b"x" * 100, True)]


@pytest.mark.parametrize(
    ("chunk", "is_json", "newline"),
    [
        (b"token\n", False, True),
        (OBJECT, True, False),
        (OBJECT + b"\n", True, True),
        (b"\n", False, True),
        (b'{"a":"\n"}', True, True),
        (b'{"a":"\t"}', True, False),
    ],
)
def test_a_frame_says_what_it_was_and_whether_a_newline_came(chunk, is_json, newline):
    (frame,) = Framer(8192).feed(chunk)
    assert (frame.is_json, frame.newline) == (is_json, newline)


def test_an_empty_line_behind_any_message_is_no_message():
    framer = Framer(8192)
    assert len(framer.feed(b"token\n\n\n")) == 1
    assert len(framer.feed(b"\n" + OBJECT + b"\n\n")) == 1
    assert framer.finish() is None


def test_many_small_messages_in_one_read_may_exceed_the_limit_together():
    assert len(whole(Framer(10), b"token\n" * 1000)) == 1000


@pytest.mark.parametrize(
    ("begun", "data", "cut"),
    [
        (b"token", b"token", Cut.WHOLE),
        (b'{"a":', b"", Cut.INCOMPLETE),
        (b'{"a":"x', b"", Cut.INCOMPLETE),
        (b"", b"", Cut.EMPTY),
        (b"  ", b"", Cut.EMPTY),
    ],
)
def test_the_end_of_input_completes_text_and_nothing_else(begun, data, cut):
    framer = Framer(100)
    framer.feed(begun)
    frame = framer.finish()
    assert (frame.data, frame.cut, frame.newline) == (data, cut, False)
    assert frame.is_json == begun.startswith(b"{")


def test_the_end_of_input_behind_a_message_is_no_message():
    framer = Framer(100)
    framer.feed(OBJECT)
    assert framer.finish() is None


def test_quiet_completes_bare_text_only():
    framer = Framer(100)
    assert framer.quiet() is None
    framer.feed(b"tok")
    assert framer.is_in_text
    assert framer.quiet().data == b"tok"
    framer.feed(b'{"a"')
    assert framer.is_in_message
    assert framer.quiet() is None
    assert "OBJECT" in repr(framer)


objects = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text(), objects, max_size=3), min_size=1, max_size=4),
    st.sampled_from([b"", b"\n", b"\r\n", b" \n\n"]),
    st.lists(st.integers(0, 2000), max_size=6),
    st.booleans(),
)
def test_json_objects_come_out_as_they_went_in_however_they_are_cut(values, glue, cuts, indented):
    texts = [json.dumps(value, indent=2 if indented else None).encode() for value in values]
    stream = glue.join(texts)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    chunks = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert [data for data, _ in whole(Framer(1 << 20), *chunks)] == texts
    single_bytes = [stream[i : i + 1] for i in range(len(stream))]
    assert [data for data, _ in whole(Framer(1 << 20), *single_bytes)] == texts


class Counting:
    """A pattern that counts the bytes it was made to look at."""

    def __init__(self, pattern):
        self.pattern, self.bytes = pattern, 0

    def match(self, data, start=0):
        found = self.pattern.match(data, start)
        behind = data[found.end() : found.end() + 1]
        # before a quote it stopped because that string is not whole: it looked as far as the next control character
        self.bytes += (len(data) if behind == b'"' else found.end()) - start
        return found

    def search(self, data, start=0):
        found = self.pattern.search(data, start)
        self.bytes += max(0, (found.end() if found else len(data)) - start)
        return found


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 10_000,
        b'{"a":"' + b"x" * 10_000,
        b'{"k":"' + b"\\\\" * 5_000,
        b'{"":' * 2_500,
        b"{}" * 5_000,
        b"a\n" * 5_000,
        b"a" + b"\n" * 10_000,
        b'{"a":"b"}\n' * 1_000,
    ],
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_each_byte_is_looked_at_a_bounded_number_of_times(data, step, monkeypatch):
    patterns = [name for name in vars(framing) if isinstance(getattr(framing, name), re.Pattern)]
    counting = [Counting(getattr(framing, name)) for name in patterns]
    for name, counter in zip(patterns, counting, strict=True):
        monkeypatch.setattr(framing, name, counter)
    framer = Framer(1 << 30)
    for i in range(0, len(data), step):
        framer.feed(data[i : i + step])
    assert sum(counter.bytes for counter in counting) <= 3 * len(data)
