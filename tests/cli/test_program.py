"""`keepline` as a program: processes, signals, sockets, pipes; nothing waits but for an event."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from keepline.http import HttpSession
from keepline.relay.local import LocalClient

Place = Any  # tests/cli/conftest.py
Start = Callable[..., Any]
Command = Callable[..., Any]

RELAY = '[relay.bots]\ncredential = "schwab"\ntargets = ["bot:alpha", "bot:beta"]\nattempts = 1\n'


async def signed_in(start: Start, place: Place, **changes: Any) -> None:
    program = await start("token", "import")
    program.process.stdin.write(place.oauth_answer(**changes).encode())
    program.process.stdin.close()
    assert await program.end() == 0, program.said


async def test_two_bots_follow_each_renewal_of_the_daemon(start: Start, place: Place) -> None:
    place.write(more=RELAY)
    await signed_in(start, place)
    alpha, beta = [await start("listen", "--name", name, "--json") for name in ("alpha", "beta")]
    await alpha.says("listening at")
    await beta.says("listening at")
    daemon = await start("run")
    await daemon.says("Token delivered target=bot:alpha")
    async with LocalClient() as client:
        renewed = await client.refresh_token("schwab")
    for bot in (alpha, beta):
        told = json.loads(await bot.says('"fingerprint": ', times=2))
        assert told["generation"] == renewed.generation
        assert told["fingerprint"] == renewed.fingerprint
    line = await daemon.says("Token refreshed")
    assert re.search(r"\] INFO: Token refreshed credential=schwab cycle=1 attempt=1 next=\S+", line)
    assert await daemon.end(signal.SIGTERM) == 0
    assert await alpha.end(signal.SIGINT) == 130
    assert json.loads(alpha.said[-1])["token_count"] == 2
    everything = "\n".join((*daemon.said, *alpha.said, *beta.said))
    assert renewed.access_token not in everything
    assert "Traceback" not in everything
    assert place.sandbox.stats()["refreshes"] == 1


async def test_a_running_daemon_answers_every_verb(start: Start, place: Place) -> None:
    await signed_in(start, place)
    daemon = await start("run")
    await daemon.says("Daemon started")
    outputs = {}
    for verb in (("status",), ("token", "status"), ("token", "get"), ("doctor",)):
        program = await start(*verb)
        assert await program.end() == 0, program.said
        outputs[" ".join(verb)] = "\n".join(program.said)
    assert "ok    credential schwab: VALID" in outputs["status"]
    assert re.search(r"state +VALID", outputs["token status"])
    token = outputs["token get"]
    assert place.sandbox.accepts(token)
    watch = await start("token", "watch", "--count", "2", "--json")
    first = json.loads(await watch.says("generation"))
    refresh = await start("token", "refresh", "--than", str(first["generation"]))
    assert await refresh.end() == 0
    assert await watch.end() == 0
    assert json.loads(watch.said[-1])["generation"] > first["generation"]
    assert token not in "\n".join(watch.said)
    assert place.sandbox.stats()["refreshes"] == 1


async def test_a_sign_in_during_the_run_is_taken_up(start: Start, place: Place) -> None:
    daemon = await start("run")
    line = await daemon.says("Sign-in required")
    assert 'command="keepline login schwab"' in line
    status = await start("status")
    assert await status.end() == 3
    login = await start("login", "--paste", "--no-browser")
    url = (await login.says("/v1/oauth/authorize?")).strip()
    login.process.stdin.write((await browse(url)).encode() + b"\n")
    login.process.stdin.close()
    assert await login.end() == 0, login.said
    assert "the running daemon has taken it up" in login.said
    assert any("next sign-in is due by" in line for line in login.said)
    await daemon.says("Token updated")
    assert await (await start("status")).end() == 0
    assert place.sandbox.stats()["refreshes"] == 0


async def browse(url: str) -> str:
    """Where a person's browser ends."""
    host, port = re.search(r"//([\d.]+):(\d+)/", url).groups()  # type: ignore[union-attr]
    reader, writer = await asyncio.open_connection(host, int(port))
    path = url.split(f":{port}", 1)[1]
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    writer.close()
    await writer.wait_closed()
    return re.search(r"(?im)^location: *(\S+)", head).group(1)  # type: ignore[union-attr]


