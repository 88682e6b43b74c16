"""Acknowledge, resolve, snooze: handed to whoever keeps the alerts' state, answered whatever that one does."""

import asyncio

import pytest

from keepline.errors import RateLimited
from keepline.hub.alert_actions import ALERT_ACTIONS, perform


class Keeper:
    """A handler that notes what it was asked, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple] = []
        self.error = error

    async def _done(self, *asked):
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        return {"state": asked[0]}

    async def acknowledge(self, alert_id, *, user, note):
        return await self._done("acknowledged", alert_id, user, note)

    async def resolve(self, alert_id, *, user, note):
        return await self._done("resolved", alert_id, user, note)

    async def snooze(self, alert_id, *, user, note, seconds):
        await self._done("snoozed", alert_id, user, note, seconds)


async def test_without_a_handler_an_action_is_not_implemented() -> None:
    before = ALERT_ACTIONS.value("ack", "501")
    reply = await perform(None, "ack", "a1", b"", user="ann")
    assert (reply.status, reply.body["error"]) == (501, "no_handler")
    assert ALERT_ACTIONS.value("ack", "501") == before + 1


async def test_each_action_reaches_its_method_with_who_and_why() -> None:
    keeper = Keeper()
    ack = await perform(keeper, "ack", "a1", b'{"note":"seen"}', user="ann")
    resolve = await perform(keeper, "resolve", "a1", b"  ", user="ann")
    snooze = await perform(keeper, "snooze", "a1", b'{"seconds":60}', user="ann")
    longer = await perform(keeper, "snooze", "a1", b"", user="ann")
    assert keeper.asked == [
        ("acknowledged", "a1", "ann", "seen"),
        ("resolved", "a1", "ann", ""),
        ("snoozed", "a1", "ann", "", 60.0),
        ("snoozed", "a1", "ann", "", 900.0),
    ]
    assert ack == (200, {"id": "a1", "action": "ack", "state": "acknowledged"})
    assert resolve.status == longer.status == 200
    assert snooze.body == {"id": "a1", "action": "snooze"}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"\xff",
        b'{"note":5}',
        b'{"seconds":0}',
        b'{"seconds":1e9}',
        b'{"who":"me"}',
        b"[" * 99_999,
    ],
    ids=range(8),
)
async def test_a_body_that_is_none_never_reaches_the_handler(body: bytes) -> None:
    keeper = Keeper()
    reply = await perform(keeper, "snooze", "a1", body, user="ann")
    assert (reply.status, reply.body["error"]) == (400, "bad_body")
    assert keeper.asked == []


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (KeyError("a1"), 404, "unknown_alert"),
        (LookupError("a1"), 404, "unknown_alert"),
        (RateLimited("later, please"), 409, "refused"),
        (RuntimeError("password=x"), 500, "handler_failed"),
    ],
)
async def test_what_a_handler_raises_becomes_an_answer(error, status: int, code: str) -> None:
    reply = await perform(Keeper(error), "ack", "a1", b"", user="ann")
    assert (reply.status, reply.body["error"]) == (status, code)
    assert "password" not in str(reply.body)
    if status == 409:
        assert reply.body["message"] == "later, please"


async def test_a_fault_of_the_handler_is_logged(caplog) -> None:
    await perform(Keeper(RuntimeError("broken")), "ack", "a1", b"", user="ann")
    (record,) = [r for r in caplog.records if r.getMessage() == "Alert action failed"]
    assert record.fields == {"action": "ack", "alert": "a1", "error": "RuntimeError: broken"}


async def test_a_handler_that_does_not_answer_is_left() -> None:
    class Asleep(Keeper):
        async def acknowledge(self, alert_id, *, user, note):
            await asyncio.Event().wait()

    reply = await perform(Asleep(), "ack", "a1", b"", user="ann", timeout_seconds=0.0)
    assert (reply.status, reply.body["error"]) == (504, "timeout")


async def test_an_action_that_there_is_not_is_not_counted_by_its_name() -> None:
    reply = await perform(Keeper(), "../../x", "a1", b"", user="ann")
    assert (reply.status, reply.body["error"]) == (404, "unknown_action")
    assert ALERT_ACTIONS.value("../../x", "404") == 0
