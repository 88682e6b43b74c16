"""The examples of docs/howto/publish.md do what the page says, as they stand there."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.hub.hub_double import HubDouble

from keepline import HubPublisher, use_publisher
from keepline.desk.risk import RISK_TABLE
from keepline.hub.outgoing import POLICIES

PAGE = (Path(__file__).parents[2] / "docs/howto/publish.md").read_text()


def example(heading: str, language: str = "python") -> str:
    """The first block of a section."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HubDouble]:
    double = HubDouble()
    await double.start()
    monkeypatch.setenv("KEEPLINE_HUB_TOKEN", "good")
    yield double
    await double.stop()


def run(text: str, hub: HubDouble) -> dict:
    names: dict = {}
    exec(text.replace("http://127.0.0.1:7999", hub.url), names)
    return names


async def test_in_process(hub: HubDouble) -> None:
    names = run(example("In the hub's process"), hub)
    async with HubPublisher(hub.url, "good") as publisher:  # it has the hub's two methods
        for _ in range(2):
            await names["report"](publisher)
            await publisher.flush()
    kinds = [draft.type for draft in hub.published]
    assert kinds.count("lp-metrics") == 2
    assert kinds.count("alert") == 1  # the second one was known by its id


async def test_the_publisher(hub: HubDouble) -> None:
    names = run(example("From another Python program"), hub)

    async def fills():
        for number in range(3):
            yield {"n": number}

    await names["follow"](fills())
    assert sorted(draft.channel for draft in hub.published) == ["alerts", *["routing-metrics"] * 3]


async def test_the_notify_functions_from_a_plain_thread(hub: HubDouble) -> None:
    await asyncio.to_thread(run, example("From a trader's thread"), hub)
    use_publisher(None)
    data = {draft.type: msgspec.json.decode(draft.data) for draft in hub.published}
    assert set(data) == {"routing-decision", "lp-metrics", "exposure-change", "alert"}
    assert data["exposure-change"]["riskLevel"] == "high"


def test_the_table_of_channels_is_the_publishers() -> None:
    words = {"drop-oldest": "the oldest leaves", "conflate": "only the newest", "never": "never"}
    for channel, policy in POLICIES.items():
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{channel}` |")]
        assert words[policy] in row


def test_the_levels_of_risk_are_the_tables() -> None:
    for bound, level in RISK_TABLE[:-1]:
        assert f"`{level.value}` from {bound:g}" in " ".join(PAGE.split())
