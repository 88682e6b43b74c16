"""Tokens between machines: certificates on both ends, nothing in the clear."""

import ssl

import pytest
import trustme

from keepline.errors import ConfigError
from keepline.relay.address import TLSConfig
from keepline.relay.receiver import TokenReceiver, TokenReceiverConfig
from keepline.relay.sender import Target, TokenSender


@pytest.fixture
def issue(tmp_path):
    """Certificates of an authority by name, as files."""
    authorities = {}

    def make(who, *names, by="ours"):
        if by not in authorities:
            authorities[by] = trustme.CA()
            authorities[by].cert_pem.write_to_path(tmp_path / f"{by}.pem")
        certificate = authorities[by].issue_cert(*names)
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        (tmp_path / f"{who}.pem").write_bytes(chain)
        certificate.private_key_pem.write_to_path(tmp_path / f"{who}.key")
        return TLSConfig(tmp_path / f"{who}.pem", tmp_path / f"{who}.key", tmp_path / f"{by}.pem")

    return make


@pytest.fixture
def listen():
    made = []

    def make(tls):
        config = TokenReceiverConfig(prefer_unix_socket=False, tcp_port=0, tls=tls)
        receiver = TokenReceiver(config=config)
        made.append(receiver)
        assert receiver.start(), receiver.last_error
        return receiver

    yield make
    for receiver in made:
        receiver.stop()


async def test_a_token_travels_between_two_ends_that_know_each_other(issue, listen, make_token):
    bot = listen(issue("bot", "127.0.0.1"))
    assert bot.address.startswith("tls://127.0.0.1:")
    target = Target(bot.address, tls=issue("daemon", "daemon.local"))
    async with TokenSender(target) as sender:
        for generation in (1, 2):
            assert (await sender.send(make_token(generation=generation))).ok
    assert bot.get_latest().generation == 2
    assert TokenSender(target).send_sync(make_token(generation=3)).ok


async def test_a_sender_without_a_certificate_of_the_authority_is_refused(
    issue, listen, make_token
):
    mine = issue("bot", "127.0.0.1")
    bot = listen(mine)
    foreign = issue("foreign", "daemon.local", by="theirs")
    trusting = TLSConfig(foreign.certificate, foreign.key, mine.ca)
    (delivery,) = await TokenSender(Target(bot.address, tls=trusting), attempts=1).send(
        make_token()
    )
    assert delivery.outcome == "unreachable"
    assert delivery.reason.endswith("; does it trust our certificate?")
    assert bot.get_latest_token() == ""


async def test_a_bot_with_a_foreign_certificate_gets_no_token(issue, listen, make_token):
    bot = listen(issue("bot", "127.0.0.1", by="theirs"))
    target = Target(bot.address, tls=issue("daemon", "daemon.local"))
    (delivery,) = await TokenSender(target).send(make_token())
    assert (delivery.outcome, delivery.attempts) == ("unreachable", 1)
    assert "certificate" in delivery.reason


async def test_a_bot_with_another_name_gets_no_token_unless_it_is_expected(
    issue, listen, make_token
):
    bot = listen(issue("bot", "bot.local"))
    mine = issue("daemon", "daemon.local")
    (delivery,) = await TokenSender(Target(bot.address, tls=mine)).send(make_token())
    assert "certificate" in delivery.reason
    named = TLSConfig(mine.certificate, mine.key, mine.ca, server_name="bot.local")
    assert (await TokenSender(Target(bot.address, tls=named)).send(make_token())).ok


async def test_a_bot_that_speaks_no_tls_gets_no_token(issue, listen, make_token):
    config = TokenReceiverConfig(
        prefer_unix_socket=False,
        tcp_port=0,
        allow_unauthenticated_loopback=True,
        receive_timeout=0.5,
    )
    with TokenReceiver(config=config) as bot:
        target = Target(bot.address.replace("tcp:", "tls:"), tls=issue("daemon", "daemon.local"))
        (delivery,) = await TokenSender(target, attempts=1).send(make_token())
        assert delivery.outcome == "unreachable"
        assert bot.get_latest_token() == ""


def test_a_plain_peer_hears_nothing_from_a_tls_bot(issue, listen, connect):
    bot = listen(issue("bot", "127.0.0.1"))
    peer = connect(("127.0.0.1", int(bot.address.rpartition(":")[2])))
    peer.write(b"token\n")
    assert b"OK" not in peer.rest()
    assert bot.get_latest_token() == ""


def test_a_refusal_reaches_a_tls_peer(issue, listen, connect):
    bot = listen(issue("bot", "127.0.0.1"))
    peer = connect(("127.0.0.1", int(bot.address.rpartition(":")[2])))
    context = issue("daemon", "daemon.local").client_context()
    with context.wrap_socket(peer.socket, server_hostname="127.0.0.1") as secure:
        secure.sendall(b"two words\n")
        assert secure.recv(1000).startswith(b"ERR bad_text ")


def test_files_that_are_missing_or_wrong_are_named(issue, tmp_path):
    good = issue("bot", "127.0.0.1")
    (tmp_path / "bad.pem").write_text("rubbish")
    for tls, name in (
        (TLSConfig(tmp_path / "none.pem", good.key, good.ca), "none.pem"),
        (TLSConfig(good.certificate, tmp_path / "bad.pem", good.ca), "bad.pem"),
        (TLSConfig(good.certificate, good.key, tmp_path / "bad.pem"), "bad.pem"),
        (TLSConfig(good.certificate, good.key, tmp_path / "none.pem"), "none.pem"),
    ):
        with pytest.raises(ConfigError, match=name):
            tls.server_context()
    assert good.client_context().verify_mode is ssl.CERT_REQUIRED
    assert good.server_context().verify_mode is ssl.CERT_REQUIRED


async def test_missing_certificates_are_said_at_both_ends(issue, tmp_path, make_token):
    good = issue("bot", "127.0.0.1")
    broken = TLSConfig(tmp_path / "none.pem", good.key, good.ca)
    bot = TokenReceiver(
        config=TokenReceiverConfig(prefer_unix_socket=False, tcp_port=0, tls=broken)
    )
    assert not bot.start()
    assert "none.pem" in bot.last_error
    (delivery,) = await TokenSender(Target("tls://127.0.0.1:9", tls=broken)).send(make_token())
    assert "none.pem" in delivery.reason
    assert delivery.attempts == 1
