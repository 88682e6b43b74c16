"""The tables of the configuration: each key with its type, its default and one sentence.

Invariants: every table is frozen and refuses what it does not know; a secret is a `Secret`, never a text.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from keepline.config.hub import HubSettings
from keepline.config.section import (
    Count,
    Delay,
    Moment,
    Number,
    Port,
    Seconds,
    Secret,
    Section,
    Share,
    Text,
)
from keepline.errors import ConfigError
from keepline.files import read_private

__all__ = [
    "BROKERS",
    "ISSUERS",
    "OWN_LIMITS",
    "BrokerSettings",
    "CredentialSettings",
    "LimitSettings",
    "OAuth2Credential",
    "ProjectXCredential",
    "RelaySettings",
    "SandboxSettings",
    "SchwabCredential",
    "Secret",
    "Section",
    "Settings",
    "StaticCredential",
    "StreamTable",
    "TargetSettings",
    "TelemetrySettings",
    "Text",
    "read_secret_file",
]

StreamEvents = Literal["quotes", "trades", "depth"]


class CredentialSettings(Section, frozen=True, kw_only=True):
    """What every `[credentials.NAME]` may say, whoever issues the token.

    Attributes:
        issuer: who issues it; the section's own name counts when that is an issuer.
        storage: where the token is kept.
        storage_path: the encrypted file; `data/NAME.enc` unless given.
        storage_key: key or passphrase of the encrypted file, by environment only.
        storage_key_file: a 0600 file that holds it; else the sources that all credentials share.
        kdf: how a passphrase becomes a key.
        refresh_buffer_seconds: renew this long before expiry, or earlier as `refresh_at_fraction` says.
        refresh_at_fraction: renew after this share of the lifetime; the smaller buffer wins.
        max_retries: attempts in a row before the steady pace of the last delay.
        retry_delays: seconds before the first, second, … repeat of a failed refresh.
        max_queue_depth: callers that may wait for a refresh at once.
        queue_timeout_seconds: how long such a caller waits.
        refresh_timeout_seconds: how long an answer of the issuer is waited for.
    """

    issuer: str
    storage: Literal["encrypted", "memory", "schwab-file"] = "encrypted"
    storage_path: Path
    storage_key: Secret | None = None
    storage_key_file: Path | None = None
    kdf: Literal["pbkdf2", "argon2id"] = "pbkdf2"
    refresh_buffer_seconds: Delay = 7200.0
    refresh_at_fraction: Share = 5 / 6
    max_retries: Number = 4
    retry_delays: Annotated[tuple[Seconds, ...], Meta(min_length=1)] = (30.0, 60.0, 120.0, 300.0)
    max_queue_depth: Count = 100
    queue_timeout_seconds: Seconds = 10.0
    refresh_timeout_seconds: Seconds = 30.0


class SchwabCredential(CredentialSettings, frozen=True, kw_only=True):
    """Schwab's Trader API: 30 minute tokens, a person every seven days.

    Attributes:
        token_file: the JSON file that schwab-py reads and writes, used with `storage = "schwab-file"`.
        app_config: the YAML file with `app_key` and `app_secret`.
        base_url: where the API lives.
        redirect_uri: the callback registered with the app.
    """

    storage: Literal["schwab-file", "encrypted", "memory"] = "schwab-file"
    token_file: Path = Path("configs/schwab_tokens.json")
    app_config: Path = Path("configs/schwab_app_config.yaml")
    base_url: Text = "https://api.schwabapi.com"
    redirect_uri: Text = "https://127.0.0.1:8182"


class ProjectXCredential(CredentialSettings, frozen=True, kw_only=True):
    """ProjectX (TopstepX and others): a login key buys a 24 hour token, no person needed.

    Attributes:
        username: the account's user name; PROJECT_X_USERNAME unless given.
        api_key: the login key, by environment only; PROJECT_X_API_KEY unless given.
        api_key_file: a 0600 file that holds the login key.
        base_url: where the gateway lives.
    """

    username: Text
    api_key: Secret | None = None
    api_key_file: Path | None = None
    base_url: Text = "https://api.topstepx.com"


class OAuth2Credential(CredentialSettings, frozen=True, kw_only=True):
    """Any OAuth 2 server.

    Attributes:
        token_url: the token endpoint.
        client_id: the client's name there.
        client_secret: the client's secret, by environment only.
        client_secret_file: a 0600 file that holds it.
        grant: how the first token is bought.
        client_auth: how the client proves itself.
        authorize_url: where a person signs in; needed for `authorization_code`.
        redirect_uri: where the server sends the person back to.
        scope: what to ask for.
        pkce: prove the sign-in with a code verifier.
        refresh_lifetime_seconds: how long after a sign-in a person must act again; none unless given.
    """

    token_url: Text
    client_id: Text
    client_secret: Secret | None = None
    client_secret_file: Path | None = None
    grant: Literal["refresh_token", "client_credentials", "authorization_code"] = "refresh_token"
    client_auth: Literal["basic", "post", "none"] = "basic"
    authorize_url: str = ""
    redirect_uri: str = ""
    scope: str = ""
    pkce: bool = True
    refresh_lifetime_seconds: Seconds | None = None


class StaticCredential(CredentialSettings, frozen=True, kw_only=True):
    """A token that somebody else made and nobody renews.

    Attributes:
        access_token: the token, by environment only.
        access_token_file: a 0600 file that holds it.
        expires_at: when it dies; never unless given.
    """

    storage: Literal["memory", "encrypted"] = "memory"
    access_token: Secret | None = None
    access_token_file: Path | None = None
    expires_at: Moment | None = None


ISSUERS: Mapping[str, type[CredentialSettings]] = MappingProxyType(
    {
        "schwab": SchwabCredential,
        "projectx": ProjectXCredential,
        "oauth2": OAuth2Credential,
        "static": StaticCredential,
    }
)
"""The issuers that a `[credentials.NAME]` may name, each with its table."""


class TargetSettings(Section, frozen=True, kw_only=True):
    """One bot that a relay delivers to; a bare string is its address.

    Attributes:
        address: `bot:NAME` (that bot's own socket), `unix:/path`, a path, `tcp://host:port` or `tls://host:port`.
        name: how logs and metrics call it; the address unless given.
        send_refresh_token: hand over the refresh token as well.
        shared_secret: proves the daemon to the bot, by environment only.
        shared_secret_file: a 0600 file that holds it.
        tls_certificate: our client certificate (PEM).
        tls_key: its private key (PEM, 0600).
        tls_ca: the authority that signed the bot's certificate (PEM).
        tls_server_name: the name that the bot's certificate must carry; the address's host unless given.
        allowed_uids: users beside us and root who may own the bot's socket.
        allow_plain_tcp_beyond_loopback: send over unencrypted TCP to another machine: tokens can be read on the way.
    """

    short: ClassVar[str] = "address"

    address: Text
    name: str = ""
    send_refresh_token: bool = False
    shared_secret: Secret | None = None
    shared_secret_file: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    tls_server_name: str = ""
    allowed_uids: tuple[Number, ...] = ()
    allow_plain_tcp_beyond_loopback: bool = False


class RelaySettings(Section, frozen=True, kw_only=True):
    """`[relay.NAME]`: which credential's tokens go to which bots.

    Attributes:
        credential: the name of a `[credentials.NAME]`.
        targets: the bots.
        attempts: how often one delivery is tried before the next token.
        retry_delay: seconds before the second try; doubles each time.
        timeout: seconds for one try.
    """

    credential: Text
    targets: Annotated[tuple[TargetSettings, ...], Meta(min_length=1)]
    attempts: Count = 3
    retry_delay: Delay = 5.0
    timeout: Seconds = 5.0


BROKERS = ("projectx", "schwab")
"""The brokers that a `[brokers.NAME]` may name."""


class BrokerSettings(Section, frozen=True, kw_only=True):
    """`[brokers.NAME]`: an account at a broker, reached with the tokens of a credential.

    Attributes:
        broker: whose API it is; the section's own name counts when that is a broker, else the credential's issuer.
        credential: the name of a `[credentials.NAME]`; the section's own name unless given.
        account: the account's name or number; PROJECT_X_ACCOUNT_NAME unless given. None: the only one that can trade.
        base_url: where the API lives; the credential's address unless given.
        journal: the file of order intents, one owner at a time; `data/NAME.orders` unless given.
    """

    broker: Literal["projectx", "schwab"]
    credential: Text
    account: Text | None = None
    base_url: Text
    journal: Path


OWN_LIMITS = ("history", "general", "schwab")
"""Rules that the brokers bring along, with endpoints of their own: ProjectX two, Schwab one."""


class LimitSettings(Section, frozen=True, kw_only=True):
    """`[limits.NAME]`: how fast a broker may be asked; a broker's own rule of that name is replaced.

    Attributes:
        limit: units (calls, mostly) in any window.
        window_seconds: the window's length.
        burst: units that may go at once after quiet; the limit unless given.
        endpoints: patterns of paths such as `*/History/*`; those of the rule that is replaced unless given.
        margin_seconds: how much longer than the window a call is remembered; a hundredth of it unless given.
    """

    limit: Count
    window_seconds: Seconds
    burst: Count | None = None
    endpoints: tuple[Text, ...] = ()
    margin_seconds: Delay | None = None

    def as_rule(self) -> dict[str, Any]:
        """The rule as `RateLimiter` takes it: what was not given is not in it."""
        rule = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in rule.items() if value not in (None, ())}


class StreamTable(Section, frozen=True, kw_only=True):
    """`[stream.NAME]`: what is streamed from a broker, under `keepline run` and by `keepline stream`.

    Attributes:
        broker: the NAME of a `[brokers.NAME]`; the section's own name unless given.
        accounts: names or numbers of the accounts that are followed; none for market data alone.
        symbols: what is watched: a contract id or symbol, a future's root (its active contract), a share.
        events: what is wanted of each symbol.
        record: each start writes a new file; `{time}` in it becomes the moment, `{stream}` the section's name.
        encoding: of a SignalR connection; Schwab has only `json`.
        stale_after: seconds of silence after which something that may be silent is asked about.
        heartbeat: seconds between two looks at the health at most.
        url: ProjectX: the real-time gateway; unless given the broker's `base_url` with `rtc` in the place of `api`.
    """

    broker: Text
    accounts: tuple[Text, ...] = ()
    symbols: tuple[Text, ...] = ()
    events: Annotated[tuple[StreamEvents, ...], Meta(min_length=1)] = ("quotes",)
    record: Path | None = None
    encoding: Literal["json", "messagepack"] = "json"
    stale_after: Seconds = 120.0
    heartbeat: Seconds = 30.0
    url: Text | None = None


class TelemetrySettings(Section, frozen=True, kw_only=True):
    """`[telemetry]`: where log lines and numbers go.

    Attributes:
        log_file: also write the log there; reopened after a rotation.
        log_format: lines for people or JSON objects.
        log_level: the least that is logged.
        metrics: loopback host:port of `/metrics`, `/healthz` and `/readyz`; "" switches them off.
    """

    log_file: Path | None = None
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    metrics: str = "127.0.0.1:9464"


class SandboxSettings(Section, frozen=True, kw_only=True):
    """`[sandbox]`: the venue that `keepline sandbox serve` plays.

    Attributes:
        host: a loopback address.
        port: 0 takes any free one.
        access_lifetime: seconds that an access token lives.
        refresh_lifetime: seconds that a refresh token lives.
        rotate: whether a refresh answers with a new refresh token.
        grace: seconds for which a rotated refresh token still works.
        seed: the same seed gives the same tokens.
    """

    host: Text = "127.0.0.1"
    port: Port = 8787
    access_lifetime: Seconds = 1800.0
    refresh_lifetime: Seconds = 604800.0
    rotate: bool = True
    grace: Delay = 0.0
    seed: int = 1


class Settings(Struct, frozen=True, kw_only=True):
    """Everything that was configured.

    Attributes:
        credentials: by name, in the order of the file.
        relay: by name, in the order of the file.
        brokers: by name, in the order of the file.
        limits: rules by name, in the order of the file.
        stream: by name, in the order of the file.
        telemetry: log and metrics.
        sandbox: the venue for trying out.
        hub: the fan-out server.
        file: the file that was read, None when there was none.
        base: the directory that relative paths start from.
        credentials_directory: where systemd put the service's credentials, None outside of systemd.
    """

    credentials: Mapping[str, CredentialSettings]
    relay: Mapping[str, RelaySettings]
    brokers: Mapping[str, BrokerSettings]
    limits: Mapping[str, LimitSettings]
    stream: Mapping[str, StreamTable]
    telemetry: TelemetrySettings
    sandbox: SandboxSettings
    hub: HubSettings
    file: Path | None
    base: Path
    credentials_directory: Path | None = None

    def secret(self, section: str, table: Struct, key: str) -> str:
        """The secret `key` of a table: from the environment, its `…_file`, or systemd; "" when nobody gave it.

        Args:
            section: the table's path, for example `credentials.topstep`; systemd's credential is `<section>.<key>`.
            table: the table itself.
            key: the secret's name without `_file`.

        Raises:
            ConfigError: the file is named and does not exist, or is empty.
            StorageError: the file is readable by others, not ours, or not a regular file.
        """
        given = getattr(table, key)
        if isinstance(given, Secret):
            return given.reveal()
        path = getattr(table, f"{key}_file")
        if path is not None:
            return read_secret_file(path, key=f"{section}.{key}_file", file=self.file)
        if self.credentials_directory is not None:
            loaded = self.credentials_directory / f"{section}.{key}"
            if (
                loaded.exists()
            ):  # systemd's own checks hold there, and an ACL shows as a group right
                return read_secret_file(loaded, key=f"{section}.{key}", loose="allow")
        return ""

    def show(self) -> dict[str, Any]:
        """The settings in effect as plain values, secrets hidden: what `keepline config show` prints."""
        shown = {
            "credentials": {name: _plain(table) for name, table in self.credentials.items()},
            "relay": {name: _plain(table) for name, table in self.relay.items()},
            "brokers": {name: _plain(table) for name, table in self.brokers.items()},
            "limits": {name: _plain(table) for name, table in self.limits.items()},
            "stream": {name: _plain(table) for name, table in self.stream.items()},
            "telemetry": _plain(self.telemetry),
            "sandbox": _plain(self.sandbox),
            "hub": _plain(self.hub),
        }
        return {"file": None if self.file is None else str(self.file), **shown}


def _plain(table: Struct) -> object:
    return msgspec.to_builtins(table, enc_hook=str)


def read_secret_file(
    path: Path, *, key: str, file: Path | None = None, loose: Literal["refuse", "allow"] = "refuse"
) -> str:
    """The text of a private file that holds one secret.

    Args:
        path: the file.
        key: the setting that names it, for the error.
        file: where that setting stands.
        loose: what to do about rights of others.

    Raises:
        ConfigError: missing, empty or no text.
        StorageError: not private.
    """
    data = read_private(path, on_loose_mode=loose, system=True)
    if data is None:
        message = f"{path} does not exist; write the secret there, mode 600"
        raise ConfigError(message, key=key, file=file)
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", key=key, file=file) from None
    if not text:
        raise ConfigError(f"{path} is empty; write the secret there", key=key, file=file)
    return text
