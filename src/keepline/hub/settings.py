"""What may be said about a hub: where it listens, what its channels keep, what a client may cost; presets in one table.

Invariants: every number is checked here, before anything starts; a preset is only a set of defaults, what is said
beside it counts.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from keepline.errors import ConfigError
from keepline.hub.access import is_channel_name
from keepline.hub.channels import Policy
from keepline.hub.limits import Limits
from keepline.hub.opening import GateSettings

__all__ = ["CHANNELS", "OWN_CHANNEL", "PRESETS", "ChannelSettings", "HubConfig", "Preset"]

DAY = 86_400.0
OWN_CHANNEL = "keepline-canary"
"""The one that the hub publishes to itself, to prove that it delivers."""


class ChannelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One channel.

    Attributes:
        name: as clients subscribe to it.
        policy: what a slow client loses: older values of a key, the oldest messages, or nothing.
        history_count: messages kept in memory for those who come back.
        history_seconds: for how long, at most.
        snapshot_count: newest messages that a new subscriber gets at once, on a channel that does not conflate.
        retention_count: messages kept on the disk, on a channel that never drops.
        retention_seconds: for how long, at most.
    """

    name: str
    policy: Policy
    history_count: int = 1000
    history_seconds: float = 300.0
    snapshot_count: int = 1
    retention_count: int = 10_000
    retention_seconds: float = 30 * DAY


CHANNELS = (
    ChannelSettings(name="routing-metrics", policy=Policy.DROP_OLDEST, snapshot_count=50),
    ChannelSettings(name="lp-performance", policy=Policy.CONFLATE),
    ChannelSettings(name="exposure-updates", policy=Policy.CONFLATE),
    ChannelSettings(name="alerts", policy=Policy.NEVER, snapshot_count=50),
    ChannelSettings(name="system", policy=Policy.CONFLATE),
)
"""The channels of a desk."""


class Preset(Struct, frozen=True, kw_only=True):
    """Defaults that belong together.

    Attributes:
        max_batch_size: messages in a frame.
        batch_interval: seconds between frames.
        client_buffer: messages that wait for a client.
        max_queued_frames: and how many frames they may fill, None for any number.
    """

    max_batch_size: int = 50
    batch_interval: float = 0.016
    client_buffer: int = 256
    max_queued_frames: int | None = None


PRESETS: Mapping[str, Preset] = {
    "standard": Preset(),
    "high-frequency": Preset(max_batch_size=100, batch_interval=0.008, client_buffer=512),
    "low-latency": Preset(max_batch_size=10, batch_interval=0.005),
    "small-memory": Preset(client_buffer=64, max_queued_frames=5),
}
"""What `preset` may name."""


class HubConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that may be said about a hub.

    Attributes:
        host: the address it listens on.
        port: 0 takes any free one.
        directory: where its files lie that are not named.
        journal_file: messages that are never dropped; `hub-messages.db` in the directory unless given.
        memory_only: keep nothing on the disk: what is never dropped then lasts only as long as the process.
        gate: users, keys and rights; files in the directory unless given.
        channels: all channels there are.
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
        max_connections: of all together; 0 for any number.
        max_connections_per_address: WebSockets of one IP address (of one /64 with IPv6).
        max_connections_per_user: WebSockets of one user.
        handshake_timeout_seconds: from connecting to a whole request, and for each request's body.
        ping_seconds: between pings to a client.
        pong_timeout_seconds: without a sign of life, a client is gone.
        drain_seconds: over which clients are sent away when the hub ends, so that they do not come back at once.
        canary_seconds: between two messages that go through the whole path to prove that it delivers.
        allowed_origins: origins of pages beside the hub's own.
        allowed_hosts: names of the hub beside its address.
        tls_certificate: PEM file with the certificate chain; TLS is on when it is given.
        tls_key: PEM file with its key.
        page: directory with the static page; the one that comes with the hub unless given.
        slice: clients written to before others get the loop.
        workers: processes beside the hub's own that fan out (Linux); 0 for none.
    """

    host: str = "127.0.0.1"
    port: int = 7999
    directory: Path = Path("data")
    journal_file: Path | None = None
    memory_only: bool = False
    gate: GateSettings | None = None
    channels: tuple[ChannelSettings, ...] = CHANNELS
    preset: str = "standard"
    max_batch_size: int | None = None
    batch_interval: float | None = None
    client_buffer: int | None = None
    max_queued_frames: int | None = None
    slow_after_seconds: float = 30.0
    max_channels: int = 64
    inbound_rate: int = 1000
    max_message_bytes: int = 64 * 1024
    max_data_bytes: int = 256 * 1024
    max_publish_bytes: int = 4 << 20
    max_connections: int = 0
    max_connections_per_address: int = 2500
    max_connections_per_user: int = 2500
    handshake_timeout_seconds: float = 10.0
    ping_seconds: float = 25.0
    pong_timeout_seconds: float = 60.0
    drain_seconds: float = 2.0
    canary_seconds: float = 5.0
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    page: Path | None = None
    slice: int = 100
    workers: int = 0

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"{self.preset!r} is none of {', '.join(PRESETS)}", key="preset")
        names = [channel.name for channel in self.channels]
        for name in names:
            if not is_channel_name(name) or names.count(name) > 1:
                raise ConfigError(
                    f"{name!r}: a channel's name is 1 to 64 of a-z, 0-9 and dashes, and there once",
                    key="channels",
                )
            if name == OWN_CHANNEL:
                raise ConfigError(f"{name!r} is the hub's own: choose another name", key="channels")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("TLS needs both a certificate and its key", key="tls_key")
        if self.workers and self.tls_certificate is not None:
            words = "take connections without TLS: let a proxy in front speak it, or have none"
            raise ConfigError(words, key="workers")
        if self.workers and sys.platform != "linux":
            raise ConfigError("are for Linux alone; have none", key="workers")
        self._check()

    @classmethod
    def of(cls, config: "HubConfig | Mapping[str, Any] | None") -> "HubConfig":
        """The settings that a mapping says, with its mistakes in words.

        Raises:
            ConfigError: an unknown key or a value of the wrong kind.
        """
        if isinstance(config, HubConfig):
            return config
        if config is not None and not isinstance(config, Mapping):
            raise ConfigError(f"a HubConfig or a mapping is needed, not {config!r}", key="hub")
        try:
            return msgspec.convert(dict(config or {}), cls, dec_hook=_path)
        except msgspec.ValidationError as error:
            if isinstance(error.__cause__, ConfigError):
                raise error.__cause__ from None
            raise ConfigError(f"the hub's settings: {error}") from error

    def limits(self) -> Limits:
        """What one client may cost."""
        preset = PRESETS[self.preset]
        batch = _or(self.max_batch_size, preset.max_batch_size)
        buffer = _or(self.client_buffer, preset.client_buffer)
        frames = _or(self.max_queued_frames, preset.max_queued_frames)
        return Limits(
            max_batch=batch,
            interval=_or(self.batch_interval, preset.batch_interval),
            client_buffer=buffer if frames is None else min(buffer, frames * batch),
            slow_after=self.slow_after_seconds,
            max_channels=self.max_channels,
            inbound_rate=self.inbound_rate,
            inbound_burst=self.inbound_rate,
            max_message=self.max_message_bytes,
            max_data=self.max_data_bytes,
        )

    def _check(self) -> None:
        limits = self.limits()
        if not 0.001 <= limits.interval <= 1:
            raise ConfigError("is in seconds: 0.001 to 1", key="batch_interval")
        for name, value, least, most in (
            ("port", self.port, 0, 65_535),
            ("max_batch_size", limits.max_batch, 1, 10_000),
            ("client_buffer", limits.client_buffer, 1, 1_000_000),
            ("max_channels", self.max_channels, 1, 10_000),
            ("inbound_rate", self.inbound_rate, 1, 1_000_000),
            ("max_message_bytes", self.max_message_bytes, 256, 16 << 20),
            ("max_data_bytes", self.max_data_bytes, 256, 16 << 20),
            ("max_publish_bytes", self.max_publish_bytes, 1024, 256 << 20),
            ("max_connections", self.max_connections, 0, 10_000_000),
            ("max_connections_per_address", self.max_connections_per_address, 1, 10_000_000),
            ("max_connections_per_user", self.max_connections_per_user, 1, 10_000_000),
            ("slow_after_seconds", self.slow_after_seconds, 0.1, 3600),
            ("handshake_timeout_seconds", self.handshake_timeout_seconds, 0.1, 300),
            ("ping_seconds", self.ping_seconds, 0.1, 3600),
            ("pong_timeout_seconds", self.pong_timeout_seconds, self.ping_seconds, 7200),
            ("drain_seconds", self.drain_seconds, 0, 600),
            ("canary_seconds", self.canary_seconds, 0.1, 3600),
            ("slice", self.slice, 1, 100_000),
            ("workers", self.workers, 0, 64),
        ):
            _within(name, value, least, most)
        for each in self.channels:
            place = f"channels.{each.name}"
            _within(f"{place}.history_count", each.history_count, 0, 1_000_000)
            _within(f"{place}.history_seconds", each.history_seconds, 0, 366 * DAY)
            _within(f"{place}.snapshot_count", each.snapshot_count, 0, 10_000)
            _within(f"{place}.retention_count", each.retention_count, 1, 100_000_000)
            _within(f"{place}.retention_seconds", each.retention_seconds, 1, 36_600 * DAY)


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{least:g} to {most:g} makes sense, not {value!r}", key=name)


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _path(kind: type, value: object) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise NotImplementedError(f"{kind} is not read")
