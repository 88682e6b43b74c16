"""Documents that are true: links lead somewhere, examples parse, tables hold what the code holds."""

import ast
import importlib
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import keepline
from keepline import errors
from keepline.telemetry import REGISTRY

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL
)


def ids(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made for links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a language, without the indent that a list gives them."""
    found = []
    for match in BLOCK.finditer(page.read_text()):
        if match["language"] == language:
            lines = match["text"].splitlines()
            found.append("\n".join(line.removeprefix(match["indent"]) for line in lines))
    return found


def rows(page: str) -> dict[str, list[str]]:
    """The table rows of a page that begin with a code word: the other cells by that word."""
    found = {}
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `"):
            found[cells[0].strip("`")] = cells[1:]
    return found


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_each_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{ids(page)} links to {target}"
        if anchor:
            assert anchor in anchors(path), (
                f"{ids(page)} links to {target}, which has no such heading"
            )


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_each_python_example_compiles_and_uses_public_names(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, ids(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for names in re.findall(r"^from keepline import ([\w, ]+)$", text, re.MULTILINE):
            assert {name.strip() for name in names.split(",")} <= set(keepline.__all__)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_each_configuration_example_is_toml(page: Path) -> None:
    for text in blocks(page, "toml"):
        tomllib.loads(text)


def test_the_error_page_has_every_error_and_no_other() -> None:
    assert sorted(rows("docs/reference/errors.md")) == errors.__all__


def test_the_error_page_names_the_attributes_that_programs_find() -> None:
    for name, (_when, attributes, *_rest) in rows("docs/reference/errors.md").items():
        error = getattr(errors, name)("what")
        for attribute in re.findall(r"`(\w+)`", attributes):
            if attribute != "APIError":
                assert hasattr(error, attribute), f"{name} has no {attribute}"


def test_the_error_page_names_the_exit_codes_of_the_command_line() -> None:
    from keepline.cli.exits import exit_code

    for name, cells in rows("docs/reference/errors.md").items():
        assert int(cells[-1]) == exit_code(getattr(errors, name)("what")), name


def test_the_metrics_page_has_every_metric_with_its_type_and_labels() -> None:
    for module in pkgutil.walk_packages(keepline.__path__, "keepline."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    declared = {
        metric.name: [metric.kind, ", ".join(f"`{label}`" for label in metric.labels) or "-"]
        for metric in REGISTRY
    }
    written = {
        name: cells[:2]
        for name, cells in rows("docs/reference/metrics.md").items()
        if "keepline_" in name
    }
    assert written == declared


def test_the_events_that_the_metrics_page_promises_are_logged_somewhere() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    promised = [name for name in rows("docs/reference/metrics.md") if "keepline_" not in name]
    assert promised
    assert [name for name in promised if f'"{name}' not in sources] == []


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    pages = [str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f"({page})" not in readme] == []


def test_each_message_that_the_relay_page_explains_is_said_in_these_words() -> None:
    page = (ROOT / "docs/howto/relay.md").read_text()
    messages = re.findall(r"\*\*`([^`]+)`\*\*", page)
    assert len(messages) >= 9
    sources = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # texts that are written on several lines
    parts = [part for text in messages for part in re.split(r"…|\d[\d.]*|unix:|^ERR \w+", text)]
    missing = [part.strip(" :") for part in parts if part.strip(" :") not in sources]
    assert [
        part for part in missing if part != "Address already in use"
    ] == []  # the system's words
