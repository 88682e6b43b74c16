"""The error tree: one root, the parents that callers catch by, and words that lead to the remedy."""

import pickle
from datetime import UTC, datetime
from pathlib import Path

import pytest

from keepline import errors

TREE = """
KeeplineError
    ConfigError
    CredentialError
        SignInRequired
        TokenRefused
        TokenUnavailable
        StorageError
    APIError
        TransientError
        PermanentError
        OutcomeUnknown
    ProtocolError
    Refused
        CircuitOpen
        RateLimited
        QueueFull
        StreamNotLive
    Closed
"""


def edges() -> list[tuple[str, str]]:
    parents, found = ["Exception"], []
    for line in TREE.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        name = line.strip()
        found.append((name, parents[depth]))
        parents[depth + 1 :] = [name]
    return found


@pytest.mark.parametrize(("name", "parent"), edges())
def test_each_error_hangs_where_the_drawn_tree_says(name: str, parent: str) -> None:
    first = getattr(errors, name).__mro__[1]
    assert first.__name__ == parent


def test_the_tree_names_every_public_error_and_the_docstring_draws_it() -> None:
    names = [name for name, _ in edges()]
    assert sorted(names) == errors.__all__
    drawn = [
        line.strip("│├└─ ").split()[0] for line in errors.__doc__.split("\n") if line[:4] == "    "
    ]
    assert drawn == names


def test_a_configuration_error_is_a_value_error_and_a_storage_error_an_os_error() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.StorageError, OSError)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.ConfigError("must be above 0", key="relay.a.port", file="k.toml"),
         "k.toml [relay.a.port]: must be above 0"),
        (errors.ConfigError("must be above 0", key="port"), "[port]: must be above 0"),
        (errors.ConfigError("is not TOML", file=Path("k.toml")), "k.toml: is not TOML"),
        (errors.ConfigError("is wrong"), "is wrong"),
        (errors.SignInRequired("the refresh token is dead", credential="schwab"),
         "the refresh token is dead; run: keepline login schwab"),
        (errors.SignInRequired("nobody signed in"), "nobody signed in; run: keepline login"),
        (errors.SignInRequired("dead", command="./login.sh"), "dead; run: ./login.sh"),
        (errors.StorageError("is damaged", path="/a/b.enc"), "/a/b.enc: is damaged"),
        (errors.StorageError("is damaged"), "is damaged"),
        (errors.TransientError("502", endpoint="POST /v1/oauth/token"), "POST /v1/oauth/token: 502"),
        (errors.PermanentError("no such account"), "no such account"),
        (errors.TokenRefused("no", code="invalid_grant", status=400), "no"),
    ],
)  # fmt: skip
def test_the_text_says_where_what_and_what_to_do(error: errors.KeeplineError, text: str) -> None:
    assert str(error) == text


def test_attributes_are_there_for_programs() -> None:
    moment = datetime(2026, 1, 5, tzinfo=UTC)
    unavailable = errors.TokenUnavailable(
        "out of reach", retry_at=moment, cause=OSError("down"), credential="a"
    )
    assert (unavailable.retry_at, unavailable.credential) == (moment, "a")
    assert isinstance(unavailable.cause, OSError)
    call = errors.TransientError(
        "slow", category="timeout", status=504, attempt=3, retry_after=2.5, sent=False
    )
    assert (call.category, call.status, call.attempt, call.retry_after, call.sent) == (
        "timeout",
        504,
        3,
        2.5,
        False,
    )
    assert errors.RateLimited("later", retry_after=1.5).retry_after == 1.5
    assert errors.QueueFull("full").retry_after is None
    assert errors.TokenRefused("no", code="invalid_grant", status=400).code == "invalid_grant"
    assert errors.StorageError("x", path="/a").path == Path("/a")
    assert errors.ConfigError("x").file is None


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_survives_a_process_boundary(name: str) -> None:
    error = getattr(errors, name)("what happened")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
