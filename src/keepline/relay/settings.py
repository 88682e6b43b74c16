"""Settings of a receiver and what follows from them.

Invariants: a value that can never work is a `ConfigError` when the settings are made; what depends on the machine
(paths, directories, certificates) is looked at by `start`; nothing listens beyond loopback, or for just anybody, by
default.
"""

import logging
import math
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from keepline.errors import ConfigError
from keepline.files import expanded, runtime_directory
from keepline.relay.address import Address, TLSConfig, is_loopback, own_uid
from keepline.relay.listener import ListenerOptions
from keepline.relay.message import LARGEST_MESSAGE
from keepline.relay.wire import WireRules

__all__ = [
    "TokenReceiverConfig",
    "check_count",
    "check_seconds",
    "has_unix_sockets",
    "listener_options",
    "secret_bytes",
]

log = logging.getLogger("keepline.relay")

SHORTEST_GOOD_SECRET = 16
"""Bytes: below, somebody who saw one proof could find the secret by trying."""


def has_unix_sockets() -> bool:
    """Whether this Python on this system can listen at a path."""
    return hasattr(socket, "AF_UNIX") and os.name == "posix"


def _default_path() -> Path:
    return runtime_directory(make=False) / "bots" / "default.sock"


def _own_uids() -> tuple[int, ...]:
    uid = own_uid()
    return () if uid is None else (uid,)


@dataclass(frozen=True, kw_only=True)
class TokenReceiverConfig:
    """Where a receiver listens and whom it trusts.

    Attributes:
        unix_socket_path: the socket; `default_socket_path("name")` gives each bot its own.
        tcp_host: where to listen without Unix sockets.
        tcp_port: 0 lets the system choose.
        prefer_unix_socket: False listens on TCP.
        max_token_size: bytes of the largest message.
        listen_backlog: connections that may wait to be accepted.
        accept_timeout: seconds; kept for settings of older bots: accepting waits for events, and `stop` for nothing.
        receive_timeout: seconds from a message's first byte to its last, and from a connection to its first message.
        socket_mode: permission bits of the socket.
        socket_group: group of the socket, for a daemon of another user; give it rights with socket_mode=0o660.
        allowed_uids: users that may push; our own by default. Told by the kernel, for Unix sockets only.
        shared_secret: senders must prove that they know it; it never crosses the wire.
        tls: certificates for TCP; a sender without one of its authority is refused.
        allow_unauthenticated_loopback: listen on loopback TCP for every program of this machine.
        allow_plain_tcp_beyond_loopback: listen on other addresses without encryption: tokens can be read on the way.
        history_size: how many fingerprints `history` keeps.
        persist_path: keep the newest token encrypted in this file and serve it after a restart while it lives.
        max_connections: how many senders may be connected at once.
    """

    unix_socket_path: str | os.PathLike[str] = field(default_factory=_default_path)
    tcp_host: str = "127.0.0.1"
    tcp_port: int = 9999
    prefer_unix_socket: bool = True
    max_token_size: int = LARGEST_MESSAGE
    listen_backlog: int = 5
    accept_timeout: float = 0.5
    receive_timeout: float = 5.0
    socket_mode: int = 0o600
    socket_group: str | int | None = None
    allowed_uids: tuple[int, ...] = field(default_factory=_own_uids)
    shared_secret: str | bytes | None = field(default=None, repr=False)
    tls: TLSConfig | None = None
    allow_unauthenticated_loopback: bool = False
    allow_plain_tcp_beyond_loopback: bool = False
    history_size: int = 32
    persist_path: str | os.PathLike[str] | None = None
    max_connections: int = 64

    def __post_init__(self) -> None:
        for key, least in (
            ("max_token_size", 1),
            ("listen_backlog", 1),
            ("history_size", 0),
            ("max_connections", 1),
        ):
            check_count(key, getattr(self, key), least=least)
        for key in ("accept_timeout", "receive_timeout"):
            check_seconds(key, getattr(self, key))
        for key, most in (("tcp_port", 65535), ("socket_mode", 0o777)):
            number: object = getattr(self, key)
            if not isinstance(number, int) or not 0 <= number <= most:
                raise ConfigError(f"is a number from 0 to {most}, not {number!r}", key=key)
        self._check_mode()
        secret_bytes(self.shared_secret, warn=True)

    def _check_mode(self) -> None:
        if self.socket_mode & 0o007 and not hasattr(socket, "SO_PEERCRED"):
            raise ConfigError(
                f"{self.socket_mode:#o} lets every user connect, and this system does not tell who does;"
                " use 0o660 with socket_group",
                key="socket_mode",
            )
        if self.socket_group is not None and not self.socket_mode & 0o020:
            raise ConfigError(
                f"the group may not write with {self.socket_mode:#o}; set socket_mode=0o660",
                key="socket_mode",
            )


