"""The session of docs/reference/hub-protocol.md as somebody types it: curl signs in, npm `wscat` listens."""

import asyncio
import json
import re
from pathlib import Path

import pytest
from tests.hub.hub_server import PASSWORD, running_hub, token
from tests.hub.test_protocol_page import PAGE, curl, curl_of, shape
from tests.peers.npm import install

pytestmark = pytest.mark.timeout(120)  # the first run installs the package

HERE = Path(__file__).parent / "wscat"
SHOWN = r"(\[\{.*\}\])"  # beside a terminal it would write "< " in front


async def line_of(wscat: asyncio.subprocess.Process, pattern: str) -> str:
    """The next line that it prints and that looks like this."""
    assert wscat.stdout is not None
    while text := (await wscat.stdout.readline()).decode():
        if found := re.search(pattern, text):
            return found[1]
    raise AssertionError(f"wscat ended without a line like {pattern}")


async def test_the_session_of_the_page_is_what_wscat_shows(
    need, cache: pytest.Cache, tmp_path: Path
) -> None:
    tools = need("node", "npm", "curl")
    folder = await asyncio.to_thread(install, cache, tools["npm"], HERE)
    page = await asyncio.to_thread(PAGE.read_text)
    said = [json.loads(line)[0] for line in re.findall(r"^< (\[.*\])$", page, re.MULTILINE)]
    typed = re.findall(r"^> (.*)$", page, re.MULTILINE)
    command = re.search(r"^npx wscat -c (\S+) -H \"(.*)\"$", page, re.MULTILINE)
    assert command is not None
    async with running_hub(tmp_path) as running:
        port = running.hub.port
        bearer = await curl(curl_of(page, "/login"), port, **{"…": PASSWORD})
        wscat = await asyncio.create_subprocess_exec(
            tools["node"],
            str(folder / "node_modules/wscat/bin/wscat"),
            "--no-color",
            "-c",
            command[1].replace("127.0.0.1:7999", f"127.0.0.1:{port}"),
            "-H",
            command[2].replace("$TOKEN", str(bearer["token"])),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert wscat.stdin is not None
            shown = json.loads(await line_of(wscat, SHOWN))
            wscat.stdin.write(f"{typed[0]}\n".encode())
            while len(shown) < 3:
                shown += json.loads(await line_of(wscat, SHOWN))
            published = await curl(curl_of(page, "/api/publish"), port, **{"$TOKEN": token("svc")})
            assert published == {"accepted": 1, "duplicates": 0, "refused": []}
            shown += json.loads(await line_of(wscat, SHOWN))
            assert [shape(message) for message in shown] == [shape(each) for each in said]
            assert shown[-1]["data"] == said[-1]["data"]
        finally:
            wscat.kill()
            await wscat.wait()
