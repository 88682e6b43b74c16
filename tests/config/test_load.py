from datetime import UTC, datetime
from pathlib import Path

import pytest

from keepline import config
from keepline.config import OAuth2Credential, SchwabCredential, Secret, Settings
from keepline.errors import ConfigError, StorageError

MINIMAL = "[credentials.schwab]\n"


def write(directory: Path, text: str) -> Path:
    file = directory / "keepline.toml"
    file.write_text(text)
    return file


def load(directory: Path, text: str = MINIMAL, **environ: str) -> Settings:
    return config.load(write(directory, text), environ=environ)


def refusal(directory: Path, text: str, **environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(directory, text, **environ)
    return caught.value


def test_a_bare_schwab_section_is_complete(tmp_path: Path) -> None:
    schwab = load(tmp_path).credentials["schwab"]
    assert isinstance(schwab, SchwabCredential)
    assert schwab.issuer == "schwab"
    assert schwab.storage == "schwab-file"
    assert schwab.token_file == tmp_path / "configs/schwab_tokens.json"
    assert schwab.app_config == tmp_path / "configs/schwab_app_config.yaml"
    assert schwab.storage_path == tmp_path / "data/schwab.enc"


def test_relative_paths_start_at_the_file_and_absolute_ones_stay(tmp_path: Path) -> None:
    text = '[credentials.schwab]\ntoken_file = "t.json"\napp_config = "/etc/app.yaml"\n'
    schwab = load(tmp_path, text).credentials["schwab"]
    assert isinstance(schwab, SchwabCredential)
    assert (schwab.token_file, schwab.app_config) == (tmp_path / "t.json", Path("/etc/app.yaml"))


def test_a_tilde_is_the_home_directory(tmp_path: Path) -> None:
    text = '[credentials.schwab]\ntoken_file = "~/t.json"\n'
    schwab = load(tmp_path, text).credentials["schwab"]
    assert isinstance(schwab, SchwabCredential)
    assert schwab.token_file == Path.home() / "t.json"


def test_the_environment_beats_the_file_and_a_flag_beats_both(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + '[telemetry]\nlog_level = "ERROR"\nlog_format = "json"\n')
    environ = {"KEEPLINE__TELEMETRY__LOG_LEVEL": "DEBUG"}
    assert config.load(file, environ=environ).telemetry.log_level == "DEBUG"
    flags = {"telemetry.log_level": "WARNING", "telemetry.log_format": None}
    telemetry = config.load(file, environ=environ, flags=flags).telemetry
    assert (telemetry.log_level, telemetry.log_format) == ("WARNING", "json")


@pytest.mark.parametrize(
    ("variable", "text", "section", "key", "value"),
    [
        ("SANDBOX__PORT", "0", "sandbox", "port", 0),
        ("SANDBOX__ROTATE", "false", "sandbox", "rotate", False),
        ("SANDBOX__ACCESS_LIFETIME", "2.5", "sandbox", "access_lifetime", 2.5),
        ("SANDBOX__HOST", "127.0.0.2", "sandbox", "host", "127.0.0.2"),
    ],
)
def test_the_environment_is_typed_by_the_schema(
    tmp_path: Path, variable: str, text: str, section: str, key: str, value: object
) -> None:
    settings = load(tmp_path, **{f"KEEPLINE__{variable}": text})
    assert getattr(getattr(settings, section), key) == value


def test_a_broker_takes_credential_address_and_name_from_its_section(tmp_path: Path) -> None:
    text = (
        MINIMAL + '[credentials.top]\nissuer = "projectx"\nusername = "u"\nbase_url = "https://b"\n'
    )
    text += '[brokers.schwab]\n[brokers.top]\n[brokers.second]\ncredential = "top"\naccount = "A"\n'
    brokers = load(tmp_path, text, PROJECT_X_ACCOUNT_NAME="from-environment").brokers
    assert [(b.broker, b.credential, b.account, b.base_url) for b in brokers.values()] == [
        ("schwab", "schwab", None, "https://api.schwabapi.com"),
        ("projectx", "top", "from-environment", "https://b"),
        ("projectx", "top", "A", "https://b"),
    ]
    assert brokers["top"].journal == tmp_path / "data/top.orders"


def test_a_broker_may_live_elsewhere_than_its_tokens(tmp_path: Path) -> None:
    text = OAUTH + '[brokers.x]\nbroker = "projectx"\njournal = "/var/j"\n'
    broker = load(tmp_path, text).brokers["x"]
    assert (broker.base_url, broker.journal) == ("https://api.topstepx.com", Path("/var/j"))


def test_limits_are_rules_as_the_limiter_takes_them(tmp_path: Path) -> None:
    text = "[limits.history]\nlimit = 50\nwindow_seconds = 30\n"
    text += '[limits.all]\nlimit = 9\nwindow_seconds = 1.5\nburst = 3\nendpoints = ["*"]\n'
    assert {name: rule.as_rule() for name, rule in load(tmp_path, text).limits.items()} == {
        "history": {"limit": 50, "window_seconds": 30.0},
        "all": {"limit": 9, "window_seconds": 1.5, "burst": 3, "endpoints": ("*",)},
    }


def test_the_environment_gives_lists_as_json(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        KEEPLINE__RELAY__MAIN__CREDENTIAL="schwab",
        KEEPLINE__RELAY__MAIN__TARGETS='["/run/a.sock", {"address": "/run/b.sock", "name": "b"}]',
        KEEPLINE__CREDENTIALS__SCHWAB__RETRY_DELAYS="[1, 2]",
    )
    first, second = settings.relay["main"].targets
    assert (first.address, second.address, second.name) == ("/run/a.sock", "/run/b.sock", "b")
    assert settings.credentials["schwab"].retry_delays == (1.0, 2.0)


def test_the_environment_finds_a_name_with_dashes(tmp_path: Path) -> None:
    text = '[credentials.my-broker]\nissuer = "schwab"\n'
    settings = load(tmp_path, text, KEEPLINE__CREDENTIALS__MY_BROKER__STORAGE="memory")
    assert settings.credentials["my-broker"].storage == "memory"


def test_the_environment_alone_is_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"KEEPLINE__CREDENTIALS__SCHWAB__STORAGE": "memory", "XDG_CONFIG_HOME": str(tmp_path)}
    settings = config.load(environ=environ)
    assert settings.file is None
    assert settings.base == tmp_path
    assert list(settings.credentials) == ["schwab"]


