"""What `keepline hub publish|tail` do beside printing: the token from where secrets may be, lines into batches.

Invariants: a token is never an argument; a batch that has to be sent again keeps its idempotency key.
"""

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.config.sections import read_secret_file
from keepline.daemon.loop import from_thread
from keepline.errors import APIError, ConfigError, PermanentError, SignInRequired, TransientError
from keepline.http import HttpSession, Response, redacted_url
from keepline.hub.messages import encode_data
from keepline.hub.publishing import Answered, Draft, Flaw, encode_draft, read_answer, read_drafts
from keepline.resilience.backoff import Backoff
from keepline.resilience.classify import parse_retry_after

__all__ = [
    "Published",
    "for_a_while",
    "hub_url",
    "just",
    "lines_of",
    "one_message",
    "publish",
    "read_hub_token",
]

DEFAULT_URL = "http://127.0.0.1:7999"
LONGEST_INPUT = 64 << 20
_MOST = 500
_QUIET_SECONDS = 0.02
_BACKOFF = Backoff((0.25, 1.0, 2.0), jitter=0.3)
_ATTEMPTS = 4


@dataclass
class Published:
    """What became of the lines.

    Attributes:
        accepted: lines that the hub has.
        duplicates: lines among them that it had before.
        refused: the others, by their line of the input.
    """

    accepted: int = 0
    duplicates: int = 0
    refused: list[Flaw] = field(default_factory=list)


def hub_url(given: str) -> str:
    """`--url`, else KEEPLINE_HUB_URL, else this machine's hub."""
    address = given or os.environ.get("KEEPLINE_HUB_URL") or DEFAULT_URL
    return redacted_url(address).rstrip("/")


async def read_hub_token(file: Path | None, *, from_input: bool) -> str:
    """From a file (mode 600), the first line of standard input, or KEEPLINE_HUB_TOKEN.

    Raises:
        ConfigError: there is none.
        StorageError: the file is not private.
    """
    if file is not None and from_input:
        raise ConfigError("--token-file and --token-stdin exclude each other")
    if file is not None:
        return str(await asyncio.to_thread(read_secret_file, file, key="--token-file"))
    if from_input:
        line = await _from_input(lambda: sys.stdin.buffer.readline(65_536))
        token = line.decode("utf-8", "replace").strip()
    else:
        token = os.environ.get("KEEPLINE_HUB_TOKEN", "").strip()
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError(
            "a token of the hub is needed: --token-file FILE, --token-stdin, or KEEPLINE_HUB_TOKEN"
        )
    return token


async def one_message(channel: str, kind: str, key: str, own_id: str) -> bytes:
    """A line whose data is all of standard input.

    Raises:
        ConfigError: that is no JSON, or no message can be made of it.
    """
    import msgspec

    text = await _from_input(lambda: sys.stdin.buffer.read(LONGEST_INPUT))
    try:
        data = encode_data(msgspec.json.decode(text))
    except msgspec.DecodeError as error:
        raise ConfigError(f"standard input is no JSON: {error}", key="data") from None
    return encode_draft(channel, kind, data, key=key or None, id=own_id or None)


async def lines_of() -> AsyncIterator[bytes]:
    """The lines of standard input as they come, blank ones too: they count."""
    while line := await _from_input(lambda: sys.stdin.buffer.readline(LONGEST_INPUT)):
        yield line.rstrip(b"\r\n")


async def just(line: bytes) -> AsyncIterator[bytes]:
    """One line."""
    yield line


@contextlib.asynccontextmanager
async def for_a_while(seconds: float) -> AsyncIterator[None]:
    """End what is done within, without an error, after this time; 0 for no end."""
    limit = asyncio.timeout(seconds or None)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise


