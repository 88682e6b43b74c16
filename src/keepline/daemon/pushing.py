"""Tokens by hand: what `keepline send` pushes and `keepline listen` receives, counted.

Invariants: a token is read from a stream or a file, never from an argument; no line of output holds one.
"""

import asyncio
import os
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.config import Secret
from keepline.config.sections import read_secret_file
from keepline.credentials.token import DEFAULT_LIFETIME_SECONDS, Token
from keepline.daemon.compose import target_address
from keepline.daemon.loop import from_thread
from keepline.daemon.tokenfile import from_json
from keepline.errors import ConfigError
from keepline.relay.address import TLSConfig, default_socket_path, parse_address
from keepline.relay.receiver import TokenReceiver
from keepline.relay.sender import Delivery, Target, TokenSender
from keepline.relay.settings import TokenReceiverConfig

__all__ = [
    "PushStatistics",
    "file_lines",
    "generated",
    "in_words",
    "listen",
    "make_receiver",
    "make_targets",
    "push",
    "read_shared_secret",
    "stream_lines",
    "tls_files",
]

LONGEST_LINE = 1 << 16


@dataclass
class PushStatistics:
    """What became of the tokens of one `send`.

    Attributes:
        tokens: how many were sent.
        outcomes: deliveries by what became of them.
        seconds: from the first to the last.
        reasons: why not, by target, the newest.
    """

    tokens: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)

    def count(self, delivery: Delivery) -> None:
        self.outcomes[delivery.outcome] += 1
        if not delivery.ok:
            self.reasons[delivery.target] = delivery.reason

    def as_dict(self) -> dict[str, Any]:
        """For programs: every number, also those that are zero."""
        rate = self.tokens / self.seconds if self.seconds > 0 else 0.0
        outcomes = ("delivered", "refused", "unreachable", "too_large")
        return {
            "tokens": self.tokens,
            **{name: self.outcomes.get(name, 0) for name in outcomes},
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(rate, 1),
        }

    def in_words(self) -> dict[str, Any]:
        """For people: what happened, and nothing that did not; of one token a rate says nothing."""
        told = {name: value for name, value in self.as_dict().items() if value or name == "tokens"}
        if self.tokens < 2:
            told.pop("tokens_per_second", None)
        return told


