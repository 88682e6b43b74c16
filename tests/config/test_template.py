import tomllib
from pathlib import Path

import pytest

from keepline import config
from keepline.config.template import TEMPLATE, as_toml, write_template
from keepline.errors import ConfigError


def test_the_template_is_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "keepline.toml"
    write_template(file)
    settings = config.load(file, environ={})
    assert list(settings.credentials) == ["schwab"]
    assert settings.relay["bots"].credential == "schwab"


def test_every_commented_key_of_the_template_is_a_real_one() -> None:
    lines = (line.removeprefix("# ") for line in TEMPLATE.splitlines())
    text = "\n".join(line for line in lines if line[:1] == "[" or " = " in line.partition("#")[0])
    raw = tomllib.loads(text.replace("targets = [", 'targets = ["/a"]'))
    kinds = {"schwab": config.SchwabCredential, "projectx": config.ProjectXCredential}
    for table in raw["credentials"].values():
        assert set(table) <= set(kinds[table["issuer"]].__struct_fields__)
    for table in raw["stream"].values():
        assert set(table) <= set(config.StreamTable.__struct_fields__)
    assert set(raw["telemetry"]) <= set(config.TelemetrySettings.__struct_fields__)
    assert {"log_file", "log_format", "metrics"} <= set(raw["telemetry"])


def test_a_file_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "keepline.toml"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        write_template(file)
    assert file.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        write_template(tmp_path / "none" / "keepline.toml")


def test_shown_settings_are_toml_that_loads_to_the_same_settings(tmp_path: Path) -> None:
    file = tmp_path / "keepline.toml"
    file.write_text(
        TEMPLATE
        + '[credentials."a.b"]\nissuer = "projectx"\nusername = "ann \\"x\\" é"\n'
        + '[relay.more]\ncredential = "a.b"\ntargets = ["/a", {address = "/b", tls_ca = "ca"}]\n'
    )
    settings = config.load(file, environ={})
    again = tmp_path / "again.toml"
    again.write_text(as_toml(settings.show()))
    loaded = config.load(again, environ={})
    assert (loaded.credentials, loaded.relay) == (settings.credentials, settings.relay)
    assert loaded.stream == settings.stream
    assert (loaded.telemetry, loaded.sandbox) == (settings.telemetry, settings.sandbox)


def test_without_a_file_it_says_so() -> None:
    shown = config.load(environ={}, required=False).show()
    assert as_toml(shown).startswith("# no file: defaults and environment\n")
