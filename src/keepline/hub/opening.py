"""From settings to a gate: what an operator may say about users, tokens and rights, checked before anything starts."""

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import ConfigError
from keepline.http import HttpSession
from keepline.hub.access import DEFAULT_RIGHTS, AccessRules
from keepline.hub.gate import Gate
from keepline.hub.jwks import JwksFile, JwksUrl, KeySet
from keepline.hub.passwords import ARGON2ID, Argon2id
from keepline.hub.signing import KEYS_FILE_NAME, SigningKeys
from keepline.hub.tenure import NOTICE_SECONDS
from keepline.hub.tokens import LEEWAY_SECONDS
from keepline.hub.trust import FixedKeys, KeyRing, KeySource, TrustedIssuer, TrustedKey
from keepline.hub.users import UsersFile

__all__ = ["USERS_FILE_NAME", "GateSettings", "IssuerSettings", "make_gate"]

USERS_FILE_NAME = "hub-users.jsonl"
"""The users' file in the configuration directory."""

_LARGEST_KEY = 64 * 1024


class IssuerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another issuer whose tokens count; exactly one of `jwks_url`, `jwks_file`, `key_file` and `secret` says its keys.

    Attributes:
        issuer: the exact `iss`.
        audiences: one of them must be in `aud`.
        algorithms: those that are accepted.
        jwks_url: its key set.
        jwks_file: its key set in a file.
        key_file: its one public key or certificate (PEM).
        secret: the shared HS256 secret, 32 bytes or more.
        roles: the only roles that it may give; any when empty.
    """

    issuer: str
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...]
    jwks_url: str = ""
    jwks_file: Path | None = None
    key_file: Path | None = None
    secret: str = ""
    roles: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<IssuerSettings {self.issuer}>"


class GateSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be said about the hub's doors.

    Attributes:
        directory: where files lie that are not named: the configuration directory.
        users_file: the users; `hub-users.jsonl` there unless given.
        keys_file: our signing keys; `hub-signing.keys` there unless given.
        secret: signs our tokens instead of the generated keys, 32 bytes or more.
        issuer: the `iss` of our tokens.
        audience: their `aud`.
        token_lifetime_seconds: how long they live.
        leeway_seconds: how far clocks may differ.
        notice_seconds: how long before its token's end a connection is told.
        rights: role → action → channels; a role that is named here loses its defaults, others keep them.
        overseers: roles that may see who is connected.
        issuers: whom else to believe.
        argon2id: memory in KiB, passes, lanes of new password hashes.
    """

    directory: Path
    users_file: Path | None = None
    keys_file: Path | None = None
    secret: str = ""
    issuer: str = "keepline"
    audience: str = "keepline-hub"
    token_lifetime_seconds: float = 43_200.0
    leeway_seconds: float = LEEWAY_SECONDS
    notice_seconds: float = NOTICE_SECONDS
    rights: Mapping[str, Mapping[str, tuple[str, ...]]] = {}
    overseers: tuple[str, ...] = ("admin",)
    issuers: tuple[IssuerSettings, ...] = ()
    argon2id: tuple[int, int, int] = ARGON2ID

    def users(self) -> UsersFile:
        """The users' file, not read yet."""
        path = self.users_file or self.directory / USERS_FILE_NAME
        return UsersFile(path, parameters=Argon2id(*self.argon2id))

    def __repr__(self) -> str:
        return f"<GateSettings in {self.directory}>"


def make_gate(
    settings: GateSettings,
    http: HttpSession,
    *,
    follows: bool = False,
    clock: Clock = SYSTEM_CLOCK,
) -> Gate:
    """The gate of a hub, not started; reads the keys, so it may block.

    Args:
        settings: what was configured.
        http: fetches key sets; closed by its owner after the gate.
        follows: another process has the same settings, and makes and rotates our signing keys.
        clock: time.

    Raises:
        ConfigError: says which setting and why.
        StorageError: a key file is not private, damaged, or cannot be made.
    """
    lifetime = settings.token_lifetime_seconds
    if settings.secret:
        keys = SigningKeys.fixed(settings.secret.encode())
    else:
        path = settings.keys_file or settings.directory / KEYS_FILE_NAME
        keep = lifetime + settings.leeway_seconds
        keys = SigningKeys(path, keep_seconds=keep, follows=follows)
        keys.load(now=clock.wall().timestamp())
    return Gate(
        settings.users(),
        keys,
        rules=AccessRules({**DEFAULT_RIGHTS, **settings.rights}, overseers=settings.overseers),
        issuer=settings.issuer,
        audience=settings.audience,
        token_lifetime_seconds=lifetime,
        trusted=[_trusted(each, http, clock) for each in settings.issuers],
        leeway_seconds=settings.leeway_seconds,
        notice_seconds=settings.notice_seconds,
        clock=clock,
    )


def _trusted(settings: IssuerSettings, http: HttpSession, clock: Clock) -> TrustedIssuer:
    try:
        keys = _keys(settings, http, clock)
    except ConfigError as error:
        key = f"hub.issuers {settings.issuer}: {error.key}"
        raise ConfigError(str(error.args[0]), key=key) from None
    return TrustedIssuer(
        settings.issuer,
        frozenset(settings.audiences),
        frozenset(settings.algorithms),
        keys,
        frozenset(settings.roles) or None,
    )


def _keys(settings: IssuerSettings, http: HttpSession, clock: Clock) -> KeySource:
    given = [key for key in _SOURCES if getattr(settings, key)]
    if len(given) != 1:
        raise ConfigError(f"give exactly one of {', '.join(_SOURCES)}", key="keys")
    secret_alone = settings.algorithms == ("HS256",)
    if bool(settings.secret) != ("HS256" in settings.algorithms) or (
        settings.secret and not secret_alone
    ):
        raise ConfigError(
            "HS256 takes a secret and nothing else does: name the algorithms that fit the keys",
            key="algorithms",
        )
    if settings.secret:
        return FixedKeys(KeyRing([TrustedKey.secret(settings.secret.encode())]))
    if settings.key_file is not None:
        return FixedKeys(KeyRing([_pem(settings.key_file, settings.algorithms)]))
    reader = (
        JwksFile(settings.jwks_file)
        if settings.jwks_file is not None
        else JwksUrl(settings.jwks_url, http)
    )
    return KeySet(reader, settings.algorithms, clock=clock)


_SOURCES = ("jwks_url", "jwks_file", "key_file", "secret")


def _pem(path: Path, algorithms: tuple[str, ...]) -> TrustedKey:
    if len(algorithms) != 1:
        raise ConfigError("a key has one algorithm: name that one", key="algorithms")
    try:
        with path.open("rb") as stream:
            text = stream.read(_LARGEST_KEY)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", key="key_file") from None
    try:
        return TrustedKey.pem(text, algorithms[0])
    except ConfigError as error:
        raise ConfigError(f"{path} {error.args[0]}", key="key_file") from None
