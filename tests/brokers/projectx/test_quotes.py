"""Partial quotes: merged by contract, late ones told apart, a new session begun, nothing kept over a gap."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from keepline.brokers.projectx.quotes import QuoteMerger
from keepline.brokers.projectx.stream_messages import QuotePayload
from keepline.model import Quote

AT = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
MNQ, ES = "CON.F.US.MNQ.U26", "CON.F.US.EP.U26"


def later(seconds: float) -> datetime:
    return AT + timedelta(seconds=seconds)


def test_what_is_not_told_keeps_its_value() -> None:
    merger = QuoteMerger()
    merger.apply(MNQ, QuotePayload(best_bid=1.0, best_ask=2.0, volume=100.0), AT)
    merged = merger.apply(MNQ, QuotePayload(last_price=1.5), later(1))
    assert merged == Quote(instrument=MNQ, at=later(1), bid=1.0, ask=2.0, last=1.5, volume=100.0)
    assert merger.get(MNQ) == merged


def test_contracts_do_not_mix() -> None:
    merger = QuoteMerger()
    merger.apply(MNQ, QuotePayload(best_bid=1.0), AT)
    assert merger.apply(ES, QuotePayload(best_ask=9.0), AT) == Quote(instrument=ES, at=AT, ask=9.0)


def test_a_late_change_covers_nothing_newer_and_still_fills_what_is_older() -> None:
    merger = QuoteMerger()
    merger.apply(MNQ, QuotePayload(best_bid=1.0, best_ask=2.0), AT)
    merger.apply(MNQ, QuotePayload(best_bid=1.25), later(2))
    merged = merger.apply(MNQ, QuotePayload(best_bid=1.1, best_ask=2.1), later(1))
    assert (merged.bid, merged.ask, merged.at) == (1.25, 2.1, later(2))
    assert merger.late == 1


def test_volume_is_the_session_s_total_and_a_smaller_one_begins_a_new_session() -> None:
    merger = QuoteMerger()
    first = QuotePayload(open=1.0, high=3.0, low=0.5, volume=1000.0, best_bid=1.0)
    merger.apply(MNQ, first, AT)
    merged = merger.apply(MNQ, QuotePayload(volume=1002.0), later(1))
    assert (merged.volume, merged.high) == (1002.0, 3.0)
    merged = merger.apply(MNQ, QuotePayload(volume=4.0, open=1.25), later(2))
    assert (merged.volume, merged.open, merged.high, merged.low, merged.bid) == (
        4.0,
        1.25,
        None,
        None,
        1.0,
    )


def test_a_smaller_volume_that_comes_late_begins_no_session() -> None:
    merger = QuoteMerger()
    merger.apply(MNQ, QuotePayload(high=3.0, volume=1000.0), later(5))
    merged = merger.apply(MNQ, QuotePayload(volume=900.0), AT)
    assert (merged.volume, merged.high) == (1000.0, 3.0)


def test_after_a_gap_only_what_is_told_again_is_known() -> None:
    merger = QuoteMerger()
    for contract in (MNQ, ES):
        merger.apply(contract, QuotePayload(best_bid=1.0), AT)
    merger.forget(MNQ)
    assert (merger.get(MNQ), merger.get(ES) is None) == (None, False)
    assert merger.apply(MNQ, QuotePayload(best_ask=2.0), AT).bid is None
    merger.forget()
    assert merger.get(ES) is None


changes = st.lists(
    st.tuples(
        st.integers(0, 20),
        st.sampled_from(["best_bid", "best_ask", "last_price", "open"]),
        st.floats(0, 100),
    ),
    max_size=30,
)


@given(changes, st.randoms())
def test_the_order_of_arrival_does_not_matter(told: list[tuple[int, str, float]], random) -> None:
    """Each field ends with the newest value told, whatever came in between; equal moments are one statement."""
    unique = list({(moment, name): (moment, name, value) for moment, name, value in told}.values())
    shuffled = list(unique)
    random.shuffle(shuffled)
    ends = []
    for order in (sorted(unique), shuffled):
        merger = QuoteMerger()
        for moment, name, value in order:
            merger.apply(MNQ, QuotePayload(**{name: value}), later(moment))
        ends.append(merger.get(MNQ))
    assert ends[0] == ends[1]
