"""Keepline keeps trading bots logged in: it owns the broker's tokens, renews them in time and hands them to every bot.

The front door is lazy: a name's module is imported when the name is first used, so a bot that wants one class pays for
that class. Invariant: `import keepline` itself imports nothing beyond the standard library's `importlib`.
"""

from importlib import import_module

TYPE_CHECKING = False  # type checkers take it for true; importing typing for it would cost more than all the rest
if TYPE_CHECKING:
    from keepline.credentials.issuer import (
        AuthService,
        OAuth2Issuer,
        ProjectXIssuer,
        SchwabIssuer,
        StaticIssuer,
    )
    from keepline.credentials.lifecycle import TokenManagerConfig, TokenState
    from keepline.credentials.manager import TokenManager
    from keepline.credentials.schwab_file import SchwabTokenFile
    from keepline.credentials.storage import TokenStorage
    from keepline.credentials.token import Token
    from keepline.errors import (
        APIError,
        CircuitOpen,
        Closed,
        ConfigError,
        CredentialError,
        KeeplineError,
        OutcomeUnknown,
        PermanentError,
        ProtocolError,
        QueueFull,
        RateLimited,
        Refused,
        SignInRequired,
        StorageError,
        TokenRefused,
        TokenUnavailable,
        TransientError,
    )
    from keepline.relay.address import TLSConfig
    from keepline.relay.feed import TokenFeed
    from keepline.relay.receiver import TokenReceiver, TokenReceiverConfig
    from keepline.relay.sender import DeliveryReport, Target, TokenSender

__version__ = "0.1.0"

__all__ = [
    "APIError",
    "AuthService",
    "CircuitOpen",
    "Closed",
    "ConfigError",
    "CredentialError",
    "DeliveryReport",
    "KeeplineError",
    "OAuth2Issuer",
    "OutcomeUnknown",
    "PermanentError",
    "ProjectXIssuer",
    "ProtocolError",
    "QueueFull",
    "RateLimited",
    "Refused",
    "SchwabIssuer",
    "SchwabTokenFile",
    "SignInRequired",
    "StaticIssuer",
    "StorageError",
    "TLSConfig",
    "Target",
    "Token",
    "TokenFeed",
    "TokenManager",
    "TokenManagerConfig",
    "TokenReceiver",
    "TokenReceiverConfig",
    "TokenRefused",
    "TokenSender",
    "TokenState",
    "TokenStorage",
    "TokenUnavailable",
    "TransientError",
    "__version__",
]

_HOME = {
    "keepline.credentials.issuer": (
        "AuthService",
        "OAuth2Issuer",
        "ProjectXIssuer",
        "SchwabIssuer",
        "StaticIssuer",
    ),
    "keepline.credentials.lifecycle": ("TokenManagerConfig", "TokenState"),
    "keepline.credentials.manager": ("TokenManager",),
    "keepline.credentials.schwab_file": ("SchwabTokenFile",),
    "keepline.credentials.storage": ("TokenStorage",),
    "keepline.credentials.token": ("Token",),
    "keepline.errors": (
        "APIError",
        "CircuitOpen",
        "Closed",
        "ConfigError",
        "CredentialError",
        "KeeplineError",
        "OutcomeUnknown",
        "PermanentError",
        "ProtocolError",
        "QueueFull",
        "RateLimited",
        "Refused",
        "SignInRequired",
        "StorageError",
        "TokenRefused",
        "TokenUnavailable",
        "TransientError",
    ),
    "keepline.relay.address": ("TLSConfig",),
    "keepline.relay.feed": ("TokenFeed",),
    "keepline.relay.receiver": ("TokenReceiver", "TokenReceiverConfig"),
    "keepline.relay.sender": ("DeliveryReport", "Target", "TokenSender"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next use finds it without a call
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
