"""A `[stream.NAME]` as a stream: names become ids, what is wanted becomes topics, each value gets its kind.

Invariants: nothing is asked for that the section does not name; an error about an account or a symbol names its key; a
recording's name is new at each start.
"""

import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from keepline.brokers.checks import text
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.stream import ProjectXStream
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.stream import SCHWAB_STREAM, SchwabStream
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.config import Settings, StreamTable
from keepline.daemon.clients import BrokerClient
from keepline.daemon.download import chosen
from keepline.errors import ConfigError
from keepline.resilience.bearer import TokenHolder
from keepline.stream.recorder import Recorder
from keepline.stream.settings import StreamSettings

__all__ = [
    "KeptStream",
    "Tell",
    "listen",
    "real_time_url",
    "recorder_of",
    "stream_of",
]

KeptStream: TypeAlias = ProjectXStream | SchwabStream

Tell: TypeAlias = Callable[[str, Any], Awaitable[object]]
"""Gets what arrives: its kind (`event`, `quote`, `fill`, …) and the value."""

_GOODBYE_SECONDS = 1.0
_ACCOUNT_KINDS: Final = ("order", "fill", "position", "account", "discrepancy")
_MARKET_METHODS: Final = {"quotes": "quote", "trades": "trade", "depth": "depth"}


async def stream_of(
    settings: Settings,
    name: str,
    client: BrokerClient,
    tokens: TokenHolder,
    *,
    recorder: Recorder | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> KeptStream:
    """The stream of a section, not connected; asks the broker for ids where the section has names.

    Args:
        settings: all of them.
        name: of the section.
        client: of its broker, entered; stays the caller's.
        tokens: what gives the tokens of the client.
        recorder: gets every frame.
        clock: of the stream.

    Raises:
        ConfigError: there is no such account or symbol, or several would do.
        KeeplineError: the broker could not be asked.
    """
    table = settings.stream[name]
    record = None if recorder is None else recorder.connection
    own: dict[str, Any] = {"name": name, "record": record, "clock": clock}
    if isinstance(client, ProjectXClient):
        with _keyed(settings, f"stream.{name}.accounts"):
            accounts = [str((await client.account(one)).id) for one in table.accounts]
        with _keyed(settings, f"stream.{name}.symbols"):
            contracts = [await _contract(client, one) for one in table.symbols]
        return _projectx(settings, table, client, tokens, accounts, contracts, own)
    with _keyed(settings, f"stream.{name}.accounts"):
        for number in table.accounts:
            await client.account_hash(number)
    return _schwab(table, client, tokens, own)


def listen(stream: KeptStream, table: StreamTable, tell: Tell) -> None:
    """Have `tell` called with everything that the section wants, as long as the stream is.

    Raises:
        ConfigError: a symbol cannot be asked for.
    """
    stream.on_event(_as("event", tell))
    if table.accounts:
        for kind in _ACCOUNT_KINDS:
            getattr(stream, f"on_{kind}")(_as(kind, tell))
    if not table.symbols:
        return
    for wanted in table.events:
        kind = _MARKET_METHODS[wanted]
        if isinstance(stream, ProjectXStream):
            getattr(stream, f"on_{kind}")(_as(kind, tell))
        elif wanted == "quotes":
            stream.on_quote(_as(kind, tell), cadence=table.stale_after)
        elif wanted == "depth":
            stream.on_book(_as(kind, tell))


def recorder_of(
    settings: Settings, name: str, path: Path | None = None, *, clock: Clock = SYSTEM_CLOCK
) -> Recorder | None:
    """The recorder of a section, not started; None when it records nothing.

    Args:
        settings: all of them.
        name: of the section.
        path: a file in the place of the section's own.
        clock: of the recorder.
    """
    table = settings.stream[name]
    if path is None and table.record is not None:
        moment = f"{clock.wall():%Y%m%d-%H%M%S}"
        path = table.record.with_name(table.record.name.format(stream=name, time=moment))
    if path is None:
        return None
    broker = settings.brokers[table.broker].broker
    return Recorder(path, stream=name, broker=broker, encoding=table.encoding, clock=clock)


def real_time_url(table: StreamTable, base_url: str) -> str:
    """Where the hubs are: what the section says, else beside the API, `rtc` in the place of `api` in its name."""
    if table.url is not None:
        return table.url
    parts = urlsplit(base_url)
    host = re.sub(r"\bapi\b", "rtc", parts.netloc, count=1)
    return urlunsplit(parts._replace(netloc=host))


def _projectx(
    settings: Settings,
    table: StreamTable,
    client: ProjectXClient,
    tokens: TokenHolder,
    accounts: list[str],
    contracts: list[str],
    own: dict[str, Any],
) -> ProjectXStream:
    return ProjectXStream(
        tokens,
        client,
        accounts=accounts,
        contracts=contracts,
        base_url=real_time_url(table, settings.brokers[table.broker].base_url),
        settings=StreamSettings(
            stale_after=table.stale_after,
            heartbeat=table.heartbeat,
            stop_timeout=_GOODBYE_SECONDS,
        ),
        quote_cadence=table.stale_after,
        encoding=table.encoding,
        **own,
    )


def _schwab(
    table: StreamTable, client: SchwabClient, tokens: TokenHolder, own: dict[str, Any]
) -> SchwabStream:
    return SchwabStream(
        tokens,
        client,
        accounts=table.accounts,
        symbols=table.symbols,
        settings=replace(
            SCHWAB_STREAM,
            stale_after=table.stale_after,
            heartbeat=table.heartbeat,
            stop_timeout=_GOODBYE_SECONDS,
        ),
        **own,
    )


async def _contract(client: ProjectXClient, symbol: str) -> str:
    wanted = text(symbol, "symbols")
    return wanted if "." in wanted else chosen(wanted, await client.search_contracts(wanted))


def _as(kind: str, tell: Tell) -> Callable[[Any], Awaitable[object]]:
    async def told(value: Any) -> None:
        await tell(kind, value)

    told.__qualname__ = f"{kind} listener"
    return told


@contextmanager
def _keyed(settings: Settings, key: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error.args[0]), key=key, file=settings.file) from None
