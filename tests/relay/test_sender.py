"""Pushing to bots of all kinds over real sockets."""

import asyncio
import inspect
import json
import logging
import os
import queue
import socket
import subprocess
import sys

import pytest
from tests.relay.conftest import answering

from keepline.errors import ConfigError
from keepline.relay.receiver import TokenReceiver, TokenReceiverConfig
from keepline.relay.sender import Delivery, DeliveryReport, Target, TokenSender
from keepline.telemetry import REGISTRY
from keepline.testing import ManualClock


@pytest.fixture
def receive(tmp_bots):
    """Started receivers."""
    made = []

    def make(name="bot", callback=None, **settings):
        settings.setdefault("unix_socket_path", tmp_bots / f"{name}.sock")
        receiver = TokenReceiver(callback, TokenReceiverConfig(**settings))
        assert receiver.start(), receiver.last_error
        made.append(receiver)
        return receiver

    yield make
    for receiver in made:
        receiver.stop()


PATIENT = 1000.0
"""Seconds of virtual time for one attempt, so that real bytes always come before it is up."""


async def run_down(clock, work):
    """Let virtual time run from one delay to the next until the work is done; attempts take none of it."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await until(lambda: task.done() or delayed(clock))
        if not task.done():
            clock.advance(clock.next_wake)
    return await task


def delayed(clock):
    """Whether the next that is waited for is a delay, not the end of an attempt."""
    return clock.next_wake is not None and clock.next_wake < PATIENT / 2


async def until(condition):
    """Let the loop turn until real input has made the condition true."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


# --- delivery ---


async def test_a_token_reaches_every_receiver(receive, make_token):
    bots = [receive("one"), receive("two")]
    sender = TokenSender([bot.address for bot in bots], credential="schwab")
    report = await sender.send(make_token("tok", generation=9))
    assert report.ok
    assert report.delivered == len(report) == 2
    assert [d.target for d in report] == [bot.address for bot in bots]
    assert {d.attempts for d in report} == {1}
    for bot in bots:
        token = bot.get_latest()
        assert (token.access_token, token.refresh_token, token.generation) == ("tok", "", 9)
        assert token.extra == {"credential": "schwab"}


async def test_the_refresh_token_goes_only_where_it_is_wanted(receive, make_token):
    private, plain = receive("private"), receive("plain")
    sender = TokenSender([Target(private.address, send_refresh_token=True), plain.address])
    assert (await sender.send(make_token(refresh="refresh-secret"))).ok
    assert private.get_latest().refresh_token == "refresh-secret"
    assert plain.get_latest().refresh_token == ""


@pytest.mark.parametrize("reply", [b"OK", b"OK\n", b"OK\r\n"])
async def test_an_old_bot_reads_once_answers_and_closes(make_bot, make_token, reply):
    bot = make_bot(answering(reply))
    report = await TokenSender(bot.path).send(make_token("tok"))
    assert report.ok
    frame = bot.received.get(timeout=20)
    assert frame.endswith(b"\n")
    message = json.loads(frame)
    assert list(message)[:3] == ["access_token", "refresh_token", "expires_at"]
    assert message["access_token"] == "tok"
    assert isinstance(message["expires_at"], int)


async def test_an_old_bot_that_answers_and_keeps_the_connection_is_understood(make_bot, make_token):
    def behave(bot, connection):
        connection.recv(8192)
        connection.sendall(b"OK")
        bot.release.wait(20)

    bot = make_bot(behave)
    assert (await TokenSender(bot.path).send(make_token())).ok
    bot.release.set()


