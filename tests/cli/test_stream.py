"""`keepline stream` as a person runs it, against the sandbox and the daemon."""

import asyncio
import errno
import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.cli.conftest import Command, Place

from keepline.cli import stream as stream_module
from keepline.clock import within
from keepline.daemon import watching
from keepline.portal import Portal
from keepline.sandbox.server import SandboxServer
from keepline.sandbox.signalr_server import SignalRSettings
from keepline.sandbox.streamer_session import StreamerTimes

CONTRACT = "CON.F.US.MES.Z26"
MORE = """
[credentials.top]
issuer = "projectx"
username = "sandbox"
base_url = "URL"
storage = "memory"
api_key_file = "api.key"
[brokers.top]
[brokers.schwab]
[stream.top]
accounts = ["SANDBOX-150K"]
symbols = ["MES"]
events = ["quotes", "trades", "depth"]
[stream.schwab]
symbols = ["AAPL"]
events = ["quotes", "depth"]
"""


@pytest.fixture
def sandbox() -> Iterator[SandboxServer]:
    """A sandbox on a loop of its own whose market is in a hurry."""
    portal = Portal(name="keepline-portal-sandbox")
    server = SandboxServer(
        signalr=SignalRSettings(beat=0.05), streamer=StreamerTimes(tick=0.05, answer=0.01)
    )
    portal.call(server.start)
    yield server
    portal.call(server.stop)
    portal.stop()


