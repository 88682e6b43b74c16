"""Settings of a receiver: what can never work is said when it is written."""

import socket

import pytest

from keepline.errors import ConfigError
from keepline.relay.settings import (
    TokenReceiverConfig,
    check_seconds,
    listener_options,
    secret_bytes,
)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_token_size": 0}, "max_token_size"),
        ({"max_token_size": 1.5}, "max_token_size"),
        ({"max_token_size": True}, "max_token_size"),
        ({"listen_backlog": 0}, "listen_backlog"),
        ({"history_size": -1}, "history_size"),
        ({"max_connections": 0}, "max_connections"),
        ({"receive_timeout": 0}, "receive_timeout"),
        ({"receive_timeout": float("nan")}, "receive_timeout"),
        ({"receive_timeout": "5"}, "receive_timeout"),
        ({"accept_timeout": -1}, "accept_timeout"),
        ({"tcp_port": 70000}, "tcp_port"),
        ({"tcp_port": "99"}, "tcp_port"),
        ({"socket_mode": 0o1777}, "socket_mode"),
        ({"socket_group": "bots"}, "socket_mode"),
        ({"shared_secret": ""}, "shared_secret"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_its_name(settings, key):
    with pytest.raises(ConfigError) as caught:
        TokenReceiverConfig(**settings)
    assert caught.value.key == key


def test_a_socket_for_everybody_needs_a_system_that_tells_who_connects(monkeypatch):
    assert TokenReceiverConfig(socket_mode=0o666).socket_mode == 0o666
    monkeypatch.delattr(socket, "SO_PEERCRED")
    with pytest.raises(ConfigError, match="does not tell"):
        TokenReceiverConfig(socket_mode=0o666)


def test_the_documented_defaults(clean_environment):
    config = TokenReceiverConfig()
    assert config.unix_socket_path == clean_environment / "run" / "bots" / "default.sock"
    assert (config.tcp_host, config.tcp_port, config.prefer_unix_socket) == (
        "127.0.0.1",
        9999,
        True,
    )
    assert (config.max_token_size, config.listen_backlog) == (8192, 5)
    assert (config.accept_timeout, config.receive_timeout) == (0.5, 5.0)
    assert (config.socket_mode, config.socket_group, config.history_size) == (0o600, None, 32)
    assert len(config.allowed_uids) == 1
    assert (config.shared_secret, config.tls, config.persist_path) == (None, None, None)
    assert not config.allow_unauthenticated_loopback
    assert not config.allow_plain_tcp_beyond_loopback


def test_the_group_of_another_user_needs_rights():
    config = TokenReceiverConfig(socket_group="bots", socket_mode=0o660)
    assert listener_options(config).socket_group == "bots"


def test_a_secret_is_text_or_bytes():
    assert (
        secret_bytes("0123456789abcdef") == secret_bytes(b"0123456789abcdef") == b"0123456789abcdef"
    )
    assert secret_bytes(None) == b""


@pytest.mark.parametrize("value", [True, "5", None, float("inf"), -1])
def test_seconds_are_a_finite_number(value):
    with pytest.raises(ConfigError) as caught:
        check_seconds("timeout", value, zero=True)
    assert caught.value.key == "timeout"


def test_zero_seconds_only_where_they_make_sense():
    check_seconds("retry_delay", 0, zero=True)
    with pytest.raises(ConfigError, match="above 0"):
        check_seconds("timeout", 0)