async def test_the_largest_message_goes_in_one_piece_and_a_larger_one_not_at_all(
    make_bot, make_token
):
    bot = make_bot(answering(b"OK"))
    sender = TokenSender(bot.path, credential="c")
    frame = len(json.dumps({"access_token": "", "refresh_token": "", "expires_at": 10**9, "v": 1,
                            "credential": "c", "generation": 1}, separators=(",", ":"))) + 1  # fmt: skip
    assert (await sender.send(make_token("x" * (8192 - frame)))).ok
    assert len(bot.received.get(timeout=20)) == 8192
    report = await sender.send(make_token("x" * (8193 - frame)))
    assert report.failed[0].outcome == "too_large"
    assert report.failed[0].attempts == 0
    assert "8193" in report.failed[0].reason
    assert bot.received.empty()


async def test_the_proof_counts_for_the_size_too(make_token):
    target = Target("/nowhere/x.sock", shared_secret="0123456789abcdef")
    report = await TokenSender(target).send(make_token("x" * 8050))
    assert report.failed[0].outcome == "too_large"


# --- failure ---


async def test_an_absent_bot_is_tried_three_times_with_doubling_delays(tmp_bots, make_token):
    clock = ManualClock()
    sender = TokenSender(
        tmp_bots / "none.sock", attempts=3, retry_delay=5.0, timeout=PATIENT, clock=clock
    )
    report = await run_down(clock, sender.send(make_token()))
    (delivery,) = report
    assert (delivery.outcome, delivery.attempts) == ("unreachable", 3)
    assert "does not run" in delivery.reason
    assert delivery.seconds == pytest.approx(5.0 + 10.0)
    assert not report.ok


async def test_the_delays_are_spread(tmp_bots, make_token):
    clock = ManualClock(chance=0.0)
    sender = TokenSender(
        tmp_bots / "none.sock", attempts=3, retry_delay=5.0, timeout=PATIENT, clock=clock
    )
    (delivery,) = await run_down(clock, sender.send(make_token()))
    assert delivery.seconds == pytest.approx(0.9 * 15.0)


@pytest.mark.parametrize("leave", ["nothing", "no directory", "dead socket"])
async def test_why_a_bot_cannot_be_reached_is_said(tmp_bots, make_token, leave):
    path = tmp_bots / "bot.sock"
    if leave == "no directory":
        path = tmp_bots / "none" / "bot.sock"
    if leave == "dead socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    (delivery,) = await TokenSender(path, attempts=1).send(make_token())
    assert delivery.outcome == "unreachable"
    expected = "nobody listens" if leave == "dead socket" else "does not run"
    assert expected in delivery.reason


async def test_a_bot_that_comes_late_gets_it_at_the_next_attempt(tmp_bots, receive, make_token):
    clock = ManualClock()
    sender = TokenSender(tmp_bots / "late.sock", timeout=PATIENT, clock=clock)
    task = asyncio.ensure_future(sender.send(make_token("tok")))
    await until(lambda: delayed(clock))
    late = receive("late")
    clock.advance(5.0)
    (delivery,) = await task
    assert (delivery.outcome, delivery.attempts) == ("delivered", 2)
    assert late.get_latest_token() == "tok"


async def test_a_silent_bot_delays_no_other(receive, make_bot, make_token):
    delivered = REGISTRY.counter("relay_deliveries_total", "", "outcome")
    before = delivered.value("delivered")
    silent = make_bot(lambda bot, connection: bot.release.wait(20), "silent")
    quick = receive("quick")
    clock = ManualClock()
    sender = TokenSender([silent.path, quick.address], timeout=5.0, attempts=1, clock=clock)
    task = asyncio.ensure_future(sender.send(make_token()))
    while delivered.value("delivered") == before:  # noqa: ASYNC110 - a counter has no event
        await asyncio.sleep(0)  # the manual clock stands still: the silent one is still waited for
    assert not task.done()
    clock.advance(5.0)
    outcomes = {d.target: d for d in await task}
    assert outcomes[quick.address].ok
    assert outcomes[f"unix:{silent.path}"].outcome == "unreachable"
    assert "5 s" in outcomes[f"unix:{silent.path}"].reason


