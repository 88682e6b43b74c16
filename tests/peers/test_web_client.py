"""The browser's client with npm's tools: its tests, also against the real hub; its package; its copy in the page."""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
from aiohttp import web

from keepline.hub.closecodes import comes_back
from keepline.hub.opening import GateSettings, IssuerSettings
from keepline.hub.server import AnalyticsHub
from keepline.hub.settings import HubConfig

pytestmark = pytest.mark.timeout(300)  # the first run installs the packages

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"
PAGE = ROOT / "src/keepline/hub/page"
REAL_ENVIRONMENT = dict(os.environ)  # npm is configured in the person's home, not in a test's
SECRET = "a secret of the tests of the web client"
MADE = ("node_modules", "dist", "bundle", "*.tgz")


@pytest.fixture
def workshop(
    need: Callable[..., dict[str, str]], pytestconfig: pytest.Config, tmp_path: Path
) -> Path:
    """A copy of `web/` with its packages installed: nothing is built in the source tree."""
    tools = need("node", "npm")
    npm = tools["npm"]
    node = run(tools["node"], "--version", cwd=tmp_path).strip()
    if tuple(map(int, node[1:].split("."))) < (20, 19):
        pytest.skip(f"peer tool absent: node 20.19 (this is {node})")
    assert pytestconfig.cache is not None
    lock = (WEB / "package-lock.json").read_bytes()
    folder = Path(pytestconfig.cache.mkdir(f"web-{hashlib.sha256(lock).hexdigest()[:12]}"))
    with (folder / "lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns(*MADE), dirs_exist_ok=True)
            run(npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder)
            (folder / "installed").touch()
    copy = tmp_path / "web"
    shutil.copytree(WEB, copy, ignore=shutil.ignore_patterns(*MADE))
    (copy / "node_modules").symlink_to(folder / "node_modules")
    return copy / "client"


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=REAL_ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class House:
    """A hub, and a small server by which the tests in JavaScript do to it what no client can."""

    def __init__(self, directory: Path) -> None:
        desk = IssuerSettings(
            issuer="desk", audiences=("keepline-hub",), algorithms=("HS256",), secret=SECRET
        )
        gate = GateSettings(
            directory=directory, issuers=(desk,), argon2id=(64, 1, 1), leeway_seconds=0
        )
        self._config = HubConfig(port=0, directory=directory, gate=gate, drain_seconds=0)
        gate.users().add(
            "ann", "correct-horse-7-staple", role="admin", account="", now=time.time() - 5
        )
        self.hub = AnalyticsHub(self._config)
        self.control = ""

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["House"]:
        await self.hub.start()
        application = web.Application()
        application.router.add_post("/{action}", self._do)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.control = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()
            await self.hub.stop()

    async def _do(self, request: web.Request) -> web.Response:
        asked = await request.json()
        return web.json_response(await getattr(self, f"do_{request.match_info['action']}")(asked))

    async def do_token(self, asked: dict[str, Any]) -> dict[str, str]:
        now = time.time()
        ends = now + asked["seconds"]
        claims = {"sub": asked["user"], "role": asked["role"], "iss": "desk", "aud": "keepline-hub",
                  "iat": min(now, ends - 1), "exp": ends}  # fmt: skip
        return {"token": jwt.encode(claims, SECRET, algorithm="HS256")}

    async def do_cut(self, asked: dict[str, Any]) -> dict[str, str]:
        for connection in self.hub.attendance.connections:
            connection.transport.abort()
        return {}

    async def do_restart(self, asked: dict[str, Any]) -> dict[str, str]:
        port = self.hub.port
        await self.hub.stop()
        self.hub = AnalyticsHub(msgspec.structs.replace(self._config, port=port))
        await self.hub.start()
        return {}

    async def do_revoke(self, asked: dict[str, Any]) -> dict[str, str]:
        await self.hub.revoke(asked["user"])
        return {}

    async def do_unwatched(self, asked: dict[str, Any]) -> dict[str, str]:
        """Return when nobody is subscribed to a channel."""
        while any(  # noqa: ASYNC110 - the hub tells nobody of it
            asked["channel"] in each.channels() for each in self.hub.broadcaster.clients.values()
        ):
            await asyncio.sleep(0)
        return {}


async def test_the_client_does_what_it_promises_at_the_real_hub(
    workshop: Path, need: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    made = await asyncio.to_thread(House, tmp_path / "hub")
    async with made.open() as house:
        process = await asyncio.create_subprocess_exec(
            need("npm")["npm"],
            "test",
            cwd=workshop,
            env={
                **REAL_ENVIRONMENT,
                "KEEPLINE_HUB_URL": house.hub.url,
                "KEEPLINE_HUB_CONTROL": house.control,
                "NO_COLOR": "1",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert "test/hub/hub.test.ts" in out.decode()


def test_its_types_hold(workshop: Path, need: Callable[..., dict[str, str]]) -> None:
    run(need("npm")["npm"], "run", "types", cwd=workshop)


def test_the_page_has_the_client_that_the_sources_make(
    workshop: Path, need: Callable[..., dict[str, str]]
) -> None:
    run(need("npm")["npm"], "run", "bundle", cwd=workshop)
    made = (workshop / "bundle/client.js").read_text()
    assert made == (PAGE / "client.js").read_text(), "run `npm run page` in web/ and commit"


def test_the_package_holds_what_it_needs_and_works_for_who_installs_it(
    workshop: Path, need: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    tools = need("node", "npm")
    (packed,) = json.loads(run(tools["npm"], "pack", "--json", cwd=workshop))
    files = {file["path"] for file in packed["files"]}
    sources = {path.stem for path in (workshop / "src").glob("*.ts")}
    built = {f"dist/{name}{end}" for name in sources for end in (".js", ".d.ts")}
    assert files == {"package.json", "README.md", "LICENSE", *built}

    user = tmp_path / "user"
    user.mkdir()
    (user / "package.json").write_text('{"name": "user", "private": true, "type": "module"}')
    archive = str(workshop / packed["filename"])
    run(tools["npm"], "install", "--offline", "--no-audit", "--no-fund", archive, cwd=user)
    assert sorted(path.name for path in (user / "node_modules").iterdir() if path.is_dir()) == [
        "keepline-client"
    ], "it has no dependencies"

    readme = (WEB / "client/README.md").read_text()
    examples = re.findall(r"```ts\n(.*?)```", readme, re.DOTALL)
    assert examples
    for number, example in enumerate(examples):
        (user / f"example{number}.ts").write_text(example)
    options = {"target": "ES2022", "module": "NodeNext", "strict": True, "noEmit": True,
               "lib": ["ES2022", "DOM"], "types": ["ws"], "exactOptionalPropertyTypes": True}  # fmt: skip
    (user / "tsconfig.json").write_text(json.dumps({"compilerOptions": options}))
    for package in ("@types", "undici-types"):
        (user / "node_modules" / package).symlink_to(workshop.parent / "node_modules" / package)
    compiler = workshop.parent / "node_modules/.bin/tsc"
    run(str(compiler), "-p", ".", cwd=user)

    said = run(
        tools["node"],
        "--input-type=module",
        "-e",
        'import * as k from "keepline-client"; console.log(Object.keys(k).sort().join());',
        cwd=user,
    )
    assert said.strip() == "AnalyticsWebSocket,ConnectionEnded,StopError,comesBack"


def test_client_and_hub_agree_on_who_comes_back(
    need: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    shutil.copy(PAGE / "client.js", tmp_path / "client.mjs")
    said = run(
        need("node")["node"],
        "--input-type=module",
        "-e",
        'import { comesBack } from "./client.mjs";'
        "console.log(JSON.stringify([...Array(5000).keys()].slice(1000).filter(comesBack)));",
        cwd=tmp_path,
    )
    assert json.loads(said) == [code for code in range(1000, 5000) if comes_back(code)]


def test_the_howtos_example_is_a_module(need: Callable[..., dict[str, str]]) -> None:
    howto = (ROOT / "docs/howto/browser-client.md").read_text()
    (example,) = re.findall(r"```js\n(.*?)```", howto, re.DOTALL)
    done = subprocess.run(
        [need("node")["node"], "--check", "--input-type=module", "-"],
        input=example,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_it_depends_on_nothing_and_the_lock_names_no_registry() -> None:
    package = json.loads((WEB / "client/package.json").read_text())
    assert "dependencies" not in package
    lock = json.loads((WEB / "package-lock.json").read_text())
    resolved = {
        name: entry["resolved"] for name, entry in lock["packages"].items() if "resolved" in entry
    }
    assert resolved == {"node_modules/keepline-client": "client"}
    for name, entry in lock["packages"].items():
        assert not name.startswith("node_modules/") or "integrity" in entry or entry.get("link")
