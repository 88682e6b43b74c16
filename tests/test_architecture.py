"""The map of the house as data, and proof that it is kept: imports point down, deciders decide and do nothing else.

Every import counts: at the top, inside a function, relative, for type checkers alone, and by name through
`import_module`. The second half plants each fault into a small house of its own and expects it to be found.
"""

import ast
import graphlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "src" / "keepline"
FRONT_DOOR = "__init__"

GROUND = {"errors", "clock", "model", "telemetry", "http", "files", "portal"}
DOMAINS = {"credentials", "relay", "stream", "hub", "resilience"}
FRONT_ROOMS = {"brokers", "sandbox", "desk"}

MAY_IMPORT: dict[str, set[str]] = {
    # ground
    "errors": set(),
    "clock": {"errors"},
    "model": {"errors"},
    "telemetry": {"errors", "clock"},
    "files": {"errors", "clock", "telemetry"},
    "http": {"errors", "clock", "telemetry"},
    "portal": {"errors", "clock", "telemetry"},
    # five domains: beside resilience, relay -> credentials is the one arrow between them
    "resilience": GROUND,
    "credentials": GROUND | {"resilience"},
    "relay": GROUND | {"resilience", "credentials"},
    "stream": GROUND | {"resilience"},
    "hub": GROUND | {"resilience"},
    # front rooms: they do not know each other, and desk and hub never meet
    "brokers": GROUND | {"resilience", "credentials", "stream"},
    "sandbox": GROUND | {"resilience", "credentials", "relay", "stream", "hub"},
    "desk": GROUND | {"resilience"},
    # the street
    "config": GROUND | DOMAINS | FRONT_ROOMS,
    "daemon": GROUND | DOMAINS | FRONT_ROOMS | {"config"},
    "cli": GROUND | DOMAINS | FRONT_ROOMS | {"config", "daemon"},
    "__main__": {"cli"},
    # doors: the library's public names, and the helpers for other people's tests, which nobody here imports
    FRONT_DOOR: GROUND | DOMAINS | {"brokers", "desk"},
    "testing": GROUND | {"resilience", "credentials", "relay", "stream", "brokers"},
}

