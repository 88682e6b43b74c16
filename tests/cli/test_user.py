"""`keepline user add|list|remove`: passwords from everywhere but the arguments, errors with the remedy."""

import os
import pty
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Command

from keepline.cli.program import run
from keepline.hub.passwords import password_fits
from keepline.hub.users import UsersFile

GOOD = "correct horse battery"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEEPLINE_CONFIG_DIR", str(tmp_path / "conf"))
    return tmp_path / "conf" / "hub-users.jsonl"


def test_a_user_is_added_listed_and_removed(keepline: Command, file: Path) -> None:
    added = keepline("user", "add", "ann", "--role", "trader", "--account", "U1", stdin=f"{GOOD}\n")
    assert (added.code, added.out) == (0, "")
    assert added.err == f"added: ann, trader, in {file}\n"
    assert password_fits(GOOD, UsersFile(file).load().users["ann"].password)
    told = keepline("user", "list", "--json").json
    assert [(u["name"], u["role"], u["account"], u["disabled"]) for u in told] == [
        ("ann", "trader", "U1", False)
    ]
    table = keepline("user", "list").out
    assert table.splitlines()[0].split() == ["name", "role", "account", "disabled", "created_at"]
    assert "argon2" not in table
    assert keepline("user", "remove", "ann").err == "removed: ann\n"
    assert keepline("user", "list").err.startswith("there are no users yet")
    assert keepline("user", "list", "--json").json == []


def test_a_role_without_rights_is_noted(keepline: Command, file: Path, tmp_path: Path) -> None:
    told = keepline("user", "add", "ann", "--role", "tradr", stdin=f"{GOOD}\n")
    assert told.code == 0
    assert (
        "note: tradr has no rights; [hub] rights gives some, or take admin, service, trader, viewer"
        in told.err
    )
    (tmp_path / "keepline.toml").write_text("[hub]\nrights = { auditor = { subscribe = ['*'] } }\n")
    assert "note" not in keepline("user", "add", "bob", "--role", "auditor", stdin=f"{GOOD}\n").err


def test_users_are_listed_though_a_secret_of_the_hub_is_missing(
    keepline: Command, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "keepline.toml").write_text("[hub]\ntoken_secret_file = 'nowhere'\n")
    assert keepline("user", "list").code == 0


def test_a_password_comes_from_a_file(keepline: Command, file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(f"{GOOD}\r\nsecond line\n")
    secret.chmod(0o600)
    assert (
        keepline("user", "add", "ann", "--role", "viewer", "--password-file", str(secret)).code == 0
    )
    assert password_fits(GOOD, UsersFile(file).load().users["ann"].password)
    missing = keepline(
        "user", "add", "bob", "--role", "viewer", "--password-file", str(tmp_path / "no")
    )
    assert missing.code == 2
    assert "does not exist" in missing.err


def test_a_password_is_never_an_argument(keepline: Command, file: Path) -> None:
    answer = keepline("user", "add", "ann", GOOD, "--role", "viewer")
    assert answer.code == 2
    assert GOOD not in answer.err
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (
            ("add", "ann", "--role", "viewer"),
            "short\n",
            "the password is shorter than 12 characters",
        ),
        (("add", "ann", "--role", "viewer"), "", "the password is shorter"),
        (("add", "ann", "--role", "a role"), f"{GOOD}\n", "a role is 1 to 64"),
        (("add", "a b", "--role", "viewer"), f"{GOOD}\n", "a user's name is"),
        (("add", "ann"), f"{GOOD}\n", "'--role'"),
        (("remove", "ann"), "", "there is no such user"),
        (("remove", "ann", "--disable"), "", "there is no such user"),
        (("remove", "ann", "--disable", "--sign-out"), "", "give one of --disable, --sign-out"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    keepline: Command, file: Path, arguments: tuple[str, ...], stdin: str, words: str
) -> None:
    answer = keepline("user", *arguments, stdin=stdin)
    assert answer.code == 2
    assert words in answer.err
    assert not file.exists()


def test_a_user_who_is_there_is_replaced_only_when_told(keepline: Command, file: Path) -> None:
    assert keepline("user", "add", "ann", "--role", "viewer", stdin=f"{GOOD}\n").code == 0
    again = keepline("user", "add", "ann", "--role", "admin", stdin=f"{GOOD}\n")
    assert again.code == 2
    assert "say --replace" in again.err
    told = keepline(
        "user", "add", "ann", "--role", "admin", "--replace", stdin="another good one\n"
    )
    assert told.err.startswith("replaced: ann, admin")
    book = UsersFile(file).load()
    assert book.users["ann"].role == "admin"
    assert book.revoked_before("ann") is not None


def test_a_user_is_disabled_or_signed_out(keepline: Command, file: Path) -> None:
    keepline("user", "add", "ann", "--role", "viewer", stdin=f"{GOOD}\n")
    assert keepline("user", "remove", "ann", "--disable").err == "disabled: ann\n"
    assert keepline("user", "list", "--json").json[0]["disabled"] is True
    assert (
        keepline("user", "remove", "somebody-else", "--sign-out").err
        == "signed out: somebody-else\n"
    )
    assert UsersFile(file).load().revoked_before("somebody-else") is not None


def test_the_file_is_the_configured_one_or_the_named_one(
    keepline: Command, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "keepline.toml").write_text('[hub]\nusers_file = "people"\n')
    keepline("user", "add", "ann", "--role", "viewer", stdin=f"{GOOD}\n")
    assert (tmp_path / "people").exists()
    keepline(
        "user",
        "add",
        "bob",
        "--role",
        "viewer",
        "--users",
        str(tmp_path / "others"),
        stdin=f"{GOOD}\n",
    )
    assert set(UsersFile(tmp_path / "others").load().users) == {"bob"}
    assert not file.exists()


def test_a_loose_file_is_a_failure_with_the_remedy(keepline: Command, file: Path) -> None:
    keepline("user", "add", "ann", "--role", "viewer", stdin=f"{GOOD}\n")
    file.chmod(0o644)
    answer = keepline("user", "list")
    assert answer.code == 1
    assert "chmod" in answer.err


def test_a_password_that_is_no_text_is_refused(
    file: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"\xff\xfe\n")
    os.close(writing)
    with os.fdopen(reading, "r") as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert run(["user", "add", "ann", "--role", "viewer"]) == 2
    assert "not UTF-8" in capfd.readouterr().err


@pytest.mark.parametrize(("second", "code"), [(GOOD, 0), ("another one here", 2)])
def test_on_a_terminal_it_is_asked_for_twice(
    file: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    second: str,
    code: int,
) -> None:
    given = iter([GOOD, second])
    prompts: list[str] = []

    def asked(prompt: str) -> str:
        prompts.append(prompt)
        return next(given)

    ours, theirs = pty.openpty()
    monkeypatch.setattr("getpass.getpass", asked)
    with os.fdopen(ours, "r"), os.fdopen(theirs, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert run(["user", "add", "ann", "--role", "viewer"]) == code
    assert prompts == ["password: ", "again: "]
    assert file.exists() == (code == 0)
    assert GOOD not in capfd.readouterr().err
