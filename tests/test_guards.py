"""What the shared fixtures forbid, forbidden: each fault is planted into a small suite of its own and fails there."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SETTINGS = TESTS.parent / "pyproject.toml"


@pytest.fixture
def suite(tmp_path: Path):
    """Runs a file of tests under our own conftest: exit status and output."""
    shutil.copy(TESTS / "conftest.py", tmp_path / "conftest.py")
    (tmp_path / "peers").mkdir()
    shutil.copy(TESTS / "peers" / "conftest.py", tmp_path / "peers" / "conftest.py")

    def run(
        text: str, *, folder: str = ".", no_skips: bool = False, monkeypatch=None
    ) -> tuple[int, str]:
        (tmp_path / folder / "test_planted.py").write_text(text)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            str(SETTINGS),
            "--rootdir",
            str(tmp_path),
            "-p",
            "no:cacheprovider",
        ]
        if monkeypatch and no_skips:
            monkeypatch.setenv("KEEPLINE_NO_SKIPS", "1")
        done = subprocess.run(
            [*command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
        )
        return done.returncode, done.stdout

    return run


def test_a_test_in_order_passes(suite) -> None:
    status, out = suite(
        "async def test_fine(clean_environment):\n    assert clean_environment.exists()\n"
    )
    assert status == 0, out
    assert "1 passed" in out


FAULTS = {
    "thread": (
        "threading.Thread(target=threading.Event().wait, daemon=True, name='lost').start()",
        "after the test: lost",
    ),
    "socket": ("ring = [socket.socket()]; ring.append(ring)", "unclosed <socket.socket"),
    "blocked_loop": ("SYSTEM_CLOCK.pause(0)", "Blocking call to time.sleep"),
    "far_address": (
        "socket.create_connection(('192.0.2.1', 80))",
        "may not connect to ('192.0.2.1', 80)",
    ),
    "far_answer": (
        "socket.socket().connect_ex(('192.0.2.2', 80))",
        "may not connect to ('192.0.2.2', 80)",
    ),
    "far_name": ("socket.getaddrinfo('one.example', 80)", "may not look up 'one.example'"),
    "far_stream": (
        "await asyncio.open_connection('two.example', 80)",
        "may not look up 'two.example'",
    ),
    "warning": ("warnings.warn('old')", "UserWarning: old"),
    "forgotten_await": ("asyncio.sleep(0)", "was never awaited"),
}


def test_each_planted_fault_fails_its_test(suite) -> None:
    text = "import asyncio, socket, threading, warnings\nfrom keepline.clock import SYSTEM_CLOCK\n"
    text += "".join(f"async def test_{name}():\n    {line}\n" for name, (line, _) in FAULTS.items())
    status, out = suite(text)
    assert status == 1
    blamed = {
        line.split("::")[1].split()[0]
        for line in out.splitlines()
        if line.startswith(("FAILED", "ERROR"))
    }
    assert blamed == {f"test_{name}" for name in FAULTS}
    assert [complaint for _, complaint in FAULTS.values() if complaint not in out] == []


def test_loopback_and_names_that_never_resolve_are_free(suite) -> None:
    status, out = suite(
        "import socket\n"
        "import pytest\n"
        "def test_x():\n"
        "    with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "        socket.create_connection(('localhost', server.getsockname()[1])).close()\n"
        "    with pytest.raises(socket.gaierror):\n"
        "        socket.create_connection(('api.invalid', 443))\n"
    )
    assert status == 0, out


def test_no_test_sees_the_persons_environment(suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPLINE_STORAGE_KEY", "of a person")
    monkeypatch.setenv("PROJECT_X_API_KEY", "of a person")
    status, out = suite(
        "import os\n"
        "from pathlib import Path\n"
        "def test_x(clean_environment):\n"
        "    assert 'KEEPLINE_STORAGE_KEY' not in os.environ\n"
        "    assert 'PROJECT_X_API_KEY' not in os.environ\n"
        "    for name in ('HOME', 'XDG_CONFIG_HOME', 'XDG_RUNTIME_DIR', 'KEEPLINE_RUNTIME_DIR'):\n"
        "        path = Path(os.environ[name])\n"
        "        assert path.parent == clean_environment\n"
        "        assert path.stat().st_mode & 0o777 == 0o700\n"
        "        assert len(str(path / 'bots' / 'a-name-of-forty-characters-or-thereabouts.sock')) < 108\n"
    )
    assert status == 0, out


def test_nothing_is_left_in_the_temporary_directory(suite, tmp_path: Path) -> None:
    note = tmp_path / "note"
    suite(
        "from pathlib import Path\n"
        "def test_x(clean_environment):\n"
        f"    Path({str(note)!r}).write_text(str(clean_environment))\n"
    )
    assert not Path(note.read_text()).exists()


PEER = """
def test_absent(need):
    need("sh", "no-such-program")
def test_present(need):
    assert need("sh")["sh"].endswith("sh")
"""


def test_an_absent_peer_is_a_skip_with_its_name_at_the_end(suite) -> None:
    status, out = suite(PEER, folder="peers")
    assert status == 0, out
    assert "peers skipped: no-such-program" in out
    assert "1 passed, 1 skipped" in out


def test_without_leave_to_skip_a_skip_fails_the_run_with_words(
    suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out = suite(PEER, folder="peers", no_skips=True, monkeypatch=monkeypatch)
    assert status == 1
    assert "KEEPLINE_NO_SKIPS=1: 1 skipped, so this run fails" in out
    assert "1 x peer tool absent: no-such-program" in out


def test_without_leave_to_skip_a_run_without_skips_passes(
    suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out = suite("def test_x():\n    pass\n", no_skips=True, monkeypatch=monkeypatch)
    assert status == 0, out