@pytest.mark.parametrize(
    ("reply", "outcome", "attempts", "words"),
    [
        (b"ERR stale generation 1 is older\n", "refused", 1, "stale: generation"),
        (b"ERR busy too many\n", "refused", 2, "busy"),
        (b"ERR\n", "refused", 2, "without a reason"),
        (b"ERR database down\n", "refused", 2, "database: down"),
        (b"WHAT\n", "refused", 2, "neither OK nor ERR"),
        (b"", "unreachable", 2, "without an answer"),
        (b'{"nonce":"0123456789abcdef"}\n', "refused", 1, "shared secret"),
    ],
)
async def test_refusals_are_told_apart(make_bot, make_token, reply, outcome, attempts, words):
    clock = ManualClock()
    bot = make_bot(answering(reply))
    sender = TokenSender(bot.path, attempts=2, timeout=PATIENT, clock=clock)
    (delivery,) = await run_down(clock, sender.send(make_token()))
    assert (delivery.outcome, delivery.attempts) == (outcome, attempts)
    assert words in delivery.reason


async def test_no_secret_reaches_a_report_or_the_log(make_bot, make_token, caplog):
    caplog.set_level(logging.DEBUG, "keepline.relay")
    bot = make_bot(lambda bot, connection: connection.sendall(b"ERR no " + connection.recv(8192)))
    target = Target(bot.path, send_refresh_token=True)
    report = await TokenSender(target, attempts=1).send(make_token("secret-a", refresh="secret-r"))
    records = [str(vars(record)) for record in caplog.records]
    assert "redacted" in report.failed[0].reason
    assert "secret-" not in repr(report) + caplog.text + "".join(records)
    assert "Token not delivered" in caplog.text


async def test_a_newer_token_takes_the_place_of_one_that_is_still_tried(
    tmp_bots, receive, make_token
):
    clock = ManualClock()
    sender = TokenSender(tmp_bots / "late.sock", timeout=PATIENT, clock=clock)
    old = asyncio.ensure_future(sender.send(make_token("old", generation=1)))
    await until(lambda: delayed(clock))
    bot = receive("late")
    assert (await sender.send(make_token("new", generation=2))).ok
    clock.advance(5.0)
    (delivery,) = await old
    assert (delivery.outcome, delivery.attempts) == ("superseded", 1)
    assert bot.get_latest_token() == "new"


async def test_deliveries_are_counted_by_outcome(receive, tmp_bots, make_token):
    counter = REGISTRY.counter("relay_deliveries_total", "", "outcome")
    before = counter.value("delivered"), counter.value("unreachable")
    bot = receive()
    await TokenSender([bot.address, tmp_bots / "none.sock"], attempts=1).send(make_token())
    assert counter.value("delivered") == before[0] + 1
    assert counter.value("unreachable") == before[1] + 1


# --- connections ---


async def test_with_async_with_many_sends_share_a_connection(receive, make_token):
    bot = receive()
    async with TokenSender(bot.address) as sender:
        for generation in range(1, 6):
            assert (await sender.send(make_token(f"t{generation}", generation=generation))).ok
        assert bot.get_stats()["connections"] == 1
        both = await asyncio.gather(
            sender.send(make_token("t6", generation=6)), sender.send(make_token("t7", generation=7))
        )
        assert all(report.ok or report.failed[0].outcome == "superseded" for report in both)
    assert bot.get_latest_token() == "t7"
    assert (await sender.send(make_token("t8", generation=8))).ok


async def test_a_kept_connection_that_the_bot_closed_costs_no_attempt(receive, make_token):
    bot = receive()
    async with TokenSender(bot.address, attempts=1) as sender:
        assert (await sender.send(make_token(generation=1))).ok
        bot.stop()
        assert bot.start()
        (delivery,) = await sender.send(make_token("t2", generation=2))
        assert (delivery.outcome, delivery.attempts) == ("delivered", 1)