def test_other_variables_are_left_alone(tmp_path: Path) -> None:
    assert load(tmp_path, KEEPLINE_RUNTIME_DIR="/run/x", HOME="/").credentials


def test_project_x_variables_that_users_have_already_are_honoured(tmp_path: Path) -> None:
    environ = {"PROJECT_X_USERNAME": "ann", "PROJECT_X_API_KEY": "k-1"}
    settings = load(tmp_path, "[credentials.projectx]\n", **environ)
    table = settings.credentials["projectx"]
    assert table.username == "ann"  # type: ignore[attr-defined]
    assert settings.secret("credentials.projectx", table, "api_key") == "k-1"


def test_a_named_key_file_beats_the_project_x_variable(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("from the file\n")
    key.chmod(0o600)
    text = '[credentials.projectx]\nusername = "ann"\napi_key_file = "key"\n'
    settings = load(tmp_path, text, PROJECT_X_API_KEY="from the environment")
    table = settings.credentials["projectx"]
    assert settings.secret("credentials.projectx", table, "api_key") == "from the file"


OAUTH = '[credentials.x]\nissuer = "oauth2"\ntoken_url = "https://a/t"\nclient_id = "c"\n'


def test_a_secret_comes_from_the_environment_a_file_or_systemd(tmp_path: Path) -> None:
    def secret(text: str, **environ: str) -> str:
        settings = load(tmp_path, text, **environ)
        return settings.secret("credentials.x", settings.credentials["x"], "client_secret")

    file = tmp_path / "s"
    file.write_text("two\n")
    file.chmod(0o600)
    loaded = tmp_path / "credentials.x.client_secret"
    loaded.write_text("three\n")
    assert secret(OAUTH, KEEPLINE__CREDENTIALS__X__CLIENT_SECRET=" one\n") == "one"
    assert secret(OAUTH + 'client_secret_file = "s"\n') == "two"
    assert secret(OAUTH, CREDENTIALS_DIRECTORY=str(tmp_path)) == "three"
    assert secret(OAUTH, CREDENTIALS_DIRECTORY=str(tmp_path / "none")) == ""
    assert secret(OAUTH) == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "does not exist"), (b" \n", "is empty"), (b"\xff\xfe", "is not UTF-8")],
)
def test_a_bad_secret_file_is_named_with_its_key(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    settings = load(tmp_path, OAUTH + 'client_secret_file = "s"\n')
    if content is not None:
        (tmp_path / "s").write_bytes(content)
        (tmp_path / "s").chmod(0o600)
    with pytest.raises(ConfigError, match=words) as caught:
        settings.secret("credentials.x", settings.credentials["x"], "client_secret")
    assert caught.value.key == "credentials.x.client_secret_file"
    assert str(tmp_path / "s") in str(caught.value)


def test_a_secret_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("x")
    (tmp_path / "s").chmod(0o644)
    settings = load(tmp_path, OAUTH + 'client_secret_file = "s"\n')
    with pytest.raises(StorageError, match="chmod 600"):
        settings.secret("credentials.x", settings.credentials["x"], "client_secret")


def test_a_secret_in_the_file_is_refused_with_the_ways_that_are_open(tmp_path: Path) -> None:
    error = refusal(tmp_path, OAUTH + 'client_secret = "hunter2"\n')
    for words in (
        "client_secret_file",
        "KEEPLINE__CREDENTIALS__X__CLIENT_SECRET",
        "systemd credential named credentials.x.client_secret",
    ):
        assert words in str(error)
    assert "hunter2" not in str(error)
    text = MINIMAL + (
        '[relay.m]\ncredential = "schwab"\ntargets = [{address = "/a", shared_secret = "hunter2"}]\n'
    )
    inside = str(refusal(tmp_path, text))
    assert "KEEPLINE__" not in inside
    assert "hunter2" not in inside


def test_no_repr_shows_a_secret(tmp_path: Path) -> None:
    settings = load(tmp_path, OAUTH, KEEPLINE__CREDENTIALS__X__CLIENT_SECRET="hunter2")
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.show())
    assert settings.show()["credentials"]["x"]["client_secret"] == "[secret]"
    assert Secret("a") == Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1


