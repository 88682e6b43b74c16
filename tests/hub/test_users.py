"""The users file: private, whole, reloaded, and what removal, disabling and revocation leave in it."""

import json
import threading
from pathlib import Path

import pytest

from keepline.errors import ConfigError, StorageError
from keepline.hub.access import Standing
from keepline.hub.passwords import Argon2id, password_fits
from keepline.hub.users import Revocation, User, UserBook, UsersFile, user_name

CHEAP, DEARER = Argon2id(64, 1, 1), Argon2id(128, 1, 1)
GOOD = "correct horse battery"


@pytest.fixture
def users(tmp_path: Path) -> UsersFile:
    return UsersFile(tmp_path / "conf" / "users.jsonl", parameters=CHEAP)


def test_nobody_is_there_until_somebody_is_added(users: UsersFile) -> None:
    assert len(users.load()) == 0
    assert not users.path.exists()
    added = users.add("ann", GOOD, role="trader", account="U1", now=100.0)
    assert users.path.stat().st_mode & 0o777 == 0o600
    assert (added.name, added.role, added.account, added.created_at) == (
        "ann",
        "trader",
        "U1",
        100.0,
    )
    assert password_fits(GOOD, added.password)
    assert GOOD not in users.path.read_text()
    assert repr(added) == "<User ann, trader>"
    again = UsersFile(users.path)
    assert again.load().find("ann") == added
    assert again.book.standing("ann") == Standing("trader", "U1")
    assert again.book.standing("bob") is None
    assert repr(again) == f"<UsersFile {users.path}, 1 users>"
    assert repr(again.book) == "<UserBook of 1>"


def test_names_are_one_in_every_normal_form_and_case(users: UsersFile) -> None:
    users.add("Zoe\u0308", GOOD, role="viewer", now=1.0)
    assert users.book.find("Zoë") is not None
    assert users.book.find("zoë") is None
    for name in ("Zoë", "zoë", "ZOË"):
        with pytest.raises(ConfigError, match="there is a user 'Zoë' already"):
            users.add(name, GOOD, role="viewer", now=2.0)
    with pytest.raises(ConfigError, match="choose another"):
        users.add("zoë", GOOD, role="viewer", now=2.0, replace=True)


def test_a_new_password_ends_the_old_tokens(users: UsersFile) -> None:
    users.add("ann", GOOD, role="viewer", now=1.0)
    assert users.book.revoked_before("ann") is None
    users.add("ann", "another good one 7", role="admin", now=50.0, replace=True)
    assert users.book.revoked_before("ann") == 50.0
    assert users.book.standing("ann") == Standing("admin")
    assert password_fits("another good one 7", users.book.users["ann"].password)


def test_a_removed_user_leaves_a_revocation_that_a_namesake_keeps(users: UsersFile) -> None:
    users.add("ann", GOOD, role="viewer", now=1.0)
    users.remove("ann", now=60.0)
    assert users.book.find("ann") is None
    assert users.book.revoked_before("ann") == 60.0
    users.add("ann", GOOD, role="viewer", now=70.0)
    assert UsersFile(users.path).load().revoked_before("ann") == 60.0


def test_a_disabled_user_stays_and_an_unknown_one_is_named_as_such(users: UsersFile) -> None:
    users.add("ann", GOOD, role="viewer", now=1.0)
    users.disable("ann", now=60.0)
    assert users.book.standing("ann") == Standing("viewer", disabled=True)
    assert users.book.revoked_before("ann") == 60.0
    assert repr(users.book.users["ann"]) == "<User ann, viewer, disabled>"
    for change in (users.remove, users.disable):
        with pytest.raises(ConfigError, match="there is no such user; known: ann"):
            change("bob", now=1.0)


def test_revocation_is_for_anybody_and_never_goes_back(users: UsersFile) -> None:
    users.revoke("foreign-user", now=80.0)
    users.revoke("foreign-user", now=70.0)
    assert users.book.revoked_before("foreign-user") == 80.0


def test_revocations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from keepline.hub import users as module

    monkeypatch.setattr(module, "_MOST_ENTRIES", 2)
    book = UserBook([], [Revocation("a", 1.0), Revocation("b", 1.0)])
    assert book.revoked("a", 2.0).revoked_before("a") == 2.0
    with pytest.raises(ConfigError, match="more than 2 revocations"):
        book.revoked("c", 2.0)


@pytest.mark.parametrize("name", ["", "a b", "a\tb", "a\n", "x" * 65, "a\u200b", "\ud800"])
def test_what_cannot_be_a_name_is_refused(name: str, users: UsersFile) -> None:
    with pytest.raises(ConfigError, match="a user's name is"):
        users.add(name, GOOD, role="viewer", now=1.0)
    with pytest.raises(ConfigError):
        user_name(name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"role": "a role"}, "a role is"),
        ({"role": ""}, "a role is"),
        ({"account": "x" * 65}, "an account is"),
        ({"account": "a\nb"}, "an account is"),
        ({"password": "short"}, "the password is shorter"),
        ({"password": "annabella is me", "name": "annabella"}, "contains the user's name"),
    ],
)
def test_what_cannot_be_a_user_is_refused_and_nothing_is_written(
    users: UsersFile, changes: dict, words: str
) -> None:
    fields = {"name": "ann", "password": GOOD, "role": "viewer"} | changes
    with pytest.raises(ConfigError, match=words):
        users.add(**fields, now=1.0)
    assert not users.path.exists()