async def push(
    lines: AsyncIterator[str],
    sender: TokenSender,
    *,
    interval: float = 0.0,
    count: int = 0,
    statistics: PushStatistics,
    told: Callable[[Token, Delivery], object],
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Push one token per line.

    Args:
        lines: bare tokens, or JSON objects with one.
        sender: knows the targets.
        interval: seconds between two tokens.
        count: end after so many; 0 goes on to the end of the lines.
        statistics: counted into.
        told: hears of each delivery.
        clock: for the interval.

    Raises:
        ConfigError: a line is no token.
    """
    began = clock.boottime()
    try:
        async with sender:
            async for line in lines:
                if statistics.tokens and interval:
                    await clock.sleep(interval)
                token = _token(line, clock)
                for delivery in await sender.send(token):
                    statistics.count(delivery)
                    told(token, delivery)
                statistics.tokens += 1
                if statistics.tokens == count:
                    break
    finally:
        statistics.seconds = clock.boottime() - began


def _token(line: str, clock: Clock) -> Token:
    if line.startswith("{"):
        return from_json(line.encode(), clock.wall())
    now = clock.wall()
    lifetime = timedelta(seconds=DEFAULT_LIFETIME_SECONDS)
    return Token(line, expires_at=now + lifetime, issued_at=now)


async def stream_lines() -> AsyncIterator[str]:
    """The lines of standard input as they come, blank ones left out; waiting for one blocks nothing."""
    while True:
        line = await from_thread(
            lambda: sys.stdin.buffer.readline(LONGEST_LINE), name="keepline-input"
        )
        if not line:
            return
        if text := _text(line, "standard input"):
            yield text


async def file_lines(path: Path) -> AsyncIterator[str]:
    """The lines of a file, blank ones left out.

    Raises:
        ConfigError: it is missing or no text.
        StorageError: others can read it.
    """
    from keepline.files import read_private

    data = await asyncio.to_thread(read_private, path)
    if data is None:
        raise ConfigError("does not exist; one token per line is expected, mode 600", file=path)
    for line in data.splitlines():
        if text := _text(line, str(path)):
            yield text


async def generated() -> AsyncIterator[str]:
    """Made-up tokens without end, for trying out."""
    while True:
        yield f"test_{secrets.token_urlsafe(24)}"


def _text(line: bytes, where: str) -> str:
    try:
        return line.decode().strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not UTF-8 text") from None


# --- options of both --------------------------------------------------------------------------------------------------


def read_shared_secret(path: Path | None) -> str | None:
    """From `--secret-file`, else KEEPLINE_SHARED_SECRET, else none."""
    if path is not None:
        return read_secret_file(path, key="--secret-file")
    given = os.environ.get("KEEPLINE_SHARED_SECRET")
    return Secret(given).reveal() if given else None


def tls_files(
    certificate: Path | None, key: Path | None, authority: Path | None
) -> TLSConfig | None:
    """The three files, or none of them.

    Raises:
        ConfigError: one is not given, missing, or not what it should be.
    """
    if certificate is None and key is None and authority is None:
        return None
    if certificate is None or key is None or authority is None:
        raise ConfigError("--tls-certificate, --tls-key and --tls-ca belong together")
    config = TLSConfig(certificate=certificate, key=key, ca=authority)
    with _as_option("--tls-certificate"):
        config.client_context()
    return config


def make_targets(
    addresses: list[str], *, secret: str | None, tls: TLSConfig | None, plain: bool
) -> list[Target]:
    """The targets of `send`; the default bot when no address is given.

    Raises:
        ConfigError: an address that is none, or that needs another option.
    """
    with _as_option("--to"):
        return [
            Target(
                target_address(address, Path.cwd()),
                name=address,
                shared_secret=secret,
                tls=_tls_for(address.partition("://")[0], tls),
                allow_plain_tcp_beyond_loopback=plain,
            )
            for address in addresses or ["bot:default"]
        ]


def make_receiver(
    at: str,
    name: str,
    *,
    secret: str | None,
    tls: TLSConfig | None,
    anybody: bool,
    plain: bool = False,
) -> TokenReceiver:
    """The receiver of `listen`: at an address, else at the socket of the bot `name`.

    Raises:
        ConfigError: an address or a name that is none, or `tls://` without certificates.
    """
    if not at:
        with _as_option("--name"):
            path = default_socket_path(name)
        return TokenReceiver(
            config=TokenReceiverConfig(unix_socket_path=path, shared_secret=secret)
        )
    with _as_option("--at"):
        address = parse_address(target_address(at, Path.cwd()))
        tls = _tls_for(address.scheme, tls)
    if address.path is not None:
        config = TokenReceiverConfig(unix_socket_path=address.path, shared_secret=secret)
    else:
        config = TokenReceiverConfig(
            prefer_unix_socket=False,
            tcp_host=address.host,
            tcp_port=address.port,
            shared_secret=secret,
            tls=tls,
            allow_unauthenticated_loopback=anybody,
            allow_plain_tcp_beyond_loopback=plain,
        )
    return TokenReceiver(config=config)


def _tls_for(scheme: str, tls: TLSConfig | None) -> TLSConfig | None:
    """Certificates where the address asks for them; never plain TCP in their place."""
    if scheme != "tls":
        return None
    if tls is None:
        raise ConfigError("tls:// needs --tls-certificate, --tls-key and --tls-ca")
    return tls


_OPTIONS = {
    "allow_plain_tcp_beyond_loopback": "--allow-plain-tcp-beyond-loopback",
    "allow_unauthenticated_loopback": "--allow-unauthenticated-loopback",
    "shared_secret": "--secret-file",
    "tcp_port": "port",
    "tcp_host": "the host",
}
"""Settings that the relay's errors name, as options."""


@contextmanager
def _as_option(option: str) -> Iterator[None]:
    """An error about a setting becomes one about the option that it came from."""
    try:
        yield
    except ConfigError as error:
        words = str(error.args[0])
        for setting, its_option in _OPTIONS.items():
            words = words.replace(setting, its_option)
        key = f"--{error.key.replace('.', '-')}" if error.key.startswith("tls.") else option
        raise ConfigError(words, key=key) from None


async def listen(
    receiver: TokenReceiver,
    *,
    seconds: float,
    count: int,
    listening: Callable[[str], object],
    told: Callable[[Token], object],
    clock: Clock = SYSTEM_CLOCK,
) -> Mapping[str, Any]:
    """Receive until the time is up or enough came; 0 means no such end.

    Returns:
        The receiver's statistics.

    Raises:
        KeeplineError: it cannot listen; says why.
    """
    enough = asyncio.Event()

    async def took(token: Token) -> None:
        told(token)
        if count and receiver.token_count >= count:  # a burst may have skipped calls, not counts
            enough.set()

    receiver.add_callback(took, full=True)
    async with AsyncExitStack() as stack:
        with _as_option("--at"):
            await stack.enter_async_context(receiver)
        listening(receiver.address)
        timer = asyncio.create_task(clock.sleep(seconds)) if seconds else None
        waits = {asyncio.create_task(enough.wait()), *([timer] if timer else [])}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return receiver.get_stats()


def in_words(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """A receiver's statistics for people: what happened, and nothing that did not."""
    refused = {
        k: n for k, n in statistics["outcomes"].items() if k not in ("accepted", "duplicate")
    }
    told = {
        "tokens": statistics["token_count"],
        "duplicates": statistics["outcomes"].get("duplicate"),
        "refused": ", ".join(f"{number} {code}" for code, number in refused.items()),
        "last token": statistics["fingerprint"],
        "generation": statistics["generation"],
        "problem": statistics["last_error"],
    }
    return {name: value for name, value in told.items() if value or name == "tokens"}
