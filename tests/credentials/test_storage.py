"""The encrypted store: what is saved outlives any crash, full disk or wrong key, and a clear leaves nothing."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keepline import files
from keepline.credentials import keys
from keepline.credentials import vault as vaults
from keepline.credentials.saving import DamagedFile
from keepline.credentials.storage import TokenStorage
from keepline.credentials.token import Token, fingerprint, next_generation
from keepline.credentials.vault import Kdf
from keepline.errors import ConfigError, StorageError
from keepline.testing import ManualClock

NOW = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
OLD = Token(
    "access-old",
    "refresh-old",
    expires_at=NOW + timedelta(minutes=30),
    issued_at=NOW,
    generation=100,
)
NEW = Token(
    "access-new", "refresh-new", expires_at=NOW + timedelta(hours=1), issued_at=NOW, generation=101
)
STEPS = ("open", "posix_fallocate", "write", "ftruncate", "fsync", "replace")

Make = Callable[..., TokenStorage]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "tokens.enc"


@pytest.fixture(autouse=True)
def _a_derivation_that_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one is under test in test_vault.py."""
    monkeypatch.setattr(vaults, "PBKDF2", Kdf("pbkdf2", 10))


@pytest.fixture
def make(path: Path, tmp_path: Path) -> Make:
    def storage(**options) -> TokenStorage:
        return TokenStorage(
            path,
            **{
                "key": "passphrase",
                "clock": ManualClock(wall=NOW),
                "fallback_directory": tmp_path / "fallback",
                **options,
            },
        )

    return storage


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir()) if directory.exists() else []


def failing(
    patch: pytest.MonkeyPatch, name: str, code: int = errno.ENOSPC, *, below: Path | None = None
) -> None:
    """From now on an os function fails, everywhere or for descriptors and paths below a directory."""
    real = getattr(os, name)

    def call(target, *args, **options):
        where = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else target
        if below is None or str(where).startswith(str(below)):
            raise OSError(code, os.strerror(code))
        return real(target, *args, **options)

    patch.setattr(os, name, call)


# --- the ordinary day ---


def test_an_empty_store_is_empty(make: Make, path: Path) -> None:
    storage = make()
    assert storage.path == path
    assert storage.load() is None
    assert storage.load_token() is None
    assert not storage.is_valid()
    assert storage.interrupted() is None
    storage.clear_token()
    assert not path.parent.exists(), "reading makes nothing"


def test_what_one_process_stores_another_loads(make: Make, path: Path) -> None:
    make().store(NEW)
    assert make().load() == NEW
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(path.parent) == ["tokens.enc"]
    assert b"access-new" not in path.read_bytes()


def test_the_default_path_is_data_tokens_enc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    TokenStorage(key="k").store(NEW)
    assert (tmp_path / "data" / "tokens.enc").exists()


def test_the_short_interface_stores_and_validates(make: Make) -> None:
    clock = ManualClock(wall=NOW)
    storage = make(clock=clock)
    storage.store_token("abc", NOW + timedelta(minutes=30))
    assert storage.load_token() == ("abc", NOW + timedelta(minutes=30))
    assert storage.is_valid()
    clock.advance(1800)
    assert not storage.is_valid()


def test_the_short_interface_keeps_what_it_does_not_know(make: Make) -> None:
    storage = make()
    storage.store(replace(OLD, signin_deadline=NOW + timedelta(days=7)))
    storage.store_token("abc", NOW + timedelta(minutes=30))
    token = storage.load()
    assert (token.access_token, token.refresh_token) == ("abc", "refresh-old")
    assert token.signin_deadline == NOW + timedelta(days=7)
    assert token.generation > OLD.generation


@pytest.mark.parametrize("memory_only", [True, False])
def test_the_short_interface_refuses_what_makes_no_sense(make: Make, memory_only: bool) -> None:
    storage = make(memory_only=memory_only)
    for token, expires_at, words in (
        ("", NOW, "token"),
        ("  ", NOW, "token"),
        (None, NOW, "token"),
        ("abc", datetime(2026, 1, 1), "aware datetime"),  # noqa: DTZ001
        ("abc", 1_700_000_000, "aware datetime"),
    ):
        with pytest.raises(ConfigError, match=words):
            storage.store_token(token, expires_at)
    assert storage.load() is None