async def publish(
    url: str,
    token: str,
    lines: AsyncIterator[bytes],
    done: Published,
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Publish lines of JSON; those that come together leave together.

    Args:
        url: the hub.
        token: of role `service`.
        lines: a message each.
        done: is kept up to date.
        clock: for pauses.

    Raises:
        SignInRequired: the hub does not take the token.
        TransientError: the hub cannot be reached, or failed four times.
        PermanentError: it refuses the whole of it.
    """
    async with HttpSession() as http:
        async for first, batch in _batches(lines):
            await _publish_batch(http, url, token, first, batch, done, clock)


async def _from_input(read: Callable[[], bytes]) -> bytes:
    """A thread that reads may hang there for ever; it is one that the program's end does not wait for."""
    return await from_thread(read, name="keepline-input")


async def _publish_batch(
    http: HttpSession,
    url: str,
    token: str,
    first: int,
    batch: list[bytes],
    done: Published,
    clock: Clock,
) -> None:
    """Say what is wrong with a line here, as the hub would, so that its number is the input's."""
    good, bad = read_drafts(b"\n".join(batch), most=len(batch))
    done.refused += [flaw._replace(line=first + flaw.line - 1) for flaw in bad]
    if not good:
        return
    body = b"\n".join(_with_id(batch[number - 1], draft) for number, draft in good)
    answered = await _send(http, url, token, body, clock)
    done.accepted += answered.accepted
    done.duplicates += answered.duplicates
    for flaw in answered.refused:
        if 0 < flaw.line <= len(good):
            done.refused.append(flaw._replace(line=first + good[flaw.line - 1][0] - 1))


def _with_id(line: bytes, draft: Draft) -> bytes:
    """A message that may be repeated is known by its id, also after the hub forgot the batch's key."""
    if draft.id is not None:
        return line
    return encode_draft(
        *(draft.channel, draft.type, bytes(draft.data)),
        key=draft.key,
        id=secrets.token_hex(12),
        timestamp=draft.timestamp,
    )


async def _send(http: HttpSession, url: str, token: str, body: bytes, clock: Clock) -> Answered:
    key = secrets.token_hex(16)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _answered(await _post(http, url, token, body, key), url, clock)
        except TransientError as error:
            if attempt == _ATTEMPTS or not error.sent:
                raise
            wait = _BACKOFF.delay(attempt, clock.chance())
            await clock.sleep(wait if error.retry_after is None else error.retry_after)
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _post(http: HttpSession, url: str, token: str, body: bytes, key: str) -> Response:
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/x-ndjson",
        "Idempotency-Key": key,
    }
    return await http.request("POST", f"{url}/api/publish", headers=headers, content=body)


def _answered(answer: Response, url: str, clock: Clock) -> Answered:
    if answer.status == 200:
        return read_answer(answer.body)
    words = f"{url}/api/publish answered {answer.status}"
    if answer.status == 401:
        raise SignInRequired(words, command=f"curl -d @login.json {url}/login")
    raise _error(answer, words, clock)


def _error(answer: Response, words: str, clock: Clock) -> APIError:
    if answer.status in (408, 409, 425, 429) or answer.status >= 500:
        asked = parse_retry_after(answer.headers.get("Retry-After"), wall=clock.wall())
        return TransientError(
            words, category="server", status=answer.status, retry_after=asked.seconds
        )
    return PermanentError(words, status=answer.status)


async def _batches(lines: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Lines that come within a blink of each other, with the number of the first."""
    first, batch = 1, list[bytes]()
    upcoming = asyncio.ensure_future(anext(lines, None))
    try:
        while True:
            await asyncio.wait({upcoming}, timeout=_QUIET_SECONDS if batch else None)
            line = upcoming.result() if upcoming.done() else None
            ended = upcoming.done() and line is None
            if line is not None:
                batch.append(line)
                upcoming = asyncio.ensure_future(anext(lines, None))
                if len(batch) < _MOST:
                    continue
            if batch:
                yield first, batch
                first, batch = first + len(batch), []
            if ended:
                return
    finally:
        upcoming.cancel()
