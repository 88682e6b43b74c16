"""`[hub]`: who may sign in, which tokens count, who may do what."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from keepline.config.section import Delay, Seconds, Secret, Section, Text

__all__ = ["HubIssuerSettings", "HubSettings"]

Rights = Annotated[
    Mapping[str, Mapping[str, tuple[str, ...]]],
    Meta(description="a table of roles, each with its actions and their lists of channels"),
]


class HubIssuerSettings(Section, frozen=True, kw_only=True):
    """`[[hub.issuers]]`: somebody else whose tokens count.

    Attributes:
        issuer: the exact `iss`.
        audiences: one of them must be in `aud`.
        algorithms: those that are accepted: RS256, ES256, EdDSA; HS256 with a secret.
        jwks_url: the address of its key set, https.
        jwks_file: its key set in a file.
        key_file: its one public key or certificate (PEM).
        secret: the shared HS256 secret, by environment only.
        secret_file: a 0600 file that holds it.
        roles: the only roles that it may give; any unless given.
    """

    issuer: Text
    audiences: Annotated[tuple[Text, ...], Meta(min_length=1)]
    algorithms: Annotated[tuple[Text, ...], Meta(min_length=1)]
    jwks_url: str = ""
    jwks_file: Path | None = None
    key_file: Path | None = None
    secret: Secret | None = None
    secret_file: Path | None = None
    roles: tuple[Text, ...] = ()


class HubSettings(Section, frozen=True, kw_only=True):
    """`[hub]`: the fan-out server.

    Attributes:
        users_file: the users; `hub-users.jsonl` in the configuration directory unless given.
        keys_file: the generated signing keys; `hub-signing.keys` in the configuration directory unless given.
        token_secret: signs our tokens instead of generated keys, by environment only; 32 bytes or more.
        token_secret_file: a 0600 file that holds it.
        token_issuer: the `iss` of our tokens.
        token_audience: their `aud`.
        token_lifetime_seconds: how long they live.
        leeway_seconds: how far the clocks of issuer and hub may differ.
        notice_seconds: how long before its token's end a connection is told.
        rights: role → action → channels; a role that is named here loses its defaults, the others keep them.
        overseers: roles that may see who is connected.
        issuers: whom else to believe.
        allowed_origins: origins of pages beside the hub's own, such as `https://desk.example`.
        allowed_hosts: names of the hub beside its address, such as `hub.example`.
    """

    users_file: Path | None = None
    keys_file: Path | None = None
    token_secret: Secret | None = None
    token_secret_file: Path | None = None
    token_issuer: Text = "keepline"  # noqa: S105
    token_audience: Text = "keepline-hub"  # noqa: S105
    token_lifetime_seconds: Seconds = 43_200.0
    leeway_seconds: Delay = 30.0
    notice_seconds: Delay = 60.0
    rights: Rights | None = None
    overseers: tuple[Text, ...] = ("admin",)
    issuers: tuple[HubIssuerSettings, ...] = ()
    allowed_origins: tuple[Text, ...] = ()
    allowed_hosts: tuple[Text, ...] = ()
