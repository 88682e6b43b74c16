"""Addresses, names and directories."""

import os
import socket
import stat
from pathlib import Path

import pytest

from keepline.errors import ConfigError, StorageError
from keepline.relay import address
from keepline.relay.address import (
    check_directory,
    check_name,
    daemon_socket_path,
    default_socket_path,
    is_loopback,
    parse_address,
    socket_owner_refusal,
    trusted_owners,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/run/x.sock", "unix:/run/x.sock"),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("unix:///run/x.sock", "unix:/run/x.sock"),
        ("./x.sock", "unix:x.sock"),
        (Path("/run/x.sock"), "unix:/run/x.sock"),
        ("tcp://127.0.0.1:9999", "tcp://127.0.0.1:9999"),
        ("tcp://[::1]:9999", "tcp://[::1]:9999"),
        ("tls://bot.example:65535", "tls://bot.example:65535"),
    ],
)
def test_an_address_is_read_and_shown(text, shown):
    assert str(parse_address(text)) == shown


def test_a_path_may_begin_with_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    assert parse_address("~/a.sock").path == Path("/home/x/a.sock")


@pytest.mark.parametrize(
    "text",
    ["", "x", "unix:", "http://x/y", "tcp://", "tcp://x", "tcp://x:", "tcp://:1", "tcp://x:65536", "tcp://x:-1",
     "tcp://x:١", "tcp://a b:1", "tls://x:y", "tcp://u@x:1", "ftp://a:1", "tcp://x:1/y"],
)  # fmt: skip
def test_what_is_no_address_is_said(text):
    with pytest.raises(ConfigError, match="target") as caught:
        parse_address(text, key="target")
    assert caught.value.key == "target"


def test_a_path_over_107_bytes_is_said_with_its_length():
    assert parse_address("/" + "x" * 106).path
    with pytest.raises(ConfigError, match="108 bytes"):
        parse_address("/" + "x" * 107)
    with pytest.raises(ConfigError, match="bytes"):
        parse_address("/" + "é" * 60)
    with pytest.raises(ConfigError, match="NUL"):
        parse_address("/x\0y")


def test_the_longest_path_is_what_the_system_takes(tmp_bots):
    path = tmp_bots / ("x" * (address.LONGEST_SOCKET_PATH - len(str(tmp_bots)) - 1))
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        one.bind(str(path))
        with pytest.raises(OSError, match="too long"):
            two.bind(f"{path}x")


def test_default_paths_are_in_the_runtime_directory_and_nothing_is_made(
    clean_environment, monkeypatch
):
    run = clean_environment / "none-yet"
    monkeypatch.setenv("KEEPLINE_RUNTIME_DIR", str(run))
    assert default_socket_path() == run / "bots" / "default.sock"
    assert default_socket_path("my-bot.2") == run / "bots" / "my-bot.2.sock"
    assert daemon_socket_path() == run / "daemon.sock"
    assert not run.exists()
    assert check_directory(default_socket_path()) == "no"
    assert stat.S_IMODE((run / "bots").stat().st_mode) == 0o700


def test_a_runtime_directory_that_is_too_long_is_named(monkeypatch):
    monkeypatch.setenv("KEEPLINE_RUNTIME_DIR", "/tmp/" + "x" * 100)
    for path in (default_socket_path, daemon_socket_path):
        with pytest.raises(ConfigError, match="KEEPLINE_RUNTIME_DIR"):
            path()


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a b", "é", "x" * 65, "a\n"])
def test_a_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(ConfigError):
        check_name(name)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("LOCALHOST", True),
     ("0.0.0.0", False), ("::", False), ("192.0.2.1", False), ("localhost.evil.example", False), ("", False)],
)  # fmt: skip
def test_loopback_is_what_is_certainly_this_machine(host, local):
    assert is_loopback(host) == local


def test_who_may_serve_a_socket(tmp_bots, monkeypatch):
    path = tmp_bots / "x.sock"
    mine = os.geteuid()
    assert trusted_owners(path) == {0, mine}
    assert trusted_owners(path, (77,)) == {0, mine, 77}
    monkeypatch.setattr(address, "own_uid", lambda: 4242)
    assert trusted_owners(path) == {0, 4242, mine}  # the owner of a directory that is theirs alone
    monkeypatch.undo()
    tmp_bots.chmod(0o1777)
    assert trusted_owners(path) == {0, mine}
    tmp_bots.chmod(0o777)
    with pytest.raises(StorageError, match="strangers"):
        trusted_owners(path)
    with pytest.raises(FileNotFoundError):
        trusted_owners(tmp_bots / "none" / "x.sock")


def test_a_directory_that_we_may_not_look_into_is_said(monkeypatch, tmp_bots):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(StorageError, match="may not look"):
        trusted_owners(tmp_bots / "x.sock")


def test_only_a_socket_of_somebody_trusted_is_accepted(tmp_bots):
    path = tmp_bots / "x.sock"
    with pytest.raises(FileNotFoundError):
        socket_owner_refusal(path, {0})
    path.touch()
    assert "not a socket" in socket_owner_refusal(path, {os.geteuid()})
    path.unlink()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        assert socket_owner_refusal(path, {os.geteuid()}) is None
        assert "belongs to user" in socket_owner_refusal(path, {os.geteuid() + 1})
    (tmp_bots / "link").symlink_to(path)
    assert "not a socket" in socket_owner_refusal(tmp_bots / "link", {os.geteuid()})
