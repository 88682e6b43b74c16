"""`keepline orders list|reconcile` as a person runs it, beside a gateway and without one."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs
from tests.brokers.orders.venue import (
    BY_LOOKS,
    PlainBroker,
    Venue,
    accepted_but_lost,
    order_intent,
)

from keepline.brokers.orders import OrderGateway, OutcomeState
from keepline.cli.program import run
from keepline.testing import ManualClock

Keepline = Callable[..., tuple[int, str, str]]


@pytest.fixture
def journal(clean_environment: Path) -> Path:
    return clean_environment / "data" / "top.orders"


@pytest.fixture
def keepline(
    clean_environment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Keepline:
    file = clean_environment / "keepline.toml"
    file.write_text(
        '[credentials.top]\nissuer = "projectx"\nusername = "me"\nstorage = "memory"\n'
        '[credentials.schwab]\nissuer = "static"\n[brokers.top]\n[brokers.schwab]\n'
    )
    monkeypatch.setenv("KEEPLINE_CONFIG", str(file))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


class Ambiguous:
    """A gateway with one order that is clear and one that a person must decide."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.venue = Venue(ManualClock(), keeps_tags=False)
        self.broker = PlainBroker(self.venue, structs.replace(BY_LOOKS, clock_skew_seconds=1e9))

    def gateway(self) -> OrderGateway:
        return OrderGateway(self.broker, self.journal)

    async def make(self, gateway: OrderGateway) -> None:
        assert (await gateway.place(order_intent("clear", 5))).accepted
        self.venue.take(order_intent("a stranger's"))
        self.broker.script = [accepted_but_lost]
        outcome = await gateway.place(order_intent("unclear"))
        assert outcome.state is OutcomeState.AMBIGUOUS


def made(journal: Path) -> Ambiguous:
    """The journal that such a gateway leaves."""
    ambiguous = Ambiguous(journal)

    async def make() -> None:
        async with ambiguous.gateway() as gateway:
            await ambiguous.make(gateway)

    asyncio.run(make())
    return ambiguous


def test_what_is_unresolved_is_listed_and_the_code_says_that_a_person_is_needed(
    keepline: Keepline, journal: Path
) -> None:
    made(journal)
    code, told, said = keepline("orders", "list", "top")
    assert (code, said) == (1, "")
    heading, line = told.splitlines()
    assert heading.split() == ["prepared", "id", "kind", "what", "state", "order", "how", "reason"]
    assert "unclear" in line
    assert "buy 1 MNQ market" in line
    assert "2 orders fit: 2, 3" in line


def test_all_are_listed_as_json(keepline: Keepline, journal: Path) -> None:
    made(journal)
    code, told, _ = keepline("orders", "list", "top", "--all", "--json")
    clear, unclear = json.loads(told)
    assert code == 1
    assert (clear["id"], clear["state"], clear["how"], clear["order_id"]) == (
        "clear",
        "accepted",
        "answer",
        "1",
    )
    assert (clear["quantity"], clear["side"], clear["sent_at"] is not None) == ("5", "buy", True)
    assert (unclear["state"], unclear["order_id"]) == ("ambiguous", None)
    code, told, _ = keepline("orders", "list", "top", "--all", "--json", "--last", "1")
    assert [record["id"] for record in json.loads(told)] == ["unclear"]


def test_an_order_of_a_person_settles_it_at_the_next_start(
    keepline: Keepline, journal: Path
) -> None:
    ambiguous = made(journal)
    code, _, said = keepline(
        "orders", "reconcile", "unclear", "--broker", "top", "--order", "3", "--reason", "saw it"
    )
    assert code == 0
    assert f"the next program that opens {journal} takes it up" in said

    async def go_on() -> None:
        async with ambiguous.gateway() as gateway:
            outcome = await (await gateway.place(order_intent("unclear"))).final()
            assert (outcome.order_id, outcome.how, outcome.reason) == ("3", "person", "saw it")

    asyncio.run(go_on())
    code, told, said = keepline("orders", "list", "top")
    assert (code, told) == (0, "")
    assert "nothing is unresolved" in said


async def test_a_running_program_takes_a_decision_up(keepline: Keepline, journal: Path) -> None:
    ambiguous = Ambiguous(journal)
    async with ambiguous.gateway() as gateway:
        await ambiguous.make(gateway)
        (outcome,) = gateway.unresolved()
        code, _, said = await asyncio.to_thread(
            keepline, "orders", "reconcile", "unclear", "--broker", "top", "--absent"
        )
        assert (code, f"process {os.getpid()} takes it up" in said) == (0, True)
        final = await outcome.final()
        assert (final.state, final.how) == (OutcomeState.PRESUMED_ABSENT, "person")
    code, told, _ = await asyncio.to_thread(keepline, "orders", "list", "top", "--json")
    assert (code, json.loads(told)) == (0, [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list",), "name one of"),
        (("list", "nobody"), "brokers.nobody"),
        (("list", "top"), "no order was placed through it yet"),
        (("reconcile", "i", "--broker", "top", "--absent"), "no order was placed through it yet"),
        (("reconcile", "i", "--broker", "top"), "--order ORDER or --absent"),
        (("reconcile", "i", "--broker", "top", "--absent", "--order", "1"), "--order ORDER or --absent"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_says_what_would(
    keepline: Keepline, arguments: tuple[str, ...], words: str
) -> None:
    code, told, said = keepline("orders", *arguments)
    assert (code, told) == (2, "")
    assert words in said


def test_a_decision_about_an_unknown_intent_is_refused(keepline: Keepline, journal: Path) -> None:
    made(journal)
    code, _, said = keepline("orders", "reconcile", "nobody", "--broker", "top", "--absent")
    assert code == 2
    assert "no intent 'nobody'" in said
