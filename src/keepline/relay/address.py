"""Where the other end is: Unix socket paths, TCP and TLS addresses, and what may be trusted there.

Invariants: a bad address or setting is a `ConfigError` that says what to write instead; a socket in a directory that
strangers can write is never used, in a sticky one (/tmp) only after its owner was checked; plain TCP leaves this
machine only when the configuration says so in plain words.
"""

import contextlib
import ipaddress
import logging
import os
import re
import ssl
import stat
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from keepline import telemetry
from keepline.errors import ConfigError, StorageError
from keepline.files import expanded, private_directory, runtime_directory, strangers_can_write

__all__ = [
    "LONGEST_SOCKET_PATH",
    "Address",
    "TLSConfig",
    "check_directory",
    "check_name",
    "check_socket_path",
    "daemon_socket_path",
    "default_socket_path",
    "is_loopback",
    "own_uid",
    "parse_address",
    "socket_owner_refusal",
    "trusted_owners",
]

log = logging.getLogger("keepline.relay")

LONGEST_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
"""Bytes: `sun_path` of unix(7) is 108 bytes with its closing zero, 104 on macOS."""


@dataclass(frozen=True, slots=True)
class Address:
    """One end of a relay.

    Attributes:
        scheme: `unix`, `tcp` or `tls`.
        path: the socket's path, with `unix` only.
        host: name or number, with `tcp` and `tls`.
        port: 0 lets the system choose one where we listen.
    """

    scheme: Literal["unix", "tcp", "tls"]
    path: Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TLSConfig:
    """Certificates of one end; both ends show one and check the other's.

    Attributes:
        certificate: PEM file of our certificate, with its chain.
        key: PEM file of its private key.
        ca: PEM file of the authority that signed the other side's certificate.
        server_name: the name that the receiver's certificate must carry; "" for the host of the address.
    """

    certificate: str | os.PathLike[str]
    key: str | os.PathLike[str]
    ca: str | os.PathLike[str]
    server_name: str = ""

    def server_context(self) -> ssl.SSLContext:
        """For the end that listens: a client without a certificate of `ca` is refused in the handshake.

        Raises:
            ConfigError: a file is missing, unreadable or not what it should be.
        """
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def client_context(self) -> ssl.SSLContext:
        """For the end that connects: the other side's certificate and name are checked.

        Raises:
            ConfigError: a file is missing, unreadable or not what it should be.
        """
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        with _tls_file("tls.ca", self.ca):
            context.load_verify_locations(self.ca)
        with _tls_file("tls.certificate", self.certificate, self.key):
            context.load_cert_chain(self.certificate, self.key)
        return context


def parse_address(text: str | os.PathLike[str], *, key: str = "address") -> Address:
    """Read `unix:/path`, a bare path, `tcp://host:port` or `tls://host:port`.

    Args:
        text: the address; a path may begin with `~`.
        key: the setting's name for the error.

    Raises:
        ConfigError: none of these forms, a path that is too long, a port that is none.
    """
    written = os.fspath(text)
    scheme, separator, rest = written.partition("://")
    if separator and scheme in ("tcp", "tls"):
        host, port = _host_and_port(rest, written, key)
        return Address("tls" if scheme == "tls" else "tcp", host=host, port=port)
    path = written.removeprefix("unix://" if separator else "unix:")
    if "://" in path or not path or ("/" not in path and os.sep not in path):
        raise ConfigError(
            f"{written!r} is no address; write unix:/path/to.sock, a path with a slash in it,"
            " tcp://host:port or tls://host:port",
            key=key,
        )
    # a relative path stays relative: that is how a socket deep down in a tree keeps to the limit
    place = expanded(path, key=key) if path.startswith("~") else Path(path)
    return Address("unix", path=check_socket_path(place, key=key))


def default_socket_path(name: str = "default") -> Path:
    """Where the bot of this name listens: `bots/<name>.sock` in the runtime directory; nothing is made here.

    Raises:
        ConfigError: a name that is no file name, or a runtime directory that makes the path too long.
    """
    path = runtime_directory(make=False) / "bots" / f"{check_name(name)}.sock"
    return check_socket_path(path, key="KEEPLINE_RUNTIME_DIR")


def daemon_socket_path() -> Path:
    """Where the daemon listens: `daemon.sock` in the runtime directory; nothing is made here.

    Raises:
        ConfigError: a runtime directory that makes the path too long.
    """
    path = runtime_directory(make=False) / "daemon.sock"
    return check_socket_path(path, key="KEEPLINE_RUNTIME_DIR")


