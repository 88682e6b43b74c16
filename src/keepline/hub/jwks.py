"""An issuer's key set from its address or a file, fetched when the decider says so; the last good one is kept.

Invariants: one fetch at a time, however many wait for it; a set that cannot be used changes nothing; plain HTTP only to
this machine, also after a redirect.
"""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from keepline import telemetry
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import ConfigError, KeeplineError
from keepline.http import HttpSession, redacted_url
from keepline.hub.keyfetch import KeyFetch
from keepline.hub.trust import KeyRing, keys_of_jwks

__all__ = ["JwksFile", "JwksUrl", "KeyReader", "KeySet"]

log = logging.getLogger("keepline.hub")

_FETCHES = telemetry.REGISTRY.counter(
    "hub_key_fetches_total", "Fetches of issuers' key sets by how they ended.", "outcome"
)
_LARGEST_SET = 256 * 1024
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class KeyReader(Protocol):
    """Where a key set is read from."""

    @property
    def source(self) -> str:
        """Fit for a log."""
        ...

    async def read(self) -> bytes:
        """The set as JSON.

        Raises:
            KeeplineError: out of reach.
            OSError: out of reach.
            ValueError: what came is no key set; says why.
        """
        ...


class KeySet:
    """Keys that may change.

    Args:
        reader: `JwksUrl` or `JwksFile`.
        algorithms: the pinned ones; other keys are passed over.
        clock: for the pace.
        pace: when to fetch; the reader's own unless given.
    """

    refetches = True

    def __init__(
        self,
        reader: "JwksUrl | JwksFile | KeyReader",
        algorithms: Iterable[str],
        *,
        clock: Clock = SYSTEM_CLOCK,
        pace: KeyFetch | None = None,
    ) -> None:
        self._reader = reader
        self._algorithms = frozenset(algorithms)
        self._clock = clock
        self._pace = pace or KeyFetch()
        self._ring = KeyRing()
        self._fetch: asyncio.Task[None] | None = None

    @property
    def ring(self) -> KeyRing:
        """The last good keys; empty before the first fetch."""
        return self._ring

    @property
    def failing(self) -> bool:
        """Whether the last fetch failed or there was none."""
        return self._pace.failing

    async def look(self, *, unknown: bool = False) -> None:
        """Fetch if it is time to, or join the fetch under way; never raises for what the other side did.

        Args:
            unknown: a token names a key that we do not have.
        """
        self.begin(unknown=unknown)
        if self._fetch is not None:
            await asyncio.wait({self._fetch})  # one who hangs up does not end it for the others

    def begin(self, *, unknown: bool = False) -> None:
        """As `look`, without waiting for the end of the fetch."""
        now = self._clock.boottime()
        if self._fetch is None and self._pace.wanted(now, unknown=unknown):
            self._pace.started(now, unknown=unknown)
            self._fetch = asyncio.create_task(self._fetch_once())

    async def close(self) -> None:
        """End a fetch under way."""
        if (fetch := self._fetch) is not None:
            fetch.cancel()
            await asyncio.wait({fetch})

    async def _fetch_once(self) -> None:
        try:
            self._ring = keys_of_jwks(await self._reader.read(), self._algorithms)
            self._pace.succeeded(self._clock.boottime())
            _FETCHES.inc("good")
        except (KeeplineError, OSError, ValueError) as error:
            self._pace.failed(self._clock.boottime())
            _FETCHES.inc("failed")
            telemetry.event(
                log,
                logging.WARNING,
                "Issuer keys not fetched",
                source=self._reader.source,
                reason=str(error),
            )
        finally:
            self._fetch = None

    def __repr__(self) -> str:
        return f"<KeySet {self._reader.source}, {len(self._ring)} keys>"


class JwksUrl:
    """A key set at an address.

    Args:
        url: https, or http on this machine.
        session: the HTTP session, closed by its owner.

    Raises:
        ConfigError: not such an address.
    """

    def __init__(self, url: str, session: HttpSession) -> None:
        self.source = redacted_url(url)
        if not _is_safe(url):
            raise ConfigError(
                "keys over plain HTTP could be exchanged on the way: use https", key="jwks_url"
            )
        self._url = url
        self._session = session

    async def read(self) -> bytes:
        """The set as JSON; raises as `KeyReader.read`."""
        answer = await self._session.request(
            "GET", self._url, headers={"Accept": "application/json"}, timeout_seconds=10.0
        )
        if not _is_safe(answer.url):
            raise ValueError("was redirected to plain HTTP")
        if answer.status != 200:
            raise ValueError(f"answered {answer.status}")
        if len(answer.body) > _LARGEST_SET:
            raise ValueError(f"is larger than {_LARGEST_SET >> 10} KiB")
        return answer.body


class JwksFile:
    """A key set in a file; it holds public keys only, so anyone may read it."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._path = path

    async def read(self) -> bytes:
        """The set as JSON; raises as `KeyReader.read`."""
        return await asyncio.to_thread(self._read_file)

    def _read_file(self) -> bytes:
        with self._path.open("rb") as stream:
            data = stream.read(_LARGEST_SET + 1)
        if len(data) > _LARGEST_SET:
            raise ValueError(f"is larger than {_LARGEST_SET >> 10} KiB")
        return data


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in _LOOPBACK