async def test_a_kept_connection_that_dies_while_it_is_used_costs_no_attempt(make_bot, make_token):
    def behave(bot, connection):
        connection.recv(8192)
        connection.sendall(b"OK\n")
        bot.received.put(connection.recv(8192))  # the next message is read and never answered

    bot = make_bot(behave)
    async with TokenSender(bot.path, attempts=1) as sender:
        assert (await sender.send(make_token(generation=1))).ok
        assert (await sender.send(make_token(generation=2))).ok
    assert bot.connections == 2


async def test_an_old_bot_is_served_by_a_keeping_sender_too(make_bot, make_token):
    bot = make_bot(answering(b"OK"))
    async with TokenSender(bot.path, attempts=1) as sender:
        for generation in (1, 2, 3):
            assert (await sender.send(make_token(generation=generation))).ok


def test_plain_code_sends_without_a_loop(receive, make_token):
    bot = receive()
    report = TokenSender(bot.address).send_sync(make_token("tok"))
    assert report.ok
    assert bot.get_latest_token() == "tok"


async def test_send_sync_works_inside_a_running_loop_and_beside_kept_connections(
    receive, make_token
):
    bot = receive()
    async with TokenSender(bot.address) as sender:
        assert (await sender.send(make_token("t1", generation=1))).ok
        assert sender.send_sync(make_token("t2", generation=2)).ok
        assert (await sender.send(make_token("t3", generation=3))).ok
    assert bot.get_latest_token() == "t3"


async def test_a_full_queue_of_a_unix_socket_is_waited_for(tmp_bots, make_token):
    path = tmp_bots / "full.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        fillers = []
        while True:
            filler = socket.socket(socket.AF_UNIX)
            filler.setblocking(False)
            fillers.append(filler)
            try:
                filler.connect(str(path))
            except BlockingIOError:
                break
        clock = ManualClock()
        task = asyncio.ensure_future(
            TokenSender(path, attempts=1, timeout=PATIENT, clock=clock).send(make_token("t"))
        )
        await until(lambda: delayed(clock))
        for filler in fillers:
            filler.close()
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        for _ in fillers[:-1]:
            (await loop.sock_accept(listener))[0].close()
        clock.advance(0.005)
        connection, _ = await loop.sock_accept(listener)
        assert b'"t"' in await loop.sock_recv(connection, 8192)
        await loop.sock_sendall(connection, b"OK\n")
        assert (await task).ok
        connection.close()


# --- trust ---


async def test_a_shared_secret_is_proven(receive, make_token):
    bot = receive(shared_secret="0123456789abcdef")
    good = Target(bot.address, shared_secret=b"0123456789abcdef")
    async with TokenSender(good) as sender:
        for generation in (1, 2, 3):
            assert (await sender.send(make_token(generation=generation))).ok
    wrong = Target(bot.address, shared_secret="fedcba9876543210")
    (delivery,) = await TokenSender([wrong]).send(make_token(generation=4))
    assert (delivery.outcome, delivery.attempts) == ("refused", 1)
    assert "bad_mac" in delivery.reason
    (delivery,) = await TokenSender([bot.address]).send(make_token(generation=4))
    assert "shared secret" in delivery.reason
    assert bot.get_latest().generation == 3


async def test_a_bot_without_the_secret_gets_no_token(make_bot, make_token):
    def behave(bot, connection):
        connection.sendall(b"OK\n")
        bot.received.put(connection.recv(8192))

    bot = make_bot(behave)
    target = Target(bot.path, shared_secret="0123456789abcdef")
    (delivery,) = await TokenSender(target).send(make_token("tok"))
    assert delivery.outcome == "refused"
    assert bot.received.get(timeout=20) == b""


async def test_a_bot_that_never_greets_is_given_up_after_the_timeout(make_bot, make_token):
    clock = ManualClock()
    bot = make_bot(lambda bot, connection: bot.release.wait(20))
    target = Target(bot.path, shared_secret="0123456789abcdef")
    sender = TokenSender(target, attempts=1, timeout=5.0, clock=clock)
    task = asyncio.ensure_future(sender.send(make_token()))
    await until(lambda: bot.connections)
    clock.advance(5.0)
    (delivery,) = await task
    assert delivery.outcome == "unreachable"


