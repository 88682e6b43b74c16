"""A follower's knowledge in values: each message once, positions to resume from, what a person is told."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError, PermanentError, ProtocolError
from keepline.hub.following import Following, Note


def message(offset: int, *, channel: str = "alerts", epoch: str = "e1", **more) -> dict:
    return {
        "type": "alert",
        "channel": channel,
        "offset": offset,
        "epoch": epoch,
        "data": {"n": offset},
        **more,
    }


def control(kind: str, channel: str | None = None, **data) -> dict:
    return {"type": kind, "data": data} | ({} if channel is None else {"channel": channel})


def frame(*messages: dict) -> str:
    return json.dumps(messages)


def offsets(shown) -> list[int]:
    return [each["offset"] for each in shown if not isinstance(each, Note)]


def test_it_asks_for_its_channels_once_each_and_resumes_where_it_is() -> None:
    follower = Following(["alerts", "system", "alerts"])
    assert json.loads(follower.request()) == {
        "action": "subscribe",
        "channels": ["alerts", "system"],
    }
    follower.frame(frame(message(7)))
    assert json.loads(follower.request())["resume"] == {"alerts": {"epoch": "e1", "offset": 7}}


def test_each_message_is_shown_once_and_a_new_epoch_begins_anew() -> None:
    follower = Following(["alerts"])
    assert offsets(follower.frame(frame(message(1), message(2)))) == [1, 2]
    assert offsets(follower.frame(frame(message(2), message(3)))) == [3]
    assert offsets(follower.frame(frame(message(1, epoch="e2")))) == [1]
    assert json.loads(follower.request())["resume"]["alerts"] == {"epoch": "e2", "offset": 1}


def test_a_snapshot_is_shown_as_the_messages_that_it_holds_without_those_known() -> None:
    follower = Following(["lp"])
    follower.frame(frame(message(4, channel="lp")))
    items = [
        {"type": "lp-metrics", "key": "A", "offset": 3, "data": 1},
        {"type": "lp-metrics", "key": "B", "offset": 6, "data": 2},
        {"no": "item"},
        5,
    ]
    snapshot = message(9, channel="lp", type="snapshot", data={"items": items, "partial": True})
    (shown,) = follower.frame(frame(snapshot))
    assert (shown["offset"], shown["type"], shown["key"], shown["data"]) == (
        6,
        "lp-metrics",
        "B",
        2,
    )
    assert shown["snapshot"] is True
    assert json.loads(follower.request())["resume"]["lp"]["offset"] == 9
    assert follower.frame(frame({**snapshot, "data": None})) == []


def test_only_the_wanted_types_and_keys_are_shown_but_all_count() -> None:
    follower = Following(["alerts"], types=["alert"], keys=["A"])
    shown = follower.frame(
        frame(message(1, key="A"), message(2, key="B"), message(3), message(4, type="x", key="A"))
    )
    assert offsets(shown) == [1]
    assert json.loads(follower.request())["resume"]["alerts"]["offset"] == 4


def test_a_person_is_told_of_gaps_ends_and_errors() -> None:
    follower = Following(["alerts", "system"])
    notes = follower.frame(
        frame(
            control("welcome"),
            control("gap", "alerts", count=3, reason="slow"),
            control("gap", "alerts", count=None, reason="epoch"),
            control("expiring"),
            control("error", None, code="rate_limited", message="too fast"),
            control("error", "system", code="forbidden", message="no"),
            control("pong"),
        )
    )
    assert notes == [
        "alerts: 3 messages were missed (slow)",
        "alerts: messages were missed (epoch)",
        "the token expires soon",
        "too fast (rate_limited)",
        "system: no (forbidden)",
    ]
    assert json.loads(follower.request())["channels"] == ["alerts"]
    with pytest.raises(PermanentError, match="alerts: no"):
        follower.frame(frame(control("error", "alerts", code="forbidden", message="no")))


def test_another_epoch_at_subscription_makes_every_message_new() -> None:
    follower = Following(["alerts"])
    follower.frame(frame(message(5)))
    follower.frame(frame(control("subscribed", "alerts", epoch="e1", offset=5)))
    assert json.loads(follower.request())["resume"]["alerts"]["offset"] == 5
    follower.frame(frame(control("subscribed", "alerts", epoch="e2", offset=1)))
    assert offsets(follower.frame(frame(message(1, epoch="e2")))) == [1]


@pytest.mark.parametrize("text", ["{}", "[1]", "nonsense", "[" * 99_999, b"\xff"], ids=range(5))
def test_a_frame_that_is_none_is_a_protocol_error(text) -> None:
    with pytest.raises(ProtocolError):
        Following(["alerts"]).frame(text)


def test_messages_of_the_wrong_shape_show_nothing() -> None:
    wrong = [message(1, channel=5), message(1, epoch=None), {**message(1), "offset": "1"}, {}]
    assert Following(["alerts"]).frame(frame(*wrong)) == []


def test_without_a_channel_there_is_nothing_to_follow() -> None:
    for channels in ([], [""]):
        with pytest.raises(ConfigError):
            Following(channels)
    assert "alerts" in repr(Following(["alerts"]))


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=12))
def test_through_any_breaks_each_message_is_shown_once_and_in_order(spans) -> None:
    """After each break the hub may send again from anywhere at or before where the follower is."""
    follower = Following(["alerts"])
    shown: list[int] = []
    newest = 0
    for back, more in spans:
        first = max(1, newest + 1 - back)
        newest += more
        shown += offsets(follower.frame(frame(*map(message, range(first, newest + 1)))))
    assert shown == list(range(1, newest + 1))
