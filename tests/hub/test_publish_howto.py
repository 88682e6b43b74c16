"""The examples of docs/howto/publish.md do what the page says, as they stand there, at a real hub."""

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.hub.hub_server import RunningHub, running_hub, token

from keepline import use_publisher
from keepline.desk.risk import RISK_TABLE
from keepline.hub.outgoing import POLICIES
from keepline.hub.settings import CHANNELS

PAGE = (Path(__file__).parents[2] / "docs/howto/publish.md").read_text()
CHANNEL_OF = {
    "routing-decision": "routing-metrics",
    "lp-metrics": "lp-performance",
    "exposure-change": "exposure-updates",
    "alert": "alerts",
}


def examples(heading: str, language: str) -> list[str]:
    """The blocks of a section."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found
    return found


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningHub]:
    monkeypatch.setenv("KEEPLINE_HUB_TOKEN", token("svc"))
    async with running_hub(tmp_path) as hub:
        yield hub


def run(text: str, hub: RunningHub) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(text.replace("http://127.0.0.1:7999", hub.hub.url), names)
    return names


async def shell(text: str, hub: RunningHub, directory: Path) -> tuple[int | None, str, str]:
    """Run a block in a directory where `keepline` is this program, against this hub; exit code and output."""
    command = directory / "keepline"
    if not command.exists():
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m keepline "$@"\n')
        command.chmod(0o700)
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", text.replace("http://127.0.0.1:7999", hub.hub.url)),
        cwd=directory,
        env={
            **os.environ,
            "PATH": f"{directory}:{os.environ['PATH']}",
            "KEEPLINE_HUB_URL": hub.hub.url,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def held(hub: RunningHub, channel: str) -> list[dict[str, Any]]:
    """The messages of a channel, oldest first."""
    status, told, _ = await hub.ask("GET", f"/api/history/{channel}")
    assert status == 200
    return list(told["messages"])


async def test_in_process(running: RunningHub) -> None:
    names = run(examples("In the hub's process", "python")[0], running)
    for _ in range(2):
        await names["report"](running.hub)
    assert len(await held(running, "lp-performance")) == 2
    (alert,) = await held(running, "alerts")  # the second one was known by its id
    assert alert["id"] == "lp1-slow-2026-01-05"
    assert alert["data"]["actionItems"] == ["route around it"]


async def test_with_curl(running: RunningHub, clean_environment: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("peer tool absent: curl")
    (block, *_) = examples("With curl", "sh")
    (answer,) = examples("With curl", "json")
    for _ in range(2):  # the key makes the second time harmless, with the same answer
        code, out, err = await shell(block, running, clean_environment)
        assert (code, err) == (0, "")
        assert json.loads(out) == json.loads(answer)
    assert [each["data"]["symbol"] for each in await held(running, "routing-metrics")] == ["EURUSD"]
    assert [each["id"] for each in await held(running, "alerts")] == ["a-1"]


async def test_curl_fails_with_the_hubs_words(
    running: RunningHub, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("peer tool absent: curl")
    monkeypatch.setenv("KEEPLINE_HUB_TOKEN", token("svc", iat=1, exp=2))
    code, out, _ = await shell(examples("With curl", "sh")[0], running, clean_environment)
    assert code
    assert json.loads(out)["error"] == "expired"
    assert await held(running, "alerts") == []


async def test_from_a_shell(running: RunningHub, clean_environment: Path) -> None:
    messages = examples("With curl", "sh")[0].split("<<'END'\n")[1].split("END\n")[0]
    (clean_environment / "messages.ndjson").write_text(messages)
    code, out, err = await shell(examples("With curl", "sh")[1], running, clean_environment)
    assert code == 0, err
    assert [line.split() for line in out.splitlines()] == [
        *(["accepted", "2"], ["duplicates", "0"], ["refused", "0"]),
        *(["accepted", "1"], ["duplicates", "0"], ["refused", "0"]),
    ]
    (provider,) = await held(running, "lp-performance")
    assert (provider["key"], provider["data"]["status"]) == ("LP1", "connected")


async def test_the_publisher(running: RunningHub) -> None:
    names = run(examples("From another Python program", "python")[0], running)

    async def fills() -> AsyncIterator[dict[str, int]]:
        for number in range(3):
            yield {"n": number}

    await names["follow"](fills())
    assert [each["data"]["n"] for each in await held(running, "routing-metrics")] == [0, 1, 2]
    assert [each["data"]["title"] for each in await held(running, "alerts")] == ["Done"]


async def test_the_notify_functions_from_a_plain_thread(running: RunningHub) -> None:
    text = examples("From a trader's thread", "python")[0]
    await asyncio.to_thread(run, text, running)
    use_publisher(None)
    data = {kind: (await held(running, CHANNEL_OF[kind]))[0]["data"] for kind in CHANNEL_OF}
    assert data["exposure-change"]["riskLevel"] == "high"
    assert data["routing-decision"]["lpSelected"] == "LP1"


async def test_the_notify_functions_at_a_hub_in_this_process(running: RunningHub) -> None:
    text = examples("From a trader's thread", "python")[0]
    own = re.sub(r"publisher = HubPublisher\(.*\)\n", "", text).replace("publisher.stop()\n", "")
    assert own != text
    screen = await running.open(subscribe=list(CHANNEL_OF.values()))
    await asyncio.to_thread(exec, own, {"publisher": running.hub})
    use_publisher(None)
    seen: dict[str, Any] = {}
    while set(seen) != set(CHANNEL_OF):
        for message in await screen.messages():
            if message["type"] in CHANNEL_OF:
                assert message["channel"] == CHANNEL_OF[message["type"]]
                seen[message["type"]] = message
    assert seen["lp-metrics"]["key"] == "LP1"
    assert seen["alert"]["id"]
    await screen.close()


async def test_what_arrived_is_shown_in_a_terminal(
    running: RunningHub, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        await running.hub.publish_durable("alerts", "alert", {"n": number})
    monkeypatch.setenv("KEEPLINE_HUB_TOKEN", token("tom"))
    command = examples("Look at what arrives", "sh")[0].splitlines()[1]
    code, out, err = await shell(command, running, clean_environment)
    assert code == 0, err
    assert [json.loads(line)["data"]["n"] for line in out.splitlines()] == list(range(10))


def test_the_table_of_channels_is_the_publishers_and_the_hubs() -> None:
    assert {each.name: each.policy.value for each in CHANNELS} == POLICIES
    words = {"drop-oldest": "the oldest leaves", "conflate": "only the newest", "never": "never"}
    for channel, policy in POLICIES.items():
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{channel}` |")]
        assert words[policy] in row


def test_the_levels_of_risk_are_the_tables() -> None:
    for bound, level in RISK_TABLE[:-1]:
        assert f"`{level.value}` from {bound:g}" in " ".join(PAGE.split())
