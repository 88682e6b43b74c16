"""Streams under the daemon, against the sandbox: live, counted, recorded, told of, restarted alone, drained."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.daemon.conftest import aside

from keepline import config
from keepline.config import Settings
from keepline.daemon.ask import save_token, whole_status
from keepline.daemon.clients import client_of
from keepline.daemon.compose import check_settings
from keepline.daemon.service import Daemon
from keepline.daemon.streaming import StreamPart
from keepline.daemon.streams import listen, real_time_url, stream_of
from keepline.daemon.watching import Told, watch
from keepline.errors import ConfigError, KeeplineError, Refused, SignInRequired, TransientError
from keepline.http import HttpSession
from keepline.sandbox.server import SandboxServer
from keepline.stream.events import EventKind
from keepline.stream.recorder import Recorder
from keepline.stream.recording import Recording

CONTRACT = "CON.F.US.MES.Z26"
PROJECTX = """
[credentials.top]
issuer = "projectx"
username = "sandbox"
base_url = "URL"
storage = "memory"
api_key_file = "api.key"
[brokers.top]
"""
SCHWAB = """
[credentials.schwab]
base_url = "URL"
app_config = "app.yaml"
token_file = "tokens.json"
[brokers.schwab]
"""
Load = Callable[..., Settings]


@pytest.fixture
def load(clean_environment: Path, sandbox: SandboxServer) -> Load:
    def read(stream: str, metrics: str = "", broker: str = PROJECTX) -> Settings:
        app = "app_key: sandbox-key\napp_secret: sandbox-secret\n"
        for name, text in (("api.key", "sandbox-api-key"), ("app.yaml", app)):
            (clean_environment / name).write_text(text)
            (clean_environment / name).chmod(0o600)
        file = clean_environment / "keepline.toml"
        text = f'{broker}[telemetry]\nmetrics = "{metrics}"\n{stream}\n'
        file.write_text(text.replace("URL", sandbox.url))
        return config.load(file, environ={})

    return aside(read)


@asynccontextmanager
async def daemon(settings: Settings) -> AsyncIterator[Daemon]:
    made = await asyncio.to_thread(Daemon, settings)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def until(part: StreamPart, condition: Callable[[], object]) -> None:
    """Return once something holds; the stream's own events wake us."""
    while part.stream is None:
        await whole_status(None)
    changed = asyncio.Event()

    async def hear(_: object) -> None:
        changed.set()

    remove = part.stream.on_event(hear)
    while not condition():
        changed.clear()
        await changed.wait()
    remove()


async def test_a_stream_is_live_reconciled_counted_and_told(load: Load) -> None:
    text = (
        f'[stream.top]\naccounts = ["SANDBOX-150K"]\nsymbols = ["MES", "{CONTRACT}"]\n'
        'events = ["quotes", "trades"]\n'
    )
    async with daemon(load(text, metrics="127.0.0.1:0")) as running:
        part = running.streams["top"]
        await until(part, lambda: part.ready()[0])
        status = json.loads(json.dumps(await whole_status(None)))
        assert part.ready() == (True, "live, healthy")
        assert running.metrics is not None
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{running.metrics.url}/metrics") as answer,
        ):
            numbers = await answer.text()
    told = status["streams"]["top"]
    assert (told["live"], told["state"], told["health"]) == (True, "connected", "healthy")
    assert told["reasons"] == []
    assert told["reconciled_at"] is not None
    assert told["recording"] is None
    topics = {topic["topic"]: topic for topic in told["topics"]}
    assert topics[f"GatewayQuote {CONTRACT}"]["stream"] == "top.market"
    assert topics[f"GatewayQuote {CONTRACT}"]["phase"] in ("confirmed", "first_data")
    assert "GatewayUserOrder 1001" in topics
    for stream in ("top.user", "top.market"):
        assert f'keepline_stream_live{{stream="{stream}"}} 1' in numbers
        assert f'keepline_stream_state{{stream="{stream}"}} 2' in numbers
    assert 'keepline_reconcile_last_timestamp_seconds{stream="top.user"}' in numbers


