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

import msgspec

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.config import HubSettings, load
from keepline.config.sections import read_secret_file
from keepline.daemon.loop import from_thread
from keepline.errors import APIError, ConfigError, PermanentError, SignInRequired, TransientError
from keepline.http import HttpSession, Response, redacted_url
from keepline.hub.messages import encode_data
from keepline.hub.publishing import (
    Draft,
    Flaw,
    encode_draft,
    read_answer,
    read_drafts,
    read_no,
)
from keepline.resilience.backoff import Backoff
from keepline.resilience.classify import parse_retry_after

__all__ = [
    "Published",
    "channels_of",
    "for_a_while",
    "hub_url",
    "just",
    "lines_of",
    "one_message",
    "publish",
    "read_hub_token",
]

LONGEST_INPUT = 64 << 20
_MOST = 500
_MOST_BYTES = 512 << 10
_ANYWHERE = ("", "0.0.0.0", "::", "[::]")  # noqa: S104 - compared, not bound
_REFUSED_WHOLE = (400, 413)
_QUIET_SECONDS = 0.02
_BACKOFF = Backoff((0.25, 1.0, 2.0), jitter=0.3)
_ATTEMPTS = 4


class _Row(msgspec.Struct):
    channel: str
    may: list[str]


class _Listing(msgspec.Struct):
    channels: list[_Row]


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


def hub_url(given: str, config: Path | None = None) -> str:
    """`--url`, else KEEPLINE_HUB_URL, else where the configuration's `[hub]` listens.

    Args:
        given: on the command line, "" for nothing.
        config: the configuration; looked for when None, and not read when an address is given.

    Raises:
        ConfigError: no address, or a configuration that is none.
    """
    address = given or os.environ.get("KEEPLINE_HUB_URL")
    return redacted_url(address or _configured(load(config, required=False).hub)).rstrip("/")


def _configured(hub: HubSettings) -> str:
    if hub.port == 0:
        words = "takes any free port, so nobody knows which: give --url URL, or KEEPLINE_HUB_URL"
        raise ConfigError(words, key="hub.port")
    host = "127.0.0.1" if hub.host in _ANYWHERE else hub.host
    bare = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{'https' if hub.tls_certificate else 'http'}://{bare}:{hub.port}"


async def channels_of(url: str, token: str) -> list[str]:
    """The channels of a hub to which this token may subscribe.

    Raises:
        SignInRequired: the hub does not take the token.
        TransientError: the hub cannot be reached.
        PermanentError: there is none, or it is no hub.
    """
    async with HttpSession() as http:
        answer = await http.request(
            "GET", f"{url}/api/channels", headers={"Authorization": f"Bearer {token}"}
        )
    if answer.status != 200:
        raise _refused(answer, SYSTEM_CLOCK)
    try:
        told = msgspec.json.decode(answer.body, type=_Listing)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        words = f"{answer.url}: the answer is not a hub's: look at the address"
        raise PermanentError(words) from None
    names = [row.channel for row in told.channels if "subscribe" in row.may]
    if not names:
        raise PermanentError(f"{url}: the role of this token may follow no channel")
    return names


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
    numbered = [(first + number - 1, _with_id(batch[number - 1], draft)) for number, draft in good]
    await _publish_lines(http, url, token, numbered, done, clock)


async def _publish_lines(
    http: HttpSession,
    url: str,
    token: str,
    lines: list[tuple[int, bytes]],
    done: Published,
    clock: Clock,
) -> None:
    """Lines with their numbers; when they are refused whole, their halves tell which line is to blame."""
    answer = await _send(http, url, token, b"\n".join(line for _, line in lines), clock)
    if answer.status in _REFUSED_WHOLE:
        middle = len(lines) // 2
        if not middle:
            done.refused.append(read_no(answer.status, answer.body)._replace(line=lines[0][0]))
            return
        for part in (lines[:middle], lines[middle:]):
            await _publish_lines(http, url, token, part, done, clock)
        return
    answered = read_answer(answer.body)
    done.accepted += answered.accepted
    done.duplicates += answered.duplicates
    for flaw in answered.refused:
        if 0 < flaw.line <= len(lines):
            done.refused.append(flaw._replace(line=lines[flaw.line - 1][0]))


def _with_id(line: bytes, draft: Draft) -> bytes:
    """A message that may be repeated is known by its id, also after the hub forgot the batch's key."""
    if draft.id is not None:
        return line
    return encode_draft(
        *(draft.channel, draft.type, bytes(draft.data)),
        key=draft.key,
        id=secrets.token_hex(12),
    )


async def _send(http: HttpSession, url: str, token: str, body: bytes, clock: Clock) -> Response:
    """The hub's answer: 200, or that it refuses the whole of it."""
    key = secrets.token_hex(16)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            answer = await _post(http, url, token, body, key)
            if answer.status == 200 or answer.status in _REFUSED_WHOLE:
                return answer
            raise _refused(answer, clock)
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


def _refused(answer: Response, clock: Clock) -> APIError | SignInRequired:
    why = read_no(answer.status, answer.body).message
    words = f"{answer.url} answered {answer.status}: {why}"
    if answer.status == 401:
        site = answer.url.partition("/api/")[0]
        return SignInRequired(words, command=f"curl -d @login.json {site}/login")
    if answer.status in (408, 409, 425, 429) or answer.status >= 500:
        asked = parse_retry_after(answer.headers.get("Retry-After"), wall=clock.wall())
        return TransientError(
            words, category="server", status=answer.status, retry_after=asked.seconds
        )
    return PermanentError(words, status=answer.status)


async def _batches(lines: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Lines that come within a blink of each other, with the number of the first."""
    first, batch, size = 1, list[bytes](), 0
    upcoming = asyncio.ensure_future(anext(lines, None))
    try:
        while True:
            await asyncio.wait({upcoming}, timeout=_QUIET_SECONDS if batch else None)
            line = upcoming.result() if upcoming.done() else None
            ended = upcoming.done() and line is None
            if line is not None:
                batch.append(line)
                size += len(line)
                upcoming = asyncio.ensure_future(anext(lines, None))
                if len(batch) < _MOST and size < _MOST_BYTES:
                    continue
            if batch:
                yield first, batch
                first, batch, size = first + len(batch), [], 0
            if ended:
                return
    finally:
        upcoming.cancel()
