"""`keepline hub publish|tail` against the hub itself: its tokens, its channels, its words."""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.cli.conftest import Command, Program
from tests.hub.hub_server import RunningHub, running_hub, token

from keepline.daemon.hubtalk import hub_url
from keepline.portal import Portal

LINE = '{"channel":"%s","type":"t","data":{"n":%d}}\n'


class Hub:
    """A hub on a loop of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.portal = Portal(name="keepline-portal-hub")
        self.stack = AsyncExitStack()
        self.running: RunningHub

    def start(self, **config: object) -> None:
        entering = self.stack.enter_async_context(running_hub(self.directory, **config))

        async def enter() -> RunningHub:
            return await entering

        self.running = self.portal.call(enter)

    def stop(self) -> None:
        self.portal.call(self.stack.aclose)

    @property
    def url(self) -> str:
        return self.running.hub.url

    def history(self, channel: str) -> list[dict]:
        answer = self.portal.call(self.running.ask, "GET", f"/api/history/{channel}?limit=1000")
        return list(answer[1]["messages"])

    def numbers(self, channel: str) -> list[int]:
        return [message["data"]["n"] for message in self.history(channel)]


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that is not started yet; the environment holds a token that may publish."""
    hub = Hub(tmp_path)
    monkeypatch.setenv("KEEPLINE_HUB_TOKEN", token("svc"))
    yield hub
    hub.stop()
    hub.portal.stop()