async def test_a_second_daemon_ends_with_words_and_the_first_goes_on(
    start: Start, place: Place
) -> None:
    await signed_in(start, place)
    first = await start("run")
    await first.says("Daemon started")
    second = await start("run")
    assert await second.end() == 1
    assert second.said[-1].startswith("keepline: ")
    assert "listens here already" in second.said[-1]
    async with LocalClient() as client:
        await client.ping()
    assert await first.end(signal.SIGTERM) == 0


async def test_the_service_manager_hears_ready_status_and_stopping(
    start: Start, place: Place
) -> None:
    await signed_in(start, place)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(place.directory / "notify"))
        ear.setblocking(False)
        loop = asyncio.get_running_loop()
        daemon = await start("run", NOTIFY_SOCKET=ear.getsockname(), WATCHDOG_USEC="400000")
        assert (await loop.sock_recv(ear, 500)).startswith(b"READY=1\nSTATUS=schwab generation")
        assert await loop.sock_recv(ear, 500) == b"WATCHDOG=1"
        daemon.process.send_signal(signal.SIGTERM)
        while not (told := await loop.sock_recv(ear, 500)).startswith(b"STOPPING=1"):
            assert told.startswith((b"WATCHDOG=1", b"STATUS="))
        assert await daemon.end() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_a_refresh_in_flight_is_saved_before_the_end(
    start: Start, place: Place, number: signal.Signals, code: int
) -> None:
    await signed_in(start, place)
    before = json.loads((place.directory / "tokens.json").read_text())["token"]
    daemon = await start("run")
    await daemon.says("Daemon started")
    place.sandbox.fault("slow", delay=1.0)
    async with LocalClient() as client:
        asking = asyncio.create_task(client.refresh_token("schwab"))
        await refresh_arrived(place)
        assert await daemon.end(number) == code
        await asyncio.gather(asking, return_exceptions=True)
    after = json.loads((place.directory / "tokens.json").read_text())["token"]
    assert after["refresh_token"] != before["refresh_token"]
    assert place.sandbox.accepts(after["access_token"])
    assert "Token refreshed" in "\n".join(daemon.said)


async def refresh_arrived(place: Place) -> None:
    while not place.sandbox.stats()["refreshes"]:  # noqa: ASYNC110 - it runs on another thread
        await asyncio.sleep(0)


async def test_the_socket_comes_back_when_somebody_removes_it(start: Start, place: Place) -> None:
    await signed_in(start, place)
    daemon = await start("run")
    await daemon.says("Daemon started")
    (place.directory / "run/daemon.sock").unlink()
    await daemon.says("Socket bound again")
    async with LocalClient() as client:
        await client.ping()


async def test_numbers_and_readiness_are_served_on_loopback(start: Start, place: Place) -> None:
    await signed_in(start, place)
    daemon = await start("run")
    url = re.search(r"http://\S+", await daemon.says("Metrics served")).group()  # type: ignore[union-attr]
    async with HttpSession() as http:
        numbers = await http.request("GET", url)
        ready = await http.request("GET", url.replace("metrics", "readyz"))
    assert 'keepline_token_expiry_timestamp_seconds{credential="schwab"}' in numbers.text
    assert json.loads(ready.body)["ready"] is True


async def test_the_log_goes_to_a_file_too_as_json_and_survives_a_rotation(
    start: Start, place: Place
) -> None:
    place.write(telemetry='log_file = "logs/k.log"\nlog_format = "json"')
    await signed_in(start, place)
    daemon = await start("run")
    line = json.loads(await daemon.says("Daemon started"))
    assert (line["level"], line["component"]) == ("INFO", "daemon")
    log = place.directory / "logs/k.log"
    assert "Listening" in log.read_text()
    log.rename(log.with_suffix(".1"))
    async with LocalClient() as client:
        await client.refresh_token("schwab")
    await daemon.says("Token refreshed")
    assert await daemon.end(signal.SIGTERM) == 0
    assert "Token refreshed" in log.read_text()