async def test_schwabs_stream_runs_too_and_is_recorded(
    load: Load, sandbox: SandboxServer, clean_environment: Path
) -> None:
    text = (
        '[stream.schwab]\naccounts = ["10000001"]\nsymbols = ["AAPL"]\nevents = ["quotes", "depth"]\n'
        'record = "rec/{stream}-{time}.klrec.gz"\n'
    )
    settings = load(text, broker=SCHWAB)
    await save_token(settings, "schwab", sandbox.issue())
    async with daemon(settings) as running:
        part = running.streams["schwab"]
        await until(part, lambda: part.ready()[0])
        told = part.status()
        assert told["recording"]["frames"] > 0
    (path,) = await asyncio.to_thread(lambda: list((clean_environment / "rec").iterdir()))
    assert str(path) == told["recording"]["file"]
    recording = await asyncio.to_thread(Recording, path)
    assert (recording.head.broker, recording.head.stream) == ("schwab", "schwab")
    kinds = [entry.kind for entry in await asyncio.to_thread(list, recording)]
    assert kinds[0] == "open"
    assert {"text", "snapshot", "lost"} <= set(kinds)
    assert part.status()["state"] == "stopped"


async def test_a_stream_that_ends_for_good_comes_back_alone(
    load: Load, sandbox: SandboxServer
) -> None:
    async with daemon(load(f'[stream.top]\nsymbols = ["{CONTRACT}"]\n')) as running:
        part = running.streams["top"]
        await until(part, lambda: part.ready()[0])
        first = part.stream
        sandbox.signalr.cut("close", hub="market", error="go away")
        while (told := (await whole_status(None)))["ready"]:
            pass
        parts = {one["name"]: one for one in told["parts"]}
        assert parts["credential top"]["ready"]
        assert "go away" in parts["stream top"]["reason"]
        while part.stream is first:
            await whole_status(None)
        await until(part, lambda: part.ready()[0])
        assert part.stream is not first


@pytest.mark.parametrize(
    ("broker", "section", "symbol"),
    [(PROJECTX, "top", CONTRACT), (SCHWAB, "schwab", "AAPL")],
    ids=["projectx", "schwab"],
)
async def test_a_quote_may_be_silent_for_as_long_as_the_section_says(
    load: Load, broker: str, section: str, symbol: str
) -> None:
    text = f'[stream.{section}]\nsymbols = ["{symbol}"]\nstale_after = 45\n'
    settings = load(text, broker=broker)

    class Tokens:
        async def get(self, **_: object) -> object:
            raise AssertionError("nobody is asked")

    async def nobody(*_: object) -> None:
        raise AssertionError("nothing comes")

    tokens: Any = Tokens()
    async with HttpSession() as http:
        client = client_of(settings, section, tokens, http=http)
        stream = await stream_of(settings, section, client, tokens)
        listen(stream, settings.stream[section], nobody)
        topics = [s.topic for manager in stream.managers for s in manager.standings]
        assert [(topic.key, topic.cadence) for topic in topics] == [(symbol, 45.0)]
        await stream.disconnect()


async def test_an_account_that_is_not_there_is_the_streams_own_trouble(load: Load) -> None:
    async with daemon(load('[stream.top]\naccounts = ["nobody"]\n')) as running:
        while (told := running.supervisor.readiness()[-1].reason).startswith("asking"):
            await whole_status(None)
        assert "[stream.top.accounts]: no account 'nobody'; there is SANDBOX-150K" in told
        assert running.streams["top"].status()["live"] is False
        assert "stream top" in running.summary()


async def test_a_watch_ends_with_the_reason_when_the_server_wants_it_gone(
    load: Load, sandbox: SandboxServer
) -> None:
    settings = load(f'[stream.top]\nsymbols = ["{CONTRACT}"]\n')
    told: list[Told] = []

    def show(line: Told) -> None:
        told.append(line)
        if line.kind == "quote":
            sandbox.signalr.cut("close", hub="market", error="go away")

    with pytest.raises(TransientError, match=r"the stream has failed: .*go away"):
        await watch(settings, "top", show)
    assert told[-1].value.kind is EventKind.LOST


async def test_a_watch_ends_with_what_happened_before_it_was_all_connected(
    load: Load, sandbox: SandboxServer
) -> None:
    settings = load(f'[stream.top]\nsymbols = ["{CONTRACT}"]\n')
    lost = asyncio.Event()

    def show(line: Told) -> None:
        if line.kind == "event" and line.value.kind is EventKind.LOST:
            lost.set()

    def opened(stream: Any) -> None:
        connect = stream.connect

        async def and_lose() -> None:
            await connect()
            sandbox.signalr.cut("close", hub="market", error="go away")
            await lost.wait()

        stream.connect = and_lose

    with pytest.raises(TransientError, match=r"the stream has failed: .*go away"):
        await watch(settings, "top", show, opened=opened)


