"""Who fans out: the deciding hub on a loop, writing to sockets in slices so that nobody waits for a thousand others.

Invariants: a frame is written only to a transport whose buffer is empty; several publishes of one loop turn make one
frame; one timer serves all clients; whoever numbers and stores is elsewhere and is only asked to read.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import KeeplineError
from keepline.hub.channels import Channel
from keepline.hub.closecodes import CloseCode
from keepline.hub.cohorts import Client, Delivery
from keepline.hub.fanout import Hub, Refill
from keepline.hub.frames import text_frame
from keepline.hub.limits import Bucket, Limits
from keepline.hub.measures import RATE_LIMITED, Tally
from keepline.hub.messages import Message, join
from keepline.hub.offences import Offence
from keepline.hub.wire import Refresh
from keepline.telemetry import event

__all__ = ["Broadcaster", "Link", "Source"]

log = logging.getLogger("keepline.hub")


class Source(Protocol):
    """Who has messages that are no longer in memory: the registrar, or the bus to its process."""

    async def read(self, channel: str, after: int, limit: int) -> list[Message]:
        """Messages behind an offset, oldest first."""
        ...


class Link(Protocol):
    """A client's socket as the broadcaster needs it.

    Attributes:
        transport: where frames are written.
    """

    transport: asyncio.Transport

    async def drained(self) -> None:
        """Return when the transport's buffer is empty."""
        ...

    def end(self, code: CloseCode, reason: str) -> None:
        """Say goodbye with this code, and close."""
        ...

    def overflowed(self, dropped: int) -> None:
        """The client lost messages that it did not take in time."""
        ...


class _Watched(Bucket):
    """The inbound limit, counting what is over it."""

    __slots__ = ("over",)

    def __init__(self, limits: Limits, now: float) -> None:
        super().__init__(limits.inbound_rate, limits.inbound_burst, now)
        self.over = 0

    def take(self, now: float) -> bool:
        if super().take(now):
            return True
        self.over += 1
        RATE_LIMITED.inc()
        return False


