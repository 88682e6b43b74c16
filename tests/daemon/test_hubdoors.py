"""`[hub]` of a configuration becomes the settings of its doors."""

from pathlib import Path

import pytest

from keepline.config import load
from keepline.daemon.hubdoors import gate_settings, hub_config
from keepline.errors import ConfigError
from keepline.http import HttpSession
from keepline.hub.channels import Policy
from keepline.hub.opening import make_gate
from keepline.hub.settings import CHANNELS, HubConfig

FILE = """
[hub]
users_file = "people.jsonl"
token_secret_file = "secret"
token_lifetime_seconds = 600
rights = { viewer = { subscribe = ["alerts"] } }
allowed_origins = ["https://desk.example"]

[[hub.issuers]]
issuer = "https://login.example"
audiences = ["keepline"]
algorithms = ["HS256"]
secret_file = "shared"
roles = ["viewer"]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEEPLINE_CONFIG_DIR", str(tmp_path / "conf"))
    for name, text in (("secret", "a" * 32), ("shared", "b" * 32)):
        (tmp_path / name).write_text(f"{text}\n")
        (tmp_path / name).chmod(0o600)
    (tmp_path / "keepline.toml").write_text(FILE)
    return tmp_path / "keepline.toml"


def test_what_is_configured_is_what_the_gate_gets(file: Path) -> None:
    settings = load(file, environ={})
    doors = gate_settings(settings)
    assert doors.directory == file.parent / "conf"
    assert doors.users_file == file.parent / "people.jsonl"
    assert (doors.secret, doors.token_lifetime_seconds) == ("a" * 32, 600)
    assert doors.rights == {"viewer": {"subscribe": ("alerts",)}}
    assert (doors.issuers[0].secret, doors.issuers[0].roles) == ("b" * 32, ("viewer",))
    assert settings.hub.allowed_origins == ("https://desk.example",)
    assert "aaaa" not in repr(settings)
    make_gate(doors, HttpSession())


def test_the_configurations_defaults_are_the_hubs(file: Path) -> None:
    file.write_text("")
    told, own = hub_config(load(file, environ={})), HubConfig()
    for name in HubConfig.__struct_fields__:
        if name != "gate":
            assert getattr(told, name) == getattr(own, name), name


def test_a_channel_is_added_or_takes_the_place_of_one(file: Path) -> None:
    file.write_text(
        "[hub]\npreset = 'low-latency'\nmax_batch_size = 7\n"
        "[[hub.channels]]\nname = 'alerts'\npolicy = 'never'\nretention_count = 5\n"
        "[[hub.channels]]\nname = 'news'\npolicy = 'drop-oldest'\n"
    )
    told = hub_config(load(file, environ={}), data=Path("there"))
    channels = {channel.name: channel for channel in told.channels}
    assert len(channels) == len(CHANNELS) + 1
    assert channels["alerts"].retention_count == 5
    assert channels["news"].policy is Policy.DROP_OLDEST
    assert (told.limits().max_batch, told.limits().interval) == (7, 0.005)
    assert told.directory == Path("there")


def test_without_a_hub_section_the_defaults_hold(tmp_path: Path, file: Path) -> None:
    file.write_text("")
    doors = gate_settings(load(file, environ={}))
    assert doors.users().path == tmp_path / "conf" / "hub-users.jsonl"
    assert (doors.secret, doors.issuers, doors.rights) == ("", (), {})


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("[hub]\nuser_file = 'x'\n", "hub.user_file", "did you mean users_file?"),
        (
            "[hub]\ntoken_secret = 'x'\n",
            "hub.token_secret",
            "a secret does not belong in this file",
        ),
        (
            "[hub]\nrights = ['x']\n",
            "hub.rights",
            "expected a table of roles, each with its actions",
        ),
        ("[hub]\nrights = { viewer = ['alerts'] }\n", "hub.rights", "expected a table of roles"),
        ("[[hub.issuers]]\nissuer = 'x'\n", "hub.issuers[0].audiences", "missing"),
    ],
)
def test_what_is_wrong_in_the_section_is_named(file: Path, text: str, key: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(file, environ={})
    assert error.value.key == key
    assert words in str(error.value)
