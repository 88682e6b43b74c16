"""What the repository promises about set-up: pinned with hashes, from no named index, for the versions it names."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INDEX = re.compile(
    r"pyp[i]\.org|python[h]osted|npm[j]s\.org|//registry[.]|--(extra-)?index[-]url|--find[-]links"
)


def pins(name: str) -> dict[str, str]:
    """The pinned versions of a requirements file by normal name."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


def names(requirements: list[object]) -> set[str]:
    texts = [requirement for requirement in requirements if isinstance(requirement, str)]
    return {re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", text)[0]).lower() for text in texts}


@pytest.mark.parametrize("name", ["run", "dev"])
def test_each_pin_has_a_hash(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    heads = {entry.splitlines()[0] for entry in entries}  # `name==version`, and for which Python
    packages = {re.sub(r"[-_.]+", "-", head.split("==")[0]).lower() for head in heads}
    assert len(heads) == len(entries) > 20
    assert packages == set(pins(name))
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_whatever_the_project_asks_for_is_pinned() -> None:
    needed = names(PROJECT["project"]["dependencies"]) | names(
        PROJECT["dependency-groups"]["build"]
    )
    assert needed <= set(pins("run"))
    assert needed | names(PROJECT["dependency-groups"]["dev"]) <= set(pins("dev"))


def test_tests_run_with_the_versions_that_users_get() -> None:
    run, dev = pins("run"), pins("dev")
    assert {package: dev.get(package) for package in run} == run


def test_each_dependency_gives_its_reason() -> None:
    section = (ROOT / "pyproject.toml").read_text().split("dependencies = [")[1].split("]\n")[0]
    assert [line for line in section.strip().splitlines() if "#" not in line] == []


def test_no_file_of_the_project_names_an_index() -> None:
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    found = []
    for name in filter(None, files.split("\0")):
        path = ROOT / name
        if path.is_file():
            found += (
                [name] if INDEX.search(path.read_text(encoding="utf-8", errors="replace")) else []
            )
    assert found == []


def test_the_wheel_carries_the_type_marker() -> None:
    assert (ROOT / "src" / "keepline" / "py.typed").exists()
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]


def test_make_needs_no_more_than_python_and_make() -> None:
    """The help target runs without an environment and names the commands."""
    done = subprocess.run(
        ["make", "--silent", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for target in ("demo", "test", "check", "bench"):
        assert f"make {target}" in done.stdout