class Broadcaster:
    """Clients and what goes out to them; belongs to one event loop. It is the outlet of a registrar in its process.

    Args:
        channels: the registrar's own when it is in this process, else copies that `restore` fills.
        source: asked for messages of `never` channels that memory no longer has.
        limits: what one client may cost.
        slice: clients written to before others get the loop.
        clock: time.
    """

    def __init__(
        self,
        channels: Iterable[Channel],
        source: Source,
        *,
        limits: Limits | None = None,
        slice: int = 100,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.limits = limits or Limits()
        self.tally = Tally()
        self._hub = Hub(channels, self.limits)
        self._source = source
        self._slice = slice
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looking = False
        self._armed: float | None = None
        self._timer: asyncio.Task[None] | None = None
        self._queue: deque[Delivery] = deque()
        self._writing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.adjust()

    @property
    def clients(self) -> Mapping[str, Client]:
        """Who is connected, by id."""
        return self._hub.clients

    def start(self) -> None:
        """Belong to the running loop."""
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """Stop; clients must be gone."""
        tasks = [*self._tasks, *([self._timer] if self._timer else [])]
        self._loop = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.tally.report()

    def adjust(self) -> None:
        """Look at the wall clock again: it may have jumped."""
        skew = self._clock.wall().timestamp() - self._clock.boottime()
        if abs(skew - self._hub.skew) > 0.001:
            self._hub.skew = skew

    # messages

    def deliver(self, message: Message) -> None:
        """Let clients have the next message of its channel."""
        if self._hub.deliver(message) and not self._looking:
            self._look_soon()

    def restore(self, name: str, messages: Iterable[Message], *, offset: int, epoch: str) -> None:
        """Take over a channel's count from the process that keeps it."""
        self._hub.restore(name, messages, offset=offset, epoch=epoch, now=self._clock.boottime())
        self._look_soon()

    # clients

    def connect(
        self, own_id: str, link: Link, *, deflate: bool, welcome: Mapping[str, Any]
    ) -> Client:
        """A new client."""
        now = self._clock.boottime()
        client = self._hub.connect(own_id, now, link=link, deflate=deflate, welcome=welcome)
        client.bucket = _Watched(self.limits, now)
        self._look_soon()
        return client

    def disconnect(self, client: Client) -> None:
        """Its socket is gone."""
        self._hub.disconnect(client)

    def receive(
        self, client: Client, text: str, permitted: Callable[[str], bool]
    ) -> Refresh | None:
        """Do what a client's message asks; a newer token is handed back."""
        asked = self._hub.receive(client, text, self._clock.boottime(), permitted)
        self._look_soon()
        return asked

    def over_rate(self, client: Client) -> int:
        """Messages of a client that were ignored, being too many."""
        return client.bucket.over if isinstance(client.bucket, _Watched) else 0

    def permit(self, client: Client) -> bool:
        """Whether a frame that is no message (a ping) is within the client's rate."""
        return client.bucket.take(self._clock.boottime())

    def subscribe(self, client: Client, names: Iterable[str]) -> None:
        """Give channels to a client of ours, whatever its rights."""
        self._hub.subscribe(client, names, self._clock.boottime())
        self._look_soon()

    def unsubscribe(self, client: Client, names: Iterable[str]) -> None:
        """Take channels from a client."""
        self._hub.unsubscribe(client, names, self._clock.boottime())
        self._look_soon()

    def tell(self, client: Client, kind: str, data: Mapping[str, Any]) -> None:
        """A notice to one client."""
        self._hub.tell(client, kind, self._clock.boottime(), data)
        self._look_soon()

    def offend(self, client: Client, offence: Offence) -> None:
        """Answer an offence."""
        self._hub.offend(client, offence, self._clock.boottime())
        self._look_soon()

    def dismiss(self, client: Client, code: CloseCode, reason: str = "") -> None:
        """Close a client's connection; it gets nothing more but that."""
        self._hub.close(client, code, reason)
        self._look_soon()

    # time

    def _look_soon(self) -> None:
        if not self._looking and self._loop is not None:
            self._looking = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        deadline = self._hub.deadline
        if deadline is None or self._loop is None:
            return
        now = self._clock.boottime()
        if deadline <= now:
            self._tick(now)
            self._look_soon()
        elif self._armed is None or deadline < self._armed:
            self._arm(deadline)

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = deadline
        assert self._loop is not None
        self._timer = self._loop.create_task(self._wait(deadline))

    async def _wait(self, deadline: float) -> None:
        await self._clock.sleep(deadline - self._clock.boottime())
        self._armed = self._timer = None
        if not self._looking:
            self._look()

    def _tick(self, now: float) -> None:
        work = self._hub.tick(now)
        for closing in work.closings:
            self._last_words(closing.client)
            closing.client.link.end(closing.code, closing.reason)
        for refill in work.refills:
            self._spawn(self._refill(refill))
        if work.deliveries:
            self._queue.extend(work.deliveries)
            if not self._writing:
                self._write()

    def _last_words(self, client: Client) -> None:
        """Answers that it has not got yet: why it is sent away is among them."""
        transport, most = client.link.transport, self.limits.max_batch
        if client.control and not transport.get_write_buffer_size() and not transport.is_closing():
            parts = range(0, len(client.control), most)
            frames = [text_frame(join(client.control[at : at + most])) for at in parts]
            transport.write(b"".join(frames))
        client.control.clear()

    def _write(self) -> None:
        """One slice of what is to be written; the rest in the next turn of the loop."""
        queue, hub, left = self._queue, self._hub, self._slice
        now = self._clock.boottime()
        while queue and left > 0:
            delivery = queue[0]
            clients = hub.hand(delivery, left)
            left -= len(clients)
            if clients:
                self._write_to(delivery, clients, now)
            if not delivery.waiting:
                queue.popleft()
        self._writing = bool(queue)
        if queue and self._loop is not None:
            self._loop.call_soon(self._write)  # what a look found would wait behind it
        else:
            self._look_soon()

    def _write_to(self, delivery: Delivery, clients: list[Client], now: float) -> None:
        frame, full = delivery.frame, []
        for client in clients:
            transport = client.link.transport
            if transport.get_write_buffer_size():
                full.append(client)
            else:
                transport.write(frame)
        for client in full:
            self._hub.stalled(delivery, client, now)
            self._spawn(self._drained(client))
        written = [client for client in clients if client.blocked is None] if full else clients
        if written and delivery.batch is not None:
            self._count(delivery, written)

    def _count(self, delivery: Delivery, written: list[Client]) -> None:
        tally, batch = self.tally, delivery.batch
        tally.frame(
            len(written), delivery.count, max(0.0, self._clock.boottime() - delivery.oldest)
        )
        if batch is not None and batch.conflated:
            tally.conflated += len(written) * delivery.conflated()
        if batch is not None and batch.dropped:
            for lost, count in batch.dropped.items():
                tally.dropped[lost] += len(written) * count
            for client in written:
                client.link.overflowed(delivery.dropped())

    async def _drained(self, client: Client) -> None:
        try:
            await client.link.drained()
        except ConnectionError:
            return  # it is gone, and whoever reads from it says so
        self._hub.drained(client, self._clock.boottime())
        self._look_soon()

    async def _refill(self, refill: Refill) -> None:
        try:
            messages = await self._source.read(refill.channel, refill.after, refill.limit)
        except KeeplineError as error:
            event(log, logging.ERROR, "Journal not read", channel=refill.channel, error=str(error))
            self._hub.close(refill.client, CloseCode.LOST_PLACE)
        else:
            self._hub.refilled(refill, messages, self._clock.boottime())
        self._look_soon()

    def _spawn(self, work: Any) -> None:
        assert self._loop is not None
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def __repr__(self) -> str:
        return f"<Broadcaster to {len(self._hub.clients)} clients>"
