"""The token file of schwab-py: its shape, what must stay in it, and what is wrong with one that cannot serve."""

import errno
import json
import os
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keepline.credentials.saving import DamagedFile
from keepline.credentials.schwab_file import SIGNIN_LIFETIME, SchwabTokenFile
from keepline.credentials.token import NEVER, Token
from keepline.errors import ConfigError, StorageError
from keepline.testing import ManualClock

NOW = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
EPOCH = int(NOW.timestamp())
SIGNED_IN = EPOCH - 86_400
INNER = {
    "expires_in": 1800,
    "token_type": "Bearer",
    "scope": "api",
    "refresh_token": "refresh-old",
    "access_token": "access-old",
    "id_token": "identity",
    "expires_at": EPOCH + 1800,
}
FILE = {"creation_timestamp": SIGNED_IN, "token": INNER}
NEW = Token(
    "access-new",
    "refresh-new",
    expires_at=NOW + timedelta(minutes=55, microseconds=700_000),
    issued_at=NOW + timedelta(minutes=25, microseconds=700_000),
    scope="api",
    generation=EPOCH + 1500,
    signin_deadline=datetime.fromtimestamp(SIGNED_IN, UTC) + SIGNIN_LIFETIME,
    extra={"id_token": "identity-2"},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "configs" / "schwab_tokens.json"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(wall=NOW)


@pytest.fixture
def store(path: Path, clock: ManualClock) -> SchwabTokenFile:
    return SchwabTokenFile(path, clock=clock)


def put(path: Path, content: object, mode: int = 0o600) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


# --- reading ---


def test_no_file_is_no_token(store: SchwabTokenFile) -> None:
    assert store.load() is None
    assert store.load_token() is None


def test_a_file_of_schwab_py_is_a_token(store: SchwabTokenFile, path: Path) -> None:
    put(path, FILE)
    assert store.load() == Token(
        "access-old",
        "refresh-old",
        expires_at=NOW + timedelta(minutes=30),
        issued_at=NOW,
        scope="api",
        generation=EPOCH,
        signin_deadline=datetime.fromtimestamp(SIGNED_IN, UTC) + timedelta(days=7),
        extra={"id_token": "identity"},
    )
    assert store.is_valid()
    assert store.path == path


def test_a_token_without_expiry_is_to_be_refreshed_at_once(
    store: SchwabTokenFile, path: Path
) -> None:
    put(path, {**FILE, "token": {k: v for k, v in INNER.items() if not k.startswith("expires")}})
    token = store.load()
    assert token.is_expired(NOW)
    assert token.refresh_token == "refresh-old"


def test_scope_may_be_a_list_or_null(store: SchwabTokenFile, path: Path) -> None:
    for given, expected in ((["api", "trade"], "api trade"), (None, "")):
        put(path, {**FILE, "token": {**INNER, "scope": given}})
        assert store.load().scope == expected


def test_a_half_written_file_is_read_again_until_it_is_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps(FILE)
    put(path, "")

    class Writer(ManualClock):
        """While the reader pauses, another program goes on writing."""

        def pause(self, seconds: float) -> None:
            super().pause(seconds)
            step = round(self.boottime() / 0.05)
            put(path, text[: step * len(text) // 10])

    clock = Writer(wall=NOW)
    assert SchwabTokenFile(path, clock=clock).load().access_token == "access-old"
    assert clock.boottime() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "content", ["", "   \n", json.dumps(FILE)[:100], '{"creation_', "[]", "null", "7"]
)
def test_one_that_stays_without_sense_is_an_error_after_a_second_and_stays_as_it_is(
    store: SchwabTokenFile, path: Path, clock: ManualClock, content: str
) -> None:
    put(path, content)
    with pytest.raises(DamagedFile, match=rf"{path}.*keepline login"):
        store.load()
    assert clock.boottime() == pytest.approx(1.0)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"token": INNER}, "old format without creation_timestamp.*delete it"),
        (INNER, "old format without creation_timestamp.*delete it"),
        ({"creation_timestamp": SIGNED_IN}, "no field 'token'"),
        ({"something": "else"}, "no field 'token'"),
        ({**FILE, "token": {**INNER, "refresh_token": ""}}, "no refresh_token.*keepline login"),
        ({**FILE, "token": {**INNER, "refresh_token": None}}, "no refresh_token"),
        ({**FILE, "token": {"access_token": "a"}}, "no refresh_token"),
        ({**FILE, "token": {"refresh_token": "r"}}, "access_token"),
        ({**FILE, "token": {**INNER, "access_token": ""}}, "access_token"),
        ({**FILE, "token": {**INNER, "access_token": 5}}, "access_token"),
        ({**FILE, "token": {**INNER, "refresh_token": 5}}, "refresh_token"),
        ({**FILE, "token": {**INNER, "expires_at": "soon"}}, "expires_at"),
        ({**FILE, "token": {**INNER, "expires_at": -1}}, "expires_at"),
        ({**FILE, "token": {**INNER, "expires_at": 1e300}}, "expires_at"),
        ({**FILE, "token": {**INNER, "expires_in": 1e300}}, "expires_in"),
        ({**FILE, "token": []}, "token"),
        ({**FILE, "creation_timestamp": None}, "creation_timestamp"),
        ({**FILE, "creation_timestamp": 253_402_214_400}, "creation_timestamp"),
    ],
)
def test_what_is_wrong_is_named_with_the_file_and_the_remedy(
    store: SchwabTokenFile, path: Path, clock: ManualClock, content: object, words: str
) -> None:
    put(path, content)
    with pytest.raises(StorageError, match=words) as caught:
        store.load()
    assert caught.value.path == path
    assert clock.boottime() == 0, "a whole file is not waited for"
    assert "refresh-old" not in str(caught.value)
    assert "access-old" not in str(caught.value)


