"""What every test stands on: a clean environment, no network beyond loopback, nothing blocked, nothing left behind."""

import gc
import ipaddress
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, BlockBusterFunction
from hypothesis import HealthCheck, settings

# Properties are judged by what they find, not by how fast a busy machine is.
settings.register_profile("keepline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("keepline")

PEER_ABSENT = "peer tool absent: "

FOREIGN_VARIABLES = (
    "KEEPLINE",
    "PROJECT_X_",
    "XDG_",
    "SCHWAB_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
)
FOREIGN_NAMES = ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC",
                 "WATCHDOG_PID", "LISTEN_FDS", "NETRC", "SSL_CERT_FILE", "SSL_CERT_DIR", "BROWSER")  # fmt: skip

# Where code of ours may touch the disk on a running loop: (file ending, functions, reason).
MAY_BLOCK = (
    ("logging/__init__.py", {"emit", "handle", "handleError"}, "a log line is one short write"),
    ("<frozen importlib._bootstrap>", {"_find_and_load"}, "a module is imported at its first use"),
    ("keepline/files/directories.py", {"runtime_directory", "private_directory", "strangers_can_write"},
     "a few stats and one mkdir on a RAM disk, once per start"),
    ("keepline/portal.py", {"call", "submit", "stop"}, "a synchronous face used inside a loop waits for the portal's"),
)  # fmt: skip


class BeyondLoopback(AssertionError):
    """A test tried to reach a machine other than this one."""


@pytest.fixture(scope="session", autouse=True)
def _a_blocked_loop_fails() -> Iterator[None]:
    """Blocking calls below our own code on a running loop raise `blockbuster.BlockingError`."""
    blockbuster = BlockBuster(scanned_modules="keepline")
    for name in ("os.fsync", "hashlib.pbkdf2_hmac", "hashlib.scrypt"):
        blockbuster.functions[name] = BlockBusterFunction(None, name, scanned_modules="keepline")
    for function in blockbuster.functions.values():
        for file, names, _reason in MAY_BLOCK:
            function.can_block_in(file, names)
    blockbuster.activate()
    yield
    blockbuster.deactivate()


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """A thread that outlives its test fails it; collecting young garbage turns unclosed sockets into errors here."""
    before = set(threading.enumerate())
    yield
    gc.collect(1)
    left = [thread for thread in threading.enumerate() if thread not in before]
    left = [thread for thread in left if not belongs_to_portal(thread)]
    for thread in left:
        thread.join(timeout=2.0)
    running = [thread.name for thread in left if thread.is_alive()]
    if running:
        pytest.fail(f"threads still run after the test: {', '.join(running)}")


def belongs_to_portal(thread: threading.Thread) -> bool:
    """Whether it is the shared loop thread or a worker of its executor: they live as long as the process."""
    portal = any("portal" in other.name for other in threading.enumerate())
    return "portal" in thread.name or (portal and thread.name.startswith("asyncio_"))


@pytest.fixture(autouse=True)
def clean_environment(
    _nothing_left_behind: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The test's own home, config and runtime directories, with a short path: a Unix socket's has at most 108 bytes."""
    for name in list(os.environ):
        if name.upper().startswith(FOREIGN_VARIABLES) or name in FOREIGN_NAMES:
            monkeypatch.delenv(name)
    base = Path(tempfile.mkdtemp(prefix="kl-"))
    for variable, folder in (
        ("HOME", "home"),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_DATA_HOME", "data"),
        ("XDG_STATE_HOME", "state"),
        ("XDG_CACHE_HOME", "cache"),
        ("XDG_RUNTIME_DIR", "xdg"),
        ("KEEPLINE_RUNTIME_DIR", "run"),
    ):
        (base / folder).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(base / folder))
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_network_beyond_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names resolve and sockets connect on this machine alone; `*.invalid` fails as a resolver would fail it."""
    resolve, connect, connect_ex = (
        socket.getaddrinfo,
        socket.socket.connect,
        socket.socket.connect_ex,
    )

    def guarded_getaddrinfo(host, *args, **kwargs):
        name = host.decode() if isinstance(host, bytes) else host
        if name and name.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if name and name != "localhost" and not is_address(name):
            raise BeyondLoopback(f"a test may not look up {name!r}")
        return resolve(host, *args, **kwargs)

    def guarded_connect(self, address):
        refuse_foreign(self, address)
        return connect(self, address)

    def guarded_connect_ex(self, address):
        refuse_foreign(self, address)
        return connect_ex(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)


def is_address(text: str) -> bool:
    """Whether the text is a number that needs no lookup."""
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def refuse_foreign(sock: socket.socket, address: object) -> None:
    """Raise unless the address is a Unix path or on loopback."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or not isinstance(address, tuple):
        return
    host = str(address[0]).partition("%")[0]
    if host in ("", "localhost") or (is_address(host) and ipaddress.ip_address(host).is_loopback):
        return
    raise BeyondLoopback(f"a test may not connect to {address!r}")


def skip_reasons(reporter: pytest.TerminalReporter) -> list[str]:
    """Why tests were skipped, one entry per test, in order."""
    reports = reporter.stats.get("skipped", [])
    texts = [r.longrepr[2] if isinstance(r.longrepr, tuple) else str(r.longrepr) for r in reports]
    return [text.removeprefix("Skipped: ") for text in texts]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With KEEPLINE_NO_SKIPS=1 a skipped test is a failed run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("KEEPLINE_NO_SKIPS") == "1" and reporter and skip_reasons(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end which peers were absent, by name: a skip is never silent."""
    reasons = skip_reasons(terminalreporter)
    peers = sorted({r.removeprefix(PEER_ABSENT) for r in reasons if r.startswith(PEER_ABSENT)})
    if peers:
        terminalreporter.section("peers")
        terminalreporter.write_line(f"peers skipped: {', '.join(peers)}")
    if reasons and os.environ.get("KEEPLINE_NO_SKIPS") == "1":
        terminalreporter.section("skips", red=True)
        terminalreporter.write_line(
            f"KEEPLINE_NO_SKIPS=1: {len(reasons)} skipped, so this run fails", red=True
        )
        for reason in sorted(set(reasons)):
            terminalreporter.write_line(f"  {reasons.count(reason)} x {reason}")
