"""Each verb in this process: its words and its exit code."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import keepline as package
from keepline.config.template import TEMPLATE

Place = Any  # tests/cli/conftest.py
Command = Callable[..., Any]


def test_init_writes_a_configuration_once(keepline: Command, place: Place) -> None:
    place.config.unlink()
    answer = keepline("init")
    assert answer.code == 0
    assert "keepline doctor" in answer.err
    assert place.config.read_text() == TEMPLATE
    answer = keepline("init")
    assert answer.code == 2
    assert answer.err.startswith("keepline: keepline.toml: exists already")
    assert keepline("init", "other.toml").code == 0


def test_config_check_says_what_is_right_and_what_is_wrong(keepline: Command, place: Place) -> None:
    answer = keepline("config", "check")
    assert (answer.code, answer.out) == (
        0,
        f"{place.config}: ok; credentials: schwab; relay: none\n",
    )
    told = keepline("config", "check", "--json").json
    assert told == {
        "ok": True,
        "file": str(place.config),
        "credentials": ["schwab"],
        "relay": [],
    }
    place.write(more="[broker]\n")
    answer = keepline("config", "check")
    assert answer.code == 2
    assert answer.err == (
        f"keepline: {place.config} [broker]: unknown key; did you mean brokers?\n"
    )
    (place.directory / "app.yaml").unlink()
    place.write()
    assert "app.yaml: this file is missing" in keepline("config", "check").err


def test_config_show_is_toml_or_json_without_secrets(
    keepline: Command, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEPLINE__CREDENTIALS__SCHWAB__STORAGE_KEY", "hunter2hunter2")
    answer = keepline("config", "show")
    assert 'storage_key = "[secret]"' in answer.out
    shown = keepline("config", "show", "--json")
    assert shown.json["credentials"]["schwab"]["storage_key"] == "[secret]"
    assert "hunter2" not in answer.out + shown.out


def test_config_path_says_where_things_are(keepline: Command, place: Place) -> None:
    run = place.directory / "run"
    assert keepline("config", "path", "socket").out == f"{run}/bots/default.sock\n"
    told = keepline("config", "path", "--json").json
    assert told == {
        "socket": f"{run}/bots/default.sock",
        "daemon": f"{run}/daemon.sock",
        "runtime": str(run),
        "config": str(place.config),
        "data": f"{place.directory}/data",
    }
    assert keepline("config", "path", "daemon", "--json").json == {"daemon": f"{run}/daemon.sock"}
    assert len(keepline("config", "path").out.splitlines()) == 5
    place.config.unlink()
    assert keepline("config", "path", "config").out == "\n"


def test_version_is_the_packages(keepline: Command) -> None:
    assert keepline("version").out.startswith(f"keepline {package.__version__} (Python 3.")
    assert keepline("version", "--json").json["version"] == package.__version__


def test_a_token_is_imported_got_renewed_shown_and_exported(
    keepline: Command, place: Place
) -> None:
    answer = keepline("token", "import", "schwab", stdin=place.oauth_answer())
    assert answer.code == 0
    assert re.search(r"stored: schwab, token [0-9a-f]{8}, generation \d+", answer.err)
    first = keepline("token", "get").out.strip()
    assert place.sandbox.accepts(first)
    told = keepline("token", "get", "schwab", "--json").json
    assert told["access_token"] == first
    assert "refresh_token" not in told
    renewed = keepline("token", "refresh", "--json").json
    assert renewed["generation"] > told["generation"]
    assert keepline("token", "get").out.strip() != first
    assert keepline("token", "refresh").out.startswith("generation=")
    history = keepline("token", "history")
    assert "refreshed" in history.out.splitlines()[1]
    assert first not in history.out
    records = keepline("token", "history", "--json", "--last", "1").json
    assert [record["outcome"] for record in records] == ["refreshed"]
    exported = keepline("token", "export").json
    assert exported["refresh_token"]
    assert keepline("token", "import", stdin=json.dumps(exported)).code == 0
    assert place.sandbox.stats()["reuses"] == 0


def test_a_token_is_imported_from_a_file(keepline: Command, place: Place) -> None:
    file = place.private("answer.json", place.oauth_answer())
    assert keepline("token", "import", "--file", str(file)).code == 0
    assert keepline("token", "import", "--file", "none.json").err.startswith(
        "keepline: none.json: does not exist"
    )


def test_what_is_no_token_is_not_stored(keepline: Command, place: Place) -> None:
    answer = keepline("token", "import", stdin="secret-text")
    assert answer.code == 2
    assert "a JSON object is expected" in answer.err
    assert "secret-text" not in answer.err
    assert not (place.directory / "tokens.json").exists()


def test_without_a_token_a_person_must_sign_in(keepline: Command, place: Place) -> None:
    for command in (("get",), ("export",)):
        answer = keepline("token", *command)
        assert answer.code == 3
        assert answer.err == "keepline: schwab: no token is stored; run: keepline login schwab\n"
    answer = keepline("token", "status")
    assert answer.code == 3
    assert "state             SIGN_IN_REQUIRED" in answer.out
    assert keepline("token", "refresh").code == 3


def test_both_clocks_are_shown(keepline: Command, place: Place) -> None:
    keepline("token", "import", stdin=place.oauth_answer())
    answer = keepline("token", "status")
    assert answer.code == 0
    assert re.search(r"token expires     \S+ \(in 30 min\)", answer.out)
    assert re.search(r"sign in again by  \S+ \(in 7 d\)", answer.out)
    told = keepline("token", "status", "--json").json
    assert told["state"] == "STORED"
    assert 0 < told["expires_in_seconds"] <= 1800


def test_an_expired_token_says_since_when(keepline: Command, place: Place) -> None:
    keepline("token", "import", stdin=place.oauth_answer(expires_in=None, expires_at=1_700_000_000))
    answer = keepline("token", "get")
    assert answer.code == 4
    assert "expired at 2023-11-14" in answer.err
    assert "d ago)" in keepline("token", "status").out


def test_an_issuer_out_of_reach_is_exit_4(keepline: Command, place: Place) -> None:
    keepline("token", "import", stdin=place.oauth_answer())
    place.sandbox.fault("outage")
    answer = keepline("token", "refresh")
    assert answer.code == 4
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("keepline: schwab: the last renewal failed")


def test_a_refusal_of_the_issuer_asks_for_a_sign_in(keepline: Command, place: Place) -> None:
    keepline("token", "import", stdin=place.oauth_answer())
    place.sandbox.fault("refuse")
    answer = keepline("token", "refresh")
    assert answer.code == 3
    assert "run: keepline login schwab" in answer.err


@pytest.mark.parametrize("verb", ["get", "refresh", "status", "history", "export", "import"])
def test_a_credential_that_is_not_configured_is_named(
    keepline: Command, place: Place, verb: str
) -> None:
    if verb == "history":
        place.write(more='[credentials.b]\nissuer = "static"\n')
        answer = keepline("token", verb)
        assert "name one of schwab, b" in answer.err
    else:
        answer = keepline("token", verb, "nobody", stdin=place.oauth_answer())
        assert "no [credentials.nobody]; there is schwab" in answer.err
    assert answer.code == 2


def test_watching_without_a_daemon_is_exit_4(keepline: Command, place: Place) -> None:
    answer = keepline("token", "watch")
    assert answer.code == 4
    assert "is `keepline run` running?" in answer.err


def test_status_without_a_daemon_shows_what_is_stored(keepline: Command, place: Place) -> None:
    answer = keepline("status")
    assert answer.code == 4
    assert answer.out.startswith("no daemon runs; this is what is stored\n")
    assert keepline("status", "--json").json["running"] is False


def test_the_doctor_names_each_remedy(keepline: Command, place: Place) -> None:
    answer = keepline("doctor")
    assert answer.code == 1
    assert (
        "fail  credential schwab: no token is stored\n      -> keepline login schwab" in answer.out
    )
    assert answer.err == "keepline: 1 thing to correct\n"
    keepline("token", "import", stdin=place.oauth_answer())
    told = keepline("doctor", "--json")
    assert told.code == 0
    assert told.json["ok"] is True


def test_one_cycle_exits_by_its_outcome(keepline: Command, place: Place) -> None:
    assert keepline("run", "--once").code == 3
    keepline("token", "import", stdin=place.oauth_answer())
    assert keepline("run", "--once").code == 0
    place.write(more='[relay.b]\ncredential = "schwab"\ntargets = ["bot:nobody"]\nattempts = 1\n')
    assert keepline("run", "--once").code == 4
    assert keepline("run", "--once", "--log-level=LOUD").code == 2
    assert keepline("run", "--once", "-c", "none.toml").err.startswith("keepline: none.toml: does")


def test_one_cycle_during_an_outage_is_exit_4(keepline: Command, place: Place) -> None:
    keepline("token", "import", stdin=place.oauth_answer())
    place.sandbox.fault("outage")
    place.write(
        more='[credentials.t]\nissuer = "projectx"\nusername = "sandbox"\nstorage = "memory"\n'
        f'base_url = "{place.sandbox.url}"\napi_key_file = "pk"\n'
    )
    place.private("pk", "sandbox-api-key")
    answer = keepline("run", "--once")
    assert answer.code == 4
    assert "Cycle failed credential=t" in answer.err


def test_nothing_to_send_is_a_usage_error(keepline: Command, place: Place) -> None:
    answer = keepline("send")
    assert answer.code == 2
    assert "nothing to send; give a token on standard input" in answer.err


def test_sending_to_nobody_is_exit_4_with_numbers(keepline: Command, place: Place) -> None:
    answer = keepline("send", "--json", stdin="secret-text\n")
    assert answer.code == 4
    assert answer.json["unreachable"] == 1
    assert "the bot does not run" in answer.err
    assert "secret-text" not in answer.out + answer.err


def test_a_token_as_an_argument_is_refused_and_not_repeated(keepline: Command) -> None:
    answer = keepline("send", "secret-text")
    assert answer.code == 2
    assert "never arguments" in answer.err
    assert "secret-text" not in answer.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("send", "--file", "f", "--generate"), "exclude each other"),
        (("send", "--to", "nonsense"), "is no address"),
        (("send", "--to", "tcp://192.0.2.1:9"), "anybody on the way"),
        (("send", "--tls-ca", "x"), "belong together"),
        (("send", "--secret-file", "none"), "does not exist; write the secret there"),
        (("send", "--interval", "-1"), "invalid value for '--interval'"),
        (("listen", "--at", "nonsense"), "is no address"),
        (("listen", "--name", "../x"), "is no name"),
        (("listen", "--at", "tcp://127.0.0.1:0", "--for", "1"), "--allow-unauthenticated-loopback"),
        (("sandbox", "fault"), "give one of FAULT, --list, --clear"),
        (("sandbox", "fault", "x", "--list"), "give one of FAULT, --list, --clear"),
        (("sandbox", "serve", "--host", "0.0.0.0"), "not a loopback address"),
        (("frobnicate",), "no such command 'frobnicate'; see keepline --help"),
        (("run", "--frobnicate"), "no such option: --frobnicate"),
        (("run", "--config"), "requires an argument"),
        (("config", "path", "nowhere"), "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    keepline: Command, place: Place, arguments: tuple[str, ...], words: str
) -> None:
    answer = keepline(*arguments)
    assert answer.code == 2
    assert words in answer.err
    assert answer.err.startswith("keepline: ")
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize("group", [(), ("token",), ("config",), ("sandbox",)])
def test_a_group_alone_shows_its_help(keepline: Command, group: tuple[str, ...]) -> None:
    answer = keepline(*group)
    assert answer.code == 2
    assert answer.err.startswith("Usage: keepline")
    assert keepline(*group, "--help").code == 0


def test_faults_are_steered_from_outside(keepline: Command, place: Place) -> None:
    url = ("--url", place.sandbox.url)
    assert keepline("sandbox", "fault", "5xx", "count=2", *url).out.startswith("fault=5xx count=2")
    assert keepline("sandbox", "fault", "--list", "--json", *url).json[0]["fault"] == "5xx"
    shown = keepline("sandbox", "fault", "silent", "on=user_hub,streamer", *url).out
    assert " on=user_hub,streamer " in shown
    assert keepline("sandbox", "fault", "--clear", *url).out == "cleared=2\n"
    none = keepline("sandbox", "fault", "--list", *url)
    assert (none.out, none.err) == ("", "no fault is in force\n")
    answer = keepline("sandbox", "fault", "earthquake", *url)
    assert answer.code == 2
    assert "earthquake" in answer.err
    assert keepline("sandbox", "fault", "5xx", "--url", "http://127.0.0.1:1").code == 4


def test_a_file_that_others_can_read_is_a_note_said_once(keepline: Command, place: Place) -> None:
    (place.directory / "app.yaml").chmod(0o644)
    answer = keepline("config", "check")
    assert answer.code == 0
    assert answer.err.count("keepline: note: Others may read this file; run chmod 600") == 1


def test_a_storage_key_that_was_made_is_told(
    keepline: Command, place: Place, clean_environment: Path
) -> None:
    place.write(schwab='storage = "encrypted"')
    answer = keepline("token", "import", stdin=place.oauth_answer())
    assert "keepline: note: A storage key was generated; back it up" in answer.err
    assert (clean_environment / "data/schwab.enc").exists()


def test_login_for_a_credential_without_a_person_is_refused(
    keepline: Command, place: Place
) -> None:
    place.write(more='[credentials.s]\nissuer = "static"\naccess_token_file = "pk"\n')
    place.private("pk", "x")
    answer = keepline("login", "s")
    assert answer.code == 2
    assert "nobody signs in for s" in answer.err


def test_login_without_an_answer_is_exit_3(keepline: Command, place: Place) -> None:
    answer = keepline("login", "--paste", "--no-browser", stdin="")
    assert answer.code == 3
    assert "/v1/oauth/authorize?" in answer.err


@pytest.mark.parametrize(
    ("redirect", "words"),
    [
        ("\n", "nothing was pasted"),
        ("https://evil.example/?code=c&state=s\n", "evil.example"),
        ("https://127.0.0.1:8182/?code=c&state=wrong\n", "state"),
    ],
)
def test_login_refuses_an_empty_foreign_or_forged_address(
    keepline: Command, place: Place, redirect: str, words: str
) -> None:
    answer = keepline("login", "--paste", "--no-browser", stdin=redirect)
    assert answer.code in (1, 3)
    assert words in answer.err
    assert not (place.directory / "tokens.json").exists()


def test_secrets_go_to_a_terminal_only_when_asked_for(
    keepline: Command, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    keepline("token", "import", stdin=place.oauth_answer(refresh_token="refresh-secret-1"))
    monkeypatch.setattr("keepline.cli.output.on_terminal", lambda: True)
    answer = keepline("token", "export")
    assert answer.code == 2
    assert "--show-secrets" in answer.err
    assert "refresh-secret-1" not in answer.out + answer.err
    assert "refresh-secret-1" in keepline("token", "export", "--show-secrets").out


def test_what_never_began_has_no_numbers(keepline: Command, place: Place) -> None:
    answer = keepline("send", stdin="\n")
    assert (answer.code, answer.out) == (2, "")
    assert "nothing to send" in answer.err
    answer = keepline("listen", "--at", "nowhere/x.sock")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.count("\n") == 1
    assert "make it first: mkdir" in answer.err


def test_numbers_for_people_are_those_that_are_not_zero(keepline: Command, place: Place) -> None:
    answer = keepline("send", stdin="one\n")
    assert answer.code == 4
    assert [line.split()[0] for line in answer.out.splitlines()] == [
        *("tokens", "unreachable", "seconds"),
    ]
    answer = keepline("listen", "--for", "0.01")
    assert (answer.code, answer.out) == (0, "tokens  0\n")


def test_a_mistake_in_the_issuers_key_is_named(keepline: Command, place: Place) -> None:
    place.config.write_text('[credentials.x]\nisuer = "static"\n')
    answer = keepline("config", "check")
    assert answer.code == 2
    assert "[credentials.x.isuer]: unknown key; did you mean issuer?" in answer.err


def test_tokens_are_sent_from_a_private_file(keepline: Command, place: Place) -> None:
    tokens = place.private("tokens", "secret-one\nsecret-two\n")
    answer = keepline("send", "--file", "tokens", "--json")
    assert answer.code == 4  # nobody listens
    assert answer.json["tokens"] == 2
    tokens.chmod(0o644)
    refused = keepline("send", "--file", "tokens")
    assert "chmod 600" in refused.err
    assert keepline("send", "--file", "none").code == 2
    assert "secret" not in answer.out + answer.err + refused.out


def test_a_history_without_a_line_says_so(keepline: Command, place: Place) -> None:
    answer = keepline("token", "history")
    assert (answer.code, answer.out, answer.err) == (0, "", "nothing was renewed yet\n")
    assert keepline("token", "history", "--json").json == []