def test_a_file_that_others_may_read_is_read_with_a_warning_and_closed_by_the_next_save(
    store: SchwabTokenFile, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(path, FILE, mode=0o644)
    assert store.load().access_token == "access-old"
    assert "Others may read this file" in caplog.text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    store.store(NEW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_is_refused(store: SchwabTokenFile, path: Path) -> None:
    put(path.with_name("real"), FILE)
    path.symlink_to(path.with_name("real"))
    with pytest.raises(StorageError, match="symbolic link"):
        store.load()
    with pytest.raises(StorageError, match="symbolic link"):
        store.prepare(None)


# --- writing ---


def test_a_new_file_has_exactly_the_shape_of_schwab_pys(store: SchwabTokenFile, path: Path) -> None:
    store.store(NEW)
    assert json.loads(path.read_text()) == {
        "creation_timestamp": SIGNED_IN,
        "token": {
            "expires_in": 1800,
            "token_type": "Bearer",
            "scope": "api",
            "refresh_token": "refresh-new",
            "access_token": "access-new",
            "id_token": "identity-2",
            "expires_at": EPOCH + 55 * 60,
        },
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(path) == ["schwab_tokens.json"]


def test_a_refresh_keeps_the_sign_in_and_every_field_that_we_do_not_know(
    store: SchwabTokenFile, path: Path
) -> None:
    put(path, {"note": {"by": "me"}, **FILE, "token": {**INNER, "session": [1, 2]}})
    old = store.load()
    saved = store.prepare(old).save(replace(NEW, extra={}, signin_deadline=None))
    content = json.loads(path.read_text())
    assert content["creation_timestamp"] == SIGNED_IN
    assert content["note"] == {"by": "me"}
    assert content["token"]["session"] == [1, 2]
    assert content["token"]["id_token"] == "identity"
    assert content["token"]["access_token"] == "access-new"
    assert saved.signin_deadline == old.signin_deadline
    assert list(content) == ["note", "creation_timestamp", "token"]


def test_a_token_of_a_new_sign_in_moves_the_creation_timestamp(
    store: SchwabTokenFile, path: Path
) -> None:
    put(path, FILE)
    store.store(replace(NEW, signin_deadline=NOW + SIGNIN_LIFETIME))
    assert json.loads(path.read_text())["creation_timestamp"] == EPOCH
    path.unlink()
    store.store(replace(NEW, signin_deadline=None))
    assert json.loads(path.read_text())["creation_timestamp"] == EPOCH + 1500


def test_what_was_saved_comes_back_in_whole_seconds(store: SchwabTokenFile) -> None:
    saved = store.prepare(None).save(NEW)
    assert saved == store.load()
    assert saved.expires_at == NEW.expires_at.replace(microsecond=0)
    assert saved.issued_at == NEW.issued_at.replace(microsecond=0)
    assert saved.generation == NEW.generation


def test_a_number_that_was_given_out_does_not_shrink_and_is_no_step_back(
    store: SchwabTokenFile, caplog: pytest.LogCaptureFixture
) -> None:
    later = replace(NEW, generation=NEW.generation + 5)
    assert store.prepare(None).save(later).generation == later.generation
    assert store.load().generation == NEW.generation
    assert "went back" not in caplog.text


def test_a_token_that_never_expires_comes_back(store: SchwabTokenFile) -> None:
    store.store(replace(NEW, expires_at=NEVER))
    assert store.load().expires_at == NEVER


def test_a_token_without_refresh_token_is_refused_and_the_file_stands(
    store: SchwabTokenFile, path: Path
) -> None:
    put(path, FILE)
    with pytest.raises(StorageError, match="without a refresh token"):
        store.store(Token("access only"))
    assert json.loads(path.read_text()) == FILE


def test_a_field_without_a_json_form_is_refused(store: SchwabTokenFile, path: Path) -> None:
    put(path, FILE)
    with pytest.raises(StorageError, match="plain values in extra"):
        store.store(replace(NEW, extra={"x": object()}))
    assert json.loads(path.read_text()) == FILE


def test_a_file_without_sense_is_moved_aside_by_a_sign_in_and_never_overwritten(
    store: SchwabTokenFile, path: Path
) -> None:
    half = json.dumps(FILE)[:60]
    put(path, half)
    store.store(NEW)
    assert store.load().access_token == "access-new"
    assert path.with_name("schwab_tokens.json.damaged").read_text() == half


@pytest.mark.parametrize("step", ["write", "ftruncate", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(
    store: SchwabTokenFile, path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    put(path, FILE)
    old = store.load()
    pending = store.prepare(old)

    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(StorageError, match="disk is full"):
            pending.save(NEW)
    assert json.loads(path.read_text()) == FILE
    assert store.interrupted().generation == old.generation
    pending.save(NEW)
    assert store.interrupted() is None
    assert names(path) == ["schwab_tokens.json"]


def test_the_short_interface_keeps_the_refresh_token(store: SchwabTokenFile, path: Path) -> None:
    with pytest.raises(StorageError, match="without a refresh token"):
        store.store_token("abc", NOW + timedelta(minutes=30))
    put(path, FILE)
    store.store_token("abc", NOW + timedelta(minutes=30))
    content = json.loads(path.read_text())
    assert content["token"]["access_token"] == "abc"
    assert content["token"]["refresh_token"] == "refresh-old"
    assert content["creation_timestamp"] == SIGNED_IN
    with pytest.raises(ConfigError):
        store.store_token("", NOW)


def test_clearing_leaves_nothing_that_could_be_read(store: SchwabTokenFile, path: Path) -> None:
    put(path, json.dumps(FILE)[:60])
    store.store(NEW)
    store.prepare(NEW).abandon(answer_lost=True)
    store.clear_token()
    assert names(path) == []


def test_no_secret_shows_in_a_repr(store: SchwabTokenFile, path: Path) -> None:
    put(path, FILE)
    store.load()
    assert "-old" not in repr(store)
    assert str(path) in repr(store)