DECIDERS = {
    "hub/bus_wire.py",
    "hub/worker_wire.py",
    "hub/stored.py",
    "hub/publishing.py",
    "hub/outgoing.py",
    "hub/following.py",
    "hub/entries.py",
    "desk/shapes.py",
    "desk/risk.py",
    "hub/channels.py",
    "hub/closecodes.py",
    "hub/cohorts.py",
    "hub/deflate.py",
    "hub/fanout.py",
    "hub/farewells.py",
    "hub/frames.py",
    "hub/limits.py",
    "hub/messages.py",
    "hub/offences.py",
    "hub/outbox.py",
    "hub/places.py",
    "hub/rounds.py",
    "hub/wire.py",
    "hub/access.py",
    "hub/keyfetch.py",
    "hub/origins.py",
    "hub/presenting.py",
    "hub/refusals.py",
    "hub/tenure.py",
    "hub/throttle.py",
    "hub/tokens.py",
    "hub/trust.py",
    "stream/binding.py",
    "stream/codec.py",
    "stream/codec_json.py",
    "stream/codec_messagepack.py",
    "stream/dispatch.py",
    "stream/encode.py",
    "stream/ledger.py",
    "stream/explain.py",
    "stream/framing.py",
    "stream/handshake.py",
    "stream/messages.py",
    "stream/negotiate.py",
    "stream/replay.py",
    "stream/sse.py",
    "stream/straight.py",
    "stream/wire.py",
    "stream/wire_events.py",
    "brokers/checks.py",
    "brokers/messages.py",
    "brokers/orders/book.py",
    "brokers/orders/matching.py",
    "brokers/orders/records.py",
    "brokers/orders/resolution.py",
    "brokers/windows.py",
    "brokers/projectx/bars.py",
    "brokers/projectx/depth.py",
    "brokers/projectx/displaced.py",
    "brokers/projectx/dotnet.py",
    "brokers/projectx/messages.py",
    "brokers/projectx/quotes.py",
    "brokers/projectx/rules.py",
    "brokers/projectx/stream_messages.py",
    "brokers/projectx/stream_reading.py",
    "brokers/projectx/stream_topics.py",
    "brokers/projectx/words.py",
    "brokers/schwab/history.py",
    "brokers/schwab/messages.py",
    "brokers/schwab/rules.py",
    "brokers/schwab/streamer_codes.py",
    "brokers/schwab/streamer_commands.py",
    "brokers/schwab/streamer_fields.py",
    "brokers/schwab/streamer_frames.py",
    "brokers/schwab/streamer_messages.py",
    "brokers/schwab/streamer_state.py",
    "brokers/schwab/streamer_wire.py",
    "resilience/backoff.py",
    "credentials/answers.py",
    "credentials/lifecycle.py",
    "credentials/loginkey.py",
    "credentials/oauth.py",
    "credentials/policy.py",
    "credentials/redirect.py",
    "relay/framing.py",
    "relay/local_objects.py",
    "relay/local_wire.py",
    "relay/message.py",
    "relay/wire.py",
    "stream/overlap.py",
    "stream/view.py",
    "stream/snapshot.py",
    "stream/comparison.py",
    "stream/reconcile.py",
    "sandbox/book.py",
    "sandbox/engine.py",
    "sandbox/faults.py",
    "sandbox/faulttable.py",
    "sandbox/holdings.py",
    "sandbox/ledger.py",
    "sandbox/listings.py",
    "sandbox/market.py",
    "sandbox/prices.py",
    "sandbox/projectx_shapes.py",
    "sandbox/quota.py",
    "sandbox/rest_projectx.py",
    "sandbox/rest_schwab.py",
    "sandbox/schwab_reading.py",
    "sandbox/schwab_shapes.py",
    "sandbox/sessions.py",
    "sandbox/signalr_calls.py",
    "sandbox/signalr_endpoint.py",
    "sandbox/signalr_frames.py",
    "sandbox/signalr_hubs.py",
    "sandbox/signalr_intake.py",
    "sandbox/signalr_tape.py",
    "sandbox/signalr_wire.py",
    "sandbox/streamer_faults.py",
    "sandbox/streamer_feed.py",
    "sandbox/streamer_session.py",
    "sandbox/venue.py",
    "stream/calendar.py",
    "stream/dial_budget.py",
    "stream/expectation.py",
    "stream/faults.py",
    "stream/health.py",
    "stream/lag.py",
    "stream/mailbox.py",
    "stream/redial.py",
    "stream/standing.py",
    "stream/subscriptions.py",
}
# What a decider may take from the house beside other deciders: values and pure functions.
PURE = {
    "keepline.brokers.base",
    "keepline.errors",
    "keepline.model",
    "keepline.credentials.token",
    "keepline.stream.port",
    "keepline.telemetry.redaction",
}

CLOCK_CHANCE_AND_WORLD = {
    "aiohttp", "asyncio", "concurrent", "fcntl", "http", "io", "logging", "multiprocessing", "os", "pathlib", "queue",
    "random", "sched", "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile",
    "threading", "time", "uuid", "uvloop", "_thread",
}  # fmt: skip
NOW = {"now", "utcnow", "today"}


@dataclass(frozen=True)
class Rules:
    """What a house has to keep."""

    may_import: dict[str, set[str]] = field(default_factory=lambda: MAY_IMPORT)
    deciders: set[str] = field(default_factory=lambda: DECIDERS)
    pure: set[str] = field(default_factory=lambda: PURE)


@dataclass(frozen=True)
class Arrow:
    """One import: who, whom, which name, on which line."""

    source: str
    target: str
    name: str
    line: int


class Module:
    """A source file, parsed."""

    def __init__(self, root: Path, path: Path) -> None:
        self.file = path.relative_to(root).as_posix()
        parts = ["keepline", *path.relative_to(root).with_suffix("").parts]
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        self.room = parts[1]
        self.tree = ast.parse(path.read_text(encoding="utf-8"), self.file)

    def package(self, level: int) -> str:
        """The package that `level` dots name here."""
        parts = self.name.split(".")
        keep = len(parts) - level + (1 if self.is_package else 0)
        return ".".join(parts[:keep])


