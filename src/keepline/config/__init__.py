"""One TOML file, the environment and flags become frozen settings, or a ConfigError that names key, place and remedy.

Invariants: a flag beats `KEEPLINE__SECTION__KEY`, which beats the file; an unknown key is an error; a relative path is
relative to the directory of the file (the working directory when there is none), wherever the path was written; a
secret never stands in the file, in a repr or in an error, and is read only when something needs it.
"""

from keepline.config.hub import HubChannelSettings, HubIssuerSettings, HubSettings
from keepline.config.load import ENVIRONMENT_PREFIX, find, load, search_path
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
    Secret,
    Settings,
    StaticCredential,
    StreamTable,
    TargetSettings,
    TelemetrySettings,
)

__all__ = [
    "BROKERS",
    "ENVIRONMENT_PREFIX",
    "ISSUERS",
    "OWN_LIMITS",
    "BrokerSettings",
    "CredentialSettings",
    "HubChannelSettings",
    "HubIssuerSettings",
    "HubSettings",
    "LimitSettings",
    "OAuth2Credential",
    "ProjectXCredential",
    "RelaySettings",
    "SandboxSettings",
    "SchwabCredential",
    "Secret",
    "Settings",
    "StaticCredential",
    "StreamTable",
    "TargetSettings",
    "TelemetrySettings",
    "find",
    "load",
    "search_path",
]
