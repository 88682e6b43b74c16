"""The history of rotations: fingerprints only, bounded, not hurt by a torn line."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keepline.credentials import history as histories
from keepline.credentials.history import RotationHistory
from keepline.credentials.token import Token
from keepline.errors import StorageError
from keepline.testing import ManualClock

NAIVE = (
    b'{"at":"2026-01-01T00:00:00","generation":1,"fingerprint":"x","issued_at":"2026-01-01T00:00:00",'
    b'"expires_at":"2026-01-01T00:00:00","outcome":"x"}'
)
NOW = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.jsonl"


def token(number: int = 1) -> Token:
    return Token(
        f"access-secret-{number}",
        f"refresh-secret-{number}",
        expires_at=NOW + timedelta(minutes=30),
        issued_at=NOW,
        generation=number,
    )


@pytest.fixture(params=["file", "memory"])
def history(request: pytest.FixtureRequest, path: Path) -> RotationHistory:
    return RotationHistory(path if request.param == "file" else None, clock=ManualClock(wall=NOW))


def test_what_was_appended_is_read_in_order(history: RotationHistory) -> None:
    assert history.read() == []
    first = history.append(token(1), outcome="signed_in")
    second = history.append(token(2), outcome="refused", reason="invalid_grant", at=NOW)
    assert history.read() == [first, second]
    assert (second.generation, second.outcome, second.reason) == (2, "refused", "invalid_grant")
    assert (first.at, first.issued_at, first.expires_at) == (NOW, NOW, NOW + timedelta(minutes=30))
    assert first.fingerprint == token(1).fingerprint


def test_another_object_reads_the_same(path: Path) -> None:
    record = RotationHistory(path).append(token(), outcome="refreshed")
    assert RotationHistory(path).read() == [record]


def test_no_secret_is_kept(path: Path) -> None:
    history = RotationHistory(path)
    history.append(
        token(), outcome="failed", reason="POST /token?refresh_token=abcdefgh12345 answered 500"
    )
    content = path.read_bytes()
    for secret in (b"access-secret", b"refresh-secret", b"abcdefgh12345"):
        assert secret not in content
    assert b"answered 500" in content
    assert str(path) in repr(history)
    assert "memory" in repr(RotationHistory(None))


def test_a_long_reason_is_cut(history: RotationHistory) -> None:
    assert len(history.append(token(), outcome="failed", reason="x " * 5000).reason) == 300


def test_the_file_is_private(path: Path) -> None:
    history = RotationHistory(path)
    history.append(token(), outcome="refreshed")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(StorageError, match="chmod 600"):
        history.read()
    with pytest.raises(StorageError, match="chmod 600"):
        history.append(token(), outcome="refreshed")


def test_it_is_cut_to_the_newest_500_above_1000(path: Path) -> None:
    history = RotationHistory(path)
    for number in range(1, 1002):
        history.append(token(number), outcome="refreshed")
        if number == 1000:
            assert len(history.read()) == 1000
    assert [record.generation for record in history.read()] == list(range(502, 1002))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "LONGEST", 3)
    history = RotationHistory(None)
    for number in range(1, 6):
        history.append(token(number), outcome="refreshed")
    assert [record.generation for record in history.read()] == [3, 4, 5]


def test_a_torn_line_costs_itself_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = RotationHistory(path)
    first = history.append(token(1), outcome="refreshed")
    history.append(token(2), outcome="refreshed")
    path.write_bytes(path.read_bytes()[:-20])
    third = history.append(token(3), outcome="refreshed")
    assert history.read() == [first, third]
    [record] = caplog.records
    assert record.fields["lines"] == 1


@pytest.mark.parametrize(
    "line",
    [b"{}", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"at":"2026-01-01T00:00:00"}', NAIVE],
)
def test_any_other_line_is_passed_over(path: Path, line: bytes) -> None:
    history = RotationHistory(path)
    path.parent.mkdir(mode=0o700)
    path.write_bytes(line + b"\n\n")
    path.chmod(0o600)
    record = history.append(token(), outcome="refreshed")
    assert history.read() == [record]
