"""The chain of key sources: the order, and that a broken source never hands over to the next."""

import fcntl
import logging
import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from keepline.credentials.keys import configuration_directory, storage_key
from keepline.errors import ConfigError, StorageError
from keepline.files.locking import alone_in


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "config"
    monkeypatch.setenv("KEEPLINE_CONFIG_DIR", str(directory))
    return directory


def private(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def keyring_package(directory: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of keyring's name and shape, as an installed one would be found."""
    package = directory / "site" / "keyring"
    package.mkdir(parents=True)
    (package / "errors.py").write_text("class KeyringError(Exception): ...\n")
    (package / "__init__.py").write_text(
        f"from keyring import errors\ndef get_password(service, name):\n    {body}\n"
    )
    monkeypatch.syspath_prepend(directory / "site")
    for name in ("keyring", "keyring.errors"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture(autouse=True)
def _forget_the_keyring():
    yield
    for name in ("keyring", "keyring.errors"):
        sys.modules.pop(name, None)


def test_the_sources_are_asked_in_the_order_of_the_contract(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private(tmp_path / "systemd" / "keepline-storage-key", b"of systemd\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "systemd"))
    monkeypatch.setenv(
        "KEEPLINE_STORAGE_KEY_FILE", str(private(tmp_path / "f", b"of the file\r\n"))
    )
    monkeypatch.setenv("KEEPLINE_STORAGE_KEY", "of the environment")
    keyring_package(tmp_path, "return f'of the keyring: {service}/{name}'", monkeypatch)
    private(config / "storage.key", b"generated\n")
    found = []
    for variable in ("CREDENTIALS_DIRECTORY", "KEEPLINE_STORAGE_KEY_FILE", "KEEPLINE_STORAGE_KEY"):
        found.append(storage_key())
        monkeypatch.delenv(variable)
    found.append(storage_key())
    monkeypatch.syspath_prepend(tmp_path)
    keyring_package(tmp_path / "empty", "return None", monkeypatch)
    found.append(storage_key())
    assert [key.material for key in found] == [
        b"of systemd",
        b"of the file",
        b"of the environment",
        b"of the keyring: keepline/storage-key",
        b"generated",
    ]
    assert [key.source for key in found] == [
        str(tmp_path / "systemd" / "keepline-storage-key"),
        str(tmp_path / "f"),
        "KEEPLINE_STORAGE_KEY",
        "keyring",
        str(config / "storage.key"),
    ]


def test_a_key_shows_in_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPLINE_STORAGE_KEY", "passphrase-1")
    key = storage_key()
    assert key.material == b"passphrase-1"
    assert "passphrase-1" not in repr(key)
    assert os.environ["KEEPLINE_STORAGE_KEY"] == "passphrase-1", "the environment is left alone"


def test_systemd_may_own_the_credential_and_grant_by_access_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private(tmp_path / "keepline-storage-key", b"k").chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert storage_key().material == b"k"


def test_a_credentials_directory_without_our_credential_is_no_source(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert storage_key(create=False) is None


@pytest.mark.parametrize("broken", ["missing", "empty", "only a newline", "loose"])
def test_a_named_file_that_cannot_serve_is_an_error_and_not_another_key(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "key"
    if broken != "missing":
        private(path, {"empty": b"", "only a newline": b"\n", "loose": b"k"}[broken])
    if broken == "loose":
        path.chmod(0o644)
    monkeypatch.setenv("KEEPLINE_STORAGE_KEY_FILE", str(path))
    words = {"missing": "KEEPLINE_STORAGE_KEY_FILE", "loose": "chmod 600"}.get(broken, "is empty")
    with pytest.raises(StorageError, match=words):
        storage_key()
    assert not config.exists()


def test_an_empty_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPLINE_STORAGE_KEY", "")
    with pytest.raises(StorageError, match="set and empty"):
        storage_key()


def test_a_keyring_that_cannot_be_asked_is_passed_over(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring_package(tmp_path, "raise errors.KeyringError('no backend')", monkeypatch)
    assert storage_key(create=False) is None


def test_without_any_source_a_key_is_generated_in_the_configuration_directory_and_said(
    tmp_path: Path, config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="keepline")
    key = storage_key(data_directory=tmp_path / "data")
    assert len(key.material) == 64
    path = config / "storage.key"
    assert key.source == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(config.stat().st_mode) == 0o700
    [record] = caplog.records
    assert "generated" in record.message
    assert record.fields["path"] == str(path)
    assert key.material.decode() not in caplog.text
    assert storage_key() == key, "the second time it is found"
    assert len(caplog.records) == 1


def test_two_generated_keys_differ(tmp_path: Path) -> None:
    assert (
        storage_key(config_directory=tmp_path / "a").material
        != storage_key(config_directory=tmp_path / "b").material
    )


def test_no_key_is_generated_beside_the_data(config: Path) -> None:
    with pytest.raises(ConfigError, match="beside the file"):
        storage_key(data_directory=config)
    assert not (config / "storage.key").exists()


def test_without_leave_no_key_is_generated(config: Path) -> None:
    assert storage_key(create=False) is None
    assert not config.exists()


def test_a_loose_generated_key_is_refused(config: Path) -> None:
    storage_key()
    (config / "storage.key").chmod(0o640)
    with pytest.raises(StorageError, match="chmod 600"):
        storage_key()


def test_the_configuration_directory_is_the_platforms(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert configuration_directory() == tmp_path / "keepline"
    monkeypatch.setenv("KEEPLINE_CONFIG_DIR", "/elsewhere")
    assert configuration_directory() == Path("/elsewhere")


def test_processes_that_start_together_end_with_one_key(config: Path) -> None:
    code = (
        "from keepline.credentials.keys import storage_key; print(storage_key().material.decode())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(8)
    ]
    keys = {process.communicate()[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    assert keys == {(config / "storage.key").read_bytes()}


def test_without_a_home_directory_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: (_ for _ in ()).throw(KeyError("no such user")))
    with pytest.raises(ConfigError, match="no home directory") as caught:
        storage_key()
    assert caught.value.key == "KEEPLINE_CONFIG_DIR"
    monkeypatch.setenv("KEEPLINE_STORAGE_KEY_FILE", "~/key")
    with pytest.raises(ConfigError, match="no home directory for ~/key") as caught:
        storage_key()
    assert caught.value.key == "KEEPLINE_STORAGE_KEY_FILE"


def test_a_platform_that_gives_back_the_tilde_has_no_home_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Older releases of platformdirs; a key in a directory called ~ would be lost with the working directory."""
    monkeypatch.setattr(platformdirs, "user_config_dir", lambda _: "~/.config/keepline")
    with pytest.raises(ConfigError, match="no home directory"):
        configuration_directory()


def test_a_child_forked_while_a_key_is_generated_does_not_keep_the_directory(
    tmp_path: Path,
) -> None:
    with alone_in(tmp_path):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(reader, 1)
            os._exit(0)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)
        os.write(writer, b".")
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