class Hour:
    """The hour of a command that got `--for 3600`: over as soon as the stream told what a test waits for."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()
        self._needed: dict[str, int] = {}
        self._more = asyncio.Event()

    def ends_after(self, **needed: int) -> None:
        """So many of each: `quote=2`, `live=1` (an event's name), …."""
        self.told.clear()
        self._needed = needed

    def tells(self, what: str) -> None:
        self.told[what] += 1
        self._more.set()

    async def sleep(self, _: float) -> None:
        self._more = asyncio.Event()
        while any(self.told[what] < count for what, count in self._needed.items()):
            self._more.clear()
            await self._more.wait()


@pytest.fixture
def hour(monkeypatch: pytest.MonkeyPatch) -> Hour:
    """Ends commands with `--for 3600` by what they have told."""
    made, listen = Hour(), watching.listen

    def in_time(clock: Any, seconds: float, work: Awaitable[Any]) -> Awaitable[Any]:
        return within(made if seconds == 3600 else clock, seconds, work)

    def heard(stream: Any, table: Any, tell: Any) -> None:
        async def told(kind: str, value: Any) -> None:
            await tell(kind, value)
            whole = kind == "event" and not value.channel
            made.tells(f"{value.stream}.{value.kind.value}".replace(".", "_") if whole else kind)

        listen(stream, table, told)

    monkeypatch.setattr(watching, "within", in_time)
    monkeypatch.setattr(watching, "listen", heard)
    made.ends_after(top_user_live=1, top_market_live=1, quote=1, depth=1, account=1)
    return made


@pytest.fixture
def market(place: Place, keepline: Command) -> Place:
    """The configured directory with a stream of each broker, and a sign-in at Schwab."""
    place.private("api.key", "sandbox-api-key")
    place.write(MORE.replace("URL", place.sandbox.url))
    assert keepline("token", "import", "schwab", stdin=place.oauth_answer()).code == 0
    return place


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def recorded(market: Place, keepline: Command, hour: Hour) -> Path:
    """A recording of some quotes at ProjectX."""
    answer = keepline("stream", "record", "top", "--out", "a.klrec.gz", "--for", "3600")
    assert answer.code == 0, answer.err
    return market.directory / "a.klrec.gz"


def test_a_watched_stream_tells_events_and_data(
    market: Place, keepline: Command, hour: Hour
) -> None:
    answer = keepline("stream", "watch", "top", "--for", "3600")
    assert answer.code == 0, answer.err
    for words in (
        r"^\d\d:\d\d:\d\d\.\d{3}  top\.user  CONNECTED$",
        r"  top\.user  RECONCILING",
        r"  top\.user  LIVE$",
        rf"  top  quote  instrument={CONTRACT} at=\S+ bid=\S+ ask=\S+",
        rf"  top  depth  {CONTRACT}  bids \d+@[\d.]+ .* and \d+ more  asks ",
        r"  top  account  id=1001 name=SANDBOX-150K",
    ):
        assert re.search(words, answer.out, re.MULTILINE), words


def test_programs_get_objects_and_only_what_they_want(
    market: Place, keepline: Command, hour: Hour
) -> None:
    hour.ends_after(quote=1, depth=1, schwab_live=1)
    answer = keepline("stream", "watch", "schwab", "--json", "--for", "3600", "--only", "quotes")
    assert answer.code == 0, answer.err
    told = lines(answer.out)
    assert {(one["kind"], one["stream"], one["instrument"]) for one in told} == {
        ("quote", "schwab", "AAPL")
    }
    assert all(isinstance(one["bid"], float) for one in told)
    hour.ends_after(quote=1)
    only = ("--only", "quotes", "--only", "nq")
    none = keepline("stream", "watch", "top", "--for", "3600", *only)
    assert (none.code, none.out) == (0, "")


def test_a_recording_plays_the_same_each_time(recorded: Path, keepline: Command) -> None:
    first = keepline("stream", "replay", str(recorded), "--speed", "max", "--json")
    assert first.code == 0, first.err
    assert keepline("stream", "replay", str(recorded), "--speed", "max", "--json").out == first.out
    told = lines(first.out)
    assert {"event", "quote", "depth"} <= {one["kind"] for one in told}
    assert {one["stream"] for one in told} == {"top.user", "top.market"}
    events = [
        one["event"] for one in told if one["kind"] == "event" and one["stream"] == "top.user"
    ]
    assert events == ["connected", "reconciling", "lost"]
    assert re.search(r"\d+ messages in \d+ frames of 2 connections, \d{4}-", first.err)
    some = keepline("stream", "replay", str(recorded), "--speed", "max", "--only", "depth")
    assert some.out
    assert all("  depth  " in line for line in some.out.splitlines())
    short = keepline("stream", "replay", str(recorded), "--speed", "0.001", "--for", "0.2")
    assert (short.code, len(short.out.splitlines()) < 10) == (0, True)


def test_a_recording_says_what_was_recorded(market: Place, keepline: Command, hour: Hour) -> None:
    hour.ends_after(quote=1, depth=1, schwab_live=1)
    record = ("stream", "record", "schwab", "--out", "s.klrec.gz")
    answer = keepline(*record, "--for", "3600", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["frames"] > 0
    assert answer.json["missed"] == 0
    assert answer.json["bytes"] == (market.directory / "s.klrec.gz").stat().st_size
    assert "schwab  LIVE" in answer.err
    assert "FIRST_DATA" not in answer.err  # of the whole stream alone
    again = keepline("stream", "replay", "s.klrec.gz", "--speed", "max", "--only", "aapl")
    assert "  schwab  quote  instrument=AAPL" in again.out
    assert "  schwab  depth  AAPL  bids " in again.out


def test_a_recording_is_never_overwritten(recorded: Path, keepline: Command) -> None:
    before = recorded.read_bytes()
    answer = keepline("stream", "record", "top", "--out", str(recorded))
    assert answer.code == 2
    assert "a.klrec.gz exists: a recording is never overwritten" in answer.err
    assert answer.out == ""
    assert recorded.read_bytes() == before


def test_a_damaged_recording_is_played_to_the_damage_and_told(
    recorded: Path, keepline: Command
) -> None:
    whole = keepline("stream", "replay", str(recorded), "--speed", "max").out.splitlines()
    recorded.write_bytes(recorded.read_bytes()[:-40])
    answer = keepline("stream", "replay", str(recorded), "--speed", "max")
    assert answer.code == 1
    shown = answer.out.splitlines()
    assert 0 < len(shown) < len(whole)
    assert shown == whole[: len(shown)]
    assert re.search(r"^keepline: \S+a\.klrec\.gz: cut off or damaged", answer.err, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("watch", "nobody"), "[stream]: no [stream.nobody]; there is top, schwab"),
        (("watch",), "[stream]: which stream? name one of top, schwab"),
        (("record", "top"), "missing option '--out'"),
        (("replay", "none.gz"), "none.gz cannot be read: No such file"),
        (("replay", "keepline.toml"), "is not a recording of a stream"),
        (("replay", "a.gz", "--speed", "fast"), "[--speed]: a number above 0 or max, not 'fast'"),
        (("replay", "a.gz", "--speed", "-1"), "[--speed]: a number above 0 or max"),
    ],
)
def test_what_makes_no_sense_is_said(
    market: Place, keepline: Command, arguments: tuple[str, ...], words: str
) -> None:
    answer = keepline("stream", *arguments)
    assert answer.code == 2
    assert words in answer.err


