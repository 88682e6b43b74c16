"""npm `ws`, a strict client that we did not write: plain and compressed, refused and sent away."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.hub.house import settings, token
from tests.peers.npm import install

from keepline.hub.server import AnalyticsHub

pytestmark = pytest.mark.timeout(120)  # the first run installs the package

HERE = Path(__file__).parent / "ws"


@pytest.fixture
def ready(need, cache: pytest.Cache) -> tuple[str, Path]:
    tools = need("node", "npm")
    return tools["node"], install(cache, tools["npm"], HERE)


class Client:
    """The running program: what it is told, what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def said(self, word: str) -> dict[str, Any]:
        """The next line, which must hold this word."""
        assert self._process.stdout is not None
        line = json.loads(await self._process.stdout.readline() or b"{}")
        assert word in line, line
        return line


@asynccontextmanager
async def client(
    ready: tuple[str, Path], hub: AnalyticsHub, **options: Any
) -> AsyncIterator[Client]:
    node, folder = ready
    process = await asyncio.create_subprocess_exec(
        *(node, "client.mjs"),
        cwd=folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    told = {"url": f"ws://127.0.0.1:{hub.port}/ws/analytics", "token": token(), "wanted": 0}
    process.stdin.write(json.dumps({**told, **options}).encode() + b"\n")
    try:
        yield Client(process)
        process.stdin.close()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


OFFERS = [
    (False, ""),
    (True, "permessage-deflate"),
    ({"serverNoContextTakeover": True, "clientNoContextTakeover": True}, "permessage-deflate"),
    ({"clientMaxWindowBits": 10}, "permessage-deflate"),
    ({"serverMaxWindowBits": 15}, "permessage-deflate"),
    ({"serverMaxWindowBits": 10}, ""),
]


@pytest.mark.parametrize("subprotocol", [False, True], ids=["field", "subprotocol"])
@pytest.mark.parametrize(("deflate", "agreed"), OFFERS, ids=str)
async def test_ws_gets_everything_pings_and_closes_cleanly(
    ready: tuple[str, Path], tmp_path: Path, deflate: object, agreed: str, subprotocol: bool
) -> None:
    async with (
        AnalyticsHub(settings(tmp_path)) as hub,
        client(ready, hub, deflate=deflate, subprotocol=subprotocol, wanted=120) as ws,
    ):
        opened = await ws.said("open")
        assert opened["extensions"] == agreed
        assert opened["protocol"] == ("keepline.v1" if subprotocol else "")
        assert (await ws.said("subscribed"))["subscribed"] == "ünï→𝄞"
        for number in range(120):
            text = "ü" * (number * number)
            hub.publish("routing-metrics", "numbered", {"number": number, "text": text})
        assert await ws.said("numbers") == {"numbers": list(range(120)), "pong": "between"}
        # a client's own code comes back to it; `ws` reports 1006 when the closing handshake was not clean
        assert (await ws.said("code"))["code"] == 4001


@pytest.mark.parametrize("deflate", [False, True], ids=["plain", "deflate"])
async def test_ws_sees_the_status_or_the_code_of_a_refusal(
    ready: tuple[str, Path], tmp_path: Path, deflate: bool
) -> None:
    async with AnalyticsHub(settings(tmp_path)) as hub:
        async with client(ready, hub, deflate=deflate, token="a.b.c") as machine:
            assert (await machine.said("status"))["status"] == 401
            await machine.said("problem")
            await machine.said("code")
        async with client(ready, hub, deflate=deflate, token="a.b.c", subprotocol=True) as browser:
            await browser.said("open")
            assert (await browser.said("code"))["code"] == 3500


async def test_ws_is_told_to_come_back_when_the_hub_ends(
    ready: tuple[str, Path], tmp_path: Path
) -> None:
    hub = AnalyticsHub(settings(tmp_path))
    await hub.start()
    async with client(ready, hub, deflate=True, wanted=1) as ws:
        await ws.said("open")
        await ws.said("subscribed")
        await hub.stop()
        assert (await ws.said("code"))["code"] == 3001