async def test_after_its_first_connection_a_watch_does_not_give_up(
    load: Load, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(f'[stream.top]\nsymbols = ["{CONTRACT}"]\n')
    plans: asyncio.Queue[str] = asyncio.Queue()
    hearing = logging.Handler()
    hearing.emit = lambda record: plans.put_nowait(record.getMessage())  # type: ignore[method-assign]
    hearing.addFilter(lambda record: record.getMessage() in ("Stream redial", "Stream gives up"))
    monkeypatch.setattr(logging.getLogger("keepline.stream"), "handlers", [hearing])

    def show(line: Told) -> None:
        if line.kind == "quote":
            sandbox.fault("5xx", on="websocket")
            sandbox.signalr.cut(hub="market")

    work = asyncio.create_task(watch(settings, "top", show))
    work.add_done_callback(lambda _: plans.put_nowait("ended"))
    assert [await plans.get() for _ in range(2)] == ["Stream redial", "Stream redial"]
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


@pytest.mark.parametrize(
    ("credential", "refused"), [("schwab", True), ("another", False)], ids=["shared", "own"]
)
async def test_a_connection_is_of_a_user_whatever_the_broker_is_called(
    load: Load, monkeypatch: pytest.MonkeyPatch, credential: str, refused: bool
) -> None:
    settings = load(
        f'[brokers.twin]\nbroker = "schwab"\ncredential = "{credential}"\n'
        '[stream.twin]\nsymbols = ["AAPL"]\n[credentials.another]\nissuer = "schwab"\nbase_url = "URL"\n'
        'app_config = "app.yaml"\ntoken_file = "none.json"\n',
        broker=SCHWAB,
    )

    class Running:
        async def status(self) -> object:
            return {"streams": {"quotes": {"protocol": "schwab", "broker": "schwab"}}}

    monkeypatch.setattr("keepline.daemon.watching.daemon", lambda: nullcontext(Running()))
    with pytest.raises(Refused if refused else SignInRequired) as caught:
        await watch(settings, "twin", print)
    assert ("as stream quotes" in str(caught.value)) is refused


async def test_a_recording_that_the_disk_ends_ends_the_command(
    load: Load, clean_environment: Path
) -> None:
    settings = load(f'[stream.top]\nsymbols = ["{CONTRACT}"]\n')
    async with Recorder(clean_environment / "a.gz") as recorder:

        def show(line: Told) -> None:
            recorder.failure = "a.gz: No space left on device"

        with pytest.raises(KeeplineError, match=r"recording ended: .*No space left"):
            await watch(settings, "top", show, recorder=recorder)


async def test_a_recording_that_the_disk_ends_is_said_by_the_part(
    load: Load, clean_environment: Path
) -> None:
    text = f'[stream.top]\nsymbols = ["{CONTRACT}"]\nrecord = "{{time}}.gz"\n'
    async with daemon(load(text)) as running:
        part = running.streams["top"]
        await until(part, lambda: part.ready()[0])
        assert part.recorder is not None
        part.recorder.failure = "full"
        assert part.ready() == (False, "not recorded any more: full")


@pytest.mark.parametrize(
    ("broker", "stream", "words"),
    [
        (SCHWAB, '[stream.schwab]\nsymbols = ["A", "B,C"]\n', "is one symbol, not 'B,C'"),
        (SCHWAB, '[stream.schwab]\nsymbols = [" A"]\n', "symbol"),
        (PROJECTX, '[stream.top]\nsymbols = [" "]\n', "is a text that is not empty"),
    ],
)
def test_a_symbol_that_cannot_be_one_is_found_before_anything_starts(
    load: Load, broker: str, stream: str, words: str
) -> None:
    settings = load(stream, broker=broker)
    with pytest.raises(ConfigError, match=words) as caught:
        aside(check_settings)(settings)
    assert caught.value.key == f"stream.{next(iter(settings.stream))}.symbols"
    assert caught.value.file == settings.file


@pytest.mark.parametrize(
    ("table", "base", "found"),
    [
        ("", "https://api.topstepx.com", "https://rtc.topstepx.com"),
        ("", "https://gateway-api-demo.s2f.projectx.com", "https://gateway-rtc-demo.s2f.projectx.com"),
        ("", "http://127.0.0.1:8787", "http://127.0.0.1:8787"),
        ("", "https://okapi.example", "https://okapi.example"),
        ('url = "wss://elsewhere.example"', "https://api.topstepx.com", "wss://elsewhere.example"),
    ],
)  # fmt: skip
def test_the_hubs_are_beside_the_interface(load: Load, table: str, base: str, found: str) -> None:
    settings: Any = load(f'[stream.top]\nsymbols = ["A.B"]\n{table}\n')
    assert real_time_url(settings.stream["top"], base) == found
