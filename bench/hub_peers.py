"""The servers that `bench/hub` runs side by side, and how each is made ready; what is missing is skipped with a reason.

Node packages and the Go server are installed on demand into `bench/.peers`, at the versions of their lock files.
"""

import base64
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench import hub_servers

__all__ = ["Greeting", "Peer", "drain_program", "peers"]

HERE = Path(__file__).parent
CACHE = HERE / ".peers"
MODES = ("each", "joined")


class Unavailable(Exception):
    """This machine cannot run a peer; the text says why."""


@dataclass(frozen=True)
class Greeting:
    """What a client of a server says until it receives messages.

    Attributes:
        path: of the upgrade request.
        headers: more lines of that request.
        texts: sent in order after the upgrade.
        until: the client is ready when these have come, in order, each as part of a frame.
        answers: texts[0] waits for until[0] (Socket.IO speaks first).
    """

    path: str = "/"
    headers: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    until: tuple[str, ...] = ()
    answers: bool = False


@dataclass(frozen=True)
class Peer:
    """A server of the bench.

    Attributes:
        name: as shown.
        command: makes the command line from (port, rate, style, plain or deflate).
        greeting: of client number i, with mixed subscriptions or without.
        style: `each` message is given to it, or all of an interval `joined` by hand.
    """

    name: str
    command: Callable[[int, float, str], list[str]]
    greeting: Callable[[int, bool], Greeting] = field(default=lambda number, mixed: Greeting())
    style: str = "each"
    cwd: Path = HERE.parent


def python(name: str, style: str) -> Callable[[int, float, str], list[str]]:
    return lambda port, rate, wire: [
        sys.executable, "-m", "bench.hub_servers", name, str(port), str(rate), style, wire,
    ]  # fmt: skip


def script(program: str, name: str, style: str) -> Callable[[int, float, str], list[str]]:
    where = str(CACHE / "node" / "servers.mjs")
    return lambda port, rate, wire: [program, where, name, str(port), str(rate), style, wire]


def by_mix(number: int, mixed: bool) -> Greeting:
    return Greeting(path=f"/?mix={number % len(hub_servers.MIXES) if mixed else 0}")


def of_ours(number: int, mixed: bool) -> Greeting:
    from bench.hub_ours import greeting

    return Greeting(*greeting(number, mixed))


def of_socketio(number: int, mixed: bool) -> Greeting:
    path = "/socket.io/?EIO=4&transport=websocket"
    return Greeting(path=path, texts=("40",), until=("0{", "40{"), answers=True)


def of_centrifuge(number: int, mixed: bool) -> Greeting:
    texts = ('{"id":1,"connect":{}}', '{"id":2,"subscribe":{"channel":"all"}}')
    return Greeting(texts=texts, until=('"connect"', '"subscribe"'))


def peers(say: Callable[[str], None]) -> dict[str, Peer]:
    """All that can run here, by name; `say` hears of the others."""
    found = {
        "floor": Peer("floor: bare transport.write", python("floor", "joined"), by_mix, "joined"),
        "keepline": Peer("keepline", python("ours", "each"), of_ours),
    }
    makers = {
        "websockets": lambda: {
            "websockets each": Peer("websockets, broadcast of each", wheel("websockets", "each")),
            "websockets": Peer(
                "websockets, broadcast joined", wheel("websockets", "joined"), style="joined"
            ),
        },
        "Starlette": lambda: {
            "starlette": Peer("Starlette on uvicorn", wheel("starlette", "joined"), style="joined")
        },
        "python-socketio": lambda: {
            "socketio": Peer("python-socketio", wheel("socketio", "joined"), of_socketio, "joined")
        },
        "Node": lambda: {
            "ws": Peer("npm ws", script(node(), "ws", "joined"), style="joined"),
            "socket.io": Peer(
                "Socket.IO", script(node(), "socketio", "joined"), of_socketio, "joined"
            ),
        },
        "Bun": lambda: {
            "bun each": Peer("Bun, its own batching", script(bun(), "bun", "each")),
            "bun": Peer("Bun, joined by hand", script(bun(), "bun", "joined"), style="joined"),
        },
        "centrifuge": lambda: {
            "centrifuge": Peer("centrifuge, its own batching", go("each"), of_centrifuge),
        },
    }
    for name, make in makers.items():
        try:
            found |= make()
        except Unavailable as why:
            say(f"{name}: skipped, {why}")
    return found


def wheel(name: str, style: str) -> Callable[[int, float, str], list[str]]:
    package = {"socketio": "python-socketio"}.get(name, name)
    try:
        version(package)
    except PackageNotFoundError:
        raise Unavailable(f"{package} is not installed (requirements/dev.txt has it)") from None
    return python(name, style)


def program(name: str) -> str:
    if (path := shutil.which(name)) is None:
        raise Unavailable(f"there is no `{name}` on this machine")
    return path


@functools.cache
def packages() -> Path:
    """The folder with the Node packages of the lock file, installed when it is not there or older than the lock."""
    where, source = CACHE / "node", HERE / "hub_node"
    npm = program("npm")
    where.mkdir(parents=True, exist_ok=True)
    mark = where / "node_modules" / ".package-lock.json"
    lock = source / "package-lock.json"
    for path in source.iterdir():
        shutil.copy(path, where)
    if not mark.exists() or mark.stat().st_mtime < lock.stat().st_mtime:
        build([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], where)
    return where / "node_modules"


def node() -> str:
    path = program("node")
    packages()
    return path


def bun() -> str:
    path = packages() / "@oven" / "bun-linux-x64" / "bin" / "bun"
    if not path.exists():
        raise Unavailable("npm has no Bun for this machine")
    path.chmod(0o755)
    return str(path)


def go(style: str) -> Callable[[int, float, str], list[str]]:
    made = CACHE / "go" / "centrifuge"
    source = HERE / "hub_go"
    if not made.exists() or made.stat().st_mtime < (source / "main.go").stat().st_mtime:
        made.parent.mkdir(parents=True, exist_ok=True)
        build([program("go"), "build", "-o", str(made), "."], source)
    return lambda port, rate, wire: [str(made), str(port), str(rate), style, wire]


def drain_program() -> Path:
    """The clients' program, compiled when its source is newer. Raises SystemExit without a C compiler."""
    source, made = HERE / "hub_drain.c", CACHE / "drain"
    try:
        if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
            made.parent.mkdir(parents=True, exist_ok=True)
            build([program("cc"), "-O2", "-o", str(made), str(source)], HERE)
    except Unavailable as why:
        raise SystemExit(f"bench hub: the clients' program cannot be made: {why}") from None
    return made


def build(command: list[str], where: Path) -> None:
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"`{command[0]}` did not end in 10 minutes") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise Unavailable(f"`{Path(command[0]).name} {command[1]}` failed: {lines[-1][:160]}")


def key() -> str:
    return base64.b64encode(os.urandom(16)).decode()
