"""Where the storage key comes from: the first source that is set, and a source that is set but broken is an error.

Invariants: falling through from a broken source to the next would encrypt with another key, so it never happens; a key
that we generate lies in the configuration directory with mode 0600, never beside the data; no repr or message shows a
key.
"""

import contextlib
import logging
import os
import secrets
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from keepline import files, telemetry
from keepline.errors import ConfigError, StorageError
from keepline.files.locking import alone_in

__all__ = [
    "CREDENTIAL_NAME",
    "KEY_FILE_NAME",
    "StorageKey",
    "configuration_directory",
    "storage_key",
]

log = logging.getLogger("keepline.credentials")

CREDENTIAL_NAME = "keepline-storage-key"
"""The name under which systemd hands over the key: `LoadCredential=keepline-storage-key:/path`."""

KEY_FILE_NAME = "storage.key"
"""The generated key's file in the configuration directory."""

KEYRING_ENTRY = ("keepline", "storage-key")

_LIMIT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class StorageKey:
    """Key material and where it came from.

    Attributes:
        material: a passphrase or key, any bytes but none.
        source: for people: `KEEPLINE_STORAGE_KEY`, a file's path, `keyring`.
    """

    material: bytes = field(repr=False)
    source: str


def storage_key(
    *, create: bool = True, data_directory: Path | None = None, config_directory: Path | None = None
) -> StorageKey | None:
    """The key for the encrypted store; may block.

    The first of: the systemd credential `keepline-storage-key`, `KEEPLINE_STORAGE_KEY_FILE`, `KEEPLINE_STORAGE_KEY`,
    the keyring's entry (`keepline`, `storage-key`), the generated key file in the configuration directory.

    Args:
        create: generate that file when there is no source at all.
        data_directory: where the encrypted file lies; a key is never generated there.
        config_directory: instead of `configuration_directory()`.

    Returns:
        None when there is no source and `create` is False.

    Raises:
        StorageError: a source is set and cannot be used.
        ConfigError: a key would have to be generated beside the data, or there is no home directory.
    """
    for source in (_from_systemd, _from_named_file, _from_environment, _from_keyring):
        if (key := source()) is not None:
            return key
    path = (config_directory or configuration_directory()) / KEY_FILE_NAME
    key = _from_file(path, missing_is_fine=True)
    return key or (_generated(path, data_directory) if create else None)


def configuration_directory() -> Path:
    """`KEEPLINE_CONFIG_DIR`, or the platform's place for a user's settings (`~/.config/keepline` on Linux).

    Raises:
        ConfigError: there is no home directory.
    """
    if chosen := os.environ.get("KEEPLINE_CONFIG_DIR"):
        return files.expanded(chosen, key="KEEPLINE_CONFIG_DIR")
    from platformdirs import user_config_dir

    with contextlib.suppress(RuntimeError):  # so it says since 4.10 that there is no home directory
        path = Path(user_config_dir("keepline"))
        if path.is_absolute():
            return path
    raise ConfigError(
        "there is no home directory to keep settings in: set it to a directory of yours",
        key="KEEPLINE_CONFIG_DIR",
    )


def _from_systemd() -> StorageKey | None:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return None
    # systemd owns that directory and grants reading by an access list, which shows as group rights: not ours to judge
    path = Path(directory) / CREDENTIAL_NAME
    return _from_file(path, missing_is_fine=True, system=True)


def _from_named_file() -> StorageKey | None:
    name = os.environ.get("KEEPLINE_STORAGE_KEY_FILE")
    return _from_file(files.expanded(name, key="KEEPLINE_STORAGE_KEY_FILE")) if name else None


def _from_environment() -> StorageKey | None:
    text = os.environ.get("KEEPLINE_STORAGE_KEY")
    if text is None:
        return None
    if not text:
        raise StorageError(
            "KEEPLINE_STORAGE_KEY is set and empty: give it a passphrase or unset it"
        )
    return StorageKey(os.fsencode(text), "KEEPLINE_STORAGE_KEY")


def _from_keyring() -> StorageKey | None:
    if find_spec("keyring") is None:
        return None
    import keyring
    import keyring.errors

    try:
        text = keyring.get_password(*KEYRING_ENTRY)
    except (
        keyring.errors.KeyringError
    ) as error:  # a headless machine has the package and no keyring
        telemetry.event(
            log, logging.DEBUG, "The keyring cannot be asked", reason=type(error).__name__
        )
        return None
    return StorageKey(text.encode(), "keyring") if text else None


def _from_file(
    path: Path, *, missing_is_fine: bool = False, system: bool = False
) -> StorageKey | None:
    data = files.read_private(
        path, limit=_LIMIT_BYTES, on_loose_mode="allow" if system else "refuse", system=system
    )
    if data is None:
        if missing_is_fine:
            return None
        raise StorageError(
            "the storage key's file does not exist: correct KEEPLINE_STORAGE_KEY_FILE", path=path
        )
    if not (material := data.rstrip(b"\r\n")):  # an editor or `echo` ends it with a newline
        raise StorageError("the storage key's file is empty: put a passphrase into it", path=path)
    return StorageKey(material, str(path))


def _generated(path: Path, data_directory: Path | None) -> StorageKey:
    if data_directory is not None and data_directory.resolve() == path.parent.resolve():
        raise ConfigError(
            "a key beside the file that it opens protects nothing: set KEEPLINE_STORAGE_KEY_FILE, or keep the "
            f"tokens outside of {path.parent}",
            key="storage_path",
        )
    with alone_in(path.parent):  # two processes that start together must end with one key
        if (key := _from_file(path, missing_is_fine=True)) is not None:
            return key  # another process was faster
        files.write_private(path, secrets.token_hex(32).encode() + b"\n")
    telemetry.event(
        log,
        logging.INFO,
        "A storage key was generated; back it up, without it the stored tokens cannot be read",
        path=str(path),
    )
    key = _from_file(path)
    assert key is not None
    return key
