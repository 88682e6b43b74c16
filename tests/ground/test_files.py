"""Private files on a real file system, with the failures that a disk has."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from keepline import files
from keepline.errors import ConfigError, StorageError

STRANGER = 54_321
STEPS = ("open", "posix_fallocate", "write", "ftruncate", "fsync", "replace")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "secret"


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class Failing:
    """The os function of a name; its nth call from now fails."""

    def __init__(
        self, patch: pytest.MonkeyPatch, name: str, number: int, code: int, times: int = 1
    ) -> None:
        self.real = getattr(os, name)
        self.number, self.code, self.calls, self.times = number, code, 0, times
        patch.setattr(os, name, self)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.number <= self.calls < self.number + self.times:
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*args, **kwargs)


# --- reading ---


def test_an_absent_file_is_none(path: Path) -> None:
    assert files.read_private(path) is None


def test_what_was_written_is_read(path: Path) -> None:
    files.write_private(path, b"one")
    files.write_private(path, b"two")
    assert files.read_private(path) == b"two"
    assert mode(path) == 0o600
    assert names(path.parent) == ["secret"]


def test_an_umask_that_opens_everything_opens_nothing_of_ours(path: Path) -> None:
    before = os.umask(0)
    try:
        files.write_private(path.parent / "new" / "deep" / "secret", b"x")
    finally:
        os.umask(before)
    assert mode(path.parent / "new" / "deep" / "secret") == 0o600
    assert mode(path.parent / "new") == mode(path.parent / "new" / "deep") == 0o700


def test_a_file_of_exactly_the_limit_is_read_and_a_longer_one_refused(path: Path) -> None:
    files.write_private(path, b"x" * 100)
    assert files.read_private(path, limit=100) == b"x" * 100
    with pytest.raises(StorageError, match="longer than 99 bytes"):
        files.read_private(path, limit=99)


@pytest.mark.parametrize("loose", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_may_read_is_refused_with_the_command_that_helps(
    path: Path, loose: int
) -> None:
    files.write_private(path, b"x")
    path.chmod(loose)
    with pytest.raises(StorageError, match=rf"mode {loose:04o}.*chmod 600 {path}"):
        files.read_private(path)


def test_a_loose_mode_can_be_a_warning_or_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files.write_private(path, b"x")
    path.chmod(0o644)
    assert files.read_private(path, on_loose_mode="allow") == b"x"
    assert not caplog.records
    assert files.read_private(path, on_loose_mode="warn") == b"x"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert mode(path) == 0o644, "reading changes nothing"


def test_a_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_private(path, b"x")
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    with pytest.raises(StorageError, match="belongs to user"):
        files.read_private(path)


def test_a_file_of_root_is_taken_only_where_the_system_hands_it_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_private(path, b"x")
    info = os.stat_result((0o100440, 1, 1, 1, 0, 0, 1, 0, 0, 0))
    monkeypatch.setattr(os, "fstat", lambda fd: info)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert files.read_private(path, on_loose_mode="allow", system=True) == b"x"
    with pytest.raises(StorageError, match="belongs to user 0"):
        files.read_private(path)


def test_a_symbolic_link_is_not_followed(path: Path) -> None:
    real = path.with_name("real")
    files.write_private(real, b"x")
    path.symlink_to(real)
    with pytest.raises(StorageError, match="symbolic link"):
        files.read_private(path)
    with pytest.raises(StorageError, match="symbolic link"):
        files.write_private(path, b"y")
    with pytest.raises(StorageError, match="not a regular file"):
        files.erase(path)
    assert real.read_bytes() == b"x"


def test_a_second_name_of_the_file_is_refused(path: Path) -> None:
    files.write_private(path, b"x")
    path.with_name("other").hardlink_to(path)
    with pytest.raises(StorageError, match="2 names"):
        files.read_private(path)


def test_a_pipe_does_not_hang_the_reader(path: Path) -> None:
    os.mkfifo(path, 0o600)
    with pytest.raises(StorageError, match="not a regular file"):
        files.read_private(path)
    with pytest.raises(StorageError, match="not a regular file"):
        files.write_private(path, b"x")


def test_a_directory_in_its_place_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StorageError, match="regular file"):
        files.read_private(path)
    with pytest.raises(StorageError, match="regular file"):
        files.write_private(path, b"x")


def test_a_file_in_the_place_of_its_directory_is_explained(path: Path) -> None:
    path.write_bytes(b"")
    for action in (files.read_private, lambda p: files.write_private(p, b"x")):
        with pytest.raises(StorageError, match="correct the path"):
            action(path / "deeper")
    files.erase(path / "deeper")


def test_what_the_system_refuses_is_explained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_private(path, b"x")
    Failing(monkeypatch, "open", 1, errno.EACCES)
    with pytest.raises(StorageError, match=r"cannot be read: permission denied; .*chown") as caught:
        files.read_private(path)
    assert caught.value.path == path
    assert caught.value.errno == errno.EACCES
    assert isinstance(caught.value.__cause__, PermissionError)


def test_an_error_without_a_remedy_of_ours_keeps_the_systems_words(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_private(path, b"x")
    Failing(monkeypatch, "read", 1, errno.ENOTCONN)
    with pytest.raises(StorageError, match=r"endpoint is not connected \(ENOTCONN\)"):
        files.read_private(path)


# --- writing ---


def test_a_reservation_holds_the_space_and_leaves_the_old_file(path: Path) -> None:
    files.write_private(path, b"old")
    with files.reserve(path, 10_000) as reservation:
        spare = next(each for each in path.parent.iterdir() if each.name.endswith(".spare"))
        assert spare.stat().st_size == 10_000
        assert spare.stat().st_blocks * 512 >= 10_000
        assert mode(spare) == 0o600
        assert files.read_private(path) == b"old"
        reservation.commit(b"new")
        assert path.stat().st_size == 3
    assert files.read_private(path) == b"new"
    assert names(path.parent) == ["secret"]


def test_a_discarded_reservation_leaves_nothing_and_cannot_be_committed(path: Path) -> None:
    reservation = files.reserve(path, 100)
    assert "open" in repr(reservation)
    reservation.discard()
    reservation.discard()
    assert names(path.parent) == []
    with pytest.raises(StorageError, match="reserve again"):
        reservation.commit(b"x")
    assert "spent" in repr(reservation)


def test_a_commit_may_be_longer_than_reserved(path: Path) -> None:
    with files.reserve(path, 1) as reservation:
        reservation.commit(b"x" * 100_000)
    assert files.read_private(path) == b"x" * 100_000


def test_short_writes_are_finished(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    files.write_private(path, bytes(range(256)))
    assert files.read_private(path) == bytes(range(256))


def test_a_file_that_takes_no_byte_is_an_error_and_not_a_loop(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", lambda fd, data: 0)
    with pytest.raises(StorageError, match="input/output error"):
        files.write_private(path, b"x")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_that_lasts_leaves_the_old_file_at_every_step(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    files.write_private(path, b"old")
    with monkeypatch.context() as patch:
        failing = Failing(patch, step, 1, code, times=1000)
        with pytest.raises(StorageError) as caught:
            files.write_private(path, b"new")
    assert failing.calls
    assert caught.value.errno == code
    assert files.read_private(path) == b"old"
    assert names(path.parent) == ["secret"]


@pytest.mark.parametrize("number", range(1, 8))
@pytest.mark.parametrize("step", STEPS)
def test_a_single_failure_leaves_the_old_file_or_the_new_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    files.write_private(path, b"old")
    with monkeypatch.context() as patch:
        Failing(patch, step, number, errno.EIO)
        try:
            files.write_private(path, b"new")
            saved = True
        except StorageError:
            saved = False
    content = files.read_private(path)
    assert content == b"new" if saved else content in (b"old", b"new")
    assert names(path.parent) == ["secret"]


def test_after_a_failed_fsync_the_file_is_written_anew_and_never_synced_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservation = files.reserve(path, 10)
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        if len(synced) == 1:
            raise OSError(errno.EIO, "lost pages")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    reservation.commit(b"new")
    first, *later = synced
    assert first.endswith(".spare")
    assert first not in later
    assert later[-2].endswith(".spare")
    assert later[-1] == str(path.parent)
    assert files.read_private(path) == b"new"


def test_a_directory_that_cannot_be_synced_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservation = files.reserve(path, 10)
    Failing(monkeypatch, "fsync", 2, errno.EIO)
    with pytest.raises(StorageError, match="directory could not be synced"):
        reservation.commit(b"new")
    assert files.read_private(path) == b"new"


def test_a_file_system_without_fsync_of_directories_is_no_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservation = files.reserve(path, 10)
    Failing(monkeypatch, "fsync", 2, errno.EINVAL)
    reservation.commit(b"new")


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_cannot_reserve_gets_zeros(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    Failing(monkeypatch, "posix_fallocate", 1, code)
    with files.reserve(path, 5000) as reservation:
        spare = next(path.parent.iterdir())
        assert spare.stat().st_size == 5000
        reservation.commit(b"new")
    assert files.read_private(path) == b"new"


def test_a_check_that_fails_leaves_the_old_file(path: Path) -> None:
    files.write_private(path, b"old")

    def refuse(written: bytes) -> None:
        assert written == b"new"
        raise StorageError("not what we want")

    with pytest.raises(StorageError, match="not what we want"):
        files.reserve(path, 10).commit(b"new", check=refuse)
    assert files.read_private(path) == b"old"
    assert names(path.parent) == ["secret"]


def test_the_spare_of_a_dead_process_is_removed_and_that_of_a_living_one_kept(path: Path) -> None:
    code = "import os, sys; from keepline import files; from pathlib import Path; \
files.reserve(Path(sys.argv[1]), 50); os.kill(os.getpid(), 9)"
    dead = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert dead.returncode == -signal.SIGKILL
    [left] = names(path.parent)
    first = files.reserve(path, 10)
    second = files.reserve(path, 10)
    assert len(names(path.parent)) == 2
    assert left not in names(path.parent)
    first.commit(b"first")
    second.commit(b"second")
    assert files.read_private(path) == b"second"


def test_a_spare_that_was_swept_before_it_was_locked_is_made_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    real, swept = fcntl.flock, []

    def flock(fd: int, how: int) -> None:
        if not swept:
            swept.extend(path.parent.iterdir())
            swept[0].unlink()
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    files.write_private(path, b"x")
    assert files.read_private(path) == b"x"
    assert names(path.parent) == ["secret"]


def test_a_file_system_without_locks_still_saves(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    first = files.reserve(path, 10)
    files.write_private(path, b"x")
    first.commit(b"y")
    assert files.read_private(path) == b"y"


def test_a_directory_that_strangers_can_write_is_refused(path: Path) -> None:
    path.parent.chmod(0o777)
    with pytest.raises(StorageError, match=r"chmod go-w"):
        files.write_private(path, b"x")
    path.parent.chmod(0o1777)
    files.write_private(path, b"x")


def test_the_file_of_another_user_is_not_replaced(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_private(path, b"x")
    path.parent.chmod(0o1777)
    real = os.lstat

    def lstat(target, **options):
        info = list(real(target, **options))
        info[4] = STRANGER
        return os.stat_result(info)

    monkeypatch.setattr(os, "lstat", lstat)
    with pytest.raises(StorageError, match=f"belongs to user {STRANGER}"):
        files.write_private(path, b"y")
    with pytest.raises(StorageError, match="of ours"):
        files.erase(path)


# --- appending and erasing ---


def test_appending_makes_a_private_file_and_adds_to_it(path: Path) -> None:
    target = path.parent / "new" / "log"
    files.append_private(target, b"one\n")
    files.append_private(target, b"two\n")
    assert files.read_private(target) == b"one\ntwo\n"
    assert mode(target) == 0o600
    target.chmod(0o644)
    with pytest.raises(StorageError, match="chmod 600"):
        files.append_private(target, b"three\n")


def test_erasing_leaves_neither_the_file_nor_its_spare_nor_its_bytes(path: Path) -> None:
    files.write_private(path, b"secret")
    path.with_name(".secret.0123.spare").write_bytes(b"secret too")
    path.with_name(".other.0123.spare").write_bytes(b"not ours to touch")
    inode = path.open("rb")
    files.erase(path)
    with inode:
        assert inode.read() == bytes(6)
    assert names(path.parent) == [".other.0123.spare"]
    files.erase(path)
    files.erase(path.parent / "absent" / "secret")


def test_what_cannot_be_overwritten_is_removed_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_private(path, b"secret")
    Failing(monkeypatch, "write", 1, errno.ENOSPC)
    files.erase(path)
    assert not path.exists()


def test_what_cannot_be_removed_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_private(path, b"secret")
    Failing(monkeypatch, "unlink", 1, errno.EPERM)
    with pytest.raises(StorageError, match="cannot be erased"):
        files.erase(path)


# --- directories ---


def test_a_private_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = files.private_directory(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert mode(made) == mode(made.parent) == 0o700
    assert files.private_directory(made) == made


@pytest.mark.parametrize("loose", [0o755, 0o750, 0o777, 0o1777])
def test_a_directory_in_which_others_have_rights_is_refused(tmp_path: Path, loose: int) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    directory.chmod(loose)
    with pytest.raises(StorageError, match=f"chmod 700 {directory}"):
        files.private_directory(directory)


def test_a_link_or_a_file_is_no_private_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"")
    for name in ("link", "dangling"):
        with pytest.raises(StorageError, match="symbolic link"):
            files.private_directory(tmp_path / name)
    with pytest.raises(StorageError, match="not a directory"):
        files.private_directory(tmp_path / "file")


def test_another_users_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    with pytest.raises(StorageError, match="not to us"):
        files.private_directory(tmp_path)


@pytest.mark.parametrize(
    ("bits", "answer"),
    [(0o700, "no"), (0o755, "no"), (0o707, "yes"), (0o1777, "sticky"), (0o777, "yes")],
)
def test_strangers_can_write_by_the_mode(tmp_path: Path, bits: int, answer: str) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    directory.chmod(bits)
    assert files.strangers_can_write(directory) == answer
    assert files.strangers_can_write(directory / "not" / "yet") == answer
    (tmp_path / "link").symlink_to(directory)
    assert files.strangers_can_write(tmp_path / "link") == answer


def test_group_rights_count_unless_the_group_is_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import grp
    import pwd

    us = pwd.struct_passwd(("me", "x", os.geteuid(), tmp_path.stat().st_gid, "", "/", "/"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: us)
    tmp_path.chmod(0o775)
    for name, members, answer in (
        ("me", [], "no"),
        ("me", ["me"], "no"),
        ("me", ["me", "other"], "yes"),
        ("users", [], "yes"),
    ):
        monkeypatch.setattr(
            grp, "getgrgid", lambda gid, n=name, m=members: grp.struct_group((n, "x", gid, m))
        )
        assert files.strangers_can_write(tmp_path) == answer


def test_a_group_that_nobody_knows_is_strange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import grp

    def unknown(gid: int) -> None:
        raise KeyError(gid)

    monkeypatch.setattr(grp, "getgrgid", unknown)
    tmp_path.chmod(0o770)
    assert files.strangers_can_write(tmp_path) == "yes"


def test_the_directory_of_another_user_is_open_to_that_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def foreign(target, **options):
        info = list(real(target, **options))
        info[4] = STRANGER
        return os.stat_result(info)

    monkeypatch.setattr(os, "stat", foreign)
    assert files.strangers_can_write(tmp_path) == "yes"


def test_the_runtime_directory_is_the_first_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEPLINE_RUNTIME_DIR", str(tmp_path / "chosen"))
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path / 'service'}:{tmp_path / 'second'}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "session"))
    for variable, expected in (
        ("KEEPLINE_RUNTIME_DIR", tmp_path / "chosen"),
        ("RUNTIME_DIRECTORY", tmp_path / "service"),
        ("XDG_RUNTIME_DIR", tmp_path / "session" / "keepline"),
    ):
        assert files.runtime_directory(make=False) == expected
        assert not expected.exists()
        assert files.runtime_directory() == expected
        assert mode(expected) == 0o700
        monkeypatch.delenv(variable)
    assert files.runtime_directory(make=False) == Path(f"/tmp/keepline-{os.geteuid()}")


# --- death at any moment ---

KILLED = """
import os, signal, sys
from pathlib import Path
from keepline import files