def test_without_a_section_it_says_what_is_needed(place: Place, keepline: Command) -> None:
    answer = keepline("stream", "watch")
    assert answer.code == 2
    assert "no [stream.NAME] is configured" in answer.err


def test_a_broker_that_is_not_there_is_exit_4(market: Place, keepline: Command) -> None:
    url = '[stream.top]\nurl = "http://127.0.0.1:9"\n'
    market.config.write_text(market.config.read_text().replace("[stream.top]\n", url))
    answer = keepline("stream", "watch", "top")
    assert answer.code == 4
    assert "ALARM" in answer.out
    (said,) = answer.err.splitlines()  # what the events tell is not told twice
    assert said.startswith("keepline: GET /hubs/")
    assert "cannot connect to 127.0.0.1:9" in said


def test_a_recording_without_a_frame_leaves_its_name_free(market: Place, keepline: Command) -> None:
    url = '[stream.top]\nurl = "http://127.0.0.1:9"\n'
    market.config.write_text(market.config.read_text().replace("[stream.top]\n", url))
    answer = keepline("stream", "record", "top", "--out", "n.klrec.gz")
    assert (answer.code, answer.out) == (4, "")
    assert "nothing came, so nothing was recorded" in answer.err
    assert not (market.directory / "n.klrec.gz").exists()


