"""A broker's client from the settings: tokens from the running daemon, else from the store, renewed under its lease.

Invariants: a daemon that runs stays the only one that renews its tokens; limits of the configuration lie over the
broker's own; what is opened here is closed here.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

from keepline.brokers.projectx.client import PROJECTX_LIMITS, ProjectXClient
from keepline.brokers.schwab.client import SCHWAB_LIMITS, SchwabClient
from keepline.brokers.session import limits_with
from keepline.config import BrokerSettings, Settings
from keepline.credentials.token import Token
from keepline.daemon.ask import daemon
from keepline.daemon.compose import manager_of
from keepline.errors import ConfigError
from keepline.http import HttpSession
from keepline.relay.local import LocalClient
from keepline.resilience import RateLimiter
from keepline.resilience.bearer import TokenHolder
from keepline.telemetry import shortened

__all__ = [
    "BrokerClient",
    "account_of",
    "broker_client",
    "broker_named",
    "broker_session",
    "client_of",
    "limiter_of",
]

BrokerClient: TypeAlias = ProjectXClient | SchwabClient

_OWN: dict[str, Any] = {"projectx": PROJECTX_LIMITS, "schwab": SCHWAB_LIMITS}


def broker_named(settings: Settings, name: str = "") -> str:
    """The section that was named, or the only one that there is.

    Raises:
        ConfigError: none was named and there are several, or none is there; says which are.
    """
    known = list(settings.brokers)
    if name in known or (not name and len(known) == 1):
        return name or known[0]
    if not known:
        what = "no [brokers.NAME] is configured; an empty [brokers.schwab] is enough beside [credentials.schwab]"
    elif name:
        what = f"no [brokers.{name}]; there is {', '.join(known)}"
    else:
        what = f"which broker? name one of {', '.join(known)}"
    raise ConfigError(what, key="brokers", file=settings.file)


def limiter_of(settings: Settings, table: BrokerSettings) -> RateLimiter:
    """The limiter of a broker: its own rules under those of `[limits]`.

    Raises:
        ConfigError: a rule makes no sense.
    """
    given = {name: rule.as_rule() for name, rule in settings.limits.items()}
    foreign = {name for kind, own in _OWN.items() if kind != table.broker for name in own}
    return RateLimiter(limits_with(_OWN[table.broker], given, frozenset(foreign)))


@asynccontextmanager
async def broker_client(settings: Settings, name: str) -> AsyncIterator[BrokerClient]:
    """The client of `[brokers.NAME]` while the block runs.

    Raises:
        ConfigError: a setting is wrong.
        CredentialError: there are no tokens.
    """
    async with broker_session(settings, name) as (client, _):
        yield client


@asynccontextmanager
async def broker_session(
    settings: Settings, name: str
) -> AsyncIterator[tuple[BrokerClient, TokenHolder]]:
    """The client of `[brokers.NAME]` while the block runs, and what gives its tokens.

    Raises:
        ConfigError: a setting is wrong.
        CredentialError: there are no tokens.
    """
    table = settings.brokers[name]
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(HttpSession())
        tokens = await _tokens(stack, settings, table.credential, http)
        client = client_of(settings, name, tokens, http=http)
        yield await stack.enter_async_context(client), tokens


def client_of(
    settings: Settings, name: str, tokens: TokenHolder, *, http: HttpSession
) -> BrokerClient:
    """The client of `[brokers.NAME]` with these tokens, not entered; `http` stays the caller's to close.

    Raises:
        ConfigError: a setting is wrong.
    """
    table = settings.brokers[name]
    kind = ProjectXClient if table.broker == "projectx" else SchwabClient
    limiter = limiter_of(settings, table)
    return kind(tokens, base_url=table.base_url, http=http, limiter=limiter)


async def account_of(client: BrokerClient, table: BrokerSettings) -> str:
    """The id of the account that the settings name: by name or number, or the only one.

    Raises:
        ConfigError: there is none such, or several would do.
    """
    if isinstance(client, ProjectXClient):
        return str((await client.account(table.account)).id)
    if table.account is not None:
        await client.account_hash(table.account)
        return table.account
    numbers = await client.account_numbers()
    if len(numbers) != 1:
        ends = ", ".join(map(shortened, numbers)) or "none"
        raise ConfigError(f"which account? the token reaches {ends}", key="account")
    return numbers[0]


class _DaemonTokens:
    """Tokens of the running daemon, by its local socket."""

    def __init__(self, client: LocalClient, credential: str) -> None:
        self._client, self._credential = client, credential

    async def get(self, *, newer_than: int | None = None) -> Token:
        return await self._client.get_token(self._credential, newer_than=newer_than)


async def _tokens(
    stack: AsyncExitStack, settings: Settings, credential: str, http: HttpSession
) -> TokenHolder:
    running = await stack.enter_async_context(daemon())
    if running is not None and credential in (await running.request("hello"))["credentials"]:
        return _DaemonTokens(running, credential)
    manager = await asyncio.to_thread(manager_of, settings, credential, http=http)
    return await stack.enter_async_context(manager)