def test_the_settings_are_frozen(tmp_path: Path) -> None:
    settings = load(tmp_path)
    with pytest.raises(AttributeError):
        settings.telemetry.metrics = ""  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.credentials["new"] = settings.credentials["schwab"]  # type: ignore[index]


def test_an_oauth_section_keeps_what_it_was_told(tmp_path: Path) -> None:
    table = load(tmp_path, OAUTH + 'grant = "client_credentials"\n').credentials["x"]
    assert isinstance(table, OAuth2Credential)
    assert (table.grant, table.client_auth, table.pkce) == ("client_credentials", "basic", True)


def test_a_static_token_may_have_an_expiry(tmp_path: Path) -> None:
    text = '[credentials.s]\nissuer = "static"\nexpires_at = 2030-01-01T00:00:00Z\n'
    table = load(tmp_path, text).credentials["s"]
    assert table.expires_at == datetime(2030, 1, 1, tzinfo=UTC)  # type: ignore[attr-defined]


RELAY = MINIMAL + '[relay.main]\ncredential = "schwab"\ntargets = ["/a"]\n'


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("[credential.x]\n", "credential", "did you mean credentials?"),
        (
            "[nothing.x]\n",
            "nothing",
            "known here: credentials, relay, brokers, limits, stream, telemetry",
        ),
        ("[streams.x]\n", "streams", "did you mean stream?"),
        ("[brokers.x]\n", "brokers.x.credential", "no [credentials.x]; none is configured"),
        (MINIMAL + "[brokers.schwap]\n", "brokers.schwap.credential", "did you mean schwab?"),
        (
            OAUTH + "[brokers.x]\n",
            "brokers.x.broker",
            "no broker 'oauth2'; one of projectx, schwab",
        ),
        (OAUTH + '[brokers.x]\nbroker = "schwap"\n', "brokers.x.broker", "did you mean schwab?"),
        (MINIMAL + '[brokers.schwab]\naccount = ""\n', "brokers.schwab.account", "not empty"),
        (
            MINIMAL + "[brokers.schwab]\nacount = 1\n",
            "brokers.schwab.acount",
            "did you mean account?",
        ),
        ("[limits.x]\nlimit = 1\n", "limits.x.window_seconds", "missing"),
        ("[limits.x]\nlimit = 0\nwindow_seconds = 1\n", "limits.x.limit", "1 or more, got 0"),
        (
            "[limits.x]\nlimit = 1\nwindow_seconds = 1\n",
            "limits.x.endpoints",
            "missing; which paths",
        ),
        (
            "[limits.general]\nlimit = 1\nwindow_seconds = 1\nburst = 2\n",
            "limits.general.burst",
            "from 1 to 1, not 2",
        ),
        (
            "[limits.general]\nlimit = 1000001\nwindow_seconds = 1\n",
            "limits.general.limit",
            "from 1 to 1,000,000",
        ),
        ('[credentials.x]\nisuer = "schwab"\n', "credentials.x.isuer", "did you mean issuer?"),
        (MINIMAL + '[telemetry]\nlog_file = ""\n', "telemetry.log_file", "got an empty text"),
        (
            MINIMAL + '[telemetry]\nlog_file = "~nobody-of-this-name/x"\n',
            "telemetry.log_file",
            "no home directory",
        ),
        (
            MINIMAL + '[relay.m]\ncredential = "schwab"\ntargets = "bot:x"\n',
            "relay.m.targets",
            "expected a list, got text; put it in brackets",
        ),
        (MINIMAL + "tokn_file = 1\n", "credentials.schwab.tokn_file", "did you mean token_file?"),
        (RELAY + "retry_dely = 1\n", "relay.main.retry_dely", "did you mean retry_delay?"),
        (MINIMAL + "zzz = 1\n", "credentials.schwab.zzz", "known here: issuer, storage"),
        (
            MINIMAL + '[relay.m]\ncredential = "schwab"\ntargets = [{adress = "/a"}]\n',
            "relay.m.targets[0].adress",
            "did you mean address?",
        ),
        ("[credentials.x]\n", "credentials.x.issuer", "missing; one of schwab, projectx"),
        ('[credentials.x]\nissuer = "swab"\n', "credentials.x.issuer", "did you mean schwab?"),
        ('[credentials.x]\nissuer = "??"\n', "credentials.x.issuer", "no issuer '??'; one of"),
        ("[credentials.projectx]\n", "credentials.projectx.username", "missing; this key is"),
        (MINIMAL + "[relay.m]\ntargets = []\n", "relay.m.credential", "missing"),
        (MINIMAL + '[relay.m]\ncredential = "schwab"\n', "relay.m.targets", "missing"),
        (
            MINIMAL + '[relay.m]\ncredential = "schwab"\ntargets = []\n',
            "relay.m.targets",
            "at least one",
        ),
        (
            MINIMAL + '[relay.m]\ncredential = "schwab"\ntargets = "/a"\n',
            "relay.m.targets",
            "expected a list, got text",
        ),
        (
            MINIMAL + '[relay.m]\ncredential = "schwab"\ntargets = [7]\n',
            "relay.m.targets[0]",
            "expected a table, got a whole number",
        ),
        (
            RELAY.replace('"schwab"', '"schwb"'),
            "relay.main.credential",
            "no [credentials.schwb]; did you mean schwab?",
        ),
        (RELAY.replace('"schwab"', '"qqq"'), "relay.main.credential", "there is schwab"),
        (
            '[relay.main]\ncredential = "schwab"\ntargets = ["/a"]\n',
            "relay.main.credential",
            "none is configured",
        ),
        (RELAY + "attempts = 0\n", "relay.main.attempts", "a whole number, 1 or more, got 0"),
        (RELAY + 'attempts = "3"\n', "relay.main.attempts", "1 or more, got text"),
        (RELAY + "timeout = -1.5\n", "relay.main.timeout", "seconds above 0, got -1.5"),
        ("[sandbox]\nrotate = 1\n", "sandbox.rotate", "expected true or false, got 1"),
        ("[sandbox]\nseed = 1.5\n", "sandbox.seed", "expected a whole number, got 1.5"),
        ("[sandbox]\nport = 70000\n", "sandbox.port", "a port from 0 to 65535, got 70000"),
        ('[sandbox]\nhost = ""\n', "sandbox.host", "a text that is not empty"),
        ("[telemetry]\nmetrics = true\n", "telemetry.metrics", "expected text, got true or false"),
        ("telemetry = 1\n", "telemetry", "expected a table, got a whole number"),
        ("credentials = 1.5\n", "credentials", "expected a table, got a number"),
        ("[credentials]\nx = 1979-05-27\n", "credentials.x", "expected a table, got a date"),
        ('[credentials."a b"]\n', "credentials.a b", "letters, digits"),
        (
            '[telemetry]\nlog_format = "jsn"\n',
            "telemetry.log_format",
            "expected one of text, json, not 'jsn'; did you mean json?",
        ),
        ("[telemetry]\nlog_format = 1\n", "telemetry.log_format", "json, not a whole number"),
        ("[telemetry]\nlog_file = 1\n", "telemetry.log_file", "a text that is not empty, got 1"),
        (
            MINIMAL + 'retry_delays = ["a"]\n',
            "credentials.schwab.retry_delays",
            "expected a list, each a number of seconds above 0, at least one",
        ),
        (
            OAUTH + 'grant = "authorization_code"\n',
            "credentials.x.authorize_url",
            'grant = "authorization_code" needs it',
        ),
        (
            OAUTH + 'storage = "schwab-file"\n',
            "credentials.x.storage",
            'schwab-file belongs to issuer = "schwab"',
        ),
        (
            '[credentials.s]\nissuer = "static"\nexpires_at = 2030-01-01T00:00:00\n',
            "credentials.s.expires_at",
            "a date and time with an offset",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named_with_file_and_remedy(
    tmp_path: Path, text: str, key: str, words: str
) -> None:
    error = refusal(tmp_path, text)
    assert error.key == key
    assert error.file == tmp_path / "keepline.toml"
    assert words in str(error)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("TELEMETRY__LOG_LEVLE", "DEBUG", "did you mean log_level?"),
        ("SANDBOX__PORT", "many", "a port from 0 to 65535, got text"),
        ("RELAY__MAIN__TARGETS", "/a", "expected a JSON list"),
        ("RELAY__MAIN__TARGETS__X", "/a", "one value, not a table"),
        ("RELAY__MAIN__TARGETS", '{"a": 1}', "expected a JSON list"),
        ("CREDENTIALS__SCHWAB__ISSUER", "nobody", "no issuer 'nobody'"),
        ("TELEMETRY", "x", "expected a table, got text"),
    ],
)
def test_a_wrong_variable_is_named_itself(
    tmp_path: Path, variable: str, value: str, words: str
) -> None:
    error = refusal(tmp_path, RELAY, **{f"KEEPLINE__{variable}": value})
    assert f"environment variable KEEPLINE__{variable}" in str(error)
    assert words in str(error)
    assert error.file is None


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keepline init") as caught:
        config.load(tmp_path / "none.toml", environ={})
    assert caught.value.file == tmp_path / "none.toml"


