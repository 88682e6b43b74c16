"""The demo: a sandbox broker, the daemon, two bots, a desk and its hub on loopback, with an outage in the middle.

Invariants: nothing of the user's is read or written, everything lies in a directory that is gone afterwards; no line
shows a token; the two bots are processes of their own and end with the demo, however it ends.
"""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.config import Settings, load
from keepline.daemon.ask import save_token
from keepline.daemon.demodesk import USER, DemoHub
from keepline.daemon.run import stop_signals
from keepline.daemon.service import Daemon
from keepline.errors import TransientError
from keepline.sandbox.server import SandboxServer
from keepline.telemetry import fields_of

__all__ = ["ENOUGH", "Demo", "Result"]

ENOUGH = 3
"""Generations that each bot must receive for the demo to have worked."""

ACCESS_LIFETIME = 5.0
"""Seconds that a token of the demo lives: a renewal every four seconds and a bit."""

FAILURES = 2
"""Requests that the outage swallows."""

PATIENCE = 30.0
"""Seconds until the demo says that something that must happen does not."""

_NEVER_WITHOUT = "the token before it served until the new one came"

_BOTS = ("alpha", "beta")

_CONFIG = """\
[credentials.demo]
issuer = "schwab"
base_url = "{url}"
app_config = "app.yaml"
storage = "encrypted"
storage_key_file = "storage.key"
retry_delays = [0.2, 0.2, 0.5, 1.0]

[brokers.demo]
broker = "schwab"

[stream.demo]
symbols = ["AAPL"]

[relay.bots]
credential = "demo"
targets = ["bot:alpha", "bot:beta"]
attempts = 2
retry_delay = 0.2

[telemetry]
metrics = "127.0.0.1:0"
"""


class Result:
    """What the demo saw.

    Attributes:
        received: the generations that each bot received, in order.
        stats: the sandbox's counters at the end.
        screen: what a screen at the hub received, by channel.
    """

    def __init__(self) -> None:
        self.received: dict[str, list[int]] = {bot: [] for bot in _BOTS}
        self.stats: Mapping[str, int] = {}
        self.screen: Mapping[str, int] = {}

    @property
    def ok(self) -> bool:
        """Whether both bots followed the renewals, no refresh token was spent twice, and the screen saw the desk."""
        followed = all(len(set(seen)) >= ENOUGH for seen in self.received.values())
        return followed and self.stats.get("reuses") == 0 and len(self.screen) >= 3


