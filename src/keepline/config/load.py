"""Finds the configuration, lays environment and flags over it, and joins the sections into checked settings."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from msgspec.structs import fields

from keepline.config.hub import HubSettings
from keepline.config.reader import ENVIRONMENT_PREFIX, FromEnvironment, Reader, listed, nearest
from keepline.config.sections import (
    BROKERS,
    ISSUERS,
    OWN_LIMITS,
    BrokerSettings,
    CredentialSettings,
    LimitSettings,
    OAuth2Credential,
    ProjectXCredential,
    RelaySettings,
    SandboxSettings,
    SchwabCredential,
    Settings,
    TelemetrySettings,
)
from keepline.config.streams import stream_table
from keepline.errors import ConfigError
from keepline.resilience.limits import limit_rules

__all__ = ["ENVIRONMENT_PREFIX", "find", "load", "search_path"]

_SECTIONS = (
    "credentials",
    "relay",
    "brokers",
    "limits",
    "stream",
    "telemetry",
    "sandbox",
    "hub",
)
_ANY_KEY = frozenset(field.name for kind in ISSUERS.values() for field in fields(kind))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def search_path(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Where a configuration is looked for when none is named, best first."""
    import platformdirs

    named = environ.get("KEEPLINE_CONFIG")
    if named:
        return [Path(named)]
    return [
        Path("keepline.toml"),
        Path(platformdirs.user_config_dir("keepline", appauthor=False)) / "keepline.toml",
    ]