def test_a_change_by_another_process_is_seen(users: UsersFile) -> None:
    users.add("ann", GOOD, role="viewer", now=1.0)
    assert not users.refreshed()
    UsersFile(users.path, parameters=CHEAP).add("bob", GOOD, role="admin", now=2.0)
    assert users.refreshed()
    assert users.book.standing("bob") == Standing("admin")
    users.path.unlink()
    assert users.refreshed()
    assert len(users.book) == 0


def test_a_damaged_file_keeps_the_last_good_users_until_it_is_mended(
    users: UsersFile, caplog: pytest.LogCaptureFixture
) -> None:
    users.add("ann", GOOD, role="viewer", now=1.0)
    good = users.path.read_bytes()
    for rubbish in (b"{", b"rubbish"):
        users.path.write_bytes(good + rubbish)
        assert not users.refreshed()
        assert users.book.standing("ann") is not None
    assert [r.message for r in caplog.records] == ["Users file not read"]  # said once
    with pytest.raises(
        StorageError, match=r"line 2 is wrong: it is not JSON; mend or remove that line"
    ):
        users.load()
    with pytest.raises(StorageError):
        users.add("bob", GOOD, role="viewer", now=2.0)
    assert users.path.read_bytes() == good + b"rubbish"
    users.path.write_bytes(good + b"\n  \n")
    assert users.refreshed()


def test_a_file_that_others_can_read_is_refused(users: UsersFile) -> None:
    users.add("ann", GOOD, role="viewer", now=1.0)
    users.path.chmod(0o644)
    with pytest.raises(StorageError, match="mode"):
        UsersFile(users.path).load()


PHC = (
    "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNoaGFzaGhhc2g"
)
LINE = {"kind": "user", "name": "ann", "role": "viewer", "password": PHC}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([LINE | {"kind": "admin"}], "line 1 is wrong"),
        ([LINE | {"extra": 1}], "line 1 is wrong"),
        ([LINE, LINE], "line 2 is wrong: this user is there twice"),
        ([LINE | {"name": "Zoe\u0308"}], "normal form"),
        ([LINE | {"name": "a b"}], "a user's name is"),
        ([LINE | {"role": "*"}], "the role cannot be one"),
        ([LINE | {"password": "plain"}], "not an Argon2id hash"),
        ([LINE | {"disabled": "yes"}], "line 1 is wrong"),
        ([{"kind": "revocation", "name": "a", "before": "now"}], "line 1 is wrong"),
        ([[]], "line 1 is wrong"),
    ],
)
def test_a_line_that_is_wrong_is_named(lines: list, words: str) -> None:
    data = b"\n".join(json.dumps(line).encode() for line in lines)
    with pytest.raises(ValueError, match=words) as error:
        UserBook.parse(data)
    assert PHC not in str(error.value)


def test_what_is_written_is_read_back() -> None:
    book = UserBook([User("ann", "viewer", PHC, "U1", 5.0, True)], [Revocation("bob", 7.5)])
    again = UserBook.parse(book.encode())
    assert (dict(again.users), dict(again.revocations)) == (
        dict(book.users),
        dict(book.revocations),
    )


def test_a_hash_is_made_anew_unless_the_user_changed_meanwhile(users: UsersFile) -> None:
    old = users.add("ann", GOOD, role="viewer", now=1.0)
    today = UsersFile(users.path, parameters=DEARER)
    today.rehash(old, GOOD)
    new = today.book.users["ann"]
    assert "m=128" in new.password
    assert password_fits(GOOD, new.password)
    today.rehash(old, "what it was before")  # `old` is not what stands there now
    assert today.book.users["ann"] == new


def test_unknown_names_are_compared_like_most_users(users: UsersFile) -> None:
    assert UserBook().usual_parameters() == (65536, 3, 4)
    users.add("ann", GOOD, role="viewer", now=1.0)
    users.add("bob", GOOD, role="viewer", now=1.0)
    UsersFile(users.path, parameters=DEARER).add("eve", GOOD, role="viewer", now=1.0)
    assert users.load().usual_parameters() == CHEAP


def test_changes_at_the_same_time_are_all_there_afterwards(users: UsersFile) -> None:
    def add(i: int) -> None:
        UsersFile(users.path, parameters=CHEAP).add(f"user{i}", GOOD, role="viewer", now=1.0)

    threads = [threading.Thread(target=add, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(users.load().users) == {f"user{i}" for i in range(8)}
