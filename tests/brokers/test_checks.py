"""What is refused before anything is sent, and in which words."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import unique
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.brokers.checks import (
    amount,
    id_number,
    moment,
    number,
    price,
    span,
    text,
    wire_moment,
    wire_number,
)
from keepline.brokers.messages import Message, OpenIntEnum, OpenStrEnum
from keepline.brokers.windows import Progress, split, without_repeats
from keepline.errors import ConfigError

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("21000.25", "is a number such as Decimal('21000.25'), not '21000.25'"),
        (True, "is a number"),
        (None, "is a number"),
        (float("nan"), "is a finite number, not NaN"),
        (float("inf"), "is a finite number"),
        (Decimal("sNaN"), "is a finite number"),
        (0.1 + 0.2, "has more than 15 digits"),
        (Decimal("1234567890123456"), "has more than 15 digits"),
    ],
)
def test_what_is_no_number_is_refused(value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=r"\[size\]") as caught:
        number(value, "size")
    assert words in str(caught.value)


def test_a_float_counts_as_what_it_prints() -> None:
    assert number(0.1, "x") == Decimal("0.1")
    assert number(1e-5, "x") == Decimal("0.00001")
    assert number(7, "x") == 7


@pytest.mark.parametrize(("value", "words"), [(0, "above 0, not 0"), (-1, "above 0, not -1")])
def test_a_quantity_is_above_zero(value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        amount(value, "size")


def test_a_fraction_of_a_contract_is_refused() -> None:
    assert amount(Decimal("2.0"), "size", whole=True) == 2
    assert amount(Decimal("2.5"), "size") == Decimal("2.5")
    with pytest.raises(ConfigError, match=r"is a whole number, not 2\.5"):
        amount(Decimal("2.5"), "size", whole=True)


@pytest.mark.parametrize(
    ("value", "tick", "neighbours"),
    [
        ("21000.30", "0.25", "21000.25 and 21000.50"),
        ("-37.633", "0.01", "-37.64 and -37.63"),
        ("0.3", "0.25", "0.25 and 0.50"),
    ],
)
def test_a_price_off_the_tick_names_its_neighbours(value: str, tick: str, neighbours: str) -> None:
    with pytest.raises(
        ConfigError, match=f"off the tick of {tick}; the nearest prices are {neighbours}"
    ):
        price(Decimal(value), "limit_price", tick=Decimal(tick))


def test_a_price_of_zero_is_none_and_a_negative_one_may_be() -> None:
    with pytest.raises(ConfigError, match="0 is no price"):
        price(Decimal(0), "limit_price")
    assert price(Decimal("-37.63"), "limit_price", tick=Decimal("0.01")) == Decimal("-37.63")
    with pytest.raises(ConfigError, match=r"-1 is no price above 0"):
        price(-1, "limit_price", above_zero=True)


@given(
    st.integers(-(10**6), 10**6).filter(bool),
    st.sampled_from(["0.25", "0.01", "0.1", "5", "0.015625"]),
)
def test_every_multiple_of_the_tick_is_a_price_and_goes_out_unchanged(
    steps: int, tick: str
) -> None:
    value = steps * Decimal(tick)
    assert price(value, "limit_price", tick=Decimal(tick)) == value
    sent = msgspec.json.encode(wire_number(value))
    assert msgspec.json.decode(sent, type=Decimal) == value


def test_whole_numbers_go_out_without_a_point() -> None:
    assert repr(wire_number(Decimal("2.0"))) == "2"
    assert repr(wire_number(Decimal("0.1"))) == "0.1"


@pytest.mark.parametrize("value", ["", "  ", None, 7])
def test_a_text_is_not_empty(value: object) -> None:
    with pytest.raises(ConfigError, match="is a text that is not empty"):
        text(value, "contract_id")


def test_an_id_is_a_number_or_its_digits() -> None:
    assert (id_number(7, "id"), id_number("0042", "id")) == (7, 42)
    for wrong in (0, -1, "x", "", "4٢", 1.5, True, None):
        with pytest.raises(ConfigError, match="is a whole number above 0"):
            id_number(wrong, "account_id")


def test_a_moment_says_its_zone() -> None:
    summer = timezone(timedelta(hours=2))
    assert moment(datetime(2026, 7, 1, 14, tzinfo=summer), "start") == datetime(
        2026, 7, 1, 12, tzinfo=UTC
    )
    with pytest.raises(ConfigError, match="2026-07-01 14:00:00 says nothing of its time zone"):
        moment(datetime(2026, 7, 1, 14), "start")  # noqa: DTZ001 - the mistake that is refused
    with pytest.raises(ConfigError, match="is a datetime with a time zone, not '2026-07-01'"):
        moment("2026-07-01", "start")


def test_a_span_ends_after_its_start() -> None:
    assert span(NOON, NOON + timedelta(seconds=1))[0] == NOON
    with pytest.raises(ConfigError, match="12:00:00 UTC is not after the start") as caught:
        span(NOON, NOON)
    assert caught.value.key == "end"


def test_a_moment_goes_out_in_utc_with_milliseconds_and_z() -> None:
    instant = datetime(2026, 7, 1, 14, 0, 5, 123_999, tzinfo=timezone(timedelta(hours=2)))
    assert wire_moment(moment(instant, "at")) == "2026-07-01T12:00:05.123Z"


@given(st.integers(1, 10**7), st.integers(1, 10**6))
def test_pieces_cover_a_span_without_a_gap(whole: int, longest: int) -> None:
    if whole / longest > 5000:
        longest = whole // 5000 + 1
    end = NOON + timedelta(seconds=whole)
    pieces = split(NOON, end, timedelta(seconds=longest))
    assert pieces[0][0] == NOON
    assert pieces[-1][1] == end
    assert all(left[1] == right[0] for left, right in pairwise(pieces))
    assert all(timedelta(0) < b - a <= timedelta(seconds=longest) for a, b in pieces)


def test_rows_come_once_in_order() -> None:
    assert list(without_repeats([3, 1, 3, 2, 1], lambda row: row)) == [3, 1, 2]


def test_progress_has_a_share() -> None:
    assert Progress(1, 4, 10, NOON).share == 0.25


@unique
class Colour(OpenIntEnum):
    RED = 1


class Word(OpenStrEnum):
    YES = "YES"


class Row(Message, frozen=True, kw_only=True):
    moments = ("at", "seen_at")

    colour: Colour
    word: Word
    at: datetime
    seen_at: datetime | None = None


def row(**changes: Any) -> Row:
    fields = {"colour": 1, "word": "YES", "at": "2026-01-05T12:00:00Z"} | changes
    return msgspec.json.decode(msgspec.json.encode(fields), type=Row)


def test_unknown_values_of_an_enum_are_kept() -> None:
    found = row(colour=42, word="PERHAPS", more="passed over")
    assert (found.colour, found.colour.value, found.colour.name) == (42, 42, "UNKNOWN_42")
    assert (found.word, found.word.value, found.word.name) == ("PERHAPS", "PERHAPS", "PERHAPS")
    assert not found.colour.is_known
    assert not found.word.is_known
    assert row().colour.is_known
    assert row().word.is_known
    assert {Colour(42): 1}[Colour(42)] == 1
    assert len(Colour) == len(Word) == 1


def test_an_enum_value_of_another_kind_is_still_an_error() -> None:
    with pytest.raises(msgspec.ValidationError):
        row(colour="RED")
    with pytest.raises(msgspec.ValidationError):
        row(word=7)
    with pytest.raises(ValueError, match="'x'"):
        Colour("x")
    with pytest.raises(ValueError, match="7"):
        Word(7)


@pytest.mark.parametrize(
    "text_",
    [
        "2026-01-05T12:00:00Z", "2026-01-05T12:00:00+00:00", "2026-01-05T12:00:00+0000", "2026-01-05T14:00:00+02:00",
        "2026-01-05T12:00:00", "2026-01-05T12:00:00.0000000Z", "2026-01-05T12:00:00.000",
    ],
)  # fmt: skip
def test_every_spelling_of_a_moment_is_the_same_aware_moment(text_: str) -> None:
    assert row(at=text_, seenAt=text_).seen_at == NOON
    assert row(at=text_).at == NOON