def house(root: Path) -> dict[str, Module]:
    modules = [Module(root, path) for path in sorted(root.rglob("*.py"))]
    return {module.name: module for module in modules}


def arrows(module: Module, modules: dict[str, Module]) -> Iterator[Arrow]:
    """Every import of the house's own modules, however it is written."""
    for node in ast.walk(module.tree):
        for target, name in imported(module, node):
            if target != "keepline" and not target.startswith("keepline."):
                continue
            if f"{target}.{name}" in modules:  # from keepline.relay import wire
                yield Arrow(module.name, f"{target}.{name}", "", node.lineno)
            else:
                yield Arrow(module.name, target, name, node.lineno)


def imported(module: Module, node: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name pairs that a node imports; an empty name for the module itself."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, "") for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = module.package(node.level) if node.level else ""
        target = ".".join(part for part in (base, node.module or "") if part)
        yield from ((target, alias.name) for alias in node.names)
    elif (
        isinstance(node, ast.Call) and called(node) in ("import_module", "__import__") and node.args
    ):
        argument = node.args[0]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield argument.value, ""


def called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def room_of(target: str) -> str:
    return target.split(".")[1] if "." in target else FRONT_DOOR


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def problems(root: Path, rules: Rules) -> list[str]:
    """Everything wrong with a house, one sentence each; an empty list is a house in order."""
    modules = house(root)
    found = []
    for module in modules.values():
        own = list(arrows(module, modules))
        found += missing_room(module, rules)
        found += missing_docstring(module)
        found += forbidden_arrows(module, own, rules)
        found += private_crossings(module, own)
        if module.file in rules.deciders:
            found += impurities(module, own, modules, rules)
    found += cycles(modules)
    gone = rules.deciders - {module.file for module in modules.values()}
    found += [f"{file}: this decider is not there" for file in sorted(gone)]
    return list(dict.fromkeys(found))


def missing_room(module: Module, rules: Rules) -> Iterator[str]:
    if module.room not in rules.may_import:
        yield f"{module.file}: the room {module.room!r} is not on the map"


def missing_docstring(module: Module) -> Iterator[str]:
    if not ast.get_docstring(module.tree):
        yield f"{module.file}: no docstring says what this module is for"


def forbidden_arrows(module: Module, own: list[Arrow], rules: Rules) -> Iterator[str]:
    for arrow in own:
        target = room_of(arrow.target)
        if target == FRONT_DOOR and (
            arrow.source == "keepline" or asks_only_the_version(module, arrow)
        ):
            continue
        if target != module.room and target not in rules.may_import.get(module.room, set()):
            yield f"{module.file}:{arrow.line}: {module.room} may not import {target} ({arrow.target})"


def asks_only_the_version(module: Module, arrow: Arrow) -> bool:
    """The one thing that a room may fetch at the front door."""
    if arrow.name:
        return arrow.name == "__version__"
    through = [node for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)]
    return {node.attr for node in through if ast.unparse(node.value) == "keepline"} == {
        "__version__"
    }


def private_crossings(module: Module, own: list[Arrow]) -> Iterator[str]:
    for arrow in own:
        private = is_private(arrow.name) or any(map(is_private, arrow.target.split(".")))
        if private and room_of(arrow.target) != module.room:
            name = arrow.name or arrow.target
            yield f"{module.file}:{arrow.line}: the private {name} is taken out of {arrow.target}"
    foreign = set(foreign_modules(module))
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Attribute)
            and is_private(node.attr)
            and ast.unparse(node.value) in foreign
        ):
            yield f"{module.file}:{node.lineno}: the private {node.attr} is reached through {ast.unparse(node.value)}"


def foreign_modules(module: Module) -> Iterator[str]:
    """The local names of other rooms' modules, as they are written where they are used."""
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias, (target, name) in zip(node.names, imported(module, node), strict=True):
                full = f"{target}.{name}" if name else target
                if full.startswith("keepline.") and room_of(full) != module.room:
                    yield alias.asname or alias.name


