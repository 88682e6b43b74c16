"""From the configuration's `[hub]` to the settings of its doors."""

from keepline.config import HubIssuerSettings, Settings
from keepline.credentials.keys import configuration_directory
from keepline.hub.access import DEFAULT_RIGHTS
from keepline.hub.opening import GateSettings, IssuerSettings
from keepline.hub.users import UsersFile

__all__ = ["gate_settings", "hub_users", "roles_with_rights"]


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
