"""Turns settings into parts: issuers, stores, managers, relays, the socket and the metrics endpoint.

Invariant: everything that the settings can get wrong is found here, before anything starts, and named with its key.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.config import (
    CredentialSettings,
    OAuth2Credential,
    ProjectXCredential,
    RelaySettings,
    SchwabCredential,
    Settings,
    StaticCredential,
    TargetSettings,
)
from keepline.credentials.history import RotationHistory
from keepline.credentials.issuer import AuthService, StaticIssuer
from keepline.credentials.lease import FileLease
from keepline.credentials.manager import TokenManager
from keepline.credentials.policy import TokenManagerConfig
from keepline.credentials.storage import TokenStorage, TokenStore
from keepline.daemon.endpoint import parse_listen
from keepline.errors import ConfigError
from keepline.files import expanded
from keepline.http import HttpSession
from keepline.relay.address import TLSConfig, default_socket_path
from keepline.relay.sender import Target, TokenSender

__all__ = [
    "check_settings",
    "history_of",
    "issuer_of",
    "lease_of",
    "manager_of",
    "sender_of",
    "store_of",
    "target_address",
]

_POLICY = (
    "refresh_buffer_seconds",
    "refresh_at_fraction",
    "max_retries",
    "retry_delays",
    "max_queue_depth",
    "queue_timeout_seconds",
    "refresh_timeout_seconds",
)


def check_settings(settings: Settings) -> None:
    """Make everything that needs no network and throw it away.

    Raises:
        ConfigError: names the key.
        StorageError: a file with secrets is not private.
    """
    for name in settings.credentials:
        manager_of(settings, name)
    for name in settings.relay:
        sender_of(settings, name)
    if settings.stream:
        from keepline.daemon.streamcheck import check_stream  # the brokers are not in every daemon

        for name in settings.stream:
            check_stream(settings, name)
    if settings.telemetry.metrics:
        with _keyed("telemetry", settings):
            parse_listen(settings.telemetry.metrics)
    if settings.hub.enabled:
        from keepline.daemon.hubpart import hub_settings  # the hub is not in every daemon

        with _keyed("hub", settings):
            hub_settings(settings)


def manager_of(
    settings: Settings,
    name: str,
    *,
    http: HttpSession | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> TokenManager:
    """A manager for a credential, not started; `http` is for the issuer and stays the caller's to close."""
    table = _credential(settings, name)
    with _keyed(f"credentials.{name}", settings):
        policy = TokenManagerConfig(name=name, **{key: getattr(table, key) for key in _POLICY})
    store = store_of(settings, name, clock=clock)
    return TokenManager(
        policy,
        issuer_of(settings, name, http=http, clock=clock),
        storage=store,
        lease=lease_of(store, clock=clock),
        history=history_of(settings, name, clock=clock),
        clock=clock,
    )