@pytest.fixture
def hub(stopped: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stopped.start()
    monkeypatch.setenv("KEEPLINE_HUB_URL", stopped.url)
    return stopped


# --- publish ---


def test_lines_are_published_in_order_and_each_answer_is_the_hubs(
    keepline: Command, hub: Hub
) -> None:
    answer = keepline("hub", "publish", stdin="".join(LINE % ("alerts", n) for n in range(1200)))
    assert answer.code == 0, answer.err
    assert answer.out.splitlines() == ["accepted    1200", "duplicates  0", "refused     0"]
    assert hub.numbers("alerts") == list(range(200, 1200))


def test_a_known_id_is_a_duplicate_and_is_published_once(keepline: Command, hub: Hub) -> None:
    options = ["--channel", "alerts", "--type", "alert", "--id", "i", "--json"]
    answers = [keepline("hub", "publish", *options, stdin='{"n": 1}').json for _ in range(2)]
    assert [answer["duplicates"] for answer in answers] == [0, 1]
    assert hub.numbers("alerts") == [1]


def test_a_bad_line_is_named_with_the_hubs_words_and_the_others_arrive(
    keepline: Command, hub: Hub
) -> None:
    lines = [LINE % ("alerts", 1), "\n", "nonsense\n", LINE % ("nowhere", 2)]
    lines += ['{"channel":"alerts","type":"t","data":"%s"}\n' % ("x" * 300_000)]
    lines += [LINE % ("alerts", 3)]
    answer = keepline("hub", "publish", stdin="".join(lines))
    assert answer.code == 1
    assert hub.numbers("alerts") == [1, 3]
    assert "line 3 refused: this line is not a JSON object (bad_json)" in answer.err
    assert "line 4 refused: there is no such channel (unknown_channel)" in answer.err
    assert "line 5 refused: " in answer.err
    assert "(too_large)" in answer.err


def test_more_than_a_request_may_hold_arrives_all_the_same(
    keepline: Command, stopped: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped.start(max_publish_bytes=2048)
    monkeypatch.setenv("KEEPLINE_HUB_URL", stopped.url)
    large = '{"channel":"alerts","type":"t","data":"%s"}\n' % ("x" * 3000)
    lines = [*(LINE % ("alerts", n) for n in range(100)), large, LINE % ("alerts", 100)]
    answer = keepline("hub", "publish", stdin="".join(lines))
    assert answer.code == 1
    assert stopped.numbers("alerts") == list(range(101))
    assert "line 101 refused: at most 2048 bytes are taken here (too_large)" in answer.err


@pytest.mark.parametrize(
    ("user", "claims", "code", "words"),
    [
        ("svc", {"iat": 1, "exp": 2}, 3, "answered 401: the token has expired"),
        ("svc", {"aud": "others"}, 3, "answered 401: the token is meant for somebody else"),
        ("vic", {}, 1, "line 1 refused: this role may not publish there (forbidden)"),
    ],
)
def test_a_token_that_may_not_is_told_why(
    keepline: Command, hub: Hub, monkeypatch, user: str, claims: dict, code: int, words: str
) -> None:
    bad = token(user, **claims)
    monkeypatch.setenv("KEEPLINE_HUB_TOKEN", bad)
    answer = keepline("hub", "publish", stdin=LINE % ("alerts", 1))
    assert (answer.code, words in answer.err) == (code, True), answer.err
    assert bad.split(".")[2] not in answer.err + answer.out
    assert hub.numbers("alerts") == []


# --- where the hub is ---


def test_the_configuration_says_where_the_hub_is(
    keepline: Command, hub: Hub, monkeypatch: pytest.MonkeyPatch, clean_environment: Path
) -> None:
    monkeypatch.delenv("KEEPLINE_HUB_URL")
    file = clean_environment / "desk.toml"
    file.write_text(f'[hub]\nhost = "0.0.0.0"\nport = {hub.running.hub.port}\n')
    assert keepline("hub", "publish", "-c", str(file), stdin=LINE % ("alerts", 1)).code == 0
    monkeypatch.setenv("KEEPLINE_CONFIG", str(file))
    assert keepline("hub", "publish", stdin=LINE % ("alerts", 2)).code == 0
    monkeypatch.setenv("KEEPLINE_HUB_TOKEN", token("tom"))
    answer = keepline("hub", "tail", "alerts", "--count", "2", "--json")
    assert [json.loads(line)["data"]["n"] for line in answer.out.splitlines()] == [1, 2]


def test_an_address_that_is_given_wins_and_no_configuration_is_read(
    keepline: Command, hub: Hub, monkeypatch: pytest.MonkeyPatch, clean_environment: Path
) -> None:
    monkeypatch.chdir(clean_environment)
    Path("keepline.toml").write_text("[hub]\nprot = 1\n")
    assert keepline("hub", "publish", stdin=LINE % ("alerts", 1)).code == 0
    monkeypatch.delenv("KEEPLINE_HUB_URL")
    assert keepline("hub", "publish", "--url", hub.url, stdin=LINE % ("alerts", 2)).code == 0
    broken = keepline("hub", "publish", stdin=LINE % ("alerts", 3))
    assert broken.code == 2
    assert "hub.prot" in broken.err
    assert "port" in broken.err


def test_a_port_that_nobody_knows_is_said(
    keepline: Command, monkeypatch: pytest.MonkeyPatch, clean_environment: Path
) -> None:
    monkeypatch.chdir(clean_environment)
    Path("keepline.toml").write_text("[hub]\nport = 0\n")
    for verb in ("publish", "tail"):
        answer = keepline("hub", verb, stdin="{}")
        assert answer.code == 2
        assert "hub.port" in answer.err
        assert "--url URL" in answer.err


@pytest.mark.parametrize(
    ("section", "url"),
    [
        ("", "http://127.0.0.1:7999"),
        ('host = "::"\nport = 1', "http://127.0.0.1:1"),
        ('host = "::1"', "http://[::1]:7999"),
        ('tls_certificate = "c.pem"\ntls_key = "k.pem"', "https://127.0.0.1:7999"),
    ],
)
def test_where_a_configured_hub_is_found(clean_environment: Path, section: str, url: str) -> None:
    file = clean_environment / "desk.toml"
    file.write_text(f"[hub]\n{section}\n")
    assert hub_url("", file) == url


# --- tail ---


def test_a_line_without_a_key_has_no_hole_where_it_would_be(
    keepline: Command, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keepline("hub", "publish", stdin=LINE % ("alerts", 1)).code == 0
    monkeypatch.setenv("KEEPLINE_HUB_TOKEN", token("tom"))
    answer = keepline("hub", "tail", "alerts", "--count", "1")
    assert answer.out.endswith(' alerts 1 t {"n": 1}\n')


def test_each_channel_is_shown_as_the_hub_has_it(
    keepline: Command, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, key in ((1, "LP1"), (2, "LP2"), (3, "LP1")):
        options = ["--channel", "lp-performance", "--type", "lp-metrics", "--key", key]
        assert keepline("hub", "publish", *options, stdin=f'{{"n": {n}}}').code == 0
    monkeypatch.setenv("KEEPLINE_HUB_TOKEN", token("vic"))
    answer = keepline("hub", "tail", "lp-performance", "--count", "2", "--json")
    shown = [json.loads(line) for line in answer.out.splitlines()]
    assert sorted((each["key"], each["data"]["n"], each["snapshot"]) for each in shown) == [
        ("LP1", 3, True),
        ("LP2", 2, True),
    ]
    only = keepline("hub", "tail", "lp-performance", "--key", "LP2", "--count", "1")
    assert only.out.endswith(' lp-performance 2 lp-metrics LP2 {"n": 2}\n')


@pytest.mark.parametrize(
    ("user", "channels"),
    [("vic", ["alerts", "lp-performance"]), ("tom", ["alerts", "exposure-updates"])],
)
def test_without_a_name_it_follows_what_the_role_may_and_nothing_is_refused(
    keepline: Command, hub: Hub, monkeypatch: pytest.MonkeyPatch, user: str, channels: list[str]
) -> None:
    lines = [LINE % (channel, 1) for channel in ("alerts", "lp-performance", "exposure-updates")]
    assert keepline("hub", "publish", stdin="".join(lines)).code == 0
    monkeypatch.setenv("KEEPLINE_HUB_TOKEN", token(user))
    answer = keepline("hub", "tail", "--count", "2", "--json")
    shown = sorted(json.loads(line)["channel"] for line in answer.out.splitlines())
    assert (answer.code, answer.err, shown) == (0, "", channels)


@pytest.mark.parametrize(
    ("user", "claims", "arguments", "code", "words"),
    [
        ("tom", {"iat": 1, "exp": 2}, ["alerts"], 3, "answered 401"),
        ("tom", {"iat": 1, "exp": 2}, [], 3, "the token has expired"),
        ("svc", {}, [], 1, "may follow no channel"),
        ("vic", {}, ["system"], 1, "may not"),
        ("tom", {}, ["nowhere"], 1, "there is no channel of this name"),
    ],
)
def test_a_no_of_the_hub_ends_it_with_its_words(
    keepline: Command,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    user: str,
    claims: dict,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.setenv("KEEPLINE_HUB_TOKEN", token(user, **claims))
    answer = keepline("hub", "tail", *arguments)
    assert (answer.code, words in answer.err) == (code, True), answer.err


async def test_it_goes_on_where_it_was_when_the_hub_comes_back(clean_environment: Path) -> None:
    async with running_hub(clean_environment) as first:
        port = first.hub.port
        await first.hub.publish_durable("alerts", "alert", {"n": 1})
        program = await Program.start(
            *("hub", "tail", "alerts", "--url", first.hub.url),
            cwd=clean_environment,
            KEEPLINE_HUB_TOKEN=token("tom"),
        )
        await program.says('{"n": 1}')
    await program.says("note: the hub restarts")
    async with running_hub(clean_environment, port=port) as second:
        for n in (2, 3):
            await second.hub.publish_durable("alerts", "alert", {"n": n})
        await program.says('{"n": 3}')
        assert await asyncio.wait_for(program.end(signal.SIGINT), 30) == 130
    said = "\n".join(program.said)
    assert [said.count(f'{{"n": {n}}}') for n in (1, 2, 3)] == [1, 1, 1]
    assert "missed" not in said
