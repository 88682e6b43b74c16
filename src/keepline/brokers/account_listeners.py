"""Who listens to an account: each callback has a mailbox of its own, and is told in the end whatever did not fit in.

Invariants: what a full mailbox refused is owed: the newest state of each order, fill, position and balance, and it is
delivered, marked `recovered`, once there is room, before anything newer; so much at most is owed, the rest is counted.
"""

from collections.abc import Callable, Hashable
from typing import Final, TypeAlias

from keepline.clock import Clock
from keepline.model import Account, Fill, Order, Position
from keepline.stream.delivery import Callback, Delivery, Overflow, Put
from keepline.stream.snapshot import Discrepancy
from keepline.stream.view import Change

__all__ = ["MOST_OWED", "AccountListener", "News"]

MOST_OWED: Final = 20_000
"""So much is owed to one callback; of a callback that never returns the oldest is forgotten."""

News: TypeAlias = Change | Discrepancy
"""What listeners are told of."""

_FULL: Final = frozenset({Put.OVERFLOW, Put.REFUSED})


class AccountListener:
    """One callback.

    Args:
        callback: a coroutine function runs on the loop, a plain function in a thread of its own.
        channel: what it listens to, for logs and metrics.
        full: it gets the `Change` instead of the value.
        mailbox: how many events may wait for it.
        on_overflow: told when the mailbox is full, and when it has room again.
        clock: time.

    Raises:
        ConfigError: it is not callable.
    """

    def __init__(
        self,
        callback: Callback,
        *,
        channel: str,
        full: bool,
        mailbox: int,
        on_overflow: Callable[[Overflow], None],
        clock: Clock,
    ) -> None:
        self._callback, self._channel, self._full = callback, channel, full
        self._limit, self._tell_overflow, self._clock = mailbox, on_overflow, clock
        self._owed: dict[Hashable, News] = {}
        self._delivery = self._made()

    @property
    def owed(self) -> int:
        """How much waits for room in the mailbox."""
        return len(self._owed)

    def tell(self, news: News) -> None:
        """Something happened; cheap, never raises, never waits."""
        if not self._put(news):
            self._owe(news)

    async def close(self, seconds: float) -> None:
        """Give the callback so long for what waits; a later event begins anew."""
        old, self._delivery = self._delivery, self._made()
        self._owed.clear()
        await old.close(drain_seconds=seconds)

    def _made(self) -> Delivery:
        return Delivery(
            self._callback,
            channel=self._channel,
            limit=self._limit,
            on_overflow=self._overflowed,
            clock=self._clock,
        )

    def _put(self, news: News) -> bool:
        told = news.value if isinstance(news, Change) and not self._full else news
        return self._delivery.push((told,)) not in _FULL

    def _owe(self, news: News) -> None:
        place = _place(news)
        if isinstance(news, Change):
            first = self._owed.get(place, news)
            before = first.before if isinstance(first, Change) else None
            news = Change(news.value, before, recovered=True)
        self._owed[place] = news
        if len(self._owed) > MOST_OWED:
            del self._owed[next(iter(self._owed))]

    def _overflowed(self, overflow: Overflow) -> None:
        self._tell_overflow(overflow)
        if overflow.over:
            self._settle_up()

    def _settle_up(self) -> None:
        for place, news in list(self._owed.items()):
            if not self._put(news):
                return  # the mailbox is full again, and will say when it is not
            del self._owed[place]

    def __repr__(self) -> str:
        return f"<AccountListener {self._delivery!r}, {self.owed} owed>"


def _place(news: News) -> Hashable:
    """What takes the place of what: a newer state of the same thing."""
    if isinstance(news, Discrepancy):
        return news.kind, news.account, news.id
    match news.value:
        case Order(id=name) | Fill(id=name) | Account(id=name):
            return type(news.value), name
        case Position(account=account, instrument=instrument):
            return Position, account, instrument
