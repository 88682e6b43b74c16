"""Messages become JSON once, and what JSON cannot say is refused."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.hub.channels import Channel, Policy
from keepline.hub.messages import Message, Stamps, encode_control, encode_data, join

NAN, INFINITY = float("nan"), float("inf")


@dataclass
class Exposure:
    net: float


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (NAN, "data itself is not a finite number"),
        ({"net": NAN}, r"data\['net'\] is not"),
        ({"by": [1.0, {"x": INFINITY}]}, r"data\['by'\]\[1\]\['x'\] is not"),
        ({"net": -INFINITY}, r"data\['net'\] is not"),
        ({"net": Decimal("NaN")}, r"data\['net'\] is not"),
        ((1.0, Decimal("Infinity")), r"data\[1\] is not"),
        (Exposure(NAN), r"data\['net'\] is not"),
        ({"x": None, "y": Exposure(INFINITY)}, r"data\['y'\]\['net'\] is not"),
    ],
)
def test_a_number_that_json_does_not_have_is_refused_with_its_place(data: Any, where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        encode_data(data)


@pytest.mark.parametrize("data", [object(), {"x": object()}, {1: {2: object()}}, "\ud800"])
def test_what_cannot_be_written_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        encode_data(data)


def test_a_circle_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        encode_data(circle)


def test_data_that_is_too_deep_is_refused_in_words() -> None:
    data: Any = None
    with pytest.raises(ConfigError, match="cannot be written as JSON"):  # noqa: PT012
        for _ in range(3000):
            data = [data]
            encode_data(data)


def test_null_and_words_like_nan_are_data() -> None:
    assert encode_data({"a": None, "b": "NaN", "c": b"x", "d": 1}) == (
        b'{"a":null,"b":"NaN","c":"eA==","d":1}'
    )
    assert encode_data({"price": Decimal("1.10"), "text": "Infinity"}) == (
        b'{"price":1.10,"text":"Infinity"}'
    )
    assert encode_data(msgspec.Raw(b'{"a": null}')) == b'{"a": null}'
    assert encode_data(Exposure(1.5)) == b'{"net":1.5}'


def channel() -> Channel:
    return Channel('a "b"', Policy.CONFLATE, epoch="e1")


def test_a_message_has_the_fields_of_the_contract() -> None:
    message = channel().stamp("t", b'{"x":1}', 0.25, Stamps(1.7e9))
    assert msgspec.json.decode(message.text) == {
        "type": "t",
        "channel": 'a "b"',
        "offset": 1,
        "epoch": "e1",
        "timestamp": "2023-11-14T22:13:20.250Z",
        "data": {"x": 1},
    }
    assert message.data == b'{"x":1}'
    assert not message.gone


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(kind=TEXT, key=TEXT, own=TEXT, data=st.none() | st.integers(-(2**53), 2**53) | TEXT)
def test_any_type_key_and_id_survive(kind: str, key: str, own: str, data: Any) -> None:
    message = channel().stamp(kind, encode_data(data), 0.0, Stamps(), key=key, own=own)
    read = msgspec.json.decode(message.text)
    assert (read["type"], read.get("key", ""), read.get("id", "")) == (kind, key, own)
    assert read["data"] == data
    assert msgspec.json.decode(message.data) == data
    assert message.gone == (data is None)
    assert isinstance(message, Message)


@given(st.lists(st.floats(min_value=0, max_value=4e9), max_size=20))
def test_a_stamp_is_the_instant_to_the_millisecond(instants: list[float]) -> None:
    stamps = Stamps()
    for instant in instants:
        text = stamps.at(instant).decode()
        read = msgspec.convert(text, type=datetime)
        assert 0 <= instant - read.timestamp() < 0.002
        assert text.endswith("Z")
        assert len(text) == 24


def test_control_messages_have_no_offset() -> None:
    text = encode_control("pong", b"T", {"id": 1})
    assert msgspec.json.decode(text) == {"type": "pong", "timestamp": "T", "data": {"id": 1}}
    text = encode_control("gap", b"T", {}, channel="a")
    assert msgspec.json.decode(text)["channel"] == "a"


def test_a_frame_is_an_array() -> None:
    assert join([]) == b"[]"
    assert join([b"1", b"2"]) == b"[1,2]"
