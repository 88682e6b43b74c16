"""The relay against programs that we did not write: nc, socat, and bots in C."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keepline import Target, Token, TokenReceiver, TokenReceiverConfig, TokenSender

C = Path(__file__).parent / "c"
MESSAGE = json.dumps(
    {
        "access_token": "test_token_abc123",
        "refresh_token": "",
        "expires_at": int(time.time()) + 1800,
    }
).encode()


@pytest.fixture
def program(need, tmp_path):
    """A C program of this folder, compiled with all warnings as errors."""

    def build(name):
        gcc = need("gcc")["gcc"]
        flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1"]
        subprocess.run([gcc, *flags, C / f"{name}.c", "-o", tmp_path / name], check=True)
        return tmp_path / name

    return build


@pytest.fixture
def inbox(clean_environment):
    """A started receiver at the default path."""
    with TokenReceiver() as receiver:
        yield receiver


@pytest.fixture
def tcp_inbox():
    config = TokenReceiverConfig(
        prefer_unix_socket=False, tcp_port=0, allow_unauthenticated_loopback=True
    )
    with TokenReceiver(config=config) as receiver:
        yield receiver, receiver.address.rpartition(":")[2]


def path_of(receiver):
    return str(receiver.config.unix_socket_path)


def run(command, data):
    return subprocess.run(command, input=data, capture_output=True, timeout=30, check=False)


# --- their sender, our receiver ---


def test_echo_into_nc_prints_ok(need, inbox):
    nc = need("nc")["nc"]
    done = run([nc, "-U", path_of(inbox)], b"test_token_abc123\n")
    assert (done.stdout, done.stderr) == (b"OK\n", b"")
    assert inbox.get_latest_token() == "test_token_abc123"


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"test_token_abc123", b"OK"),
        (MESSAGE, b"OK"),
        (MESSAGE + b"\n", b"OK\n"),
        (MESSAGE * 2, b"OKOK"),
    ],
)
def test_nc_with_and_without_a_newline(need, inbox, data, answer):
    nc = need("nc")["nc"]
    assert run([nc, "-U", path_of(inbox)], data).stdout == answer
    assert inbox.get_latest_token() == "test_token_abc123"


def test_nc_that_ends_its_input_at_once(need, inbox):
    nc = need("nc")["nc"]
    assert run([nc, "-N", "-U", path_of(inbox)], b"test_token_abc123").stdout == b"OK"


def test_nc_over_tcp(need, tcp_inbox):
    nc = need("nc")["nc"]
    receiver, port = tcp_inbox
    assert run([nc, "127.0.0.1", port], b"test_token_abc123\n").stdout == b"OK\n"
    assert receiver.get_latest_token() == "test_token_abc123"


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"test_token_abc123\n", b"OK\n"),
        (MESSAGE, b"OK"),
        (b"\n", b"ERR empty "),
        (b"x" * 9000, b"ERR too_large "),
        (b"\xff\xfe\n", b"ERR bad_utf8 "),
        (b'{"access_token":', b"ERR incomplete "),
        (b'{"refresh_token":"r"}\n', b"ERR bad_field "),
    ],
)
def test_socat_is_answered_in_words(need, inbox, data, answer):
    socat = need("socat")["socat"]
    done = run([socat, "-t5", "-", f"UNIX-CONNECT:{path_of(inbox)}"], data)
    assert done.stdout.startswith(answer)
    assert done.stderr == b""


def test_a_c_program_that_sends_json_without_a_newline_and_waits_for_ok(program, inbox):
    done = run([program("waiting_sender"), path_of(inbox)], MESSAGE)
    assert (done.returncode, done.stdout) == (0, b"OK\n")
    assert inbox.get_latest_token() == "test_token_abc123"


def test_a_c_program_that_sends_bare_text_and_waits_for_ok(program, inbox):
    done = run([program("waiting_sender"), path_of(inbox)], b"test_token_abc123")
    assert (done.returncode, done.stdout) == (0, b"OK\n")


def test_a_c_program_hears_why_its_token_was_refused(program, inbox):
    done = run([program("waiting_sender"), path_of(inbox)], b'{"access_token":"a","expires_at":5}')
    assert (done.returncode, done.stdout[:12]) == (1, b"ERR expired ")


def test_a_c_program_of_a_user_who_is_not_allowed_is_turned_away(
    program, clean_environment, tmp_path
):
    sender, path = program("waiting_sender"), clean_environment / "run" / "bot.sock"
    user, allowed = (65534, 0) if os.geteuid() == 0 else (os.geteuid(), os.geteuid() + 1)
    config = TokenReceiverConfig(unix_socket_path=path, allowed_uids=(allowed,))
    with TokenReceiver(config=config) as receiver:
        if (
            os.geteuid() == 0
        ):  # the program really runs as somebody else, whom no file mode keeps out
            open_to_all(path, tmp_path)
        done = subprocess.run(
            [sender, path],
            input=MESSAGE,
            capture_output=True,
            user=user,
            timeout=30,
            check=False,
        )
        assert done.stdout == b"ERR forbidden user %d may not send tokens here\n\n" % user
        assert receiver.get_latest_token() == ""


def open_to_all(path, *more):
    path.chmod(0o666)
    for directory in {*path.parents, *(p for start in more for p in (start, *start.parents))}:
        if directory != Path("/") and directory.stat().st_uid == os.geteuid():
            directory.chmod(directory.stat().st_mode | 0o011)


# --- our sender, their receiver ---


def test_a_bot_in_c_that_reads_once_answers_ok_and_closes(program, clean_environment):
    path = clean_environment / "bot.sock"
    command = [program("reading_bot"), path, "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as bot:
        assert bot.stdout.readline() == "ready\n"
        sender = TokenSender(path, attempts=1)
        for generation in (1, 2):
            token = Token(f"tok-{generation}", "refresh-secret", generation=generation)
            report = sender.send_sync(token)
            assert report.ok, report
        wanted = Target(path, send_refresh_token=True)
        assert TokenSender(wanted).send_sync(Token("tok-3", "refresh-secret")).ok
        printed = bot.stdout.read()
    messages = [json.loads(text) for text in printed.replace("]\n", "").split("[")[1:]]
    assert [m["access_token"] for m in messages] == ["tok-1", "tok-2", "tok-3"]
    assert [m["refresh_token"] for m in messages] == ["", "", "refresh-secret"]


def test_nc_as_a_bot_that_never_answers_is_given_up(need, clean_environment):
    nc, path = need("nc")["nc"], clean_environment / "bot.sock"
    with subprocess.Popen(
        [nc, "-l", "-U", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as bot:
        wait_for(path)
        report = TokenSender(path, attempts=1, timeout=0.2).send_sync(Token("tok"))
        assert report.failed[0].outcome == "unreachable"
        assert b'"access_token":"tok"' in bot.stdout.readline()
        bot.kill()


@pytest.mark.parametrize("answer", ["OK", "OK\n"])
def test_nc_as_a_bot_that_answers_and_keeps_the_connection(need, clean_environment, answer):
    nc, path = need("nc")["nc"], clean_environment / "bot.sock"
    with subprocess.Popen(
        [nc, "-l", "-U", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as bot:
        wait_for(path)
        bot.stdin.write(answer.encode())  # nc passes it on as soon as somebody connects
        bot.stdin.flush()
        report = TokenSender(path, attempts=1).send_sync(Token("tok"))
        assert report.ok, report
        assert b'"access_token":"tok"' in bot.stdout.readline()
        bot.kill()


def test_socat_as_a_bot_that_runs_a_program_for_each_token(need, clean_environment):
    socat, path = need("socat")["socat"], clean_environment / "bot.sock"
    taken = clean_environment / "taken"
    script = clean_environment / "bot.py"
    script.write_text(
        "import sys, pathlib\n"
        f"pathlib.Path({str(taken)!r}).write_text(sys.stdin.readline())\n"
        "print('OK', end='', flush=True)\n"
    )
    listen = f"UNIX-LISTEN:{path},fork"
    with subprocess.Popen([socat, listen, f"EXEC:{sys.executable} {script}"]) as bot:
        wait_for(path)
        report = TokenSender(path, attempts=1).send_sync(Token("tok"))
        assert report.ok, report
        assert json.loads(taken.read_text())["access_token"] == "tok"
        bot.terminate()


def wait_for(path):
    """Return once a program listens at the path, as the kernel tells: a try would use up its one connection."""
    accepts_connections = "00010000"
    deadline = time.monotonic() + 20
    while not any(
        line.endswith(f" {path}") and line.split()[3] == accepts_connections
        for line in Path("/proc/net/unix").read_text().splitlines()
    ):
        assert time.monotonic() < deadline, f"nobody listens at {path}"
        os.sched_yield()