async def test_no_token_goes_to_a_socket_in_a_directory_that_strangers_can_write(
    make_bot, make_token, tmp_bots
):
    bot = make_bot(answering(b"OK"))
    tmp_bots.chmod(0o777)
    (delivery,) = await TokenSender(bot.path).send(make_token())
    tmp_bots.chmod(0o700)
    assert (delivery.outcome, delivery.attempts) == ("unreachable", 1)
    assert "strangers" in delivery.reason
    assert bot.connections == 0


async def test_in_a_sticky_directory_our_own_socket_is_fine(make_bot, make_token, tmp_bots):
    bot = make_bot(answering(b"OK"))
    tmp_bots.chmod(0o1777)
    assert (await TokenSender(bot.path).send(make_token())).ok


async def test_in_a_sticky_directory_no_token_goes_to_a_strangers_socket(
    make_bot, make_token, tmp_bots, monkeypatch
):
    bot = make_bot(answering(b"OK"))
    stranger = pretend_stranger(bot.path, monkeypatch)
    tmp_bots.chmod(0o1777)
    (delivery,) = await TokenSender(bot.path).send(make_token())
    assert (delivery.outcome, delivery.attempts) == ("unreachable", 1)
    assert f"belongs to user {stranger}" in delivery.reason
    assert bot.connections == 0
    allowed = Target(bot.path, allowed_uids=(stranger,))
    assert (await TokenSender(allowed).send(make_token())).ok


def pretend_stranger(path, monkeypatch):
    """Make the socket somebody else's: really as root, and by being somebody else otherwise."""
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
        return 12345
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    return owner


async def test_no_token_goes_to_a_listener_of_another_user(make_bot, make_token, monkeypatch):
    from keepline.relay import channel
    from keepline.relay.peer import Peer

    bot = make_bot(lambda bot, connection: bot.received.put(connection.recv(8192)))
    monkeypatch.setattr(channel, "peer_of", lambda sock, pidfd: Peer(1, 12345, 12345))
    (delivery,) = await TokenSender(bot.path).send(make_token())
    assert (delivery.outcome, delivery.attempts) == ("unreachable", 1)
    assert "user 12345 listens" in delivery.reason
    assert bot.received.get(timeout=20) == b""


async def test_what_is_no_socket_gets_no_token(tmp_bots, make_token):
    path = tmp_bots / "file.sock"
    path.touch()
    (delivery,) = await TokenSender(path).send(make_token())
    assert "not a socket" in delivery.reason
    assert delivery.attempts == 1