def impurities(
    module: Module, own: list[Arrow], modules: dict[str, Module], rules: Rules
) -> Iterator[str]:
    deciders = {other.name for other in modules.values() if other.file in rules.deciders}
    for arrow in own:
        if arrow.target not in deciders | rules.pure:
            yield f"{module.file}:{arrow.line}: a decider may not know {arrow.target}"
    for node in ast.walk(module.tree):
        where = f"{module.file}:{getattr(node, 'lineno', 0)}"
        for target, _ in imported(module, node):
            if target.split(".")[0] in CLOCK_CHANCE_AND_WORLD:
                yield f"{where}: a decider may not import {target}"
        if isinstance(node, (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)):
            yield f"{where}: a decider may not be async"
        if (
            isinstance(node, ast.Attribute)
            and node.attr in NOW
            and "date" in ast.unparse(node.value)
        ):
            yield f"{where}: a decider may not ask the clock, now is an argument"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "open":
            yield f"{where}: a decider may not open a file"


def cycles(modules: dict[str, Module]) -> Iterator[str]:
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for module in modules.values():
        graph[module.name] |= {arrow.target for arrow in arrows(module, modules)} - {
            "keepline",
            module.name,
        }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield f"these modules import each other in a circle: {' -> '.join(reversed(error.args[1]))}"


def test_the_house_is_in_order() -> None:
    found = problems(HOUSE, Rules())
    assert not found, "\n".join(found)


def test_the_map_knows_the_house_and_leads_nowhere_else() -> None:
    known = set(MAY_IMPORT)
    assert all(
        targets <= known - {"testing", "__main__", FRONT_DOOR} for targets in MAY_IMPORT.values()
    )
    graphlib.TopologicalSorter(MAY_IMPORT).prepare()  # the map itself has no circle


# --- the checker is checked: a small house in order, and each fault planted into it ---

SMALL_RULES = Rules(
    may_import={
        "__init__": {"errors", "relay", "credentials"},
        "errors": set(),
        "clock": {"errors"},
        "credentials": {"errors", "clock"},
        "relay": {"errors", "clock", "credentials"},
    },
    deciders={"relay/wire.py"},
    pure={"keepline.errors"},
)
SMALL_HOUSE = {
    "__init__.py": '"""Door."""\n__version__ = "1"\n',
    "errors.py": '"""Errors."""\n',
    "clock.py": '"""Clock."""\nimport time\n',
    "credentials/__init__.py": '"""Credentials."""\n',
    "credentials/token.py": '"""Token."""\nfrom keepline.errors import Wrong\n_inner = 1\n',
    "relay/__init__.py": '"""Relay."""\nfrom .wire import Wire\n',
    "relay/wire.py": '"""Wire."""\nfrom datetime import datetime\nfrom keepline import errors\n',
    "relay/face.py": '"""Face."""\nimport asyncio\nfrom keepline import __version__\n'
    "from keepline.relay.wire import _own_room_is_fine\nfrom .. import clock\n",
}


def build(root: Path, changes: dict[str, str]) -> Path:
    for file, text in (SMALL_HOUSE | changes).items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    return root


def test_a_house_in_order_passes(tmp_path: Path) -> None:
    assert problems(build(tmp_path, {}), SMALL_RULES) == []


def test_a_room_may_ask_for_the_version(tmp_path: Path) -> None:
    assert (
        problems(build(tmp_path, token("import keepline\nx = keepline.__version__")), SMALL_RULES)
        == []
    )


def wire(line: str) -> dict[str, str]:
    return {"relay/wire.py": f'"""Wire."""\n{line}\n'}