async def test_no_output_of_a_whole_run_holds_a_secret(start: Start, place: Place) -> None:
    place.write(more=RELAY, telemetry='log_level = "DEBUG"\nlog_file = "k.log"')
    await signed_in(start, place)
    secrets = {"sandbox-secret", *stored_secrets(place)}
    alpha = await start("listen", "--name", "alpha")
    await alpha.says("listening at")
    daemon = await start("run")
    await daemon.says("Token delivered")
    async with LocalClient() as client:
        for fault in (None, "5xx", "html", "answer_lost", None, "refuse"):
            if fault:
                place.sandbox.fault(fault)
            await asyncio.gather(client.refresh_token("schwab"), return_exceptions=True)
            secrets |= stored_secrets(place)
    said = [*daemon.said]
    for verb in (
        ("status",),
        ("status", "--json"),
        ("doctor",),
        ("token", "history"),
        ("config", "show"),
    ):
        program = await start(*verb)
        await program.end()
        said += program.said
    await daemon.end(signal.SIGTERM)
    await alpha.end(signal.SIGTERM)
    said += [*daemon.said, *alpha.said, (place.directory / "k.log").read_text()]
    said.append((place.directory / "data/schwab.history").read_text())
    text = "\n".join(said)
    assert len(secrets) > 4
    assert not [secret for secret in secrets if secret in text]


def stored_secrets(place: Place) -> set[str]:
    token = json.loads((place.directory / "tokens.json").read_text())["token"]
    return {token["access_token"], token["refresh_token"]}


async def test_tokens_are_piped_from_hand_to_hand(start: Start, place: Place) -> None:
    listen = await start("listen", "--count", "2")
    await listen.says("listening at")
    send = await start("send")
    send.process.stdin.write(b"test_abc123\n")
    await send.says("delivered to bot:default")
    send.process.stdin.write(b"test_def456\n")
    send.process.stdin.close()
    assert await send.end() == 0
    assert await listen.end() == 0
    text = "\n".join((*send.said, *listen.said))
    assert re.search(r"delivered +2", text)
    assert re.search(r"tokens +2", text)
    assert "test_" not in text.replace("keepline", "")


async def test_made_up_tokens_go_out_until_the_count(start: Start, place: Place) -> None:
    listen = await start("listen", "--at", "tcp://127.0.0.1:0", "--allow-unauthenticated-loopback")
    address = (await listen.says("listening at")).split()[-1]
    send = await start("send", "--to", address, "--generate", "--interval", "0.01", "--count", "3")
    assert await send.end() == 0
    assert await listen.end(signal.SIGINT) == 130
    assert any(re.fullmatch(r"tokens +3", line) for line in listen.said)


async def test_a_secret_is_proven_and_a_wrong_one_refused(start: Start, place: Place) -> None:
    place.private("good", "a secret of sixteen")
    place.private("bad", "another of sixteen..")
    listen = await start("listen", "--secret-file", "good")
    await listen.says("listening at")
    assert await (await start("send", "--generate", "--secret-file", "good")).end() == 0
    assert await (await start("send", "--generate", "--secret-file", "bad")).end() == 1


async def test_listening_where_somebody_listens_is_exit_1(start: Start, place: Place) -> None:
    first = await start("listen")
    await first.says("listening at")
    second = await start("listen")
    assert await second.end() == 1
    assert "listens here already" in "\n".join(second.said)


async def test_a_reader_that_had_enough_is_no_failure_with_words(
    place: Place,
) -> None:
    shell = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m keepline config show | head -c 1",
        cwd=place.directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await shell.communicate()
    assert (len(out), err) == (1, b"")


async def test_the_sandbox_serves_and_takes_faults(start: Start, place: Place) -> None:
    sandbox = await start("sandbox", "serve", "--port", "0", "--access-lifetime", "5")
    url = (await sandbox.says("sandbox at")).split()[-1]
    fault = await start("sandbox", "fault", "outage", "count=1", "--url", url)
    assert await fault.end() == 0
    assert await sandbox.end(signal.SIGTERM) == 0


async def test_a_daemon_is_small_and_its_arguments_hold_no_secret(
    start: Start, place: Place
) -> None:
    place.write(schwab='storage = "encrypted"', more=RELAY)
    await signed_in(start, place)
    daemon = await start("run", COVERAGE_PROCESS_START="", COVERAGE_PROCESS_CONFIG="")
    await daemon.says("Token not delivered", times=2)
    async with LocalClient() as client:
        token = await client.refresh_token("schwab")
    proc = Path(f"/proc/{daemon.process.pid}")
    resident = int(re.search(r"VmRSS:\s+(\d+) kB", (proc / "status").read_text()).group(1))  # type: ignore[union-attr]
    assert resident < 64 * 1024
    assert token.access_token not in (proc / "cmdline").read_text()


