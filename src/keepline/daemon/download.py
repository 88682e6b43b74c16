"""Bars from a broker for the command line: what is meant by the words of a person, into a file or on as rows.

Invariants: a symbol means one contract or is an error that lists the candidates; rows are handed on in chunks, so that
a year of minutes takes no more memory than a page; the disk is never touched on the loop.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from keepline.brokers.barfile import bar_file
from keepline.brokers.checks import text
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.messages import ContractInfo
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.windows import Progress
from keepline.config import Settings
from keepline.daemon.clients import broker_client
from keepline.errors import ConfigError
from keepline.model import Bar

__all__ = ["CHUNK", "BarsWanted", "Saved", "chosen", "instant", "save_bars", "stream_bars"]

CHUNK = 5000
"""Rows that are handed on at once."""

Tell = Callable[[Progress], object]

_BACK = re.compile(r"(\d{1,5}) ?(min|h|d|w)")
_UNITS = {"min": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class BarsWanted(NamedTuple):
    """What to download.

    Attributes:
        symbol: a contract id, a symbol, or a future's root.
        start: aware.
        end: aware.
        unit: `second`, `minute`, `hour`, `day`, `week` or `month`, as the broker has them.
        number: units in a bar.
        live: ProjectX: of the live data subscription.
        extended: Schwab: before and after regular hours, too.
    """

    symbol: str
    start: datetime
    end: datetime
    unit: str = "minute"
    number: int = 1
    live: bool = False
    extended: bool = False


class Saved(NamedTuple):
    """What became of a download."""

    rows: int
    first: datetime | None
    last: datetime | None


async def save_bars(
    settings: Settings, broker: str, wanted: BarsWanted, path: Path, *, tell: Tell | None = None
) -> Saved:
    """Download into a file, whole or not at all.

    Raises:
        KeeplineError: says what went wrong; what was at the path before is still there.
    """
    file = await asyncio.to_thread(bar_file, path)
    rows = 0
    first: datetime | None = None
    last: datetime | None = None
    try:
        async with aclosing(stream_bars(settings, broker, wanted, tell=tell)) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(file.write, chunk)
                rows, first, last = rows + len(chunk), first or chunk[0].at, chunk[-1].at
        await asyncio.to_thread(file.keep)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(file.drop))
        raise
    return Saved(rows, first, last)


async def stream_bars(
    settings: Settings, broker: str, wanted: BarsWanted, *, tell: Tell | None = None
) -> AsyncGenerator[list[Bar], None]:
    """Download in chunks of at most `CHUNK` rows, none of them empty.

    Raises:
        KeeplineError: says what went wrong.
    """
    async with broker_client(settings, broker) as client:
        source = await _bars(client, wanted, tell)
        chunk: list[Bar] = []
        async for bar in source:
            chunk.append(bar)
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk


def instant(words: str, now: datetime, *, key: str) -> datetime:
    """A moment as people write it: `2026-01-05`, `2026-01-05T14:30+01:00`, `now`, or so long ago: `90min`, `5d`.

    Without a zone it is UTC.

    Raises:
        ConfigError: none of these.
    """
    if words == "now":
        return now
    if back := _BACK.fullmatch(words):
        return _recent(now - timedelta(**{_UNITS[back[2]]: int(back[1])}), key)
    try:
        found = datetime.fromisoformat(words)
    except ValueError:
        examples = "2026-01-05, 2026-01-05T14:30Z, 90min, 12h, 5d, 2w or now"
        raise ConfigError(f"{words!r} is no moment; write {examples}", key=key) from None
    return _recent(found if found.tzinfo is not None else found.replace(tzinfo=UTC), key)


def _recent(at: datetime, key: str) -> datetime:
    if at.year < 1970:  # a slip of the pen, and days of empty answers
        raise ConfigError(f"{at:%Y-%m-%d} is before 1970, where no broker has bars", key=key)
    return at


def chosen(words: str, contracts: tuple[ContractInfo, ...]) -> str:
    """The id of the contract that a symbol or a future's root means: `MNQU6` or `MNQ` is `CON.F.US.MNQ.U26`.

    Raises:
        ConfigError: none does, or several do; lists them.
    """
    wanted = words.upper()
    exact = [c for c in contracts if wanted in (c.id.upper(), c.name.upper())]
    roots = [c for c in contracts if wanted in _roots(c) and c.active_contract is not False]
    for found in (exact, roots):
        if len(found) == 1:
            return found[0].id
    there = ", ".join(f"{c.id} ({c.name})" for c in (exact or roots or contracts)) or "none"
    raise ConfigError(f"{words!r} names no single contract; there is {there}", key="symbol")


def _roots(contract: ContractInfo) -> set[str]:
    # a name ends in month and year (MNQU6); the gateway's own root may be another (ES is EP)
    parts = contract.id.upper().split(".")
    return {contract.name.upper()[:-2], parts[-2] if len(parts) > 1 else ""}


async def _bars(
    client: ProjectXClient | SchwabClient, wanted: BarsWanted, tell: Tell | None
) -> AsyncIterator[Bar]:
    start, end, unit, number = wanted.start, wanted.end, wanted.unit, wanted.number
    if isinstance(client, SchwabClient):
        return client.bars(
            wanted.symbol, start, end, unit, number, extended=wanted.extended, progress=tell
        )
    contract = text(wanted.symbol, "symbol")
    if "." not in contract:
        contract = chosen(contract, await client.search_contracts(contract, live=wanted.live))
    return client.bars(contract, start, end, unit, number, live=wanted.live, progress=tell)
