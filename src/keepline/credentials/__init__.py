"""Credentials: a token's life from sign-in to renewal, kept encrypted, spent once.

The names are imported when they are first used: a bot that wants a `Token` pays neither for HTTP nor for encryption.
"""

from importlib import import_module

TYPE_CHECKING = False  # type checkers take it for true
if TYPE_CHECKING:
    from keepline.credentials.history import RotationHistory
    from keepline.credentials.issuer import (
        AuthService,
        OAuth2Issuer,
        ProjectXIssuer,
        SchwabIssuer,
        StaticIssuer,
    )
    from keepline.credentials.lease import FileLease
    from keepline.credentials.lifecycle import TokenManagerConfig, TokenState
    from keepline.credentials.manager import TokenManager
    from keepline.credentials.schwab_file import SchwabTokenFile
    from keepline.credentials.storage import TokenStorage, TokenStore
    from keepline.credentials.token import Token

__all__ = [
    "AuthService",
    "FileLease",
    "OAuth2Issuer",
    "ProjectXIssuer",
    "RotationHistory",
    "SchwabIssuer",
    "SchwabTokenFile",
    "StaticIssuer",
    "Token",
    "TokenManager",
    "TokenManagerConfig",
    "TokenState",
    "TokenStorage",
    "TokenStore",
]

_HOME = {
    "history": ("RotationHistory",),
    "issuer": ("AuthService", "OAuth2Issuer", "ProjectXIssuer", "SchwabIssuer", "StaticIssuer"),
    "lease": ("FileLease",),
    "lifecycle": ("TokenManagerConfig", "TokenState"),
    "manager": ("TokenManager",),
    "schwab_file": ("SchwabTokenFile",),
    "storage": ("TokenStorage", "TokenStore"),
    "token": ("Token",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next use finds it without a call
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