def check_name(name: str) -> str:
    """A bot's or credential's name: letters, digits, `.`, `_`, `-`; not beginning with a dot.

    Raises:
        ConfigError: anything else.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", name):
        raise ConfigError(
            f"{name!r} is no name; use up to 64 letters, digits, '.', '_' and '-'", key="name"
        )
    return name


def check_socket_path(path: Path, *, key: str = "unix_socket_path") -> Path:
    """The path, if a Unix socket can have it.

    Raises:
        ConfigError: over 107 bytes (103 on macOS), or a NUL byte in it.
    """
    length = len(os.fsencode(path))
    if length > LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"{path} has {length} bytes, a Unix socket's path at most {LONGEST_SOCKET_PATH};"
            " choose a shorter directory, for example with KEEPLINE_RUNTIME_DIR",
            key=key,
        )
    if "\0" in str(path):
        raise ConfigError("a path cannot hold a NUL byte", key=key)
    return path


def check_directory(path: Path) -> Literal["no", "sticky"]:
    """Make the socket's directory if it is one of ours, and say whether strangers can add files there.

    Args:
        path: the socket's path, not the directory's.

    Raises:
        StorageError: the directory is missing, or strangers can write it.
    """
    directory = path.parent
    if directory in (runtime_directory(make=False), runtime_directory(make=False) / "bots"):
        runtime_directory()
        private_directory(directory)
        return "no"
    if not directory.is_dir():
        raise StorageError(
            f"is not there; make it first: mkdir -p -m 700 {directory}", path=directory
        )
    verdict = strangers_can_write(directory)
    if verdict == "yes":
        raise StorageError(
            "strangers can write here and could put their own socket in our place;"
            f" use another directory or run: chmod go-w {directory}",
            path=directory,
        )
    if verdict == "sticky":
        telemetry.event(
            log, logging.WARNING, "Socket in a directory that others can write", path=str(path)
        )
    return verdict


def own_uid() -> int | None:
    """Our user's number, None on a system without them."""
    return os.geteuid() if hasattr(os, "geteuid") else None


def trusted_owners(path: Path, allowed_uids: Collection[int] = ()) -> frozenset[int]:
    """Who may own and serve the socket at this path: we, root, whom the configuration allows, and the directory's
    owner when nobody else can write there.

    Raises:
        StorageError: we may not look into the directory, or anybody could exchange files in it.
        FileNotFoundError: there is no such directory.
    """
    uid = own_uid()
    trusted = {0, *allowed_uids, *(() if uid is None else (uid,))}
    try:
        info = os.stat(path.parent)  # noqa: PTH116 - with os.lstat below
    except PermissionError as error:
        raise StorageError(
            f"permission denied: user {uid} may not look into it", path=path.parent
        ) from error
    if not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        trusted.add(info.st_uid)
    elif strangers_can_write(path.parent) == "yes":
        raise StorageError(
            "strangers can write here, so the socket could be theirs; no token is sent to it;"
            f" move it or run: chmod go-w {path.parent}",
            path=path.parent,
        )
    return frozenset(trusted)


def socket_owner_refusal(path: Path, trusted: Collection[int]) -> str | None:
    """Why the file at this path is no socket that we may talk to; None when it is one.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: it cannot be looked at.
    """
    info = os.lstat(path)
    if not stat.S_ISSOCK(info.st_mode):
        return f"{path} is not a socket"
    if own_uid() is not None and info.st_uid not in trusted:
        return f"{path} belongs to user {info.st_uid}, whom the configuration does not allow"
    return None


def is_loopback(host: str) -> bool:
    """Whether the host is this machine for certain: a loopback number or `localhost`."""
    if host.lower() == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    return False


def _host_and_port(rest: str, written: str, key: str) -> tuple[str, int]:
    host, separator, digits = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    port = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 5 else -1
    if not separator or not host or not 0 <= port <= 65535 or re.search(r"[\s/@\[\]]", host):
        raise ConfigError(
            f"{written!r} needs a host and a port from 0 to 65535, for example tcp://127.0.0.1:9999",
            key=key,
        )
    return host, port


@contextlib.contextmanager
def _tls_file(key: str, *files: str | os.PathLike[str]) -> Iterator[None]:
    names = " and ".join(os.fspath(file) for file in files)
    try:
        yield
    except ssl.SSLError as error:
        raise ConfigError(f"{names}: not PEM, or not a pair: {error.reason}", key=key) from error
    except OSError as error:
        raise ConfigError(f"{names}: {error.strerror}", key=key) from error
