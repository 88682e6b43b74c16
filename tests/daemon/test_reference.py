"""docs/reference/local-socket.md is what the socket does."""

import json
import re
from pathlib import Path
from typing import Any

from keepline.credentials.token import Token
from keepline.daemon.socket import MAX_CLIENTS, LocalSocket
from keepline.relay.local import (
    MAX_LINE,
    MAX_OPEN_REQUESTS,
    OPERATIONS,
    LocalClient,
    error_from_wire,
    token_object,
)

PAGE = (Path(__file__).parents[2] / "docs/reference/local-socket.md").read_text()


def rows(heading: str) -> dict[str, str]:
    section = PAGE.split(f"## {heading}", 1)[1].split("\n## ", 1)[0]
    return dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", section, re.MULTILINE))


def test_the_operations_are_those_of_the_page() -> None:
    assert set(rows("Operations")) == OPERATIONS


def test_the_numbers_are_those_of_the_page() -> None:
    for number in (MAX_LINE, MAX_CLIENTS, MAX_OPEN_REQUESTS):
        assert str(number) in PAGE


def test_a_token_object_has_the_fields_of_the_page() -> None:
    words = PAGE.split("A token object has", 1)[1].split("fingerprint`", 1)[0] + "fingerprint`"
    assert set(re.findall(r"`(\w+)`", words)) == set(token_object(Token("a")))


def test_each_code_of_the_page_is_an_error_of_ours() -> None:
    codes = rows("Errors")
    assert len(codes) == 10
    for code in codes:
        assert str(error_from_wire({"code": code, "message": "words"}))


def test_each_line_of_the_example_is_json_of_the_protocol() -> None:
    for line in PAGE.split("```json\n", 1)[1].split("```", 1)[0].splitlines():
        assert json.loads(line)["v"] == 1


async def test_hello_has_the_fields_of_the_page(local: LocalSocket) -> None:
    promised = rows("Operations")["hello"].rpartition("|")[2]
    async with LocalClient(local.path) as client:
        hello: Any = await client.request("hello")
    assert set(hello) == set(re.findall(r"`(\w+)`", promised))