def test_a_disk_that_takes_nothing_leaves_the_name_free(
    market: Place, keepline: Command, hour: Hour, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("keepline.stream.recorder._write", full)
    hour.ends_after(never=1)
    answer = keepline("stream", "record", "top", "--out", "f.klrec.gz", "--for", "3600")
    assert (answer.code, answer.out) == (1, "")
    assert "recording ended: f.klrec.gz: No space left on device" in answer.err
    assert "nothing could be written, so nothing was recorded" in answer.err
    assert not (market.directory / "f.klrec.gz").exists()


@pytest.mark.parametrize("command", [("watch", "top"), ("record", "top", "--out", "h.gz")])
def test_a_token_is_not_sent_in_the_clear(
    market: Place, keepline: Command, command: tuple[str, ...]
) -> None:
    url = '[stream.top]\nurl = "ws://rtc.example"\n'
    market.config.write_text(market.config.read_text().replace("[stream.top]\n", url))
    for arguments in (("stream", *command), ("config", "check")):
        answer = keepline(*arguments)
        assert answer.code == 2
        assert "[stream.top.url]: a token is only sent to an https:// address" in answer.err


def test_a_connection_that_does_not_come_in_time_is_exit_4(
    market: Place, keepline: Command, sandbox: SandboxServer
) -> None:
    sandbox.fault("slow", delay=60, on=["websocket"])
    answer = keepline("stream", "watch", "top", "--for", "0.2")
    assert answer.code == 4
    assert "no connection in 0.2 s" in answer.err


def test_without_a_sign_in_it_is_exit_3(market: Place, keepline: Command) -> None:
    (market.directory / "tokens.json").unlink()
    answer = keepline("stream", "watch", "schwab")
    assert answer.code == 3
    assert "keepline login schwab" in answer.err


async def test_ctrl_c_ends_a_recording_that_can_be_played(
    market: Place, start: Callable[..., Any]
) -> None:
    program = await start("stream", "record", "top", "--out", "b.klrec.gz")
    await program.says("top.market  LIVE")
    await program.says("top.user  LIVE")
    assert await program.end(signal.SIGINT) == 130
    assert any(line.startswith("frames") for line in program.said)
    replay = await start("stream", "replay", "b.klrec.gz", "--speed", "max")
    assert await replay.end() == 0
    assert any("GatewayLogout" not in line and "CONNECTED" in line for line in replay.said)


async def test_the_daemon_serves_streams_and_keeps_schwabs_for_itself(
    market: Place, start: Callable[..., Any]
) -> None:
    """`sandbox` and `run` and `status` and `stream watch` together, as a person has them."""
    served = await start("run")
    await served.says("Stream live", times=3)
    status = await start("status")
    await status.says("stream top: live, connected, healthy")
    await status.says(f"GatewayQuote {CONTRACT}")
    assert await status.end() == 0
    refused = await start("stream", "watch", "schwab")
    assert await refused.end() == 1
    assert "the daemon has the one connection that Schwab allows a user" in refused.said[-1]
    watched = await start("stream", "watch", "top", "--only", "quotes")
    await watched.says("  quote  ")
    assert await watched.end(signal.SIGINT) == 130
    assert await served.end(signal.SIGTERM) == 0
    assert not [line for line in served.said if "Traceback" in line or "Task " in line]


async def test_the_sandbox_the_daemon_and_a_recording_as_three_programs(
    place: Place, start: Callable[..., Any]
) -> None:
    """What the pages say, from nothing: serve, run, status, record under the daemon, replay."""
    venue = await start("sandbox", "serve", "--port", "0")
    url = (await venue.says("sandbox at")).rpartition(" ")[2]
    place.private("api.key", "sandbox-api-key")
    text = MORE.replace("URL", url).partition("[brokers.schwab]")[0]
    place.config.write_text(
        f'{text}[telemetry]\nmetrics = "127.0.0.1:0"\n[stream.top]\naccounts = ["SANDBOX-150K"]\n'
        'symbols = ["MES"]\nencoding = "messagepack"\nrecord = "rec/{stream}-{time}.klrec.gz"\n'
    )
    served = await start("run")
    await served.says("Stream live", times=2)
    await served.says("Stream first data")
    status = await start("status")
    await status.says("stream top: live, connected, healthy")
    recorded = (await status.says("recorded in")).split("recorded in ")[1].partition(":")[0]
    assert await status.end() == 0
    address = (await served.says("/metrics")).partition("http://")[2].split()[0].rstrip('"')
    async with aiohttp.ClientSession() as http, http.get(f"http://{address}") as answer:
        numbers = await answer.text()
    assert 'keepline_stream_live{stream="top.market"} 1' in numbers
    assert 'keepline_stream_last_data_timestamp_seconds{stream="top.market"}' in numbers
    assert await served.end(signal.SIGTERM) == 0
    replay = await start("stream", "replay", recorded, "--speed", "max", "--only", "quotes")
    assert await replay.end() == 0
    assert f"quote  instrument={CONTRACT}" in replay.said[0]
    assert await venue.end(signal.SIGTERM) == 0


def test_a_reader_that_has_enough_ends_it_quietly(
    recorded: Path, keepline: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(stream_module, "write", gone)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    for arguments in (("watch", "top"), ("replay", str(recorded))):
        assert keepline("stream", *arguments).code == 1


def test_a_terminal_gets_a_line_that_changes(
    recorded: Path, keepline: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(stream_module, "_LOOK_SECONDS", 0.01)
    answer = keepline("stream", "replay", str(recorded), "--speed", "0.5")
    assert "playing" in answer.err
    assert "messages  20" in answer.err


def test_a_pipe_gets_a_line_now_and_then(
    market: Place, keepline: Command, hour: Hour, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = stream_module.say

    def said(words: str) -> None:
        say(words)
        hour.tells("line" if words.startswith("recording") and words.endswith("live") else "words")

    monkeypatch.setattr(stream_module, "say", said)
    monkeypatch.setattr(stream_module, "_LINE_SECONDS", 0.01)
    hour.ends_after(line=1)
    answer = keepline("stream", "record", "top", "--out", "c.klrec.gz", "--for", "3600")
    assert re.search(r"^recording top  \d s  [\d,]+ frames  live$", answer.err, re.MULTILINE)
