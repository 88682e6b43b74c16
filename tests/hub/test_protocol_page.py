"""docs/reference/hub-protocol.md says what the hub does: its tables are the code's, its session is played."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest
from tests.hub.hub_server import PASSWORD, Wire, running_hub, token

from keepline.hub.closecodes import CLOSE_WORDS, comes_back
from keepline.hub.offences import ERROR_WORDS

PAGE = Path(__file__).parents[2] / "docs/reference/hub-protocol.md"


def errors() -> str:
    rows = [f"| `{code.value}` | {words} |" for code, words in ERROR_WORDS.items()]
    return "\n".join(["| code | message |", "|---|---|", *rows])


def closes() -> str:
    rows = [
        f"| {int(code)} | {'yes' if comes_back(code) else 'no'} | {words} |"
        for code, words in CLOSE_WORDS.items()
    ]
    return "\n".join(["| code | come back | reason |", "|---|---|---|", *rows])


@pytest.mark.parametrize(("heading", "table"), [("Error codes", errors), ("Close codes", closes)])
def test_the_tables_are_those_of_the_code(heading: str, table: object) -> None:
    section = PAGE.read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    written = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    assert callable(table)
    assert written == table()


def curl_of(page: str, which: str) -> list[str]:
    """The arguments of the page's curl command for an address."""
    found = re.search(rf"^curl (-s \S+{which}.*?)\n```", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    joined = found[1].replace("\\\n", " ")
    parts = re.findall(r"'[^']*'|\"[^\"]*\"|\S+", joined)
    return [part.strip("'\"") for part in parts]


async def curl(arguments: list[str], port: int, **words: str) -> dict[str, object]:
    if shutil.which("curl") is None:
        pytest.skip("peer tool absent: curl")
    filled = []
    for argument in arguments:
        text = argument.replace("127.0.0.1:7999", f"127.0.0.1:{port}")
        for name, value in words.items():
            text = text.replace(name, value)
        filled.append(text)
    process = await asyncio.create_subprocess_exec("curl", *filled, stdout=asyncio.subprocess.PIPE)
    answer, _ = await process.communicate()
    told = json.loads(answer)
    assert isinstance(told, dict)
    return told


def shape(message: dict[str, object]) -> object:
    """A message without what differs from one session to the next."""
    data = message["data"]
    assert isinstance(data, dict)
    return (message["type"], message.get("channel"), message.get("offset"), sorted(data))


async def test_the_session_of_the_page_plays_as_written(tmp_path: Path) -> None:
    page = PAGE.read_text()
    said = [json.loads(line) for line in re.findall(r"^< (\[.*\])$", page, re.MULTILINE)]
    typed = re.findall(r"^> (.*)$", page, re.MULTILINE)
    async with running_hub(tmp_path) as running:
        told = await curl(curl_of(page, "/login"), running.hub.port, **{"…": PASSWORD})
        assert sorted(told) == ["expires_in", "role", "token"]
        wire = await Wire.to(running.hub, bearer=str(told["token"]))
        got = await wire.messages()
        await wire.send(typed[0])
        while len(got) < 3:
            got += await wire.messages()
        published = await curl(
            curl_of(page, "/api/publish"), running.hub.port, **{"$TOKEN": token("svc")}
        )
        assert published == {"accepted": 1, "duplicates": 0, "refused": []}
        got += await wire.messages()
        assert [shape(message) for message in got] == [shape(each[0]) for each in said]
        assert got[-1]["data"] == said[-1][0]["data"]
        await wire.close()
