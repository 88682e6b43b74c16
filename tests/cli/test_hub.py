"""`keepline hub publish|tail` against a real server, in this process and as a program."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from tests.cli.conftest import Command, Program
from tests.hub.hub_double import HubDouble, cut, status

from keepline.portal import Portal

LINE = '{"channel":"alerts","type":"alert","data":{"n":%d}}\n'


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    """A hub on a loop of its own; the environment names it and a good token."""
    portal = Portal(name="keepline-portal-hub")
    double = HubDouble()
    portal.call(double.start)
    monkeypatch.setenv("KEEPLINE_HUB_URL", double.url)
    monkeypatch.setenv("KEEPLINE_HUB_TOKEN", "good")
    yield double
    portal.call(double.stop)
    portal.stop()


def sends(*messages: dict, code: int | None = None):
    async def answer(hub, socket, asked) -> None:
        await socket.send_str(json.dumps(messages))
        if code is not None:
            await socket.close(code=code)

    return answer


def alert(offset: int, **more) -> dict:
    return {
        "type": "alert",
        "channel": "alerts",
        "offset": offset,
        "epoch": "e",
        "timestamp": "2026-01-05T14:30:00.000Z",
        "data": {"title": f"Nr {offset}"},
        **more,
    }


# --- publish ---


def test_lines_of_json_are_published_in_order(keepline: Command, hub: HubDouble) -> None:
    answer = keepline("hub", "publish", stdin="".join(LINE % n for n in range(1200)))
    assert answer.code == 0, answer.err
    assert hub.data == [{"n": n} for n in range(1200)]
    assert answer.out.splitlines() == ["accepted    1200", "duplicates  0", "refused     0"]
    assert all(draft.id for draft in hub.published)


def test_one_message_takes_its_data_from_standard_input(keepline: Command, hub: HubDouble) -> None:
    options = ["--channel", "lp-performance", "--type", "lp-metrics", "--key", "LP1", "--id", "i"]
    answer = keepline("hub", "publish", *options, "--json", stdin='{\n "uptime": 99\n}\n')
    assert answer.code == 0, answer.err
    assert answer.json == {"accepted": 1, "duplicates": 0, "refused": []}
    (draft,) = hub.published
    assert (draft.channel, draft.type, draft.key, draft.id) == (
        *("lp-performance", "lp-metrics"),
        *("LP1", "i"),
    )
    assert hub.data == [{"uptime": 99}]
    assert keepline("hub", "publish", *options, "--json", stdin="{}").json["duplicates"] == 1


def test_a_bad_line_is_named_by_its_number_and_the_others_arrive(
    keepline: Command, hub: HubDouble
) -> None:
    hub.refuse.add("secret")
    lines = [LINE % 1, "\n", "nonsense\n", LINE.replace("alerts", "secret") % 2, LINE % 3]
    answer = keepline("hub", "publish", stdin="".join(lines))
    assert answer.code == 1
    assert [each["n"] for each in hub.data] == [1, 3]
    assert "line 3 refused: this line is not a JSON object (bad_json)" in answer.err
    assert "line 4 refused: this role may not do that (forbidden)" in answer.err
    assert keepline("hub", "publish", stdin="nonsense").code == 1


def test_a_lost_answer_publishes_nothing_twice(keepline: Command, hub: HubDouble) -> None:
    hub.after.append(cut)
    answer = keepline("hub", "publish", stdin=LINE % 1)
    assert (answer.code, len(hub.published), len(hub.requests)) == (0, 1, 2)
    assert len({key for key, _ in hub.requests}) == 1


def test_a_token_comes_from_a_file_the_input_or_the_environment_never_an_argument(
    keepline: Command, hub: HubDouble, monkeypatch: pytest.MonkeyPatch, clean_environment: Path
) -> None:
    monkeypatch.delenv("KEEPLINE_HUB_TOKEN")
    file = clean_environment / "token"
    file.write_text("good\n")
    file.chmod(0o600)
    assert keepline("hub", "publish", "--token-file", str(file), stdin=LINE % 1).code == 0
    assert keepline("hub", "publish", "--token-stdin", stdin="good\n" + LINE % 2).code == 0
    assert len(hub.published) == 2
    refused = keepline("hub", "publish", stdin=LINE % 3)
    assert refused.code == 2
    assert "--token-file FILE, --token-stdin, or KEEPLINE_HUB_TOKEN" in refused.err
    both = keepline("hub", "publish", "--token-stdin", "--token-file", str(file), stdin="good\n")
    assert (both.code, "exclude each other" in both.err) == (2, True)
    assert keepline("hub", "publish", "--token-stdin", stdin="").code == 2
    file.chmod(0o644)
    loose = keepline("hub", "publish", "--token-file", str(file), stdin=LINE % 1)
    assert (loose.code, "chmod 600" in loose.err) == (1, True)


@pytest.mark.parametrize(
    ("number", "code"), [(401, 3), (403, 1), (404, 1), (503, 4), (429, 4)], ids=str
)
def test_the_exit_code_says_what_kind_of_no_it_was(
    keepline: Command, hub: HubDouble, number: int, code: int
) -> None:
    hub.before += [status(number, **{"Retry-After": "0"})] * 4
    answer = keepline("hub", "publish", stdin=LINE % 1)
    assert answer.code == code
    assert f"answered {number}" in answer.err
    assert "good" not in answer.err


def test_a_hub_that_is_not_there_is_unreachable(keepline: Command, hub: HubDouble) -> None:
    for verb in (["publish"], ["tail"]):
        answer = keepline("hub", *verb, "--url", "http://127.0.0.1:1", stdin=LINE % 1)
        assert (answer.code, "cannot connect" in answer.err) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        ([], "", "nothing to publish"),
        (["--channel", "alerts"], "{}", "belong together"),
        (["--key", "k"], "{}", "belong together"),
        (["--channel", "alerts", "--type", "alert"], "{", "no JSON"),
        (["--channel", "alerts", "--type", "x" * 200], "{}", "128 characters"),
        (["--url", "ftp://x"], "{}", "http"),
    ],
)
def test_what_cannot_be_published_is_usage(
    keepline: Command, hub: HubDouble, arguments, stdin: str, words: str
) -> None:
    answer = keepline("hub", "publish", *arguments, stdin=stdin)
    assert (answer.code, words in answer.err) == (2, True), answer.err


def test_large_lines_leave_in_several_requests(keepline: Command, hub: HubDouble) -> None:
    line = json.dumps({"channel": "alerts", "type": "alert", "data": "x" * 100_000}) + "\n"
    answer = keepline("hub", "publish", "--json", stdin=line * 12)
    assert (answer.code, answer.json["accepted"]) == (0, 12)
    assert len(hub.requests) > 1
    assert max(len(body) for _, body in hub.requests) < 700_000


def test_a_line_that_spoils_its_batch_is_found_and_the_others_arrive(
    keepline: Command, hub: HubDouble
) -> None:
    async def judge(request: web.Request) -> web.Response | None:
        poisoned = b'"n":5}' in await request.read()
        words = {"error": "too_large", "message": "at most \x1b[1m9 bytes\nare taken"}
        return web.json_response(words, status=413) if poisoned else None

    hub.before += [judge] * 100
    answer = keepline("hub", "publish", stdin="".join(LINE % n for n in range(8)))
    assert answer.code == 1
    assert [each["n"] for each in hub.data] == [0, 1, 2, 3, 4, 6, 7]
    assert "line 6 refused: at most [1m9 bytesare taken (too_large)" in answer.err


async def test_lines_that_come_slowly_are_published_as_they_come(clean_environment: Path) -> None:
    hub = HubDouble()
    await hub.start()
    program = await Program.start(
        *("hub", "publish", "--url", hub.url),
        cwd=clean_environment,
        KEEPLINE_HUB_TOKEN="good",
    )
    assert program.process.stdin is not None
    for number in range(3):
        program.process.stdin.write((LINE % number).encode())
        await program.process.stdin.drain()
        await hub.until(lambda number=number: len(hub.published) == number + 1)
    program.process.stdin.close()
    assert await program.end() == 0
    assert "accepted    3" in program.said
    await hub.stop()


# --- tail ---


def test_messages_are_shown_a_line_each(keepline: Command, hub: HubDouble) -> None:
    hub.on_socket = sends(alert(1), alert(2, key="LP1"))
    answer = keepline("hub", "tail", "alerts", "--count", "2")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines() == [
        '2026-01-05T14:30:00.000Z alerts 1 alert {"title": "Nr 1"}',
        '2026-01-05T14:30:00.000Z alerts 2 alert LP1 {"title": "Nr 2"}',
    ]


def test_json_is_the_message_as_it_came(keepline: Command, hub: HubDouble) -> None:
    hub.on_socket = sends(alert(1))
    answer = keepline("hub", "tail", "alerts", "--count", "1", "--json")
    assert json.loads(answer.out) == alert(1)


def test_it_shows_only_what_was_asked_for_by_channel_type_and_key(
    keepline: Command, hub: HubDouble
) -> None:
    hub.on_socket = sends(
        alert(1, key="A"), alert(2, key="B"), alert(3, key="A", type="x"), alert(4, key="A")
    )
    answer = keepline(
        *("hub", "tail", "alerts", "--type", "alert", "--key", "A", "--count", "2", "--json")
    )
    assert [json.loads(line)["offset"] for line in answer.out.splitlines()] == [1, 4]
    assert hub.asked[0]["channels"] == ["alerts"]


def test_without_a_name_it_follows_what_the_token_may(keepline: Command, hub: HubDouble) -> None:
    hub.on_socket = sends(
        {"type": "error", "channel": "system", "data": {"code": "forbidden", "message": "no"}},
        alert(1),
    )
    answer = keepline("hub", "tail", "--count", "1")
    assert "note: system: no (forbidden)" in answer.err
    assert hub.asked[0]["channels"] == ["alerts", "system"]


@pytest.mark.parametrize(
    ("listing", "words"),
    [
        ({"channels": []}, "may follow no channel"),
        ({"channels": [{"channel": "mine", "may": ["publish"]}]}, "may follow no channel"),
        ({"channels": ["alerts"]}, "not a hub's"),
        ([], "not a hub's"),
    ],
)
def test_a_token_that_may_follow_nothing_is_told_so(
    keepline: Command, hub: HubDouble, listing: object, words: str
) -> None:
    hub.listing = listing
    answer = keepline("hub", "tail")
    assert (answer.code, words in answer.err) == (1, True), answer.err
    assert not hub.sockets


def test_it_ends_after_its_time_without_an_error(keepline: Command, hub: HubDouble) -> None:
    assert keepline("hub", "tail", "alerts", "--for", "0.05").code == 0


@pytest.mark.parametrize(("close", "code"), [(3500, 3), (3503, 1)])
def test_the_exit_code_says_why_the_hub_ended_it(
    keepline: Command, hub: HubDouble, close: int, code: int
) -> None:
    hub.on_socket = sends(alert(1), code=close)
    answer = keepline("hub", "tail", "alerts")
    assert answer.code == code
    assert len(answer.out.splitlines()) == 1


def test_a_refused_token_is_3(
    keepline: Command, hub: HubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEPLINE_HUB_TOKEN", "bad-secret")
    for verb in (["tail"], ["publish"]):
        answer = keepline("hub", *verb, stdin=LINE % 1)
        assert answer.code == 3
        assert "bad-secret" not in answer.err + answer.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
async def test_a_signal_ends_it_after_a_break_too(
    clean_environment: Path, number: signal.Signals, code: int
) -> None:
    hub = HubDouble()
    await hub.start()
    hub.on_socket = sends(alert(1), code=3001)
    program = await Program.start(
        *("hub", "tail", "alerts", "--url", hub.url),
        cwd=clean_environment,
        KEEPLINE_HUB_TOKEN="good",
    )
    await program.says("Nr 1")
    await program.says("note: the hub restarts")
    hub.on_socket = sends(alert(2))
    await program.says("Nr 2")
    assert hub.asked[-1]["resume"] == {"alerts": {"epoch": "e", "offset": 1}}
    assert await asyncio.wait_for(program.end(number), 30) == code
    await hub.stop()
