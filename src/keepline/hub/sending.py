"""How a batch gets to a hub over HTTP: sent again until it is answered, halved to find the message that spoils it.

Invariants: a batch keeps its idempotency key and its bytes until it is answered; a pause that the hub asked for is
kept; once the hub may have forgotten a key, only messages that it knows by their id are sent again.
"""

import asyncio
import contextlib
import inspect
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from keepline.clock import Clock, within
from keepline.errors import APIError, PermanentError, ProtocolError
from keepline.http import HttpSession, Response
from keepline.hub.outgoing import Item
from keepline.hub.publishing import IDEMPOTENCY_SECONDS, Answered, read_answer, read_no
from keepline.resilience.backoff import Backoff
from keepline.resilience.classify import parse_retry_after
from keepline.telemetry import REGISTRY, event

__all__ = ["Report", "Sender", "Token"]

log = logging.getLogger("keepline.hub")

RETRIES = REGISTRY.counter(
    "hub_publisher_retries_total", "Batches that a publisher had to send again, by why.", "reason"
)

Token = str | Callable[[], str | Awaitable[str]]

_BACKOFF = Backoff((0.05, 0.25, 0.5, 1.0, 2.0, 5.0), steady=10.0, jitter=0.3)
_REFUSED_WHOLE = frozenset({400, 413, 422})
_TOKEN = frozenset({401, 403})
_SAFE_SECONDS = IDEMPOTENCY_SECONDS * 0.8


class Report(Protocol):
    """Is told once of each message what became of it."""

    def __call__(
        self,
        items: Sequence[Item],
        *,
        refused: Mapping[int, str],
        lost: Mapping[int, str],
        duplicates: int,
    ) -> None:
        """These are answered; `refused` and `lost` say why not, by the `sequence` of a message."""
        ...


class _Batch:
    """Messages that leave together, and again together."""

    def __init__(self, items: Sequence[Item], *, failures: int = 0) -> None:
        self.items = items
        self.body = b"\n".join(item.line for item in items) + b"\n"
        self.key = secrets.token_hex(16)
        self.failures = failures
        self.in_doubt_since: float | None = None


