"""What commands ask: the running daemon when there is one, otherwise the store, under the same lease.

Invariants: reading changes nothing; whatever writes a store holds its lease; a running daemon is told of a token that
somebody else brought, and reads it from the store itself.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.config import Settings, load
from keepline.credentials.manager import TokenManager
from keepline.credentials.saving import Interruption
from keepline.credentials.storage import TokenStore
from keepline.credentials.token import Token
from keepline.daemon.compose import issuer_of, lease_of, manager_of, store_of
from keepline.errors import (
    ConfigError,
    KeeplineError,
    SignInRequired,
    StorageError,
    TokenUnavailable,
    TransientError,
)
from keepline.http import HttpSession
from keepline.relay.local import LocalClient

__all__ = [
    "daemon",
    "follow",
    "get_token",
    "only_name",
    "refresh_stored",
    "refresh_token",
    "save_token",
    "stored_status",
    "stored_token",
    "tell_daemon",
    "token_status",
    "whole_status",
]


@asynccontextmanager
async def daemon() -> AsyncIterator[LocalClient | None]:
    """A connection to the running daemon, None when none runs.

    Raises:
        KeeplineError: something listens there that cannot be used.
    """
    client = LocalClient(name="keepline command")
    try:
        await client.connect()
    except TransientError:
        yield None
        return
    try:
        yield client
    finally:
        await client.close()


def only_name(names: Iterable[str], name: str) -> str:
    """The name that was given, or the only one that there is.

    Raises:
        ConfigError: none was given and there are several, or none is known.
    """
    known = list(names)
    if name:
        return name
    if len(known) == 1:
        return known[0]
    choice = f"name one of {', '.join(known)}" if known else "no [credentials.NAME] is configured"
    raise ConfigError(f"which credential? {choice}", key="NAME")


async def whole_status(config: Path | None) -> dict[str, Any]:
    """The daemon's status, `running` added; what is stored when no daemon runs.

    Raises:
        ConfigError: no daemon runs, and there is no configuration.
    """
    async with daemon() as client:
        if client is not None:
            return {"running": True, **await client.status()}
    settings = await asyncio.to_thread(load, config)
    credentials = {name: await stored_status(settings, name) for name in settings.credentials}
    nothing: dict[str, Any] = {"relay": {}, "streams": {}, "parts": []}
    return {"running": False, "ready": False, "credentials": credentials, **nothing}


async def token_status(config: Path | None, name: str) -> Mapping[str, Any]:
    """One credential's status, from the daemon or the store."""
    async with daemon() as client:
        if client is not None:
            credentials = (await client.status())["credentials"]
            name = only_name(credentials, name)
            if name in credentials:
                told: Mapping[str, Any] = credentials[name]
                return told
    settings = await asyncio.to_thread(load, config)
    return await stored_status(settings, only_name(settings.credentials, name))


async def get_token(config: Path | None, name: str, *, newer_than: int | None = None) -> Token:
    """A valid token, from the daemon or the store.

    Raises:
        KeeplineError: there is none; says why.
    """
    async with daemon() as client:
        if client is not None:
            name = only_name(await _names(client), name)
            return await client.get_token(name, newer_than=newer_than)
    settings = await asyncio.to_thread(load, config)
    token = await stored_token(settings, only_name(settings.credentials, name))
    if newer_than is not None and token.generation <= newer_than:
        raise TokenUnavailable(
            f"{name}: the stored token is of generation {token.generation} and no daemon runs to renew it",
            credential=name,
        )
    return token


async def refresh_token(config: Path | None, name: str, *, than: int | None = None) -> Token:
    """A renewed token, by the daemon, else directly."""
    async with daemon() as client:
        if client is not None:
            return await client.refresh_token(only_name(await _names(client), name), than=than)
    settings = await asyncio.to_thread(load, config)
    return await refresh_stored(settings, only_name(settings.credentials, name), than=than)


async def follow(name: str) -> AsyncIterator[Token]:
    """Each renewal, the current token first, until the daemon goes.

    Raises:
        TransientError: no daemon runs, or it ended.
    """
    async with LocalClient(name="keepline token watch") as client:
        async for token in await client.subscribe(only_name(await _names(client), name)):
            yield token


async def _names(client: LocalClient) -> list[str]:
    return list((await client.request("hello"))["credentials"])