def test_without_any_configuration_it_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match=r"keepline\.toml or .*home.keepline.keepline\.toml"):
        config.load(environ={})
    assert config.load(environ={}, required=False).credentials == {}


def test_it_is_found_where_it_is_looked_for_best_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    assert config.find(environ={}) is None
    home = tmp_path / "home/keepline/keepline.toml"
    home.parent.mkdir(parents=True)
    home.write_text(MINIMAL)
    assert config.find(environ={}) == home
    write(tmp_path / "work", MINIMAL)
    assert config.find(environ={}) == Path("keepline.toml")
    environ = {"KEEPLINE_CONFIG": "/else"}
    assert config.search_path(environ) == [Path("/else")]
    assert config.find(environ=environ) == Path("/else")
    assert config.find(Path("/named"), environ=environ) == Path("/named")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"[credentials", "is not TOML"), (b"\xff\xfe", "is not TOML")],
)
def test_what_is_not_toml_is_said_so(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "keepline.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        config.load(file, environ={})


def test_a_directory_instead_of_a_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.load(tmp_path, environ={})


STREAM = MINIMAL + "[brokers.schwab]\n"
PROJECTX_BROKER = OAUTH + '[brokers.x]\nbroker = "projectx"\n'


def test_a_stream_has_its_defaults_and_its_files_place(tmp_path: Path) -> None:
    text = STREAM + '[stream.schwab]\nsymbols = ["AAPL"]\nrecord = "r/{stream}-{time}.gz"\n'
    stream = load(tmp_path, text).stream["schwab"]
    assert (stream.broker, stream.accounts, stream.events) == ("schwab", (), ("quotes",))
    assert (stream.encoding, stream.stale_after, stream.heartbeat) == ("json", 120.0, 30.0)
    assert stream.record == tmp_path / "r/{stream}-{time}.gz"
    assert stream.url is None


def test_a_stream_may_be_of_another_broker_and_come_from_the_environment(tmp_path: Path) -> None:
    text = PROJECTX_BROKER + '[stream.top]\nbroker = "x"\nurl = "wss://rtc.example"\n'
    environ = {
        "KEEPLINE__STREAM__TOP__SYMBOLS": '["MNQ", "MES"]',
        "KEEPLINE__STREAM__TOP__EVENTS": '["depth"]',
        "KEEPLINE__STREAM__TOP__ENCODING": "messagepack",
    }
    settings = load(tmp_path, text, **environ)
    stream = settings.stream["top"]
    assert (stream.broker, stream.symbols, stream.events) == ("x", ("MNQ", "MES"), ("depth",))
    assert settings.show()["stream"]["top"]["encoding"] == "messagepack"


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("[stream.x]\n", "broker", "no [brokers.x]; there is schwab"),
        ("[stream.schwap]\n", "broker", "no [brokers.schwap]; did you mean schwab?"),
        ("[stream.schwab]\n", "symbols", "missing; name accounts, symbols or both"),
        ('[stream.schwab]\nsymbol = ["A"]\n', "symbol", "unknown key; did you mean symbols?"),
        ('[stream.schwab]\nsymbols = "A"\n', "symbols", "expected a list, got text"),
        ('[stream.schwab]\nsymbols = [""]\n', "symbols", "a text that is not empty"),
        ('[stream.schwab]\nsymbols = ["A"]\nevents = []\n', "events", "at least one"),
        ('[stream.schwab]\nsymbols = ["A"]\nevents = ["quote"]\n', "events", "quotes, trades, depth"),
        ('[stream.schwab]\nsymbols = ["A"]\nevents = ["trades"]\n', "events", "has no single trades"),
        ('[stream.schwab]\nsymbols = ["A"]\nencoding = "messagepack"\n', "encoding", "json only"),
        ('[stream.schwab]\nsymbols = ["A"]\nencoding = "xml"\n', "encoding", "one of json, messagepack"),
        ('[stream.schwab]\nsymbols = ["A"]\nurl = "wss://a.example"\n', "url", "leave this key out"),
        ('[stream.schwab]\nsymbols = ["A"]\nstale_after = 0\n', "stale_after", "above 0, got 0"),
        ('[stream.schwab]\nsymbols = ["A"]\nstale_after = inf\n', "stale_after", "not inf"),
        ('[stream.schwab]\nsymbols = ["A"]\nheartbeat = inf\n', "heartbeat", "not inf"),
        ('[stream.schwab]\nsymbols = ["A"]\nrecord = "r.gz"\n', "record", "its name needs {time}"),
        ('[stream.schwab]\nsymbols = ["A"]\nrecord = "{day}-{time}"\n', "record", "only {stream}, {time}"),
        ('[stream.schwab]\nsymbols = ["A"]\nrecord = "{time"\n', "record", "only {stream}, {time}"),
    ],
)  # fmt: skip
def test_a_stream_that_makes_no_sense_is_named_with_file_and_key(
    tmp_path: Path, text: str, key: str, words: str
) -> None:
    error = refusal(tmp_path, STREAM + text)
    assert error.key == f"{text.partition(']')[0][1:]}.{key}"
    assert error.file == tmp_path / "keepline.toml"
    assert words in str(error)


@pytest.mark.parametrize("url", ["rtc.example", "ftp://rtc.example", "https://"])
def test_an_address_of_hubs_that_is_none_is_named(tmp_path: Path, url: str) -> None:
    error = refusal(tmp_path, PROJECTX_BROKER + f'[stream.x]\nsymbols = ["M"]\nurl = "{url}"\n')
    assert error.key == "stream.x.url"
    assert "expected an address such as https://rtc.topstepx.com" in str(error)


def test_a_stream_without_any_broker_says_so(tmp_path: Path) -> None:
    error = refusal(tmp_path, MINIMAL + "[stream.x]\n")
    assert "no [brokers.x]; none is configured" in str(error)
