"""docs/reference/cli.md names every verb, option and exit code that there is, and none that is not."""

import re
from pathlib import Path

import pytest
import typer

from keepline.cli import exits
from keepline.cli.app import app

PAGE = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text()
EVERYWHERE = {"--help", "-h", "--json", "--config", "-c"}


def verbs() -> dict[str, set[str]]:
    """Each verb with its options."""
    found: dict[str, set[str]] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", {"": command})
        for verb, leaf in inner.items():
            options = {o for p in leaf.params for o in (*p.opts, *p.secondary_opts) if "-" in o[:1]}
            found[f"{name} {verb}".strip()] = options
    return found


@pytest.mark.parametrize("verb", verbs())
def test_each_verb_has_its_line(verb: str) -> None:
    assert f"| `{verb}` |" in PAGE


def test_no_line_is_about_a_verb_that_does_not_exist() -> None:
    lines = re.findall(r"^\| `([a-z][a-z ]*)` \|", PAGE, re.MULTILINE)
    assert set(lines) == set(verbs())


def test_each_option_is_named_and_exists() -> None:
    declared = set().union(*verbs().values())
    written = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+|-[a-z])(?![\w-])", PAGE))
    assert declared <= written
    assert written - declared <= {"--help", "-h"}
    assert declared >= EVERYWHERE - {"--help", "-h"}


def test_each_exit_code_is_explained() -> None:
    codes = {v for k, v in vars(exits).items() if k.isupper() and isinstance(v, int)}
    assert {int(code) for code in re.findall(r"^\| `(\d+)` \|", PAGE, re.MULTILINE)} == codes
