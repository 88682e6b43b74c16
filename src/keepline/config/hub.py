"""`[hub]`: where it listens, what a client may cost, who may sign in, which tokens count, who may do what."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from keepline.config.section import Count, Delay, Number, Port, Seconds, Secret, Section, Text

__all__ = ["HubChannelSettings", "HubIssuerSettings", "HubSettings"]

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


class HubChannelSettings(Section, frozen=True, kw_only=True):
    """`[[hub.channels]]`: a channel of your own, or one of the desk's with other numbers.

    Attributes:
        name: as clients subscribe to it.
        policy: what a slow client loses: older values of a key, the oldest messages, or nothing.
        history_count: messages kept in memory for those who come back.
        history_seconds: for how long, at most.
        snapshot_count: newest messages that a new subscriber gets at once, unless the channel conflates.
        retention_count: messages kept on the disk when the policy is `never`.
        retention_seconds: for how long, at most.
    """

    name: Text
    policy: Literal["conflate", "drop-oldest", "never"]
    history_count: Count = 1000
    history_seconds: Seconds = 300.0
    snapshot_count: Count = 1
    retention_count: Count = 10_000
    retention_seconds: Seconds = 2_592_000.0


class HubSettings(Section, frozen=True, kw_only=True):
    """`[hub]`: the fan-out server.

    Attributes:
        enabled: whether `keepline run` runs it.
        workers: processes beside the hub's own that fan out (Linux, without TLS); 0 for none.
        host: the address it listens on.
        port: 0 takes any free one.
        tls_certificate: PEM file with the certificate chain; TLS is on when it is given.
        tls_key: PEM file with its key.
        preset: `standard`, `high-frequency`, `low-latency` or `small-memory`.
        max_batch_size: messages in a frame, the preset's unless given.
        batch_interval: seconds between frames, the preset's unless given.
        client_buffer: messages that wait for a client before its oldest go, the preset's unless given.
        max_queued_frames: how many frames these may fill, the preset's unless given.
        slow_after_seconds: how long a client may take nothing before it is sent away with "come back".
        max_channels: subscriptions of one connection.
        inbound_rate: messages per second that a client may send.
        max_message_bytes: of one of those.
        max_data_bytes: of one published message's data.
        max_publish_bytes: of one request to `/api/publish`.
        max_connections: WebSockets of all together; 0 for any number.
        max_connections_per_address: of one IP address.
        max_connections_per_user: of one user.
        handshake_timeout_seconds: from connecting to a whole request, and for its body.
        ping_seconds: between pings to a client.
        pong_timeout_seconds: without a sign of life a client is gone.
        drain_seconds: over which clients are sent away when the hub ends.
        canary_seconds: between two messages that prove that the hub delivers.
        journal_file: messages that are never dropped; `hub-messages.db` in the data directory unless given.
        channels: beside the desk's, or instead of those of the same name.
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

    enabled: bool = False
    workers: Number = 0
    host: Text = "127.0.0.1"
    port: Port = 7999
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    preset: Literal["standard", "high-frequency", "low-latency", "small-memory"] = "standard"
    max_batch_size: Count | None = None
    batch_interval: Seconds | None = None
    client_buffer: Count | None = None
    max_queued_frames: Count | None = None
    slow_after_seconds: Seconds = 30.0
    max_channels: Count = 64
    inbound_rate: Count = 1000
    max_message_bytes: Count = 65_536
    max_data_bytes: Count = 262_144
    max_publish_bytes: Count = 4_194_304
    max_connections: Number = 0
    max_connections_per_address: Count = 2500
    max_connections_per_user: Count = 2500
    handshake_timeout_seconds: Seconds = 10.0
    ping_seconds: Seconds = 25.0
    pong_timeout_seconds: Seconds = 60.0
    drain_seconds: Delay = 2.0
    canary_seconds: Seconds = 5.0
    journal_file: Path | None = None
    channels: tuple[HubChannelSettings, ...] = ()
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
