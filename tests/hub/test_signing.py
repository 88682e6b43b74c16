"""Signing keys: made once, private, rotated, and kept as long as their tokens may live."""

import json
from pathlib import Path

import pytest

from keepline.errors import ConfigError, StorageError
from keepline.hub.signing import SigningKeys

DAY = 86_400.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "conf" / "hub-signing.keys"


def test_a_key_is_made_once_and_found_again(path: Path) -> None:
    made = SigningKeys.load_or_create(path, now=0.0)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(made.current.material) == 32
    found = SigningKeys.load_or_create(path, now=5.0)
    assert found.current == made.current
    assert not made.refetches
    assert repr(made) == f"<SigningKeys {path}, 1 keys>"


def test_a_rotated_key_signs_and_the_old_one_verifies_while_its_tokens_live(path: Path) -> None:
    keys = SigningKeys(path, keep_seconds=DAY)
    keys.load(now=0.0)
    first = keys.current
    keys.rotate(now=10 * DAY)
    second = keys.current
    assert second.kid != first.kid
    assert list(keys.ring.find(first.kid, "HS256")) == [first]
    keys.rotate(now=11 * DAY)  # the first one ended at day 10, its last token dies at day 11
    assert not keys.ring.find(first.kid, "HS256")
    assert keys.ring.find(second.kid, "HS256")


def test_it_rotates_by_itself_when_it_is_time(path: Path) -> None:
    keys = SigningKeys(path, rotate_after_seconds=90 * DAY)
    keys.load(now=0.0)
    first = keys.current
    keys.refreshed(now=89 * DAY)
    assert keys.current == first
    keys.refreshed(now=90 * DAY)
    assert keys.current != first
    assert len(keys.ring) == 2


def test_two_processes_end_with_the_same_keys(path: Path) -> None:
    one, two = SigningKeys(path), SigningKeys(path)
    one.load(now=0.0)
    two.load(now=0.0)
    one.rotate(now=DAY)
    two.rotate(now=DAY)  # the other was faster: no second new key
    assert one.current == two.current
    one.rotate(now=2 * DAY)
    two.refreshed(now=2 * DAY)
    assert one.current == two.current
    assert len(two.ring) == 3


def test_one_that_follows_reads_what_another_makes_and_makes_nothing(path: Path) -> None:
    follower = SigningKeys(path, rotate_after_seconds=90 * DAY, follows=True)
    with pytest.raises(StorageError, match="is missing"):
        follower.load(now=0.0)
    assert not path.exists()
    leader = SigningKeys(path, rotate_after_seconds=90 * DAY)
    leader.load(now=0.0)
    follower.load(now=0.0)
    first = leader.current
    follower.refreshed(now=90 * DAY)
    assert follower.current == first
    leader.refreshed(now=90 * DAY)
    follower.refreshed(now=90 * DAY)
    assert follower.current == leader.current != first
    path.unlink()
    with pytest.raises(StorageError, match="is missing"):
        follower.refreshed(now=91 * DAY)
    assert follower.current == leader.current
    leader.refreshed(now=91 * DAY)
    follower.refreshed(now=91 * DAY)
    assert follower.current == leader.current


def test_a_secret_that_was_given_is_the_key_and_is_not_rotated() -> None:
    keys = SigningKeys.fixed(b"s" * 32)
    for turn in (keys.load, keys.rotate, keys.refreshed):
        turn(now=1e12)
    assert keys.current.material == b"s" * 32
    assert keys.current.kid == "configured"
    assert repr(keys) == "<SigningKeys configured, 1 keys>"
    with pytest.raises(ConfigError, match="shorter than 32 bytes"):
        SigningKeys.fixed(b"short")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"version":1,"keys":[]}',
     b'{"version":2,"keys":[{"kid":"a","secret":"%s","created_at":1}]}' % (b"A" * 44),
     b'{"version":1,"keys":[{"kid":"a","secret":"c2hvcnQ=","created_at":1}]}',
     b'{"version":1,"keys":[{"kid":"","secret":"%s","created_at":1}]}' % (b"A" * 44)],
)  # fmt: skip
def test_a_damaged_file_is_left_alone_and_said(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(StorageError, match="not a file of signing keys") as error:
        SigningKeys.load_or_create(path, now=0.0)
    assert error.value.path == path
    assert path.read_bytes() == content


def test_a_file_that_others_can_read_is_refused(path: Path) -> None:
    SigningKeys.load_or_create(path, now=0.0)
    path.chmod(0o640)
    with pytest.raises(StorageError):
        SigningKeys.load_or_create(path, now=0.0)


def test_keys_in_memory_stay_when_the_file_is_damaged(path: Path) -> None:
    keys = SigningKeys.load_or_create(path, now=0.0)
    before = keys.current
    path.write_bytes(b"rubbish")
    with pytest.raises(StorageError):
        keys.refreshed(now=1.0)
    assert keys.current == before


def test_no_repr_shows_a_secret(path: Path) -> None:
    keys = SigningKeys.load_or_create(path, now=0.0)
    secret = json.loads(path.read_bytes())["keys"][0]["secret"]
    assert secret not in f"{keys!r}{keys.current!r}{keys.ring!r}"
