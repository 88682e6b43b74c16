"""docs/reference/configuration.md names every key with its default, and none that does not exist."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from keepline import config

PAGE = (Path(__file__).parents[2] / "docs/reference/configuration.md").read_text()
COMMON = set(config.CredentialSettings.__struct_fields__)
TABLES = {
    "## `[credentials.NAME]`": config.CredentialSettings,
    '### `issuer = "schwab"`': config.SchwabCredential,
    '### `issuer = "projectx"`': config.ProjectXCredential,
    '### `issuer = "oauth2"`': config.OAuth2Credential,
    '### `issuer = "static"`': config.StaticCredential,
    "## `[relay.NAME]`": config.RelaySettings,
    "A target is": config.TargetSettings,
    "## `[stream.NAME]`": config.StreamTable,
    "## `[telemetry]`": config.TelemetrySettings,
    "## `[sandbox]`": config.SandboxSettings,
    "## `[hub]`": config.HubSettings,
    "### `[[hub.issuers]]`": config.HubIssuerSettings,
    "### `[[hub.channels]]`": config.HubChannelSettings,
}
ELSEWHERE = {"issuer", "storage_path", "username", "api_key", "broker"}
"""Keys whose default comes from the section's name or from the environment."""


def rows(heading: str) -> dict[str, str]:
    """The keys of the first table after a heading, with the default's cell."""
    table = PAGE.split(heading, 1)[1].split("\n\n|", 1)[1].split("\n\n", 1)[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.MULTILINE))


def default_of(field: msgspec.structs.FieldInfo) -> str:
    value: Any = None if field.required else field.default
    if value is None or value == "":
        return "-"
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


@pytest.mark.parametrize("heading", TABLES)
def test_each_key_has_its_row_and_its_default(heading: str) -> None:
    kind = TABLES[heading]
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    if issubclass(kind, config.CredentialSettings) and kind is not config.CredentialSettings:
        fields = {name: field for name, field in fields.items() if name not in COMMON}
    written = rows(heading)
    assert set(written) == set(fields)
    for name, field in fields.items():
        if name not in ELSEWHERE:
            assert written[name] == default_of(field), name


def test_the_issuers_are_the_ones_of_the_page() -> None:
    assert set(re.findall(r'^### `issuer = "(\w+)"`', PAGE, re.MULTILINE)) == set(config.ISSUERS)