@pytest.mark.parametrize("memory_only", [True, False])
def test_a_token_without_a_number_gets_the_next_one(make: Make, memory_only: bool) -> None:
    storage = make(memory_only=memory_only)
    bare = replace(NEW, generation=0)
    storage.store(bare)
    first = storage.load().generation
    assert first == next_generation(0, NOW)
    storage.store(bare)
    assert storage.load().generation == first + 1
    storage.clear_token()
    storage.store(bare)
    assert storage.load().generation == first + 2


def test_another_process_goes_on_counting(make: Make) -> None:
    make().store(replace(OLD, generation=5_000_000_000))
    other = make()
    other.store(replace(NEW, generation=0))
    assert other.load().generation == 5_000_000_001


def test_wrong_arguments_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"pbkdf2.*argon2id.*scrypt"):
        make(kdf="scrypt")
    for empty in ("", b""):
        with pytest.raises(ConfigError, match="key is empty"):
            make(key=empty)


def test_reprs_show_no_secret(make: Make, path: Path) -> None:
    storage = make()
    storage.store(NEW)
    pending = storage.prepare(NEW)
    for text in (repr(storage), repr(pending), repr(storage._file), repr(storage._file.codec)):
        assert "passphrase" not in text
        assert "access-new" not in text
    assert str(path) in repr(storage)
    pending.abandon(answer_lost=False)
    assert "in memory" in repr(make(memory_only=True))


# --- memory only ---


def test_memory_only_touches_no_disk(make: Make, path: Path) -> None:
    storage = make(memory_only=True)
    assert storage.path is None
    pending = storage.prepare(OLD)
    assert pending.save(NEW) == NEW
    pending.abandon(answer_lost=True)
    assert storage.load() == NEW
    assert storage.interrupted() is None
    storage.change_key("other")
    storage.clear_token()
    assert storage.load() is None
    assert not path.parent.exists()


# --- keys ---