class Demo:
    """One showing.

    Args:
        tell: prints one line of the story.
        clock: for the lines' times.

    Attributes:
        result: what it saw.
        ended: whether it played to its end.
    """

    def __init__(self, tell: Callable[[str], object], *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.result = Result()
        self.ended = False
        self._tell = tell
        self._clock = clock
        self._began = clock.boottime()
        self._changed = asyncio.Event()
        self._expired = False
        self._signin_days = 0

    async def play(self, *, auto: bool) -> Result:
        """Show it: to its end with `auto`, else until a signal.

        Raises:
            TransientError: something that must happen did not, in time.
        """
        with stop_signals() as stop:
            async with _stage() as directory:
                playing = asyncio.create_task(self._acts(directory, auto=auto))
                ends: set[asyncio.Future[Any]] = {playing, stop}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if stop.done():
                    playing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await playing
        return self.result

    # --- the acts ---

    async def _acts(self, directory: Path, *, auto: bool) -> None:
        async with SandboxServer(access_lifetime=ACCESS_LIFETIME) as sandbox:
            self._say("sandbox", f"a broker on loopback at {sandbox.url}; no account is needed")
            settings = await asyncio.to_thread(_settings, directory, sandbox.url)
            token = await save_token(settings, "demo", sandbox.issue())
            assert token.signin_deadline is not None
            self._signin_days = round(
                (token.signin_deadline - token.issued_at).total_seconds() / 86_400
            )
            self._say("person", f"signed in once; token {token.fingerprint} lies encrypted on disk")
            try:
                async with (
                    self._bot("alpha"),
                    self._bot("beta"),
                    self._daemon(settings) as daemon,
                    self._hub(directory, daemon),
                ):
                    await self._renewals(sandbox, auto=auto)
            finally:
                self.result.stats = sandbox.stats()
            self._end()
            self.ended = True

    async def _renewals(self, sandbox: SandboxServer, *, auto: bool) -> None:
        await self._until_all_have(ENOUGH)
        while True:
            self._say("sandbox", f"goes down: the next {FAILURES} requests get no answer")
            seen, self._expired = self._fewest(), False
            sandbox.fault("outage", count=FAILURES, on=["token"])
            await self._until_all_have(seen + 1)
            served = "no bot was without a token for long" if self._expired else _NEVER_WITHOUT
            self._say("story", f"the outage is over, and {served}")
            await self._until_all_have(seen + 2)
            if auto:
                return
            self._say("story", "it goes on like this; Ctrl-C ends it")
            await self._until_all_have(seen + 8)

    def _end(self) -> None:
        stats = self.result.stats
        self._say(
            "story",
            f"{stats['refreshes']} renewals, {stats['faults']} requests lost in the outage, "
            f"{stats['reuses']} refresh tokens spent twice; "
            + ", ".join(
                f"{bot} received {len(set(got))}" for bot, got in self.result.received.items()
            ),
        )
        seen = ", ".join(f"{count} on {channel}" for channel, count in self.result.screen.items())
        self._say("story", f"a screen at the hub saw {seen}")

    # --- who plays ---

    @asynccontextmanager
    async def _daemon(self, settings: Settings) -> AsyncIterator[Daemon]:
        daemon = await asyncio.to_thread(Daemon, settings, clock=self._clock)
        with _told_to(_Story(self._hear)):
            try:
                await daemon.start()
                assert daemon.metrics is not None
                url = f"{daemon.metrics.url}/metrics"
                self._say("keepline", f"the daemon runs; its numbers are at {url}")
                yield daemon
            finally:
                await daemon.stop()

    @asynccontextmanager
    async def _hub(self, directory: Path, daemon: Daemon) -> AsyncIterator[None]:
        async with DemoHub(directory / "hub", daemon.status, clock=self._clock).running() as hub:
            self._say("hub", f"the desk's page is at {hub.url}/ as long as this runs")
            self._say("hub", f"sign in there as {USER} with the password {hub.password}")
            await within(self._clock, PATIENCE, hub.seen())
            self._say("desk", "trades (all of it invented), and a first screen follows it live")
            try:
                yield
            finally:
                self.result.screen = dict(hub.received)

    @asynccontextmanager
    async def _bot(self, name: str) -> AsyncIterator[None]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "keepline", "listen", "--name", name, "--json"),
            *("--for", "86400"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the demo, which ends its bots itself
        )
        assert process.stdout is not None
        assert process.stderr is not None
        reading = asyncio.create_task(self._read(name, process.stdout))
        try:
            line = await within(self._clock, PATIENCE, process.stderr.readline())
            self._say(
                name, f"a bot in its own process (pid {process.pid}), {line.decode().strip()}"
            )
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            reading.cancel()
            await process.communicate()

    async def _read(self, name: str, lines: asyncio.StreamReader) -> None:
        async for line in lines:
            told = json.loads(line)
            if "bot" in told:
                self.result.received[name].append(told["generation"])
                self._say(name, f"received {told['fingerprint']}, generation {told['generation']}")
                self._changed.set()

    # --- the story ---

    def _hear(self, message: str, fields: Mapping[str, Any]) -> None:
        match message:
            case "Token refreshed":
                words = f"renewed, attempt {fields['attempt']}: generation {fields['generation']}, "
                clocks = f"expires in {fields['expires_in_seconds']:.1f} s; next sign-in in {self._signin_days} days"
                self._say("keepline", words + clocks)
            case "Token refresh failed":
                words = (
                    f"attempt {fields['attempt']} failed; the old token still serves, tries again"
                )
                self._say("keepline", words)
            case "Stream live" if not fields.get("channel"):
                words = (
                    "the broker's stream of quotes is live; keepline stream watch shows such a one"
                )
                self._say("keepline", words)
            case "Token expired":
                self._expired = True
                self._say("keepline", "the token expired before the broker came back")

    def _say(self, who: str, words: str) -> None:
        self._tell(f"{self._clock.boottime() - self._began:6.1f} s  {who:<8}  {words}")

    def _fewest(self) -> int:
        return min(len(set(seen)) for seen in self.result.received.values())

    async def _until_all_have(self, generations: int) -> None:
        while (seen := self._fewest()) < generations:
            self._changed.clear()
            try:
                await within(self._clock, PATIENCE, self._changed.wait())
            except TimeoutError:
                raise TransientError(
                    f"no bot received a new token for {PATIENCE:g} s after {seen}",
                    category="timeout",
                ) from None


class _Story(logging.Handler):
    """Hears the daemon's events."""

    def __init__(self, hear: Callable[[str, Mapping[str, Any]], None]) -> None:
        super().__init__(logging.INFO)
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage(), fields_of(record))


@contextlib.contextmanager
def _told_to(handler: logging.Handler) -> Iterator[None]:
    """Everything that the rooms log goes to this handler and nowhere else."""
    logger = logging.getLogger("keepline")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])


@asynccontextmanager
async def _stage() -> AsyncIterator[Path]:
    """A directory of our own that is everything to the demo, and gone afterwards."""
    directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="keepline-demo-"))
    before = os.environ.get("KEEPLINE_RUNTIME_DIR")
    os.environ["KEEPLINE_RUNTIME_DIR"] = str(directory / "run")
    try:
        yield directory
    finally:
        if before is None:
            del os.environ["KEEPLINE_RUNTIME_DIR"]
        else:
            os.environ["KEEPLINE_RUNTIME_DIR"] = before
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def _settings(directory: Path, url: str) -> Settings:
    for name, text in (
        ("app.yaml", "app_key: sandbox-key\napp_secret: sandbox-secret\n"),
        ("storage.key", secrets.token_urlsafe(32)),
        ("keepline.toml", _CONFIG.format(url=url)),
    ):
        file = directory / name
        file.touch(mode=0o600)
        file.write_text(text, encoding="utf-8")
    return load(directory / "keepline.toml", environ={})
