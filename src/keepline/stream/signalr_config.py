"""Where the hubs of a broker are and how they are kept: every setting with its reason.

Invariant: a configuration is checked when it is made, with the key that is wrong.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from keepline.errors import ConfigError
from keepline.stream.health import Ladder
from keepline.stream.settings import StreamSettings

__all__ = ["StreamConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """Where the hubs are and how they are kept.

    Attributes:
        url: the hub, or what the endpoints are appended to.
        endpoints: paths of the hubs below `url` by name, or just the paths; empty when `url` is the hub itself.
        name: how logs, metrics and events call the stream; hubs add theirs behind a slash.
        backoff: seconds before the first, second, … dial; the last repeats.
        jitter: share by which these are spread both ways.
        attempts: dials in a row that may fail before the stream has FAILED; None goes on for ever.
        min_life: seconds that a connection must live, with data, before its failures are forgotten.
        keep_alive: seconds of our own silence after which a protocol ping goes out.
        server_timeout: seconds of the server's silence after which the connection is lost.
        heartbeat: seconds between looks at the health.
        stale_after: seconds of silence after which a topic without a cadence is asked about.
        attempt_timeout: seconds for one attempt to connect.
        request_timeout: seconds for the answer to a subscription or a probe.
        reconcile_timeout: seconds for one try to make right what was missed.
        stop_timeout: seconds for a goodbye and for callbacks that are still running.
        encoding: `json` or `messagepack`.
        transports: which may be used.
        skip_negotiation: go straight to a WebSocket.
        token_in: `header` or `query`.
        stateful: ask for stateful reconnect.
        two_connections: whether the broker allows a second connection while a new token takes over.
        renew_with_token: whether a newer token makes a newer connection.
        probe: method and arguments of a call that does no harm and must be answered; () for none.
        types: by channel, into what its arguments are decoded.
        mailbox: messages that may wait for one callback.
        ladder: what is done about a stale topic, and when.
        options: more of `SignalRConnection`: `headers`, `ssl_context`, `max_message_bytes`, `tap`, ….

    Raises:
        ConfigError: no address, or a number that makes no sense.
    """

    url: str = ""
    endpoints: Mapping[str, str] | Sequence[str] = ()
    name: str = "signalr"
    backoff: tuple[float, ...] = (0.0, 2.0, 10.0, 30.0, 60.0)
    jitter: float = 0.2
    attempts: int | None = None
    min_life: float = 30.0
    keep_alive: float = 15.0
    server_timeout: float = 30.0
    heartbeat: float = 30.0
    stale_after: float = 120.0
    attempt_timeout: float = 15.0
    request_timeout: float = 15.0
    reconcile_timeout: float = 60.0
    stop_timeout: float = 2.0
    encoding: str = "json"
    transports: Sequence[str] = ("websockets", "events", "polling")
    skip_negotiation: bool = False
    token_in: str = "header"  # noqa: S105 - a place, not a token
    stateful: bool = False
    two_connections: bool = True
    renew_with_token: bool = True
    probe: Sequence[Any] = ()
    types: Mapping[str, Sequence[Any]] | None = None
    mailbox: int = 10_000
    ladder: Ladder | None = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.url or not isinstance(self.url, str):
            raise ConfigError(
                'the address of the hub is needed: {"url": "https://…/hubs/market"}', key="url"
            )
        paths = self.endpoints.values() if isinstance(self.endpoints, Mapping) else self.endpoints
        if not _is_list(paths) or not all(isinstance(path, str) for path in paths):
            raise ConfigError("a list of paths, or paths by name, is needed", key="endpoints")
        if len(self.hubs) < len(self.endpoints):
            raise ConfigError("two paths end alike: give paths by name", key="endpoints")
        if not _is_list(self.probe):
            raise ConfigError(
                f'a method and its arguments, ("WhoAmI",), not {self.probe!r}', key="probe"
            )
        for channel, kinds in (self.types or {}).items():
            if not _is_list(kinds):
                raise ConfigError(
                    f"one type for each argument of {channel}, (str, dict), not {kinds!r}",
                    key="types",
                )
        _ = self.settings

    @classmethod
    def of(cls, config: "StreamConfig | Mapping[str, Any] | None") -> "StreamConfig":
        """A configuration from one, or from a mapping.

        Raises:
            ConfigError: a key that is not known, or as above.
        """
        if isinstance(config, StreamConfig):
            return config
        if not isinstance(config, Mapping | None):
            raise ConfigError(f"a StreamConfig or a mapping, not {type(config).__name__}")
        known = {field.name for field in fields(cls)}
        values = {key: _frozen(value) for key, value in (config or {}).items()}
        for key in values:
            if key not in known:
                raise ConfigError(f"not known; there are {', '.join(sorted(known))}", key=str(key))
        return cls(**values)

    @property
    def hubs(self) -> dict[str, str]:
        """The addresses of the hubs by name; "" is the name of a single one without a path."""
        if not self.endpoints:
            return {"": self.url}
        paths = self.endpoints
        if not isinstance(paths, Mapping):
            paths = {path.strip("/").rsplit("/", 1)[-1]: path for path in paths}
        return {name: _joined(self.url, path) for name, path in paths.items()}

    @property
    def settings(self) -> StreamSettings:
        """What the manager of each hub does when."""
        names = {field.name for field in fields(StreamSettings)} - {"ladder", "parallel"}
        values = {name: getattr(self, name) for name in names}
        return StreamSettings(**values, ladder=Ladder() if self.ladder is None else self.ladder)


def _is_list(value: object) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes)


def _joined(url: str, path: str) -> str:
    base, mark, query = url.partition("?")
    return f"{base.rstrip('/')}/{path.lstrip('/')}{mark}{query}"


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
