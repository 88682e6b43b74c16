"""Lines of a stream: for people, for programs, and which of them are wanted."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from keepline.brokers.schwab.streamer_messages import AccountActivity, Book, BookLevel
from keepline.cli.streamlines import Only, as_object, as_words
from keepline.daemon.watching import Told
from keepline.model import DepthLevel, DepthUpdate, Fill, Position, Quote, Side
from keepline.stream.events import EventKind, StreamEvent
from keepline.stream.snapshot import Discrepancy, DiscrepancyKind

AT = datetime(2026, 1, 5, 14, 30, 1, 250_000, tzinfo=UTC)
MNQ = "CON.F.US.MNQ.H26"
LEVELS = tuple(DepthLevel(100.0 - n, 2.0) for n in range(5))
FILL = Fill(
    id="9",
    order_id="7",
    account="1001",
    instrument=MNQ,
    side=Side.SELL,
    quantity=Decimal(2),
    price=Decimal("5990.25"),
    at=AT,
)


def told(kind: str, value: Any) -> Told:
    return Told(AT, "top", kind, value)


def event(kind: EventKind, channel: str = "", key: str = "", reason: str = "") -> Told:
    return told("event", StreamEvent(kind, "top", AT, channel, key, reason))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (event(EventKind.LIVE), "LIVE"),
        (event(EventKind.LOST, reason="cut"), "LOST  cut"),
        (event(EventKind.STALE, "GatewayQuote", MNQ, "no data"), f"STALE  GatewayQuote {MNQ}: no data"),
        (told("quote", Quote(instrument=MNQ, at=AT, bid=1.25)),
         f"quote  instrument={MNQ} at=2026-01-05T14:30:01.250000Z bid=1.25"),
        (told("depth", DepthUpdate(instrument=MNQ, at=AT, bids=LEVELS, asks=())),
         f"depth  {MNQ}  bids 2@100 2@99 2@98 and 2 more  asks -"),
        (told("depth", Book("NASDAQ_BOOK", "F", AT, (BookLevel(9.5, 100.0),), ())),
         "depth  F  bids 100@9.5  asks -"),
        (told("discrepancy", Discrepancy(DiscrepancyKind.MISSED_FILL, "1001", "9", None, FILL)),
         "discrepancy  missed fill: 9 in account 1001"),
        (told("activity", AccountActivity(3, "", "OrderCreated", "", "7")),
         "activity  activity=OrderCreated sequence=3 order_id=7"),
    ],
)  # fmt: skip
def test_people_get_a_time_a_name_and_words(line: Told, words: str) -> None:
    assert as_words(line) == f"14:30:01.250  top  {words}"


def test_programs_get_every_field() -> None:
    assert as_object(event(EventKind.STALE, "c", "k", "why")) == {
        "arrived": "2026-01-05T14:30:01.250+00:00",
        "stream": "top",
        "kind": "event",
        "event": "stale",
        "at": "2026-01-05T14:30:01.250000Z",
        "channel": "c",
        "key": "k",
        "reason": "why",
    }
    fill = as_object(told("fill", FILL))
    assert (fill["kind"], fill["price"], fill["side"]) == ("fill", "5990.25", "sell")
    found = Discrepancy(DiscrepancyKind.POSITION_BREAK, "1001", MNQ, None, FILL)
    broken = as_object(told("discrepancy", found))
    assert (broken["kind"], broken["discrepancy"]) == ("discrepancy", "position_break")
    assert broken["theirs"]["id"] == "9"


def test_an_activity_says_what_it_was() -> None:
    line = as_object(told("activity", AccountActivity(3, "1", "OrderCreated", "", "7")))
    assert (line["kind"], line["activity"]) == ("activity", "OrderCreated")


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        ((), ["event", "quote", "depth", "position"]),
        (("quotes",), ["quote"]),
        (("quotes", "events"), ["event", "quote"]),
        (("MNQ",), ["event", "quote"]),
        (("mes", "depth"), ["depth"]),
        (("nq", "mes"), ["event", "quote", "depth", "position"]),
        (("quotes", "mes"), []),
    ],
)
def test_only_what_is_wanted_is_shown(words: tuple[str, ...], kinds: list[str]) -> None:
    lines = [
        event(EventKind.LIVE),
        told("quote", Quote(instrument=MNQ, at=AT)),
        told("depth", DepthUpdate(instrument="CON.F.US.MES.H26", at=AT, bids=(), asks=())),
        told("position", Position(account="1", instrument="MES", quantity=Decimal(1))),
    ]
    only = Only(words)
    assert [line.kind for line in lines if only.wants(line)] == kinds
