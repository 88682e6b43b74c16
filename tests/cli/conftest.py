"""The command line in tests: in this process for words and codes, as a program for signals, sockets and pipes."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from keepline.cli.program import run
from keepline.portal import Portal
from keepline.sandbox.server import SandboxServer


@dataclass
class Answer:
    """What a command did.

    Attributes:
        code: its exit code.
        out: standard output.
        err: standard error.
    """

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Answer]


@pytest.fixture
def keepline(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command line in this process; `stdin` is what it reads."""

    def command(*arguments: str, stdin: str = "") -> Answer:
        with tempfile.TemporaryFile("w+") as stream:  # a pipe would hold 64 KiB and no more
            stream.write(stdin)
            stream.seek(0)
            monkeypatch.setattr(sys, "stdin", stream)
            code = run(arguments)
        told = capfd.readouterr()
        return Answer(code, told.out, told.err)

    return command


@pytest.fixture
def sandbox() -> Iterator[SandboxServer]:
    """A sandbox broker on a loop of its own."""
    portal = Portal(name="keepline-portal-sandbox")
    server = SandboxServer()
    portal.call(server.start)
    yield server
    portal.call(server.stop)
    portal.stop()


@dataclass
class Place:
    """A directory with a configuration for the sandbox.

    Attributes:
        directory: where everything lies.
        sandbox: the broker.
    """

    directory: Path
    sandbox: SandboxServer

    @property
    def config(self) -> Path:
        return self.directory / "keepline.toml"

    def write(self, more: str = "", schwab: str = "", telemetry: str = "") -> None:
        self.config.write_text(
            f'[credentials.schwab]\nbase_url = "{self.sandbox.url}"\napp_config = "app.yaml"\n'
            f'token_file = "tokens.json"\nretry_delays = [0.05]\n{schwab}\n'
            f'[telemetry]\nmetrics = "127.0.0.1:0"\n{telemetry}\n{more}\n'
        )

    def private(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def oauth_answer(self, **changes: Any) -> str:
        """A sign-in at the sandbox as the JSON that it answers with."""
        token = self.sandbox.issue()
        answer = {
            "access_token": token.access_token,
            "refresh_token": token.refresh_token,
            "expires_in": 1800,
        }
        return json.dumps({**answer, **changes})


@pytest.fixture
def place(
    clean_environment: Path, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """The working directory of the test, configured."""
    made = Place(clean_environment, sandbox)
    made.private("app.yaml", "app_key: sandbox-key\napp_secret: sandbox-secret\n")
    made.write()
    monkeypatch.chdir(clean_environment)
    return made


@dataclass
class Program:
    """`keepline` as a process of its own; every line that it said is kept."""

    process: asyncio.subprocess.Process
    said: list[str] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    async def start(cls, *arguments: str, cwd: Path, **environ: str) -> "Program":
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "keepline", *arguments),
            cwd=cwd,
            env={**os.environ, **environ},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        program = cls(process)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            program._tasks.append(asyncio.create_task(program._read(stream)))
        return program

    async def says(self, words: str, *, times: int = 1) -> str:
        """Wait for a line with these words; the last of them."""
        while True:
            self._more.clear()
            found = [line for line in self.said if words in line]
            if len(found) >= times:
                return found[-1]
            if all(task.done() for task in self._tasks):
                raise AssertionError(
                    f"it ended without {words!r}; it said:\n" + "\n".join(self.said)
                )
            await self._more.wait()

    async def end(self, number: int | None = None) -> int:
        """Send a signal, if any, and wait for its exit code."""
        if number is not None:
            self.process.send_signal(number)
        code = await self.process.wait()
        await asyncio.gather(*self._tasks)
        return code

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.said.append(line.decode().rstrip("\n"))
            self._more.set()
        self._more.set()


@pytest.fixture
async def start(place: Place) -> AsyncIterator[Callable[..., Any]]:
    """Start `keepline` programs in the configured directory; what still runs at the end is killed."""
    programs: list[Program] = []

    async def begin(*arguments: str, **environ: str) -> Program:
        program = await Program.start(*arguments, cwd=place.directory, **environ)
        programs.append(program)
        return program

    yield begin
    for program in programs:
        if program.process.returncode is None:
            program.process.kill()
        await program.end()
