"""From calls to handlers."""

from typing import Any

import pytest

from keepline.errors import ConfigError
from keepline.stream.dispatch import Dispatch
from keepline.stream.messages import Invocation
from keepline.stream.wire_events import Answered


class Table:
    """A dispatch that keeps what handlers raise and return."""

    def __init__(self) -> None:
        self.failed: list[tuple[str, str]] = []
        self.returned: list[tuple[str, Any]] = []
        self.dispatch = Dispatch(
            failed=lambda call, error: self.failed.append((call.target, str(error))),
            returned=lambda call, value: self.returned.append((call.target, value)),
        )

    def call(self, target: str, *arguments: Any) -> list[Any]:
        return self.dispatch.deliver([Invocation(target, arguments)])


def test_a_call_reaches_its_handlers_in_order_and_in_any_case() -> None:
    table, seen = Table(), []
    table.dispatch.on("Quote", lambda contract, price: seen.append(("a", contract, price)))
    table.dispatch.on("QUOTE", lambda contract, price: seen.append(("b", contract, price)))
    assert table.call("quote", "NQ", 1.5) == []
    assert seen == [("a", "NQ", 1.5), ("b", "NQ", 1.5)]
    assert table.call("Trade", 1) == []


def test_a_handler_that_raises_is_told_and_stops_no_other() -> None:
    table, seen = Table(), []

    def broken(value: int) -> None:
        raise LookupError("no such thing")

    table.dispatch.on("T", broken)
    table.dispatch.on("T", seen.append)
    table.call("T", 1)
    table.call("T")  # too few for either
    assert seen == [1]
    assert [target for target, _ in table.failed] == ["T", "T", "T"]
    assert table.failed[0] == ("T", "no such thing")


def test_what_a_handler_returns_is_handed_on_unless_it_is_none() -> None:
    table = Table()
    table.dispatch.on("T", lambda: 5)
    table.dispatch.on("T", lambda: None)
    table.call("T")
    assert table.returned == [("T", 5)]


def test_what_is_not_for_handlers_alone_is_left_to_the_face() -> None:
    table, seen = Table(), []
    table.dispatch.on("T", seen.append)
    wanted, answered = Invocation("T", [1], "s1"), Answered("1", 2)
    rest = table.dispatch.deliver([Invocation("T", [0]), wanted, answered, Invocation("T", [3])])
    assert rest == [wanted, answered]
    assert seen == [0, 3]


def test_a_removed_handler_is_called_no_more_even_when_it_removes_itself() -> None:
    table, seen = Table(), []
    remove = table.dispatch.on("T", lambda: (seen.append("once"), remove())[1])
    table.dispatch.on("T", lambda: seen.append("always"))
    table.call("T")
    table.call("T")
    remove()
    assert seen == ["once", "always", "always"]
    assert len(table.dispatch.handlers("t")) == 1


def test_types_are_registered_with_the_handler_and_leave_with_the_last() -> None:
    dispatch = Table().dispatch
    first = dispatch.on("T", print, int)
    second = dispatch.on("t", print)
    assert dispatch.types.arguments("T") == (int,)
    with pytest.raises(ConfigError, match="'T' are decoded into"):
        dispatch.on("T", print, str)
    first()
    assert dispatch.types.arguments("T") == (int,)
    second()
    assert dispatch.types.arguments("T") is None


def test_a_peer_that_invents_names_fills_no_memory() -> None:
    table = Table()
    for number in range(1500):
        table.call(f"T{number}")
    assert len(table.dispatch._spelt) == 1024