def token(line: str) -> dict[str, str]:
    return {"credentials/token.py": f'"""Token."""\n{line}\n'}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (token("from keepline.relay import face"), "credentials may not import relay"),
        (token("import keepline.relay.face"), "credentials may not import relay"),
        (token("import keepline.relay.face as f"), "credentials may not import relay"),
        (token("from ..relay import face"), "credentials may not import relay"),
        (token("from ..relay.face import Face"), "credentials may not import relay"),
        (token("from .. import relay"), "credentials may not import relay"),
        (token("def f():\n    from keepline.relay.face import Face"), "credentials may not import relay"),
        (token("TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from keepline.relay.face import Face"),
         "credentials may not import relay"),
        (token("try:\n    import keepline.relay.face\nexcept ImportError:\n    pass"),
         "credentials may not import relay"),
        (token("import importlib\nimportlib.import_module('keepline.relay.face')"), "credentials may not import relay"),
        (token("__import__('keepline.relay.face')"), "credentials may not import relay"),
        (token("from keepline import Receiver"), "credentials may not import __init__"),
        (token("import keepline"), "credentials may not import __init__"),
        (token("import keepline\nx = keepline.__version__, keepline.Receiver"), "credentials may not import __init__"),
        ({"errors.py": '"""E."""\nimport keepline.clock\n'}, "errors may not import clock"),
        ({"attic.py": '"""Attic."""\n'}, "the room 'attic' is not on the map"),
        ({"attic/__init__.py": '"""Attic."""\n'}, "the room 'attic' is not on the map"),
        ({"clock.py": "import time\n"}, "clock.py: no docstring"),
        ({"credentials/__init__.py": ""}, "credentials/__init__.py: no docstring"),
        ({"relay/face.py": '"""F."""\nfrom keepline.credentials.token import _inner\n'}, "the private _inner is taken"),
        ({"relay/face.py": '"""F."""\nfrom keepline.credentials import token\nx = token._inner\n'},
         "the private _inner is reached through token"),
        ({"relay/face.py": '"""F."""\nimport keepline.credentials.token\nx = keepline.credentials.token._inner\n'},
         "the private _inner is reached through keepline.credentials.token"),
        ({"relay/face.py": '"""F."""\nfrom keepline.credentials import _hidden\n',
          "credentials/_hidden.py": '"""H."""\n'}, "the private keepline.credentials._hidden"),
        ({"relay/wire.py": '"""W."""\ndef f():\n    from keepline.relay import face\n',
          "relay/face.py": '"""F."""\nimport keepline.relay.wire\n'}, "in a circle: "),
        ({"relay/face.py": '"""F."""\nfrom keepline.relay import Wire\n',
          "relay/__init__.py": '"""R."""\nfrom .face import Face\n'}, "in a circle: "),
        (wire("import time"), "a decider may not import time"),
        (wire("from time import monotonic"), "a decider may not import time"),
        (wire("import random"), "a decider may not import random"),
        (wire("import secrets"), "a decider may not import secrets"),
        (wire("from os import urandom"), "a decider may not import os"),
        (wire("import os"), "a decider may not import os"),
        (wire("import socket"), "a decider may not import socket"),
        (wire("import ssl"), "a decider may not import ssl"),
        (wire("import asyncio.streams"), "a decider may not import asyncio.streams"),
        (wire("import threading"), "a decider may not import threading"),
        (wire("def f():\n    import threading"), "a decider may not import threading"),
        (wire("import importlib\nimportlib.import_module('socket')"), "a decider may not import socket"),
        (wire("async def f():\n    pass"), "a decider may not be async"),
        (wire("async def f(x):\n    await x"), "a decider may not be async"),
        (wire("from keepline.clock import SYSTEM_CLOCK"), "a decider may not know keepline.clock"),
        (wire("from keepline.credentials import token"), "a decider may not know keepline.credentials.token"),
        (wire("from datetime import datetime, UTC\nx = datetime.now(UTC)"), "a decider may not ask the clock"),
        (wire("import datetime as dt\nx = dt.date.today()"), "a decider may not ask the clock"),
        (wire("x = open('f')"), "a decider may not open a file"),
    ],
)  # fmt: skip
def test_each_planted_fault_is_found(
    tmp_path: Path, changes: dict[str, str], complaint: str
) -> None:
    found = problems(build(tmp_path, changes), SMALL_RULES)
    assert any(complaint in problem for problem in found), found


def test_a_decider_that_was_renamed_is_missed(tmp_path: Path) -> None:
    rules = Rules(SMALL_RULES.may_import, {"relay/wires.py"}, SMALL_RULES.pure)
    assert problems(build(tmp_path, {}), rules) == ["relay/wires.py: this decider is not there"]