path, number = Path(sys.argv[1]), int(sys.argv[2])
calls = 0
def deadly(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("open", "write", "fsync", "replace", "ftruncate", "posix_fallocate", "unlink"):
    setattr(os, name, deadly(getattr(os, name)))
files.write_private(path, b"new" * 1000)
"""


def test_a_process_killed_at_any_step_leaves_the_old_file_or_the_new_one(path: Path) -> None:
    seen = set()
    for number in range(1, 100):
        files.write_private(path, b"old" * 1000)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(path), str(number)], check=False, capture_output=True
        )
        content = files.read_private(path)
        assert content in (b"old" * 1000, b"new" * 1000)
        seen.add(content)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.returncode == 0, "the last run came to its end"
    assert len(seen) == 2
    assert number >= 7


@pytest.mark.parametrize("path", ["", None, 5, "a\0b"])
def test_what_cannot_be_a_path_is_refused_with_its_key(path: object) -> None:
    with pytest.raises(ConfigError, match="path of a file or directory is needed") as caught:
        files.expanded(path, key="storage_path")
    assert caught.value.key == "storage_path"


def test_a_path_is_absolute_and_knows_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert files.expanded("~/a/b", key="x") == tmp_path / "a" / "b"
    assert files.expanded(Path("c"), key="x") == tmp_path / "c"


def test_a_relative_runtime_directory_means_the_same_place_from_everywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEEPLINE_RUNTIME_DIR", "here")
    assert files.runtime_directory(make=False) == tmp_path / "here"
