"""Pushes tokens to bots: each target on its own, none waits for another.

Invariants: `send` reports and never raises for what a bot did; an older token is never sent after a newer one was
handed to the same target; a refresh token goes only where the target says so; no secret reaches a report or a log.
"""

import asyncio
import logging
import os
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from types import TracebackType
from typing import Literal

from keepline import telemetry
from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.credentials.token import Token
from keepline.errors import ConfigError
from keepline.portal import shared_portal
from keepline.relay.address import Address, TLSConfig, is_loopback, parse_address
from keepline.relay.channel import Channel, Unreachable, open_channel
from keepline.relay.message import LARGEST_MESSAGE, Code, encode_push, seal
from keepline.relay.settings import check_count, check_seconds, secret_bytes
from keepline.relay.wire import Answer
from keepline.resilience.backoff import Backoff

__all__ = ["Delivery", "DeliveryReport", "Outcome", "Target", "TokenSender"]

log = logging.getLogger("keepline.relay")

Outcome = Literal["delivered", "refused", "unreachable", "too_large", "superseded"]

_DELIVERIES = telemetry.REGISTRY.counter(
    "relay_deliveries_total", "Tokens handed to bots, by what became of each.", "outcome"
)
_FINAL_CODES = frozenset(code.value for code in Code if code.is_final) | {
    "needs_secret",
    "no_greeting",
}


@dataclass(frozen=True)
class Target:
    """A bot that tokens are pushed to.

    Attributes:
        address: `unix:/path`, a path, `tcp://host:port` or `tls://host:port`.
        name: how logs and reports call it; the address unless given.
        send_refresh_token: hand over the refresh token too; otherwise the field is the empty string.
        shared_secret: proven to the bot, never sent.
        tls: our certificate and whom we trust; needed with `tls://`.
        allowed_uids: users beside us, root and the owner of a directory of its own that may serve the socket.
        allow_plain_tcp_beyond_loopback: send over unencrypted TCP to another machine: tokens can be read on the way.

    Raises:
        ConfigError: an address that is none, TLS without certificates, plain TCP to another machine.
    """

    address: str | os.PathLike[str]
    _: KW_ONLY
    name: str = ""
    send_refresh_token: bool = False
    shared_secret: str | bytes | None = field(default=None, repr=False)
    tls: TLSConfig | None = None
    allowed_uids: tuple[int, ...] = ()
    allow_plain_tcp_beyond_loopback: bool = False
    endpoint: Address = field(init=False, repr=False)

    def __post_init__(self) -> None:
        endpoint = parse_address(self.address, key="target.address")
        object.__setattr__(self, "endpoint", endpoint)
        object.__setattr__(self, "name", self.name or str(endpoint))
        secret_bytes(self.shared_secret, warn=True)
        if endpoint.scheme != "unix" and endpoint.port == 0:
            raise ConfigError(f"{endpoint} names no port", key="target.address")
        if endpoint.scheme == "tls" and self.tls is None:
            message = f"{endpoint} needs certificates: ours, its key, and the bot's authority"
            raise ConfigError(message, key="target.tls")
        if endpoint.scheme != "tls" and self.tls is not None:
            raise ConfigError(f"{endpoint} is not encrypted; write tls://", key="target.address")
        if endpoint.scheme == "tcp" and not (
            is_loopback(endpoint.host) or self.allow_plain_tcp_beyond_loopback
        ):
            raise ConfigError(
                f"{endpoint} is another machine, and anybody on the way could read the token;"
                " use tls://, or allow it with allow_plain_tcp_beyond_loopback",
                key="target.address",
            )


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one token at one target.

    Attributes:
        target: its name.
        outcome: `delivered`, `refused`, `unreachable`, `too_large`, or `superseded` by a newer token meanwhile.
        attempts: how often it was tried.
        reason: in words why not; "" when delivered.
        seconds: from `send` to the last answer.
    """

    target: str
    outcome: Outcome
    attempts: int
    reason: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.outcome == "delivered"


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What became of one token at all targets, in their order.

    Attributes:
        deliveries: one for each target.
        fingerprint: of the token.
        generation: of the token.
    """

    deliveries: tuple[Delivery, ...]
    fingerprint: str = ""
    generation: int = 0

    @property
    def ok(self) -> bool:
        """Whether every target has it."""
        return all(delivery.ok for delivery in self.deliveries)

    @property
    def delivered(self) -> int:
        """How many targets have it."""
        return sum(delivery.ok for delivery in self.deliveries)

    @property
    def failed(self) -> tuple[Delivery, ...]:
        """The others."""
        return tuple(delivery for delivery in self.deliveries if not delivery.ok)

    def __iter__(self) -> Iterator[Delivery]:
        return iter(self.deliveries)

    def __len__(self) -> int:
        return len(self.deliveries)


