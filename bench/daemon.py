"""The daemon as its user meets it: a process of its own against the sandbox broker on loopback.

Wall time where waiting is what is measured (start to first delivery, stop), the kernel's own accounting of the
process for memory and idle CPU, and the sandbox's count of requests beside the store's file for the cost of a cycle.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench import Row
from keepline import TokenReceiver, TokenReceiverConfig, TokenStorage
from keepline.credentials.history import RotationHistory
from keepline.relay.local import LocalClient
from keepline.sandbox.server import SandboxServer

KEY = "a-passphrase-for-the-bench"

CONFIG = """
[credentials.schwab]
issuer = "schwab"
base_url = "{url}"
app_config = "app.yaml"
storage = "encrypted"
storage_path = "data/schwab.enc"
storage_key_file = "key"

[relay.bots]
credential = "schwab"
targets = ["unix:{bot}"]

[telemetry]
metrics = "127.0.0.1:0"
"""


def run(quick: bool) -> list[Row]:
    return asyncio.run(measure(quick))


async def measure(quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="kl-bench-") as directory:
        home = Path(directory)
        async with SandboxServer(access_lifetime=1800.0) as sandbox:
            bot = home / "bot.sock"
            prepare(home, sandbox, bot)
            starts = [await start_to_delivery(home, bot) for _ in range(3 if quick else 7)]
            median = sorted(starts)[len(starts) // 2]
            return [
                Row("daemon start to first delivery, wall", median, "s", 1),
                *await long_life(home, sandbox, bot, quick),
            ]


def prepare(home: Path, sandbox: SandboxServer, bot: Path) -> None:
    """A signed-in credential, as the day before left it."""
    secret(home / "key", KEY)
    secret(home / "app.yaml", "app_key: sandbox-key\napp_secret: sandbox-secret\n")
    (home / "keepline.toml").write_text(CONFIG.format(url=sandbox.url, bot=bot))
    token = sandbox.issue()
    store = TokenStorage(home / "data/schwab.enc", key=KEY, credential="schwab")
    store.store(token.with_generation(int(token.issued_at.timestamp())))


def secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def spawn(home: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "KEEPLINE_RUNTIME_DIR": str(home / "run")}
    log = (home / "log").open("ab")
    with log:
        command = [sys.executable, "-m", "keepline", "run", "--config", str(home / "keepline.toml")]
        return subprocess.Popen(command, env=environment, stderr=log, stdout=log)


async def start_to_delivery(home: Path, bot: Path) -> float:
    begun = time.perf_counter()
    async with delivering(home, bot):
        return time.perf_counter() - begun


@asynccontextmanager
async def delivering(home: Path, bot: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A daemon that has just delivered its token to a bot that had none."""
    delivered = threading.Event()
    config = TokenReceiverConfig(unix_socket_path=bot)
    with TokenReceiver(lambda _: delivered.set(), config):
        daemon = spawn(home)
        try:
            if not await asyncio.to_thread(delivered.wait, 20):
                raise SystemExit(f"no token came within 20 s:\n{(home / 'log').read_text()}")
            yield daemon
        finally:
            daemon.send_signal(signal.SIGTERM)
            await asyncio.to_thread(daemon.wait)


async def long_life(home: Path, sandbox: SandboxServer, bot: Path, quick: bool) -> list[Row]:
    async with delivering(home, bot) as daemon:
        rest = 5 if quick else 30
        before = cpu_seconds(daemon.pid)
        await asyncio.sleep(rest)
        idle = (cpu_seconds(daemon.pid) - before) / rest
        resident = memory_mb(daemon.pid)
        rows = await cycles(home, sandbox, daemon.pid, 200 if quick else 1000)
        begun = time.perf_counter()
        daemon.send_signal(signal.SIGTERM)
        await asyncio.to_thread(daemon.wait)
        stop = time.perf_counter() - begun
    return [
        Row("resident memory, one credential, idle", resident, "MB", 64),
        Row("idle CPU share", idle * 100, "%", 0.1),
        *rows,
        Row("SIGTERM to exit, wall", stop, "s", 2),
    ]


async def cycles(home: Path, sandbox: SandboxServer, pid: int, count: int) -> list[Row]:
    """Forced renewals, one after another: each is a whole cycle of lease, request, save and delivery."""
    vault = home / "data/schwab.enc"
    history = RotationHistory(home / "data/schwab.history")
    requests = sandbox.stats()["refreshes"]
    saves, resident, used = 0, 0.0, cpu_seconds(pid)
    async with LocalClient(home / "run/daemon.sock") as client:
        inode = vault.stat().st_ino
        for done in range(count):
            await client.request("token.refresh", credential="schwab")
            saves += inode != (inode := vault.stat().st_ino)
            if done == count // 10:  # allocators and caches have settled
                resident = memory_mb(pid)
    used = cpu_seconds(pid) - used
    noted = [entry for entry in history.read() if entry.outcome == "refreshed"]
    return [
        Row("requests per cycle", (sandbox.stats()["refreshes"] - requests) / count, "", 1),
        Row("cycles with a save", saves / count, "", 1),
        Row("refresh tokens spent twice", sandbox.stats()["reuses"], "", 0),
        Row("cycles in the history (the newest are kept)", len(noted), ""),
        Row("CPU per cycle", used / count * 1000, "ms"),
        Row(f"memory growth over {count} cycles", memory_mb(pid) - resident, "MB", 2),
    ]


def memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise SystemExit("the daemon is gone")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