def issuer_of(
    settings: Settings,
    name: str,
    *,
    http: HttpSession | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> AuthService:
    """The issuer of a credential.

    Raises:
        ConfigError: a key or secret is missing or wrong.
        StorageError: a file with secrets is not private.
    """
    table = _credential(settings, name)
    with _keyed(f"credentials.{name}", settings):
        return _ISSUERS[type(table)](settings, name, table, _Shared(http, clock))


def store_of(settings: Settings, name: str, *, clock: Clock = SYSTEM_CLOCK) -> TokenStore:
    """Where a credential's token is kept."""
    table = _credential(settings, name)
    if table.storage == "memory":
        return TokenStorage(memory_only=True, credential=name, clock=clock)
    if isinstance(table, SchwabCredential) and table.storage == "schwab-file":
        from keepline.credentials.schwab_file import SchwabTokenFile

        return SchwabTokenFile(table.token_file, clock=clock, credential=name)
    with _keyed(f"credentials.{name}", settings):
        key = settings.secret(f"credentials.{name}", table, "storage_key") or None
    return TokenStorage(table.storage_path, key=key, credential=name, kdf=table.kdf, clock=clock)


def lease_of(store: TokenStore, *, clock: Clock = SYSTEM_CLOCK) -> FileLease | None:
    """The lock beside a store, None for a store in memory."""
    if store.path is None:
        return None
    return FileLease(store.path.with_name(f"{store.path.name}.lock"), clock=clock)


def history_of(settings: Settings, name: str, *, clock: Clock = SYSTEM_CLOCK) -> RotationHistory:
    """What became of a credential's renewals: `NAME.history` in the directory of `storage_path`."""
    table = _credential(settings, name)
    return RotationHistory(table.storage_path.parent / f"{name}.history", clock=clock)


def sender_of(settings: Settings, name: str, *, clock: Clock = SYSTEM_CLOCK) -> TokenSender:
    """The sender of a relay.

    Raises:
        ConfigError: an address, a secret or a certificate is missing or wrong.
    """
    table: RelaySettings = settings.relay[name]
    targets = [
        _target(settings, f"relay.{name}.targets[{i}]", target)
        for i, target in enumerate(table.targets)
    ]
    with _keyed(f"relay.{name}", settings):
        return TokenSender(
            targets,
            attempts=table.attempts,
            retry_delay=table.retry_delay,
            timeout=table.timeout,
            credential=table.credential,
            clock=clock,
        )


def target_address(text: str, base: Path) -> str:
    """An address as the relay takes it: `bot:NAME` becomes that bot's socket, a relative path starts at `base`."""
    if text.startswith("bot:"):
        return str(default_socket_path(text.removeprefix("bot:")))
    if "://" in text:
        return text
    if "/" not in text:
        return text  # no address: the relay says so
    path = text.removeprefix("unix:")
    return str(expanded(path, key="address") if path.startswith("~") else base / path)


def _credential(settings: Settings, name: str) -> CredentialSettings:
    try:
        return settings.credentials[name]
    except KeyError:
        there = ", ".join(settings.credentials) or "none"
        message = f"no [credentials.{name}]; there is {there}"
        raise ConfigError(message, key="credentials", file=settings.file) from None


def _target(settings: Settings, path: str, table: TargetSettings) -> Target:
    with _keyed(path, settings):
        return Target(
            target_address(table.address, settings.base),
            name=table.name or table.address,
            send_refresh_token=table.send_refresh_token,
            shared_secret=settings.secret(path, table, "shared_secret") or None,
            tls=_tls(table),
            allowed_uids=table.allowed_uids,
            allow_plain_tcp_beyond_loopback=table.allow_plain_tcp_beyond_loopback,
        )


def _tls(table: TargetSettings) -> TLSConfig | None:
    files = {key: getattr(table, f"tls_{key}") for key in ("certificate", "key", "ca")}
    if not any(files.values()):
        return None
    for key, file in files.items():
        if file is None:
            raise ConfigError(
                "missing; tls_certificate, tls_key and tls_ca belong together", key=f"tls_{key}"
            )
    config = TLSConfig(**files, server_name=table.tls_server_name)
    config.client_context()  # a file that is missing or no PEM is found now
    return config


_KEYS = {
    "name": "address",
    "target.tls": "tls_certificate",
    "tls.certificate": "tls_certificate",
    "tls.ca": "tls_ca",
}
"""Keys of errors that the file spells otherwise: the name is that of `bot:NAME`."""


@contextmanager
def _keyed(path: str, settings: Settings) -> Iterator[None]:
    """An error about a key of a part becomes one about that key in the file."""
    try:
        yield
    except ConfigError as error:
        if error.file is not None or error.key.startswith(path):
            raise
        key = _KEYS.get(error.key) or error.key.rpartition(".")[2]
        where = f"{path}.{key}" if key else path
        raise ConfigError(str(error.args[0]), key=where, file=settings.file) from None


# --- issuers ----------------------------------------------------------------------------------------------------------


class _Shared(NamedTuple):
    """What all issuers of a process may share."""

    http: HttpSession | None
    clock: Clock


def _schwab(settings: Settings, name: str, table: SchwabCredential, shared: _Shared) -> AuthService:
    from keepline.credentials.oauth_issuer import SchwabIssuer

    return SchwabIssuer.from_app_config(
        table.app_config,
        base_url=table.base_url,
        redirect_uri=table.redirect_uri,
        **shared._asdict(),
        name=name,
    )


def _projectx(
    settings: Settings, name: str, table: ProjectXCredential, shared: _Shared
) -> AuthService:
    from keepline.credentials.projectx_issuer import ProjectXIssuer

    secret = _required(settings, name, table, "api_key", "PROJECT_X_API_KEY or api_key_file")
    return ProjectXIssuer(
        table.username, secret, base_url=table.base_url, **shared._asdict(), name=name
    )


def _oauth2(settings: Settings, name: str, table: OAuth2Credential, shared: _Shared) -> AuthService:
    from keepline.credentials.oauth_issuer import OAuth2Issuer

    secret = ""
    if table.client_auth != "none":
        secret = _required(settings, name, table, "client_secret", "client_secret_file")
    days = table.refresh_lifetime_seconds
    return OAuth2Issuer(
        table.token_url,
        table.client_id,
        secret,
        grant=table.grant,
        client_auth=table.client_auth,
        authorize_url=table.authorize_url,
        redirect_uri=table.redirect_uri,
        scope=table.scope,
        pkce=table.pkce,
        refresh_lifetime=None if days is None else timedelta(seconds=days),
        **shared._asdict(),
        name=name,
    )


def _static(settings: Settings, name: str, table: StaticCredential, shared: _Shared) -> AuthService:
    secret = _required(settings, name, table, "access_token", "access_token_file")
    return StaticIssuer(secret, table.expires_at, name=name, clock=shared.clock)


def _required(
    settings: Settings, name: str, table: CredentialSettings, key: str, where: str
) -> str:
    secret = settings.secret(f"credentials.{name}", table, key)
    if not secret:
        raise ConfigError(f"missing; give {where}", key=f"credentials.{name}.{key}")
    return secret


_ISSUERS: Mapping[type, Callable[..., AuthService]] = {
    SchwabCredential: _schwab,
    ProjectXCredential: _projectx,
    OAuth2Credential: _oauth2,
    StaticCredential: _static,
}
