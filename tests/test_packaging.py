"""What the repository promises about set-up: pinned with hashes, from no named index, for the versions it names."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
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


@pytest.fixture
def gate(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """`.ci/run` in a directory of its own, where every program that it calls notes how it was called."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("nc", "socat", "gcc", "node", "npm", "sudo", "apt-get"):
        (tools / tool).write_text(f"#!/bin/sh\necho {tool} >> {tmp_path}/calls\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)

    def run(make: str) -> subprocess.CompletedProcess[str]:
        script = f'#!/bin/sh\necho "make $* skips=$KEEPLINE_NO_SKIPS" >> {tmp_path}/calls\n{make}\n'
        (tools / "make").write_text(script)
        (tools / "make").chmod(0o755)
        environ = {"PATH": f"{tools}:/usr/bin:/bin", "PYTHON": sys.executable}
        return subprocess.run(
            [tmp_path / ".ci/run"], env=environ, capture_output=True, text=True, cwd="/"
        )

    return run


CLOSING = "===== 7 passed in 1.00s ====="


def test_the_gate_runs_check_and_test_allows_no_skip_and_ends_with_the_closing_line(
    gate: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = gate(f"echo '{CLOSING}'; echo coverage")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == CLOSING
    assert (tmp_path / "calls").read_text() == "make check skips=\nmake test skips=1\n"


@pytest.mark.parametrize("target", ["check", "test"])
def test_the_gate_fails_when_check_or_test_does(
    gate: Callable[[str], subprocess.CompletedProcess[str]], target: str
) -> None:
    done = gate(f'[ "$1" != {target} ] || exit 2')
    assert done.returncode == 2
    if target == "test":
        assert done.stdout.endswith("the test run did not come to its end\n")
