"""The notify functions: they never raise into the trader, whatever they are given and wherever they go."""

import inspect
import logging
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import keepline
from keepline.desk.notify import (
    NOTIFICATIONS,
    notify_alert,
    notify_exposure_change,
    notify_lp_status_change,
    notify_routing_decision,
    use_publisher,
)
from keepline.errors import ConfigError, QueueFull

CALLS = {
    "routing-decision": lambda: notify_routing_decision(
        "EURUSD", "buy", 1, "ABOOK", "LP1", 12, 0.8, 0.0
    ),
    "lp-metrics": lambda: notify_lp_status_change("LP1", "connected", 0.7, 1, 4, 55, 0, 99),
    "exposure-change": lambda: notify_exposure_change(900, 80, 100, {"EURUSD": 80}, {"LP1": 80}),
    "alert": lambda: notify_alert("info", "test", "Title", "Message", "tests", ["look"]),
}


class Wall:
    """A publisher that keeps what it is given, or does what it is told."""

    def __init__(self, answer: object = None) -> None:
        self.got: list[tuple] = []
        self.answer = answer

    def publish(self, channel, type, data, *, key=None, id=None):
        if isinstance(self.answer, BaseException):
            raise self.answer
        self.got.append((channel, type, data, key, id))
        return self.answer


@pytest.fixture(autouse=True)
def _nobody_is_used() -> Iterator[None]:
    use_publisher(None)
    yield
    use_publisher(None)


def counted(kind: str, outcome: str) -> float:
    return NOTIFICATIONS.value(kind, outcome)


def said(caplog: pytest.LogCaptureFixture) -> list[dict]:
    return [r.fields for r in caplog.records if r.getMessage() == "Notification not published"]


def test_the_signatures_are_the_contracts() -> None:
    names = {
        notify_routing_decision: "symbol side volume decision lp execution_time_ms spread slippage",
        notify_lp_status_change: "name status avg_spread execution_quality latency_ms quotes_per_second"
        " reject_rate uptime",
        notify_exposure_change: "total net limit by_symbol by_lp",
        notify_alert: "severity category title message source action_items",
    }
    for function, wanted in names.items():
        parameters = inspect.signature(function).parameters.values()
        assert [p.name for p in parameters] == wanted.split()
        assert all(p.default is p.empty for p in parameters)
        assert getattr(keepline, function.__name__) is function
    assert keepline.use_publisher is use_publisher


def test_each_goes_to_its_channel_with_its_key_and_an_alert_with_an_id() -> None:
    wall = Wall()
    use_publisher(wall)
    before = {kind: counted(kind, "published") for kind in CALLS}
    assert all(call() for call in CALLS.values())
    assert [(channel, kind, key) for channel, kind, _, key, _ in wall.got] == [
        ("routing-metrics", "routing-decision", None),
        ("lp-performance", "lp-metrics", "LP1"),
        ("exposure-updates", "exposure-change", "total"),
        ("alerts", "alert", None),
    ]
    assert [data["riskLevel"] for _, _, data, *_ in wall.got if "riskLevel" in data] == ["high"]
    ids = [own for *_, own in wall.got]
    assert ids[:3] == [None] * 3
    assert len(ids[3]) == 24
    CALLS["alert"]()
    assert wall.got[-1][-1] != ids[3]
    assert {kind: counted(kind, "published") - before[kind] for kind in CALLS} == {
        **dict.fromkeys(CALLS, 1),
        "alert": 2,
    }


def test_before_a_publisher_is_named_they_count_and_warn_once(caplog) -> None:
    before = {kind: counted(kind, "no_publisher") for kind in CALLS}
    for _ in range(10):
        assert not any(call() for call in CALLS.values())
    assert {kind: counted(kind, "no_publisher") - before[kind] for kind in CALLS} == dict.fromkeys(
        CALLS, 10
    )
    (warning,) = said(caplog)
    assert "use_publisher" in warning["reason"]


def test_bad_input_is_counted_and_logged_with_the_arguments_name_ever_more_rarely(caplog) -> None:
    use_publisher(Wall())
    before = counted("routing-decision", "invalid")
    for _ in range(150):
        assert not notify_routing_decision("", "buy", 1, "ABOOK", None, 1, 1, 1)
    assert counted("routing-decision", "invalid") - before == 150
    assert [fields["times"] for fields in said(caplog)] == [1, 10, 100]
    assert said(caplog)[0]["reason"].startswith("[symbol]")


def test_bad_input_counts_also_without_a_publisher(caplog) -> None:
    before = counted("alert", "invalid")
    assert not notify_alert("fatal", "c", "t", "m", "s", [])
    assert counted("alert", "invalid") - before == 1


class Trap:
    """A value whose every use fails."""

    def __getattribute__(self, name: str):
        raise RuntimeError("gone")

    def __str__(self) -> str:
        raise RuntimeError("no words either")


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Items:
    def __iter__(self):
        raise Wordless


def test_a_value_that_fails_when_it_is_looked_at_does_not_reach_the_trader(caplog) -> None:
    use_publisher(Wall())
    assert not notify_alert("info", "c", "t", "m", "s", Items())
    assert said(caplog)[0]["reason"] == "Wordless"
    assert not notify_exposure_change(Trap(), 1, 1, None, None)
    assert not notify_lp_status_change(Trap(), Trap(), 1, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [(RuntimeError("broken"), "failed"), (QueueFull("full"), "failed"), (False, "refused")],
)
def test_a_publisher_that_fails_or_refuses_does_not_reach_the_trader(
    answer, outcome: str, caplog
) -> None:
    use_publisher(Wall(answer))
    before = counted("alert", outcome)
    assert CALLS["alert"]() is False
    assert counted("alert", outcome) - before == 1
    assert said(caplog)[0]["outcome"] == outcome


def test_an_interruption_is_not_swallowed() -> None:
    use_publisher(Wall(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        CALLS["alert"]()


def test_use_publisher_says_at_once_what_cannot_be_one() -> None:
    class Waits:
        async def publish(self, channel, type, data, *, key=None, id=None): ...

    for wrong in (object(), Wall, "http://127.0.0.1:7999"):
        with pytest.raises(ConfigError, match="publish"):
            use_publisher(wrong)
    with pytest.raises(ConfigError, match="awaited"):
        use_publisher(Waits())
    wall = Wall()
    assert use_publisher(wall) is None
    assert use_publisher(None) is wall


def test_many_threads_notify_while_the_publisher_changes() -> None:
    walls = [Wall(), Wall()]
    use_publisher(walls[0])
    gate = threading.Barrier(5)
    taken = []

    def trader() -> None:
        gate.wait()
        taken.append(sum(CALLS["lp-metrics"]() for _ in range(200)))

    threads = [threading.Thread(target=trader) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.wait()
    for number in range(100):
        use_publisher(walls[number % 2])
    for thread in threads:
        thread.join()
    assert sum(taken) == sum(len(wall.got) for wall in walls) == 800


@given(st.lists(st.one_of(st.none(), st.text(), st.floats(), st.binary()), min_size=8, max_size=8))
def test_nothing_that_is_given_raises(values) -> None:
    logging.getLogger("keepline.desk").disabled = True
    try:
        use_publisher(Wall())
        for function, count in (
            (notify_routing_decision, 8), (notify_lp_status_change, 8), (notify_exposure_change, 5),
            (notify_alert, 6),
        ):  # fmt: skip
            assert function(*values[:count]) in (True, False)
    finally:
        logging.getLogger("keepline.desk").disabled = False