class Sender:
    """Sends batches, one after the other.

    Args:
        url: the hub.
        token: a JWT, or what gives one.
        http: the connections.
        report: is told what became of each message.
        hurry: once it is set, a pause that the hub did not ask for is cut short.
        clock: for pauses.

    Attributes:
        last_error: why the last request failed, "" when it did not.
        requests: how many there were.
        retries: how many of them failed.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        http: HttpSession,
        report: Report,
        *,
        hurry: asyncio.Event,
        clock: Clock,
    ) -> None:
        self.url = url
        self.last_error = ""
        self.requests = 0
        self.retries = 0
        self._token = token
        self._http = http
        self._report = report
        self._hurry = hurry
        self._away = False
        self._clock = clock

    async def send(self, items: Sequence[Item]) -> None:
        """Return when what became of each of them is known; that may take for ever."""
        await self._send(_Batch(items))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def _send(self, batch: _Batch) -> None:
        while batch.items:
            outcome = await self._attempt(batch)
            if isinstance(outcome, Answered):
                return self._settle(batch, outcome)
            if outcome is None:
                return await self._send_parts(batch)
            wait, asked = outcome
            await self._pause(wait, asked=asked)
            batch = self._without_the_doubtful(batch)
        return None

    async def _send_parts(self, batch: _Batch) -> None:
        """Refused whole, so nothing of it was published: its halves tell which message is to blame."""
        middle = len(batch.items) // 2
        for part in (batch.items[:middle], batch.items[middle:]):
            await self._send(_Batch(part))

    async def _attempt(self, batch: _Batch) -> "Answered | tuple[float, bool] | None":
        """The hub's answer; None to send it in parts; else how long to wait, and whether the hub asked for it."""
        self.requests += 1
        try:
            answer = await self._post(batch)
        except APIError as error:
            if error.sent:
                self._doubt(batch)
            return self._failed(batch, str(error), error.category), False
        if answer.status == 200:
            return self._read(batch, answer)
        if answer.status in _REFUSED_WHOLE:
            no = read_no(answer.status, answer.body)
            self.last_error = f"{answer.url} answered {answer.status}: {no.message}"
            return Answered(0, 0, [no]) if len(batch.items) == 1 else None
        return self._told_to_wait(batch, answer)

    def _read(self, batch: _Batch, answer: Response) -> "Answered | tuple[float, bool]":
        try:
            answered = read_answer(answer.body)
        except ProtocolError as error:
            self._doubt(batch)
            return self._failed(batch, f"{answer.url}: {error}", "answer"), False
        if self._away:
            event(log, logging.INFO, "Hub reached again", hub=self.url)
        self._away = False
        self.last_error = ""
        return answered

    def _told_to_wait(self, batch: _Batch, answer: Response) -> tuple[float, bool]:
        said = answer.headers.get("Retry-After")
        asked = parse_retry_after(said, wall=self._clock.wall()).seconds
        if answer.status >= 500:
            self._doubt(batch)
        reason = "token" if answer.status in _TOKEN else f"status_{answer.status}"
        why = read_no(answer.status, answer.body).message
        wait = self._failed(batch, f"{answer.url} answered {answer.status}: {why}", reason)
        return (wait, False) if asked is None else (max(wait, asked), True)

    async def _post(self, batch: _Batch) -> Response:
        headers = {
            "Authorization": f"Bearer {await self._ask_token()}",
            "Content-Type": "application/x-ndjson",
            "Idempotency-Key": batch.key,
        }
        return await self._http.request(
            "POST", f"{self.url}/api/publish", headers=headers, content=batch.body
        )

    async def _ask_token(self) -> str:
        if isinstance(self._token, str):
            return self._token.strip()
        try:
            given = self._token()
            return (await given if inspect.isawaitable(given) else given).strip()
        except Exception as error:
            raise PermanentError(
                f"no token could be had ({type(error).__name__})", category="auth", sent=False
            ) from error

    def _doubt(self, batch: _Batch) -> None:
        """It may have been published: from now on its key is what keeps it single."""
        if batch.in_doubt_since is None:
            batch.in_doubt_since = self._clock.boottime()

    def _without_the_doubtful(self, batch: _Batch) -> _Batch:
        since = batch.in_doubt_since
        if since is None or self._clock.boottime() - since < _SAFE_SECONDS:
            return batch
        lost = [item for item in batch.items if not item.durable]
        why = {item.sequence: "no answer came in time" for item in lost}
        self._report(lost, refused={}, lost=why, duplicates=0)
        return _Batch([item for item in batch.items if item.durable], failures=batch.failures)

    def _settle(self, batch: _Batch, answered: Answered) -> None:
        refused = {
            batch.items[flaw.line - 1].sequence: f"{flaw.message} ({flaw.code})"
            for flaw in answered.refused
            if 0 < flaw.line <= len(batch.items)
        }
        if refused:
            fields = {"messages": len(refused), "reason": next(iter(refused.values()))}
            event(log, logging.WARNING, "Messages refused by the hub", hub=self.url, **fields)
        duplicates = max(0, min(answered.duplicates, len(batch.items) - len(refused)))
        self._report(batch.items, refused=refused, lost={}, duplicates=duplicates)

    def _failed(self, batch: _Batch, words: str, reason: str) -> float:
        batch.failures += 1
        self.retries += 1
        RETRIES.inc(reason)
        if not self._away:
            event(log, logging.WARNING, "Hub not reachable", hub=self.url, error=words)
        self._away = True
        self.last_error = words
        return _BACKOFF.delay(batch.failures, self._clock.chance())

    async def _pause(self, seconds: float, *, asked: bool) -> None:
        """Wait; the end of the publisher cuts a wait short that the hub did not ask for, once."""
        if asked or self._hurry.is_set():
            await self._clock.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            await within(self._clock, seconds, self._hurry.wait())

    def __repr__(self) -> str:
        return f"<Sender {self.url}, {self.requests} requests, {self.retries} failed>"
