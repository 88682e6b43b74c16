import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from keepline.credentials.token import Token
from keepline.daemon import pushing
from keepline.daemon.pushing import PushStatistics, listen, make_receiver, make_targets, push
from keepline.errors import ConfigError, StorageError
from keepline.relay.sender import Delivery, Target, TokenSender
from keepline.testing import ManualClock


async def lines(*texts: str) -> AsyncIterator[str]:
    for text in texts:
        yield text


async def targets_of(*addresses: str) -> list[Target]:
    return await asyncio.to_thread(
        make_targets, list(addresses), secret=None, tls=None, plain=False
    )


async def pushed(source: AsyncIterator[str], **options: Any) -> tuple[PushStatistics, list[str]]:
    """Push to the default bot; the statistics, and what the bot received."""
    statistics, received = PushStatistics(), []
    receiver = make_receiver("", "default", secret=None, tls=None, anybody=False)
    receiver.add_callback(received.append)
    targets = await targets_of()
    async with receiver:
        sender = TokenSender(targets, attempts=1)
        await push(source, sender, statistics=statistics, told=lambda *_: None, **options)
    return statistics, received


async def test_each_line_is_a_token() -> None:
    statistics, received = await pushed(lines("one", "two"))
    assert received[-1] == "two"
    assert statistics.as_dict()["tokens"] == statistics.as_dict()["delivered"] == 2


async def test_a_json_line_brings_its_own_expiry() -> None:
    statistics, received = await pushed(lines(json.dumps({"access_token": "a", "expires_in": 9})))
    assert received == ["a"]
    with pytest.raises(ConfigError, match="a JSON object is expected"):
        await pushed(lines("{"))
    assert statistics.tokens == 1


async def test_it_ends_after_enough() -> None:
    statistics, _ = await pushed(pushing.generated(), count=3)
    assert statistics.tokens == 3


async def test_it_waits_between_two_tokens() -> None:
    clock = ManualClock()
    work = asyncio.create_task(pushed(lines("a", "b", "c"), interval=60.0, clock=clock))
    for _ in range(2):
        await clock.until_asleep()
        clock.advance(60.0)
    statistics, _ = await work
    assert statistics.as_dict()["seconds"] == clock.boottime() == 120.0
    assert statistics.as_dict()["tokens_per_second"] == 0.0


async def test_an_absent_bot_is_counted_with_its_reason() -> None:
    statistics, told = PushStatistics(), []

    def tell(token: Token, delivery: Delivery) -> None:
        told.append((token.access_token, delivery.outcome))

    sender = TokenSender(await targets_of("bot:nobody"), attempts=1)
    await push(lines("a"), sender, statistics=statistics, told=tell)
    assert told == [("a", "unreachable")]
    assert statistics.as_dict()["unreachable"] == 1
    assert "the bot does not run" in statistics.reasons["bot:nobody"]


async def test_standard_input_is_read_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.TextIOWrapper(io.BytesIO(b"one\n\n  two  \nthree"))
    monkeypatch.setattr(sys, "stdin", data)
    assert [line async for line in pushing.stream_lines()] == ["one", "two", "three"]


async def test_input_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n")))
    with pytest.raises(ConfigError, match="standard input is not UTF-8"):
        _ = [line async for line in pushing.stream_lines()]


async def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    with pytest.raises(ConfigError, match="does not exist; one token per line"):
        _ = [line async for line in pushing.file_lines(file)]
    file.write_text("one\n\ntwo\n")
    with pytest.raises(StorageError, match="chmod 600"):
        _ = [line async for line in pushing.file_lines(file)]
    file.chmod(0o600)
    assert [line async for line in pushing.file_lines(file)] == ["one", "two"]


def test_the_shared_secret_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pushing.read_shared_secret(None) is None
    monkeypatch.setenv("KEEPLINE_SHARED_SECRET", "from-environment")
    assert pushing.read_shared_secret(None) == "from-environment"
    file = tmp_path / "s"
    file.write_text("from-file\n")
    file.chmod(0o600)
    assert pushing.read_shared_secret(file) == "from-file"


def test_the_three_certificate_files_belong_together(tmp_path: Path) -> None:
    assert pushing.tls_files(None, None, None) is None
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    certificate, key, ca = (tmp_path / name for name in ("c.pem", "k.pem", "ca.pem"))
    leaf.cert_chain_pems[0].write_to_path(str(certificate))
    leaf.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(ca))
    assert pushing.tls_files(certificate, key, ca) is not None
    with pytest.raises(ConfigError, match="belong together"):
        pushing.tls_files(certificate, None, None)
    with pytest.raises(ConfigError, match="No such file") as caught:
        pushing.tls_files(certificate, key, tmp_path / "none.pem")
    assert caught.value.key == "--tls-ca"


