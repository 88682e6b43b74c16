"""From the configuration's `[hub]` to the settings of the hub and of its doors."""

from pathlib import Path

from keepline.config import HubChannelSettings, HubIssuerSettings, Settings
from keepline.credentials.keys import configuration_directory
from keepline.hub.access import DEFAULT_RIGHTS
from keepline.hub.channels import Policy
from keepline.hub.opening import GateSettings, IssuerSettings
from keepline.hub.settings import CHANNELS, ChannelSettings, HubConfig
from keepline.hub.users import UsersFile

__all__ = ["gate_settings", "hub_config", "hub_users", "roles_with_rights"]


def hub_users(settings: Settings) -> UsersFile:
    """The users' file of the configuration, not read yet; needs none of its secrets.

    Raises:
        ConfigError: there is no home directory.
    """
    return GateSettings(
        directory=configuration_directory(), users_file=settings.hub.users_file
    ).users()


def roles_with_rights(settings: Settings) -> list[str]:
    """The roles that may do something."""
    return sorted({*DEFAULT_RIGHTS, *(settings.hub.rights or {})})


def gate_settings(settings: Settings) -> GateSettings:
    """What `keepline.hub.opening.make_gate` takes.

    Raises:
        ConfigError: a secret's file is missing or empty, or there is no home directory.
        StorageError: a secret's file is not private.
    """
    hub = settings.hub
    return GateSettings(
        directory=configuration_directory(),
        users_file=hub.users_file,
        keys_file=hub.keys_file,
        secret=settings.secret("hub", hub, "token_secret"),
        issuer=hub.token_issuer,
        audience=hub.token_audience,
        token_lifetime_seconds=hub.token_lifetime_seconds,
        leeway_seconds=hub.leeway_seconds,
        notice_seconds=hub.notice_seconds,
        rights=hub.rights or {},
        overseers=hub.overseers,
        issuers=tuple(_issuer(settings, i, each) for i, each in enumerate(hub.issuers)),
    )


def hub_config(settings: Settings, *, data: Path = Path("data")) -> HubConfig:
    """What `AnalyticsHub` takes.

    Args:
        settings: the configuration.
        data: where the journal lies unless `journal_file` says.

    Raises:
        ConfigError: as `gate_settings`, or a number that makes no sense.
        StorageError: as `gate_settings`.
    """
    hub = settings.hub
    same = {name: getattr(hub, name) for name in _SAME}
    own = {each.name: _channel(each) for each in hub.channels}
    desk = {each.name: each for each in CHANNELS}
    return HubConfig(
        **same,
        directory=data,
        channels=tuple((desk | own).values()),
        gate=gate_settings(settings),
    )


_SAME = (
    "workers",
    "host", "port", "tls_certificate", "tls_key", "preset", "max_batch_size", "batch_interval", "client_buffer",
    "max_queued_frames", "slow_after_seconds", "max_channels", "inbound_rate", "max_message_bytes", "max_data_bytes",
    "max_publish_bytes", "max_connections", "max_connections_per_address", "max_connections_per_user",
    "handshake_timeout_seconds", "ping_seconds", "pong_timeout_seconds", "drain_seconds", "canary_seconds",
    "journal_file", "allowed_origins", "allowed_hosts",
)  # fmt: skip
"""Keys that mean the same in both."""


def _channel(channel: HubChannelSettings) -> ChannelSettings:
    return ChannelSettings(
        name=channel.name,
        policy=Policy(channel.policy),
        history_count=channel.history_count,
        history_seconds=channel.history_seconds,
        snapshot_count=channel.snapshot_count,
        retention_count=channel.retention_count,
        retention_seconds=channel.retention_seconds,
    )


def _issuer(settings: Settings, index: int, issuer: HubIssuerSettings) -> IssuerSettings:
    return IssuerSettings(
        issuer=issuer.issuer,
        audiences=issuer.audiences,
        algorithms=issuer.algorithms,
        jwks_url=issuer.jwks_url,
        jwks_file=issuer.jwks_file,
        key_file=issuer.key_file,
        secret=settings.secret(f"hub.issuers[{index}]", issuer, "secret"),
        roles=issuer.roles,
    )