# --- settings ---


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Target("nothing"), "is no address"),
        (lambda: Target("tcp://127.0.0.1:0"), "no port"),
        (lambda: Target("tls://bot:9999"), "needs certificates: ours, its key"),
        (lambda: Target("tcp://192.0.2.1:9999"), "allow_plain_tcp_beyond_loopback"),
        (lambda: Target("/a/b.sock", shared_secret=""), "empty"),
        (lambda: TokenSender("/a/b.sock", attempts=0), "attempts"),
        (lambda: TokenSender("/a/b.sock", attempts="3"), "attempts"),
        (lambda: TokenSender("/a/b.sock", timeout="5"), "timeout"),
        (lambda: TokenSender("/a/b.sock", timeout=0), "timeout"),
        (lambda: TokenSender("/a/b.sock", retry_delay=-1), "retry_delay"),
        (lambda: TokenSender("/a/b.sock", retry_delay=float("inf")), "retry_delay"),
        (lambda: Target("~nobody-of-this-name/b.sock"), "no home directory"),
        (lambda: TokenSender("/" + "x" * 108), "107"),
    ],
)
def test_a_setting_that_cannot_work_is_said_at_once(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_plain_tcp_to_another_machine_in_plain_words():
    target = Target("tcp://192.0.2.1:9999", allow_plain_tcp_beyond_loopback=True, name="far")
    assert target.name == "far"


def test_neither_target_nor_sender_shows_a_secret():
    target = Target("/a/b.sock", shared_secret="0123456789abcdef")
    assert "0123456789abcdef" not in repr(target) + repr(TokenSender(target))


def test_a_short_secret_is_used_with_a_warning(caplog):
    Target("/a/b.sock", shared_secret="short")
    assert "can be guessed" in caplog.text


def test_reports_read_like_lists():
    report = DeliveryReport((Delivery("a", "delivered", 1), Delivery("b", "refused", 2, "no")))
    assert [d.target for d in report.failed] == ["b"]
    assert (len(report), report.delivered, report.ok) == (2, 1, False)


def test_two_credentials_and_two_receivers_in_one_process(receive, make_token):
    schwab, projectx = queue.Queue(), queue.Queue()
    one, two = receive("schwab", schwab.put), receive("projectx", projectx.put)
    TokenSender(one.address, credential="schwab").send_sync(make_token("s", generation=10))
    TokenSender(two.address, credential="projectx").send_sync(make_token("p", generation=2))
    assert (schwab.get(timeout=20), projectx.get(timeout=20)) == ("s", "p")


def test_a_sender_in_another_process(receive):
    bot = receive()
    code = (
        "import sys; from keepline import Token, TokenSender;"
        "print(TokenSender(sys.argv[1]).send_sync(Token('from-afar', generation=3)).ok)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bot.address], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
    assert done.stderr == ""
    assert bot.get_latest_token() == "from-afar"
    assert bot.history()[0].pid != os.getpid()


async def test_what_a_bot_repeats_of_the_tokens_is_not_told_on(make_bot, make_token, caplog):
    bot = make_bot(answering(b"ERR bad_text no tok-and-more but refresh-secret-7"))
    token = make_token("tok-and-more", refresh="refresh-secret-7")
    (delivery,) = await TokenSender(bot.path).send(token)
    assert delivery.reason == "bad_text: no [redacted] but [redacted]"
    assert "and-more" not in caplog.text
    assert "secret-7" not in caplog.text


async def test_a_token_of_a_letter_does_not_garble_the_reason(make_bot, make_token):
    bot = make_bot(answering(b"ERR expired the token expired"))
    (delivery,) = await TokenSender(bot.path).send(make_token("x", refresh="r"))
    assert delivery.reason == "expired: the token expired"


async def test_a_bot_that_asks_for_no_proof_is_given_up_with_a_hint(make_bot, make_token):
    clock = ManualClock()
    bot = make_bot(lambda bot, connection: bot.release.wait(20))
    target = Target(bot.path, shared_secret="a secret of sixteen")
    sending = asyncio.ensure_future(TokenSender(target, attempts=1, clock=clock).send(make_token()))
    await until(lambda: bot.connections)
    clock.advance(5.0)
    (delivery,) = await sending
    assert delivery.reason == "no answer within 5 s; does it ask for the shared secret?"


async def test_a_connection_that_breaks_says_how(make_bot, make_token):
    def reset(bot, connection):
        connection.recv(1)  # what was not read makes the kernel say so

    (delivery,) = await TokenSender(make_bot(reset).path, attempts=1).send(make_token())
    assert delivery.outcome == "unreachable"
    assert delivery.reason == "the connection broke: Connection reset by peer"


async def test_an_ok_before_the_break_is_an_ok(make_bot, make_token):
    def answer_and_reset(bot, connection):
        connection.recv(1)
        connection.sendall(b"OK")

    assert (await TokenSender(make_bot(answer_and_reset).path).send(make_token())).ok


def test_the_documented_defaults():
    given = inspect.signature(TokenSender).parameters
    assert {name: given[name].default for name in ("attempts", "retry_delay", "timeout")} == {
        "attempts": 3,
        "retry_delay": 5.0,
        "timeout": 5.0,
    }
    assert not Target("/a/b.sock").send_refresh_token