class TokenSender:
    """Pushes tokens to targets.

    Each send opens a connection to each target, unless the sender is used with `async with`: then connections are kept
    for the sends on that loop.

    Args:
        targets: whom to push to; a bare address stands for `Target(address)`.
        attempts: how often one delivery is tried.
        retry_delay: seconds before the second attempt; doubles each time, with jitter.
        timeout: seconds for one attempt.
        credential: the credential's name in the messages.
        clock: for tests.

    Raises:
        ConfigError: an address or a number that cannot work.
    """

    def __init__(
        self,
        targets: Iterable[Target | str | os.PathLike[str]] | Target | str | os.PathLike[str],
        *,
        attempts: int = 3,
        retry_delay: float = 5.0,
        timeout: float = 5.0,
        credential: str = "default",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if isinstance(targets, Target | str | os.PathLike):
            targets = [targets]
        self.targets = tuple(t if isinstance(t, Target) else Target(t) for t in targets)
        check_count("attempts", attempts, least=1)
        check_seconds("timeout", timeout)
        check_seconds("retry_delay", retry_delay, zero=True)
        self.attempts = attempts
        self.timeout = timeout
        self.credential = credential
        self._clock = clock
        self._backoff = Backoff(tuple(retry_delay * 2**n for n in range(max(1, attempts - 1))))
        self._lines = [_Line(target) for target in self.targets]
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(self, token: Token, *, credential: str | None = None) -> DeliveryReport:
        """Push a token to all targets at once and return when each has it or has failed for good.

        Args:
            token: what to push.
            credential: its credential's name, if another than the sender's.
        """
        name = self.credential if credential is None else credential
        deliveries = await asyncio.gather(
            *(self._deliver(line, line.begin(), token, name) for line in self._lines)
        )
        return DeliveryReport(tuple(deliveries), token.fingerprint, token.generation)

    def send_sync(self, token: Token, *, credential: str | None = None) -> DeliveryReport:
        """As `send`, for plain code; works inside a running loop too, which it blocks meanwhile."""
        return shared_portal().call(self.send, token, credential=credential)

    async def close(self) -> None:
        """Close the connections that were kept."""
        self._loop = None
        for line in self._lines:
            line.drop()

    async def __aenter__(self) -> "TokenSender":
        self._loop = asyncio.get_running_loop()
        for line in self._lines:
            line.lock = asyncio.Lock()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _deliver(self, line: "_Line", ticket: int, token: Token, name: str) -> Delivery:
        target = line.target
        began = self._clock.boottime()
        body = encode_push(token, name, with_refresh_token=target.send_refresh_token)
        outcome, attempts, reason = await self._try(line, ticket, body)
        # what a bot answered may repeat what it was sent
        reason = telemetry.redact(reason, token.access_token, token.refresh_token)
        delivery = Delivery(target.name, outcome, attempts, reason, self._clock.boottime() - began)
        _DELIVERIES.inc(outcome)
        _tell(delivery, token, name)
        return delivery

    async def _try(self, line: "_Line", ticket: int, body: bytes) -> tuple[Outcome, int, str]:
        size = line.message_size(body)
        if size > LARGEST_MESSAGE:
            return "too_large", 0, f"the message has {size} bytes, a bot reads {LARGEST_MESSAGE}"
        outcome: Outcome = "unreachable"
        reason = ""
        for attempt in range(1, self.attempts + 1):
            if line.newest != ticket:
                return "superseded", attempt - 1, "a newer token took its place"
            outcome, reason, is_final = await self._attempt(line, body)
            if is_final or attempt == self.attempts:
                break
            await self._clock.sleep(self._backoff.delay(attempt, self._clock.chance()))
        return outcome, attempt, reason

    async def _attempt(self, line: "_Line", body: bytes) -> tuple[Outcome, str, bool]:
        try:
            answer = await within(self._clock, self.timeout, self._exchange(line, body))
        except TimeoutError:
            hint = "; does it ask for the shared secret?" if line.secret else ""
            return "unreachable", f"no answer within {self.timeout:g} s{hint}", False
        except Unreachable as error:
            return "unreachable", str(error), error.is_final
        if answer.ok:
            return "delivered", "", True
        if answer.code == "silent":
            # a bot that refuses our certificate may close before it says so
            hint = "; does it trust our certificate?" if line.target.tls else ""
            return "unreachable", f"{answer.reason}{hint}", False
        reason = f"{answer.code}: {answer.reason}" if answer.code else "ERR without a reason"
        return "refused", reason, answer.code in _FINAL_CODES

    async def _exchange(self, line: "_Line", body: bytes) -> Answer:
        if self._loop is asyncio.get_running_loop() and line.lock is not None:
            async with line.lock:
                return await self._exchange_kept(line, body)
        channel = await self._open(line)
        try:
            return await channel.deliver(body)
        finally:
            channel.close()

    async def _exchange_kept(self, line: "_Line", body: bytes) -> Answer:
        kept, line.channel = line.channel, None
        if kept is not None and kept.is_usable:
            answer = await self._use(line, kept, body)
            if answer.code != "silent":
                return answer
            # it was closed while nobody looked, as a bot that restarts does: that is no failed attempt
        elif kept is not None:
            kept.close()
        return await self._use(line, await self._open(line), body)

    async def _use(self, line: "_Line", channel: Channel, body: bytes) -> Answer:
        answer = Answer(False, "silent", "it closed the connection without an answer")
        try:
            answer = await channel.deliver(body)
        except Unreachable as error:
            answer = Answer(False, "silent", str(error))
        finally:
            if answer.ok and channel.is_usable and self._loop is not None:
                line.channel = channel
            else:
                channel.close()
        return answer

    async def _open(self, line: "_Line") -> Channel:
        target = line.target
        return await open_channel(
            target.endpoint,
            clock=self._clock,
            shared_secret=line.secret,
            context=await line.tls_context(),
            server_name=target.tls.server_name if target.tls else "",
            allowed_uids=target.allowed_uids,
        )

    def __repr__(self) -> str:
        return f"<TokenSender of {self.credential} to {len(self.targets)} targets>"


class _Line:
    """What a sender knows of one target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.secret = secret_bytes(target.shared_secret)
        self.newest = 0
        self.lock: asyncio.Lock | None = None
        self.channel: Channel | None = None
        self._context: ssl.SSLContext | None = None

    def begin(self) -> int:
        """A ticket for the newest token: whoever holds an older one gives up."""
        self.newest += 1
        return self.newest

    def message_size(self, body: bytes) -> int:
        """Bytes on the wire; nonce and number of a proof do not change its length."""
        return len(seal(self.secret, "", 0, body) if self.secret else body) + 1

    def drop(self) -> None:
        channel, self.channel, self.lock = self.channel, None, None
        if channel is not None:
            channel.close()

    async def tls_context(self) -> ssl.SSLContext | None:
        if self._context is None and self.target.tls is not None:
            try:
                self._context = await asyncio.to_thread(self.target.tls.client_context)
            except ConfigError as error:
                raise Unreachable(str(error), is_final=True) from error
        return self._context


def _tell(delivery: Delivery, token: Token, name: str) -> None:
    telemetry.event(
        log,
        logging.INFO if delivery.ok else logging.WARNING,
        "Token delivered" if delivery.ok else "Token not delivered",
        target=delivery.target,
        credential=name,
        generation=token.generation,
        attempts=delivery.attempts,
        **({} if delivery.ok else {"outcome": delivery.outcome, "reason": delivery.reason}),
    )