def test_an_encrypted_address_never_becomes_a_plain_one() -> None:
    with pytest.raises(ConfigError, match="tls:// needs --tls-certificate, --tls-key and"):
        make_receiver("tls://127.0.0.1:0", "", secret="s" * 16, tls=None, anybody=True)
    with pytest.raises(ConfigError, match="tls:// needs --tls-certificate, --tls-key and"):
        make_targets(["tls://127.0.0.1:9"], secret=None, tls=None, plain=True)


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("tcp://127.0.0.1:0", "give --secret-file or tls, or allow it with --allow-unauth"),
        ("tcp://0.0.0.0:0", "allow it with --allow-plain-tcp-beyond-loopback"),
        ("~nobody-of-this-name/x.sock", "no home directory"),
        ("bot:../x", "is no name"),
    ],
)
async def test_what_cannot_listen_names_the_option(at: str, words: str) -> None:
    async def try_it() -> None:
        receiver = await asyncio.to_thread(
            make_receiver, at, "", secret=None, tls=None, anybody=False
        )
        await listen(receiver, seconds=0, count=0, listening=print, told=print)

    with pytest.raises(ConfigError, match=words) as caught:
        await try_it()
    assert caught.value.key == "--at"


def test_another_machine_may_push_in_plain_text_where_it_was_said() -> None:
    receiver = make_receiver(
        "tcp://0.0.0.0:0", "", secret="s" * 16, tls=None, anybody=False, plain=True
    )
    assert receiver.config.allow_plain_tcp_beyond_loopback


def test_people_are_told_what_happened_and_nothing_that_did_not() -> None:
    statistics = PushStatistics()
    assert statistics.in_words() == {"tokens": 0}
    statistics.tokens, statistics.seconds = 1, 0.5
    statistics.count(Delivery("a", "delivered", 1))
    assert statistics.in_words() == {"tokens": 1, "delivered": 1, "seconds": 0.5}
    statistics.tokens = 2
    statistics.count(Delivery("a", "refused", 1, "stale"))
    assert statistics.in_words()["tokens_per_second"] == 4.0
    assert list(statistics.as_dict()) == [
        *("tokens", "delivered", "refused", "unreachable", "too_large"),
        *("seconds", "tokens_per_second"),
    ]


async def test_what_was_received_is_told_in_a_few_words() -> None:
    receiver = make_receiver("", "b", secret=None, tls=None, anybody=False)
    assert pushing.in_words(receiver.get_stats()) == {"tokens": 0}
    targets = await targets_of("bot:b")
    async with receiver:
        sender = TokenSender(targets, attempts=1)
        await sender.send(Token("new", generation=5))
        await sender.send(Token("new", generation=5))
        await sender.send(Token("old", generation=4))
    assert pushing.in_words(receiver.get_stats()) == {
        "tokens": 1,
        "duplicates": 1,
        "refused": "1 stale",
        "last token": Token("new").fingerprint,
        "generation": 5,
    }


def test_plain_tcp_to_another_machine_needs_its_plain_words() -> None:
    address = ["tcp://192.0.2.1:9"]
    with pytest.raises(ConfigError, match="anybody on the way could read"):
        make_targets(address, secret=None, tls=None, plain=False)
    assert make_targets(address, secret=None, tls=None, plain=True)[0].name == address[0]


async def test_listening_ends_after_its_time() -> None:
    clock = ManualClock()
    addresses: list[str] = []
    receiver = make_receiver("", "b", secret=None, tls=None, anybody=False)
    work = asyncio.create_task(
        listen(
            receiver,
            seconds=120.0,
            count=0,
            listening=addresses.append,
            told=lambda token: None,
            clock=clock,
        )
    )
    await clock.until_asleep()
    clock.advance(120.0)
    assert (await work)["token_count"] == 0
    assert clock.boottime() == 120.0
    assert addresses[0].endswith("/bots/b.sock")


async def test_listening_ends_after_enough_tokens() -> None:
    receiver = await asyncio.to_thread(
        make_receiver, "tcp://127.0.0.1:0", "", secret=None, tls=None, anybody=True
    )
    heard: list[str] = []

    async def send(address: str) -> None:
        await TokenSender(await targets_of(address)).send(Token("abc"))

    sending: list[asyncio.Task[None]] = []
    stats = await listen(
        receiver,
        seconds=0,
        count=1,
        listening=lambda address: sending.append(asyncio.create_task(send(address))),
        told=lambda token: heard.append(token.access_token),
    )
    await asyncio.gather(*sending)
    assert heard == ["abc"]
    assert stats["token_count"] == 1


def test_a_receiver_listens_where_it_is_told(tmp_path: Path) -> None:
    receiver = make_receiver(f"{tmp_path}/x.sock", "", secret="s" * 16, tls=None, anybody=False)
    assert receiver.config.unix_socket_path == tmp_path / "x.sock"
    receiver = make_receiver("tcp://127.0.0.1:7", "", secret="s" * 16, tls=None, anybody=False)
    assert (receiver.config.tcp_port, receiver.config.prefer_unix_socket) == (7, False)
    with pytest.raises(ConfigError, match="is no address"):
        make_receiver("nonsense", "", secret=None, tls=None, anybody=False)