def listener_options(config: TokenReceiverConfig) -> ListenerOptions:
    """How to listen by these settings.

    Raises:
        ConfigError: TCP for everybody, or tokens in the clear over a network, without being told so in plain words.
    """
    use_unix = config.prefer_unix_socket and has_unix_sockets()
    secret = secret_bytes(config.shared_secret)
    return ListenerOptions(
        address=_unix_address(config) if use_unix else _tcp_address(config, bool(secret)),
        rules=WireRules(
            max_token_size=config.max_token_size,
            receive_timeout=config.receive_timeout,
            shared_secret=secret,
        ),
        socket_mode=config.socket_mode,
        socket_group=config.socket_group,
        allowed_uids=frozenset(config.allowed_uids),
        backlog=config.listen_backlog,
        max_connections=config.max_connections,
        tls=None if use_unix else config.tls,
    )


def check_count(key: str, value: object, *, least: int) -> None:
    """Refuse what is no whole number from `least` up.

    Raises:
        ConfigError: names the key.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"is a whole number from {least} up, not {value!r}", key=key)


def check_seconds(key: str, value: object, *, zero: bool = False) -> None:
    """Refuse what is no finite number of seconds above 0 (or 0, with `zero`).

    Raises:
        ConfigError: names the key.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and (0 < value < math.inf or (zero and value == 0))):  # type: ignore[operator]
        range_ = "from 0 up" if zero else "above 0"
        raise ConfigError(f"is a number of seconds {range_}, not {value!r}", key=key)


def secret_bytes(secret: str | bytes | None, *, warn: bool = False) -> bytes:
    """A shared secret as bytes, b"" for none; `warn` says it in the log when it is short.

    Raises:
        ConfigError: it is empty.
    """
    if secret is None:
        return b""
    data = secret.encode() if isinstance(secret, str) else bytes(secret)
    if not data:
        raise ConfigError("is empty; make one with: openssl rand -hex 32", key="shared_secret")
    if warn and len(data) < SHORTEST_GOOD_SECRET:
        log.warning(
            "A shared secret of %d bytes can be guessed; make one with: openssl rand -hex 32",
            len(data),
        )
    return data


def _unix_address(config: TokenReceiverConfig) -> Address:
    return Address("unix", path=expanded(config.unix_socket_path, key="unix_socket_path"))


def _tcp_address(config: TokenReceiverConfig, has_secret: bool) -> Address:
    host = config.tcp_host
    if config.tls is not None:
        return Address("tls", host=host, port=config.tcp_port)
    local = is_loopback(host)
    if not local and not config.allow_plain_tcp_beyond_loopback:
        raise ConfigError(
            f"{host} is not loopback, and without tls anybody on the way reads the tokens;"
            " give tls, or allow it with allow_plain_tcp_beyond_loopback",
            key="tcp_host",
        )
    if not has_secret and not (local and config.allow_unauthenticated_loopback):
        raise ConfigError(
            "on TCP every program could push a token; give shared_secret or tls"
            + (", or allow it with allow_unauthenticated_loopback" if local else ""),
            key="shared_secret",
        )
    return Address("tcp", host=host, port=config.tcp_port)
