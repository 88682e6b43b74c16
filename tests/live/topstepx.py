"""`make live`: asks a real TopstepX account for all that can be read, and says where its shapes differ from ours.

It places no order: the HTTP face under the client lets nothing through but the endpoints listed here. What it prints
holds counts, field names and enum values, no ids, names or amounts, so it may be pasted into an issue. It takes
PROJECT_X_API_KEY, PROJECT_X_USERNAME, PROJECT_X_ACCOUNT_NAME and, for another firm, PROJECT_X_BASE_URL.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from keepline.brokers.messages import OpenIntEnum
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.messages import (
    AccountInfo,
    BarAnswer,
    ContractInfo,
    OrderInfo,
    PositionInfo,
    TradeInfo,
)
from keepline.credentials.manager import TokenManager
from keepline.credentials.projectx_issuer import ProjectXIssuer
from keepline.errors import ConfigError, KeeplineError
from keepline.http import HttpSession, Response

READS = frozenset(
    {"/api/Status/ping", "/api/Account/search", "/api/Contract/search", "/api/Contract/searchById"}
    | {
        "/api/Contract/available",
        "/api/History/retrieveBars",
        "/api/Order/search",
        "/api/Order/searchOpen",
    }
    | {"/api/Position/searchOpen", "/api/Trade/search"}
)
ROWS: Mapping[str, type[msgspec.Struct]] = {
    "accounts": AccountInfo,
    "contracts": ContractInfo,
    "contract": ContractInfo,
    "bars": BarAnswer,
    "orders": OrderInfo,
    "positions": PositionInfo,
    "trades": TradeInfo,
}
Say = Callable[[str], object]


class OnlyReads:
    """An HTTP face that refuses every path that could change something, and remembers the last answer."""

    def __init__(self, http: HttpSession, base_url: str) -> None:
        self._http, self._base_url = http, base_url.rstrip("/")
        self.last: Any = None

    async def request(self, method: str, url: str, **more: Any) -> Response:
        path = url.removeprefix(self._base_url)
        if path not in READS:
            raise ConfigError(f"{path} may change something: not asked here", key="path")
        answer = await self._http.request(method, url, **more)
        self.last = answer.json() if answer.status == 200 and path != "/api/Status/ping" else None
        return answer


def differences(answer: Any) -> list[str]:
    """What an answer has that our structs do not know, and what they know that it has not."""
    found = []
    for name, kind in ROWS.items():
        rows = answer.get(name) if isinstance(answer, dict) else None
        rows = [rows] if isinstance(rows, dict) else rows or []
        fields = {field.encode_name for field in msgspec.structs.fields(kind)}
        for row in rows[:1]:
            found += [f"{name}: new field {key!r}" for key in sorted(set(row) - fields)]
            found += [f"{name}: no field {key!r}" for key in sorted(fields - set(row))]
    return found


def unknown_values(rows: object) -> list[str]:
    """Values of enums that have no name here."""
    listed = rows if isinstance(rows, tuple) else (rows,)
    return sorted(
        {
            f"{type(value).__name__} {value.value}"
            for row in listed
            if isinstance(row, msgspec.Struct)
            for value in msgspec.structs.asdict(row).values()
            if isinstance(value, OpenIntEnum) and not value.is_known
        }
    )


async def look(client: ProjectXClient, http: OnlyReads, account_name: str | None, say: Say) -> int:
    """Ask for everything once; gives how many questions failed."""
    failed = 0

    async def ask(what: str, question: Awaitable[Any]) -> Any:
        nonlocal failed
        try:
            found = await question
        except ConfigError as error:
            failed += 1
            # what is there follows the semicolon: the names of the user's accounts
            say(f"FAILED  {what}: {str(error).partition(';')[0]}")
            return None
        except KeeplineError as error:
            failed += 1
            say(f"FAILED  {what}: {error}")
            return None
        count = f"{len(found)} rows" if isinstance(found, tuple) else "1"
        remarks = [*differences(http.last), *unknown_values(found)]
        say(f"ok      {what}: {count}" + (f"; {'; '.join(remarks)}" if remarks else ""))
        return found

    now = datetime.now(UTC)
    await ask("ping", client.ping())
    await ask("all accounts", client.accounts(only_active=False))
    account = await ask("account", client.account(account_name))
    contracts = await ask("contracts by name", client.search_contracts("MNQ"))
    await ask("contracts available", client.available_contracts())
    if contracts:
        contract = contracts[0].id
        await ask("contract by id", client.contract(contract))
        for unit, back in (
            ("second", 1),
            ("minute", 1),
            ("hour", 24),
            ("day", 240),
            ("week", 2400),
            ("month", 9600),
        ):
            start = now - timedelta(hours=back * 24)
            bars = client.retrieve_bars(contract, start, now, unit, limit=50)
            await ask(f"bars of a {unit}", bars)
    if account is not None:
        month = now - timedelta(days=30)
        await ask("orders of a month", client.search_orders(account.id, month, now))
        await ask("orders without an end", client.search_orders(account.id, month))
        await ask("open orders", client.open_orders(account.id))
        await ask("open positions", client.open_positions(account.id))
        await ask("trades of a month", client.search_trades(account.id, month, now))
        await ask("trades without an end", client.search_trades(account.id, month))
    return failed


async def main(environ: Mapping[str, str], say: Say) -> int:
    """The whole run; gives the exit code."""
    missing = [n for n in ("PROJECT_X_API_KEY", "PROJECT_X_USERNAME") if not environ.get(n)]
    if missing:
        say(f"missing in the environment: {', '.join(missing)}")
        return 2
    url = environ.get("PROJECT_X_BASE_URL", "https://api.topstepx.com")
    user, key = environ["PROJECT_X_USERNAME"], environ["PROJECT_X_API_KEY"]
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(HttpSession())
        issuer = ProjectXIssuer(user, key, base_url=url, http=session)
        manager = await stack.enter_async_context(TokenManager({"name": "live"}, issuer))
        http = OnlyReads(session, url)
        async with ProjectXClient(manager, base_url=url, http=http) as client:
            failed = await look(client, http, environ.get("PROJECT_X_ACCOUNT_NAME"), say)
    say(
        "nothing was changed; "
        + (f"{failed} questions failed" if failed else "every answer was read")
    )
    return 1 if failed else 0


def run() -> int:
    """The program."""
    return asyncio.run(main(os.environ, lambda line: sys.stdout.write(f"{line}\n")))


if __name__ == "__main__":
    sys.exit(run())