async def stored_token(settings: Settings, name: str, *, clock: Clock = SYSTEM_CLOCK) -> Token:
    """The valid token of a store, without a daemon.

    Raises:
        SignInRequired: nothing is stored.
        TokenUnavailable: what is stored has expired.
        StorageError: what is stored cannot be trusted.
    """
    store = await asyncio.to_thread(store_of, settings, name, clock=clock)
    token = await asyncio.to_thread(store.load)
    if token is None:
        raise SignInRequired(f"{name}: no token is stored", credential=name)
    if token.is_expired(clock.wall()):
        raise TokenUnavailable(
            f"{name}: the stored token expired at {token.expires_at:%Y-%m-%d %H:%M:%S} UTC and no daemon runs;"
            f" start `keepline run`, or renew it once: keepline token refresh {name}",
            credential=name,
        )
    return token


async def refresh_stored(
    settings: Settings, name: str, *, than: int | None = None, clock: Clock = SYSTEM_CLOCK
) -> Token:
    """Renew without a daemon: under the lease, saved before it is returned.

    Raises:
        KeeplineError: as `TokenManager.force_refresh`.
    """
    async with HttpSession() as http:
        manager: TokenManager = await asyncio.to_thread(
            manager_of, settings, name, http=http, clock=clock
        )
        async with manager:
            return await manager.force_refresh(than=than)


async def stored_status(
    settings: Settings, name: str, *, clock: Clock = SYSTEM_CLOCK
) -> Mapping[str, Any]:
    """What the store says of a credential; its own words when it cannot be read."""
    store: TokenStore = await asyncio.to_thread(store_of, settings, name, clock=clock)
    told = {"name": name, "storage": str(store.path or "memory")}
    try:
        token = await asyncio.to_thread(store.load)
        lost = await asyncio.to_thread(store.interrupted)
    except KeeplineError as error:
        return {**told, "state": "ERROR", "last_error": str(error)}
    if token is None:
        return {**told, "state": "SIGN_IN_REQUIRED", "last_error": None}
    left = (token.expires_at - clock.wall()).total_seconds()
    deadline = token.signin_deadline
    return {
        **told,
        "state": "STORED" if left > 0 else "EXPIRED",
        "generation": token.generation,
        "fingerprint": token.fingerprint,
        "issued_at": token.issued_at.isoformat(timespec="seconds"),
        "expires_at": token.expires_at.isoformat(timespec="seconds"),
        "expires_in_seconds": round(left, 3),
        "signin_deadline": deadline.isoformat(timespec="seconds") if deadline else None,
        "signin_in_seconds": (deadline - clock.wall()).total_seconds() if deadline else None,
        "interrupted": _words(lost),
        "last_error": None,
    }


async def save_token(
    settings: Settings, name: str, token: Token, *, clock: Clock = SYSTEM_CLOCK
) -> Token:
    """Save a token that a person brought, under the lease, and tell a running daemon; as it was numbered.

    Raises:
        ConfigError: the credential is kept in memory only.
        StorageError: not saved; the last good token stands.
    """
    token = await asyncio.to_thread(_with_deadline, settings, name, token)
    store = await asyncio.to_thread(store_of, settings, name, clock=clock)
    lease = lease_of(store, clock=clock)
    if lease is None:
        raise ConfigError(
            'memory keeps no token for another process; set storage = "encrypted"',
            key=f"credentials.{name}.storage",
            file=settings.file,
        )
    async with lease:
        await asyncio.to_thread(store.store, token.with_generation(0))  # the store numbers it
        saved = await asyncio.to_thread(store.load)
    if saved is None:
        raise StorageError("holds nothing after the save; try again", path=store.path)
    return saved


async def tell_daemon(name: str) -> Token | None:
    """Have a running daemon look into the store; its token afterwards, None when no daemon runs or keeps this one."""
    async with daemon() as client:
        if client is None:
            return None
        known = (await client.status())["credentials"].get(name)
        if known is None:
            return None
        return await client.refresh_token(name, than=known["generation"])


def _with_deadline(settings: Settings, name: str, token: Token) -> Token:
    """A token that came without the end of its sign-in gets the latest that it can be, so that people are warned."""
    app = getattr(issuer_of(settings, name), "app", None)
    lifetime = getattr(app, "refresh_lifetime", None)
    if lifetime is None or token.signin_deadline is not None or not token.refresh_token:
        return token
    return replace(token, signin_deadline=token.issued_at + lifetime)


def _words(lost: Interruption | None) -> str | None:
    if lost is None:
        return None
    return f"a refresh begun at {lost.begun_at:%Y-%m-%d %H:%M:%S} UTC was never saved; the refresh token may be spent"