def find(path: Path | None = None, *, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The configuration file: the one named, else KEEPLINE_CONFIG, else the first of `search_path` that exists."""
    if path is not None:
        return path
    places = search_path(environ)
    if environ.get("KEEPLINE_CONFIG"):
        return places[0]  # named, so a missing one is an error and not passed over
    return next((place for place in places if place.exists()), None)


def load(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, object] | None = None,
    required: bool = True,
) -> Settings:
    """Read the file, lay the environment and the flags over it, and check all of it.

    Args:
        path: the file; looked for when None.
        environ: where `KEEPLINE__SECTION__KEY` and the brokers' own variables come from.
        flags: dotted key → value from the command line; None values do not count.
        required: whether a missing file is an error.

    Raises:
        ConfigError: unknown key, wrong type, missing key, missing or malformed file; says which key, file and remedy.
    """
    file = find(path, environ=environ)
    overrides = [
        (variable.removeprefix(ENVIRONMENT_PREFIX).split("__"), environ[variable])
        for variable in sorted(environ)
        if variable.startswith(ENVIRONMENT_PREFIX)
    ]
    if file is None and required and not overrides:
        looked = " or ".join(str(place) for place in search_path(environ))
        raise ConfigError(f"no configuration found at {looked}; `keepline init` writes one")
    raw = {} if file is None else _parse(file)
    file = None if file is None else file.absolute()
    base = Path.cwd() if file is None else file.parent
    reader = Reader(file, base)
    for keys, text in overrides:
        variable = ENVIRONMENT_PREFIX + "__".join(keys)
        reader.overlay(raw, keys, FromEnvironment.of(variable, text))
    for key, value in (flags or {}).items():
        if value is not None:
            reader.overlay(raw, key.split("."), value)
    return _settings(raw, reader, file=file, base=base, environ=environ)


def _parse(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        raise ConfigError("does not exist; `keepline init` writes one", file=file) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not TOML: {error}", file=file) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=file) from None


def _settings(
    raw: dict[str, Any],
    reader: Reader,
    *,
    file: Path | None,
    base: Path,
    environ: Mapping[str, str],
) -> Settings:
    reader.known(raw, "", _SECTIONS)
    credentials = {
        name: _credential(reader, name, table, environ)
        for name, table in _named(reader, raw, "credentials")
    }
    relay = {
        name: reader.section(RelaySettings, f"relay.{name}", table)
        for name, table in _named(reader, raw, "relay")
    }
    _check_credentials(reader, credentials)
    _check_relay(reader, relay, credentials)
    brokers = {
        name: _broker(reader, name, table, credentials, environ)
        for name, table in _named(reader, raw, "brokers")
    }
    limits = {
        name: reader.section(LimitSettings, f"limits.{name}", table)
        for name, table in _named(reader, raw, "limits")
    }
    _check_limits(reader, limits)
    stream = {
        name: stream_table(reader, name, table, brokers)
        for name, table in _named(reader, raw, "stream")
    }
    directory = environ.get("CREDENTIALS_DIRECTORY")
    return Settings(
        credentials=MappingProxyType(credentials),
        relay=MappingProxyType(relay),
        brokers=MappingProxyType(brokers),
        limits=MappingProxyType(limits),
        stream=MappingProxyType(stream),
        telemetry=reader.section(TelemetrySettings, "telemetry", raw.get("telemetry", {})),
        sandbox=reader.section(SandboxSettings, "sandbox", raw.get("sandbox", {})),
        hub=reader.section(HubSettings, "hub", raw.get("hub", {})),
        file=file,
        base=base,
        credentials_directory=Path(directory) if directory else None,
    )


def _named(reader: Reader, raw: dict[str, Any], section: str) -> list[tuple[str, Any]]:
    tables = reader.table(raw.get(section, {}), section)
    for name, table in tables.items():
        path = f"{section}.{name}"
        if not _NAME.fullmatch(name):
            raise reader.error(
                "a name is 1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first",
                path,
            )
        reader.table(table, path)
    return list(tables.items())


def _credential(
    reader: Reader, name: str, table: dict[str, Any], environ: Mapping[str, str]
) -> CredentialSettings:
    path = f"credentials.{name}"
    issuer = str(table.get("issuer", name if name in ISSUERS else ""))
    if not issuer:
        reader.known(table, path, _ANY_KEY)  # a misspelt `issuer` is named as what it is
        raise reader.error(f"missing; one of {listed(ISSUERS)}", f"{path}.issuer")
    if issuer not in ISSUERS:
        advice = nearest(issuer, ISSUERS) or f"one of {listed(ISSUERS)}"
        raise reader.error(f"no issuer {issuer!r}; {advice}", f"{path}.issuer", table.get("issuer"))
    defaults: dict[str, Any] = {"issuer": issuer, "storage_path": f"data/{name}.enc"}
    if issuer == "projectx":
        defaults |= _project_x(table, environ)
    return reader.section(ISSUERS[issuer], path, {**defaults, **table})


def _project_x(table: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, FromEnvironment]:
    """The names that users of project-x-py have in their environment already."""
    names = {"username": "PROJECT_X_USERNAME"}
    if "api_key_file" not in table:
        names["api_key"] = "PROJECT_X_API_KEY"
    return {
        key: FromEnvironment.of(variable, environ[variable])
        for key, variable in names.items()
        if environ.get(variable)
    }


def _check_credentials(reader: Reader, credentials: Mapping[str, CredentialSettings]) -> None:
    """What only several keys together can get wrong."""
    for name, credential in credentials.items():
        if credential.storage == "schwab-file" and not isinstance(credential, SchwabCredential):
            message = 'schwab-file belongs to issuer = "schwab"; use encrypted or memory'
            raise reader.error(message, f"credentials.{name}.storage")
        if isinstance(credential, OAuth2Credential) and credential.grant == "authorization_code":
            for key in ("authorize_url", "redirect_uri"):
                if not getattr(credential, key):
                    message = 'missing; grant = "authorization_code" needs it'
                    raise reader.error(message, f"credentials.{name}.{key}")


def _check_relay(
    reader: Reader, relay: Mapping[str, RelaySettings], credentials: Mapping[str, Any]
) -> None:
    for name, table in relay.items():
        _check_credential_exists(reader, f"relay.{name}", table.credential, credentials)


def _check_credential_exists(
    reader: Reader, path: str, wanted: str, credentials: Mapping[str, Any]
) -> None:
    if wanted not in credentials:
        there = f"there is {listed(credentials)}" if credentials else "none is configured"
        advice = nearest(wanted, credentials) or there
        raise reader.error(f"no [credentials.{wanted}]; {advice}", f"{path}.credential")


def _broker(
    reader: Reader,
    name: str,
    table: dict[str, Any],
    credentials: Mapping[str, CredentialSettings],
    environ: Mapping[str, str],
) -> BrokerSettings:
    path = f"brokers.{name}"
    wanted = str(table.get("credential", name))
    _check_credential_exists(reader, path, wanted, credentials)
    credential = credentials[wanted]
    broker = str(table.get("broker", name if name in BROKERS else credential.issuer))
    if broker not in BROKERS:
        advice = nearest(broker, BROKERS) or f"one of {listed(BROKERS)}"
        raise reader.error(f"no broker {broker!r}; {advice}", f"{path}.broker", table.get("broker"))
    defaults: dict[str, Any] = {"broker": broker, "credential": wanted}
    defaults |= {"base_url": _base_url(broker, credential), "journal": f"data/{name}.orders"}
    account = environ.get("PROJECT_X_ACCOUNT_NAME")
    if broker == "projectx" and account:
        defaults["account"] = FromEnvironment.of("PROJECT_X_ACCOUNT_NAME", account)
    return reader.section(BrokerSettings, path, {**defaults, **table})


def _base_url(broker: str, credential: CredentialSettings) -> str:
    """The tokens and the API of a broker come from one address, unless somebody says otherwise."""
    own: type[ProjectXCredential | SchwabCredential]
    own = ProjectXCredential if broker == "projectx" else SchwabCredential
    if isinstance(credential, own):
        return credential.base_url
    return {"projectx": "https://api.topstepx.com", "schwab": "https://api.schwabapi.com"}[broker]


def _check_limits(reader: Reader, limits: Mapping[str, LimitSettings]) -> None:
    for name, rule in limits.items():
        if not rule.endpoints and name not in OWN_LIMITS:
            message = f'missing; which paths, for example ["*/Order/*"]? Only {listed(OWN_LIMITS)} have their own'
            raise reader.error(message, f"limits.{name}.endpoints")
        try:
            limit_rules({"limits": {name: rule.as_rule()}})
        except ConfigError as error:
            raise reader.error(str(error.args[0]), error.key) from None
