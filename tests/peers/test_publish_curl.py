"""The curl example of docs/howto/publish.md, run by a shell and curl."""

import asyncio
import re
from pathlib import Path

import msgspec
from tests.hub.hub_double import HubDouble

PAGE = Path(__file__).parents[2] / "docs/howto/publish.md"


async def test_curl_publishes_two_lines_and_a_repeat_publishes_nothing(
    need, tmp_path: Path
) -> None:
    tools = need("bash", "curl")
    found = re.search(r"## With curl\n.*?```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    hub = HubDouble()
    await hub.start()
    answers = []
    for _ in range(2):
        program = await asyncio.create_subprocess_exec(
            *(tools["bash"], "-euc", found[1].replace("http://127.0.0.1:7999", hub.url)),
            cwd=tmp_path,
            env={
                "KEEPLINE_HUB_TOKEN": "good",
                "PATH": str(Path(tools["curl"]).parent) + ":/bin:/usr/bin",
            },
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await program.communicate()
        assert program.returncode == 0
        answers.append(out)
    await hub.stop()
    expected = re.search(r"```json\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
    assert expected is not None
    assert msgspec.json.decode(answers[0]) == msgspec.json.decode(expected[1])
    assert answers[1] == answers[0]
    assert [draft.type for draft in hub.published] == ["routing-decision", "alert"]