@pytest.mark.parametrize("end", ["plays", "interrupted"])
async def test_the_demo_plays_to_its_end_and_leaves_nothing(
    start: Start, place: Place, end: str
) -> None:
    demo = await start("demo", "--auto", TMPDIR=str(place.directory))
    if end == "interrupted":
        await demo.says("beta      received")
        assert await demo.end(signal.SIGINT) == 130
    else:
        assert await demo.end() == 0
        text = "\n".join(demo.said)
        assert "0 refresh tokens spent twice; alpha received 5, beta received 5" in text
        assert "goes down" in text
        assert "the outage is over" in text
        assert "the broker's stream of quotes is live" in text
        assert "sign in there as demo with the password" in text
        assert re.search(r"a screen at the hub saw \d+ on ", text)
    bots = [int(pid) for line in demo.said for pid in re.findall(r"\(pid (\d+)\)", line)]
    assert len(bots) == 2
    for pid in bots:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not list(place.directory.glob("keepline-demo-*"))
    assert "Traceback" not in "\n".join(demo.said)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_whatever_ends_a_listener_it_tells_its_numbers_and_leaves_no_socket(
    start: Start, place: Place, number: signal.Signals, code: int
) -> None:
    listen = await start("listen", "--name", "x")
    path = (await listen.says("listening at")).rpartition("unix:")[2]
    assert await (await start("send", "--generate", "--to", "bot:x")).end() == 0
    await listen.says("Token received")
    assert await listen.end(number) == code
    assert any(re.fullmatch(r"tokens +1", line) for line in listen.said)
    assert not Path(path).exists()
    assert "[" not in "".join(line for line in listen.said if "Token received" not in line)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_whatever_ends_a_sender_it_tells_its_numbers(
    start: Start, place: Place, number: signal.Signals, code: int
) -> None:
    listen = await start("listen")
    await listen.says("listening at")
    send = await start("send", "--generate", "--interval", "3600")
    await send.says("delivered to bot:default")
    assert await send.end(number) == code
    assert any(re.fullmatch(r"delivered +1", line) for line in send.said)


async def test_an_import_that_the_daemon_does_not_serve_says_what_it_serves(
    start: Start, place: Place
) -> None:
    await signed_in(start, place)
    daemon = await start("run")
    await daemon.says("Daemon started")
    old = (place.directory / "tokens.json").read_text()
    assert await (await start("token", "refresh")).end() == 0
    again = await start("token", "import")
    again.process.stdin.write(old.encode())
    again.process.stdin.close()
    assert await again.end() == 0
    assert not any("has taken it up" in line for line in again.said)
    assert re.search(r"daemon serves token \w+, generation \d+", "\n".join(again.said))


async def test_certificates_of_both_ends_on_the_command_line(start: Start, place: Place) -> None:
    authority = trustme.CA()
    files = ["--tls-ca", "ca.pem"]
    authority.cert_pem.write_to_path(str(place.directory / "ca.pem"))
    leaf = authority.issue_cert("127.0.0.1")
    for option, blob in (("certificate", leaf.cert_chain_pems[0]), ("key", leaf.private_key_pem)):
        blob.write_to_path(str(place.directory / f"{option}.pem"))
        files += [f"--tls-{option}", f"{option}.pem"]
    listen = await start("listen", "--at", "tls://127.0.0.1:0", "--count", "1", *files)
    address = (await listen.says("listening at")).split()[-1]
    assert address.startswith("tls://")
    plain = await start("send", "--generate", "--to", address.replace("tls", "tcp", 1))
    assert await plain.end() == 4
    assert await (await start("send", "--generate", "--to", address)).end() == 2
    assert await (await start("send", "--generate", "--to", address, *files)).end() == 0
    assert await listen.end() == 0


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("send <&-", 2, "nothing to send"),
        ("login --paste --no-browser <&-", 3, "the input ended"),
        ("token import <&-", 2, "a JSON object is expected"),
        ("version >&-", 0, ""),
        ("version 2>&-", 0, ""),
        ("nonsense 2>&-", 2, ""),
    ],
)
async def test_a_closed_standard_stream_is_no_fault(
    place: Place, command: str, code: int, words: str
) -> None:
    shell = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m keepline {command}",
        cwd=place.directory,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await shell.communicate()
    assert shell.returncode == code, err
    assert words.encode() in err
    assert b"Traceback" not in err
    assert b"internal error" not in err