def test_without_an_argument_the_key_comes_from_the_chain(
    make: Make, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.setenv("KEEPLINE_STORAGE_KEY", "of the environment")
    make(key=None).store(NEW)
    assert make(key="of the environment").load() == NEW
    monkeypatch.setenv("KEEPLINE_STORAGE_KEY", "another")
    with pytest.raises(StorageError, match="another key than the one from KEEPLINE_STORAGE_KEY"):
        make(key=None).load()


def test_a_generated_key_lies_in_the_configuration_directory_and_opens_later(
    make: Make, path: Path
) -> None:
    make(key=None).store(NEW)
    assert (keys.configuration_directory() / keys.KEY_FILE_NAME).exists()
    assert names(path.parent) == ["tokens.enc"]
    assert make(key=None).load() == NEW


def test_a_file_whose_key_is_gone_makes_no_new_key(make: Make) -> None:
    make(key=None).store(NEW)
    key_file = keys.configuration_directory() / keys.KEY_FILE_NAME
    key_file.unlink()
    storage = make(key=None)
    for action in (storage.load, lambda: storage.store(NEW), lambda: storage.prepare(NEW)):
        with pytest.raises(StorageError, match="its key was not found"):
            action()
    assert not key_file.exists()


@pytest.mark.parametrize("kdf", ["pbkdf2", "argon2id"])
def test_a_changed_key_opens_and_the_old_one_does_not(make: Make, kdf: str) -> None:
    storage = make(kdf=kdf)
    storage.store(NEW)
    storage.change_key("new passphrase")
    assert storage.load() == NEW
    storage.store(replace(NEW, generation=102))
    assert make(key="new passphrase").load().generation == 102
    with pytest.raises(StorageError, match="another key"):
        make().load()


def test_the_key_of_an_empty_store_is_changed_too(make: Make) -> None:
    storage = make()
    storage.change_key("new passphrase")
    storage.store(NEW)
    assert make(key="new passphrase").load() == NEW


@pytest.mark.parametrize("step", STEPS)
def test_a_key_change_that_fails_leaves_the_old_key(
    make: Make, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    storage = make()
    storage.store(NEW)
    with monkeypatch.context() as patch:
        failing(patch, step)
        with pytest.raises(StorageError):
            storage.change_key("new passphrase")
    assert storage.load() == NEW
    assert make().load() == NEW


def test_a_key_change_whose_read_back_differs_leaves_the_old_key(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = make()
    storage.store(NEW)
    monkeypatch.setattr(type(storage._file.codec), "matches", lambda *a: False)
    with pytest.raises(StorageError, match="not what was written"):
        storage.change_key("new passphrase")
    monkeypatch.undo()
    assert make().load() == NEW


def test_a_key_change_knows_its_key_even_when_only_the_directory_was_not_synced(
    make: Make, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    storage = make()
    storage.store(NEW)
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, "no")
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError, match="directory could not be synced"):
            storage.change_key("new passphrase")
    assert make(key="new passphrase").load() == NEW
    assert storage.load() == NEW


# --- the order of a save ---


def test_a_refresh_reserves_space_and_says_what_it_spends(make: Make, path: Path) -> None:
    storage = make()
    storage.store(OLD)
    pending = storage.prepare(OLD)
    spare = next(each for each in path.parent.iterdir() if each.name.endswith(".spare"))
    assert spare.stat().st_size >= 2 * path.stat().st_size
    interruption = make().interrupted()
    assert (interruption.generation, interruption.begun_at) == (100, NOW)
    assert interruption.fingerprint == fingerprint("refresh-old")
    intent = (path.parent / "tokens.enc.intent").read_bytes()
    assert b"refresh-old" not in intent
    assert b"access-old" not in intent
    assert pending.save(NEW) == NEW
    assert make().interrupted() is None
    assert make().load() == NEW
    assert names(path.parent) == ["tokens.enc"]


def test_nothing_is_noted_when_nothing_is_spent(make: Make, path: Path) -> None:
    storage = make()
    for spending in (None, Token("access only")):
        pending = storage.prepare(spending)
        assert storage.interrupted() is None
        assert not (path.parent / "tokens.enc.intent").exists()
        pending.abandon(answer_lost=True)
    assert names(path.parent) == []


def test_a_refusal_drops_the_intent_and_a_lost_answer_keeps_it(make: Make, path: Path) -> None:
    storage = make()
    storage.store(OLD)
    pending = storage.prepare(OLD)
    pending.abandon(answer_lost=False)
    pending.abandon(answer_lost=False)
    assert storage.interrupted() is None
    assert names(path.parent) == ["tokens.enc"]
    storage.prepare(OLD).abandon(answer_lost=True)
    assert storage.interrupted() is not None
    assert names(path.parent) == ["tokens.enc", "tokens.enc.intent"]


def test_an_answer_that_was_lost_once_is_not_forgotten_by_a_later_refusal(make: Make) -> None:
    clock = ManualClock(wall=NOW)
    storage = make(clock=clock)
    storage.store(OLD)
    storage.prepare(OLD).abandon(answer_lost=True)
    clock.advance(60)
    storage.prepare(OLD).abandon(answer_lost=False)
    assert storage.interrupted().begun_at == NOW


def test_a_token_from_elsewhere_ends_the_interruption(make: Make) -> None:
    storage = make()
    storage.store(OLD)
    storage.prepare(OLD).abandon(answer_lost=True)
    make().store(NEW)
    assert storage.interrupted() is None


def test_an_intent_that_outlived_its_save_means_nothing(make: Make, path: Path) -> None:
    storage = make()
    storage.store(OLD)
    pending = storage.prepare(OLD)
    intent = (path.parent / "tokens.enc.intent").read_bytes()
    pending.save(NEW)
    files.write_private(path.parent / "tokens.enc.intent", intent)
    assert make().interrupted() is None
    path.unlink()
    assert make().interrupted() is None


def test_an_interruption_is_true_even_when_the_file_is_damaged(make: Make, path: Path) -> None:
    storage = make()
    storage.store(OLD)
    storage.prepare(OLD).abandon(answer_lost=True)
    path.write_bytes(b"KEEPLINE")
    assert storage.interrupted().generation == 100


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"v":1}', b"[" * 9999])
def test_an_intent_that_cannot_be_read_is_said_and_passed_over(
    make: Make, path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    storage = make()
    storage.store(OLD)
    files.write_private(path.parent / "tokens.enc.intent", content)
    assert storage.interrupted() is None
    assert "intent record cannot be read" in caplog.text
    storage.prepare(OLD).abandon(answer_lost=True)
    assert storage.interrupted() is not None


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_when_nothing_can_be_reserved_nothing_is_to_be_spent(
    make: Make, path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    storage = make()
    storage.store(OLD)
    with monkeypatch.context() as patch:
        failing(patch, step, code)
        with pytest.raises(StorageError, match=r"disk|quota"):
            storage.prepare(OLD)
    assert storage.load() == OLD
    assert storage.interrupted() is None
    assert names(path.parent) == ["tokens.enc"]


def test_a_full_disk_after_the_spending_is_met_by_the_reserved_space(
    make: Make, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """What a full disk refuses is new blocks: the reserved ones are written all the same."""
    storage = make()
    storage.store(OLD)
    pending = storage.prepare(OLD)
    with monkeypatch.context() as patch:
        failing(patch, "posix_fallocate")
        pending.save(NEW)
    assert make().load() == NEW


@pytest.mark.parametrize("step", STEPS[2:])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_answer_that_the_file_does_not_take_is_kept_aside_and_the_save_can_be_repeated(
    make: Make,
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
    code: int,
) -> None:
    storage = make()
    storage.store(OLD)
    pending = storage.prepare(OLD)
    with monkeypatch.context() as patch:
        failing(patch, step, code, below=path.parent)
        for _ in range(2):
            with pytest.raises(StorageError, match=r"is kept in .*unsaved until a save") as caught:
                pending.save(NEW)
            assert caught.value.errno == code or "synced" in str(caught.value)
    pending.abandon(answer_lost=False)
    [kept] = names(tmp_path / "fallback")
    assert kept.startswith("tokens.enc.")
    assert b"access-new" not in (tmp_path / "fallback" / kept).read_bytes()
    assert make().load() == NEW, "a new process finds it"
    assert "kept aside because its save had failed" in caplog.text
    assert make().interrupted() is None
    assert pending.save(NEW) == NEW
    assert make().load() == NEW
    assert names(path.parent) == ["tokens.enc"]
    assert names(tmp_path / "fallback") == []


def test_when_the_fallback_fails_too_both_are_said(
    make: Make, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    storage = make()
    storage.store(OLD)
    pending = storage.prepare(OLD)
    with monkeypatch.context() as patch:
        failing(patch, "fsync")
        with pytest.raises(StorageError, match="only this process has it") as caught:
            pending.save(NEW)
    assert str(caught.value).startswith(str(path))
    assert make().load() == OLD
    assert make().interrupted() is not None, "the stored refresh token is spent, and that is known"


def test_a_bought_token_that_never_had_space_is_kept_aside_too(
    make: Make, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    storage = make()
    storage.store(OLD)
    with monkeypatch.context() as patch:
        failing(patch, "posix_fallocate", below=path.parent)
        with pytest.raises(StorageError, match="is kept in"):
            storage.store(replace(NEW, generation=0))
    assert make().load().access_token == "access-new"


def test_the_fallback_is_the_runtime_directory(
    make: Make, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    storage = make(fallback_directory=None)
    storage.store(OLD)
    assert names(files.runtime_directory(make=False)) == []
    with monkeypatch.context() as patch:
        failing(patch, "fsync", below=path.parent)
        with pytest.raises(StorageError, match=str(files.runtime_directory(make=False))):
            storage.store(NEW)
    assert len(names(files.runtime_directory())) == 1
    assert make(fallback_directory=None).load() == NEW


def test_two_stores_of_one_file_name_do_not_share_their_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = {
        name: TokenStorage(
            tmp_path / name / "tokens.enc", key="k", fallback_directory=tmp_path / "f"
        )
        for name in ("a", "b")
    }
    with monkeypatch.context() as patch:
        failing(patch, "replace", below=tmp_path / "a")
        failing(patch, "replace", below=tmp_path / "b")
        for name, storage in stores.items():
            with pytest.raises(StorageError):
                storage.store(replace(NEW, access_token=name))
    assert {name: storage.load().access_token for name, storage in stores.items()} == {
        "a": "a",
        "b": "b",
    }


def test_an_older_token_in_the_fallback_does_not_win(
    make: Make, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    storage = make()
    with monkeypatch.context() as patch:
        failing(patch, "fsync", below=path.parent)
        with pytest.raises(StorageError):
            storage.store(OLD)
    with monkeypatch.context() as patch:
        failing(patch, "unlink", errno.EPERM)
        storage.store(NEW)
    assert make().load() == NEW


def test_a_fallback_that_cannot_be_read_is_said_and_passed_over(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = make()
    storage.store(OLD)
    with monkeypatch.context() as patch:
        failing(patch, "fsync", below=path.parent)
        with pytest.raises(StorageError):
            storage.store(NEW)
    [kept] = (tmp_path / "fallback").iterdir()
    kept.write_bytes(b"nonsense")
    assert storage.load() == OLD
    assert "kept aside cannot be read" in caplog.text


def test_what_is_read_back_must_be_what_was_saved(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = make()
    storage.store(OLD)
    pending = storage.prepare(OLD)
    codec = storage._file.codec
    real = codec.decode

    def other(data: bytes, path: Path) -> Token:
        return replace(real(data, path), refresh_token="not what was saved")

    with monkeypatch.context() as patch:
        patch.setattr(codec, "decode", other)
        with pytest.raises(StorageError, match="read back is not what was saved"):
            pending.save(NEW)
    assert pending.save(NEW) == NEW


def test_an_odd_number_in_a_field_that_we_do_not_know_keeps_no_token_from_being_saved(
    make: Make,
) -> None:
    storage = make()
    storage.store(replace(NEW, extra={"n": float("nan"), "big": 1 << 70, "pair": (1, 2)}))
    assert storage.load().access_token == "access-new"


# --- files that cannot serve ---


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def test_a_damaged_file_is_an_error_and_moved_aside_only_by_the_next_save(
    make: Make, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = make()
    for number, aside in enumerate(("tokens.enc.damaged", "tokens.enc.damaged-2"), start=1):
        storage.store(replace(OLD, generation=number))
        damage(path)
        damaged = path.read_bytes()
        for action in (storage.load, storage.load_token, storage.is_valid):
            with pytest.raises(DamagedFile, match=r"damaged.*sign in again"):
                action()
        pending = storage.prepare(None)
        assert path.read_bytes() == damaged, "prepare moves nothing"
        pending.save(NEW)
        assert storage.load() == NEW
        assert path.with_name(aside).read_bytes() == damaged
    assert "was moved aside" in caplog.text


def test_the_short_interface_stores_over_a_damaged_file_too(make: Make, path: Path) -> None:
    storage = make()
    storage.store(OLD)
    damage(path)
    storage.store_token("abc", NOW + timedelta(minutes=30))
    assert storage.load_token() == ("abc", NOW + timedelta(minutes=30))
    assert path.with_name("tokens.enc.damaged").exists()


def test_the_fallback_serves_when_the_file_is_damaged(
    make: Make, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = make()
    storage.store(OLD)
    with monkeypatch.context() as patch:
        failing(patch, "fsync", below=path.parent)
        with pytest.raises(StorageError):
            storage.store(NEW)
    damage(path)
    assert storage.load() == NEW
    assert "is damaged; the token kept aside serves" in caplog.text


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"key": "wrong"}, "another key"),
        ({"credential": "spare"}, "credential 'spare', not of 'main'"),
    ],
)
def test_a_good_file_that_is_not_for_us_is_neither_read_nor_replaced(
    make: Make, path: Path, other: dict, words: str
) -> None:
    make(**{"credential": "main", **other}).store(OLD)
    before = path.read_bytes()
    storage = make(credential="main")
    for action in (storage.load, lambda: storage.store(NEW), lambda: storage.prepare(OLD)):
        with pytest.raises(StorageError, match=words):
            action()
    assert path.read_bytes() == before
    assert names(path.parent) == ["tokens.enc"]


def test_a_loose_file_is_refused_with_the_command_that_helps(make: Make, path: Path) -> None:
    storage = make()
    storage.store(OLD)
    path.chmod(0o640)
    with pytest.raises(StorageError, match=f"chmod 600 {path}"):
        storage.load()
    with pytest.raises(StorageError, match=f"chmod 600 {path}"):
        storage.prepare(OLD)


def test_a_file_that_went_back_to_an_older_token_is_said(
    make: Make, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = make()
    storage.store(OLD)
    backup = path.read_bytes()
    storage.store(NEW)
    path.write_bytes(backup)
    assert storage.load() == OLD
    [record] = [record for record in caplog.records if "went back" in record.message]
    assert (record.fields["generation"], record.fields["seen"]) == (100, 101)


# --- clearing ---


def test_clearing_leaves_nothing(
    make: Make, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = make()
    storage.store(OLD)
    damage(path)
    storage.store(OLD)
    with monkeypatch.context() as patch:
        failing(patch, "replace", below=path.parent)
        with pytest.raises(StorageError):
            storage.store(NEW)
    os.close(storage.prepare(OLD)._reservation._fd)  # as a crash leaves it: spare and intent
    [spare, *others] = names(path.parent)
    assert spare.startswith(".tokens.enc.")
    assert others == ["tokens.enc", "tokens.enc.damaged", "tokens.enc.intent"]
    assert len(names(tmp_path / "fallback")) == 1
    storage.clear_token()
    assert names(path.parent) == []
    assert names(tmp_path / "fallback") == []
    assert storage.load() is None
    assert storage.interrupted() is None


def test_what_cannot_be_cleared_is_an_error_and_the_rest_goes(make: Make, path: Path) -> None:
    storage = make()
    storage.store(OLD)
    intent = path.with_name("tokens.enc.intent")
    intent.mkdir()
    with pytest.raises(StorageError, match="remove it by hand"):
        storage.clear_token()
    assert names(path.parent) == ["tokens.enc.intent"]


def test_several_threads_may_use_one_store(make: Make) -> None:
    storage = make()
    storage.store(OLD)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(5):
                storage.prepare(OLD).save(replace(NEW, generation=1000 + 10 * number + step))
                assert storage.load() is not None
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert make().load() == storage.load()


# --- death at any moment ---

KILLED = """
import os, signal, sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from keepline.credentials.storage import TokenStorage
from keepline.credentials.token import Token

path, fallback, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
storage = TokenStorage(path, key="passphrase", fallback_directory=fallback)
old = storage.load()
now = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
new = Token("access-new", "refresh-new", expires_at=now + timedelta(hours=1), issued_at=now, generation=101)
calls = 0
def deadly(name, real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("open", "write", "fsync", "replace", "rename", "ftruncate", "posix_fallocate", "unlink"):
    setattr(os, name, deadly(name, getattr(os, name)))
pending = storage.prepare(old)
print("spent", flush=True)
pending.save(new)
print("saved", flush=True)
"""


def test_a_refresher_killed_at_any_step_leaves_a_token_and_the_truth_about_it(
    make: Make, path: Path, tmp_path: Path
) -> None:
    outcomes = set()
    for number in range(1, 200):
        make().clear_token()
        make().store(OLD)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(path), str(tmp_path / "fallback"), str(number)],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        storage = make()
        token, interruption = storage.load(), storage.interrupted()
        spent = "spent" in done.stdout
        assert token in (OLD, NEW)
        if token == NEW:
            assert spent
            assert interruption is None
        if spent and token == OLD:
            assert interruption is not None, "a mystery: the token may be spent and nobody knows"
            assert interruption.generation == OLD.generation
        outcomes.add((spent, token.generation, interruption is not None))
        storage.store(replace(NEW, generation=102))
        assert names(path.parent) == ["tokens.enc"], "the next save clears up"
        if done.returncode == 0:
            break
    assert done.returncode == 0
    assert "saved" in done.stdout
    assert {(False, 100, False), (True, 100, True), (True, 101, False)} <= outcomes
