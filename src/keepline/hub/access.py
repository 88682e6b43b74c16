"""Who may do what on which channel: roles × actions × channels, everything else denied.

Invariants: a right names channels letter by letter, or all of them with a lone `*`; there are no patterns that a clever
name could fit. A name that is not a plain channel name has no rights at all, whoever asks, so no spelling (case,
Unicode, dots, globs) widens one.
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

from msgspec import Struct

from keepline.errors import ConfigError
from keepline.hub.refusals import Refusal, RefusalCode, refuse

__all__ = [
    "ALL_CHANNELS",
    "DEFAULT_RIGHTS",
    "AccessRules",
    "Action",
    "Directory",
    "Identity",
    "Standing",
    "is_channel_name",
    "standing_refusal",
]

ALL_CHANNELS = "*"
"""Stands for every channel; only alone, never as a part of a name."""

_CHANNEL = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Action(StrEnum):
    """What one may do with a channel."""

    SUBSCRIBE = "subscribe"
    PUBLISH = "publish"
    ACKNOWLEDGE = "acknowledge"


DEFAULT_RIGHTS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "admin": {"subscribe": ("*",), "publish": ("*",), "acknowledge": ("*",)},
        "trader": {"subscribe": ("exposure-updates", "alerts"), "acknowledge": ("alerts",)},
        "viewer": {"subscribe": ("alerts", "lp-performance")},
        "service": {"publish": ("*",)},
    }
)
"""Role → action → channels, unless the configuration says otherwise."""

DEFAULT_OVERSEERS = frozenset({"admin"})


class Identity(Struct, frozen=True):
    """Who a verified token speaks for.

    Attributes:
        user: the `sub`, NFC-normalised.
        role: the `role` claim.
        account: the `account` claim, "" without one.
        issuer: the `iss`; the same name of two issuers is two users.
        issued_at: epoch seconds.
        expires_at: epoch seconds, without any leeway.
    """

    user: str
    role: str
    account: str
    issuer: str
    issued_at: float
    expires_at: float

    def same_user(self, other: "Identity") -> bool:
        """Whether both speak for one user of one issuer."""
        return (self.user, self.issuer) == (other.user, other.issuer)


class Standing(Struct, frozen=True):
    """What a users file says about a user now.

    Attributes:
        role: their role.
        account: their account.
        disabled: whether they are locked out.
    """

    role: str
    account: str = ""
    disabled: bool = False


class Directory(Protocol):
    """Where users and revocations are looked up; answers from memory."""

    def standing(self, user: str) -> Standing | None:
        """The user as they are now, None when there is no such user."""
        ...

    def revoked_before(self, user: str) -> float | None:
        """The instant (epoch seconds) up to which this user's tokens are void, None when nothing was revoked."""
        ...


class AccessRules:
    """The rights in force.

    Args:
        rights: role → action → channels, instead of `DEFAULT_RIGHTS`; a role that is not in it may nothing.
        overseers: roles that may look at the clients.

    Raises:
        ConfigError: an action that does not exist, a channel or role that cannot be a name.
    """

    def __init__(
        self,
        rights: Mapping[str, Mapping[str, Iterable[str]]] | None = None,
        *,
        overseers: Iterable[str] = DEFAULT_OVERSEERS,
    ) -> None:
        self._rights: dict[tuple[str, Action], frozenset[str]] = {}
        for role, actions in (DEFAULT_RIGHTS if rights is None else rights).items():
            for action, channels in actions.items():
                key = f"rights.{role}.{action}"
                self._rights[_role(role), _action(action, key)] = _channels(channels, key)
        self._overseers = frozenset(map(_role, overseers))

    def refusal(self, identity: Identity, action: Action, channel: object) -> Refusal | None:
        """None when this is allowed.

        Args:
            identity: who asks.
            action: for what.
            channel: as the peer sent it, of any type.
        """
        if not is_channel_name(channel):
            return refuse(RefusalCode.BAD_CHANNEL)
        granted = self._rights.get((identity.role, action), frozenset())
        if ALL_CHANNELS in granted or channel in granted:
            return None
        return refuse(RefusalCode.FORBIDDEN)

    def oversight_refusal(self, identity: Identity) -> Refusal | None:
        """None when this user may see who is connected."""
        return None if identity.role in self._overseers else refuse(RefusalCode.FORBIDDEN)

    def allowed(self, identity: Identity, action: Action, channels: Iterable[str]) -> list[str]:
        """Those of the channels for which the action is allowed, in their order."""
        return [name for name in channels if self.refusal(identity, action, name) is None]

    def __repr__(self) -> str:
        roles = sorted({role for role, _ in self._rights})
        return f"<AccessRules for {', '.join(roles) or 'nobody'}>"


def is_channel_name(name: object) -> bool:
    """Whether this is a text that can name a channel: 1 to 64 of a-z, 0-9 and dashes, no dash first."""
    return isinstance(name, str) and _CHANNEL.fullmatch(name) is not None


def standing_refusal(
    identity: Identity, directory: Directory, *, own_issuer: str
) -> Refusal | None:
    """None when the token still stands: not revoked, and of our own users as they are now.

    A token of ours speaks for a user of the users file: one who is gone or disabled, or whose role or account changed,
    must sign in again. A token of another issuer is void only when its user was revoked.

    Args:
        identity: of a token whose signature and times hold.
        directory: the users.
        own_issuer: the `iss` of tokens that this hub issues.
    """
    revoked = directory.revoked_before(identity.user)
    if revoked is not None and identity.issued_at <= revoked:
        return refuse(RefusalCode.REVOKED)
    if identity.issuer != own_issuer:
        return None
    standing = directory.standing(identity.user)
    if standing is None or standing.disabled:
        return refuse(RefusalCode.REVOKED)
    if (standing.role, standing.account) != (identity.role, identity.account):
        return refuse(RefusalCode.REVOKED, "role or account changed: sign in again")
    return None


def _role(role: str) -> str:
    if not _ROLE.fullmatch(role):
        raise ConfigError(
            "a role is 1 to 64 letters, digits, dashes and underscores", key=f"rights.{role}"
        )
    return role


def _action(action: str, key: str) -> Action:
    try:
        return Action(action)
    except ValueError:
        raise ConfigError(
            f"no such action; there is {', '.join(Action)}",
            key=key,
        ) from None


def _channels(channels: Iterable[str], key: str) -> frozenset[str]:
    if isinstance(channels, str):
        raise ConfigError('expected a list of channels, for example ["alerts"]', key=key)
    names = frozenset(channels)
    for name in names:
        if name != ALL_CHANNELS and not is_channel_name(name):
            raise ConfigError(
                f"{name!r} is not a channel's name (a-z, 0-9 and dashes) and not a lone '*'; there are no patterns",
                key=key,
            )
    return names
