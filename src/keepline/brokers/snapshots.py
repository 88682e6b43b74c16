"""What the snapshot sources of brokers share: several queries, of which each may fail, and fills that must not move.

Invariants: a query that failed leaves None and its reason, never an empty list; positions are told only beside fills
that were the same before and after them.
"""

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import TypeVar

from keepline.errors import ConfigError, KeeplineError
from keepline.model import Fill, Order, Position
from keepline.stream.snapshot import Snapshot

__all__ = ["ROUNDS", "Reading", "checked_scope", "lags_behind"]

T = TypeVar("T")

ROUNDS = 5
"""So often positions are read again when fills came meanwhile; an account that is busier than that has no snapshot."""

_RESTLESS = "fills came each time that positions were read"


class Reading:
    """One snapshot in the making.

    Attributes:
        failed: names of what could not be read, with the reason.
    """

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self._errors: list[KeeplineError] = []
        self._read = 0

    async def read(self, names: str, query: Awaitable[T]) -> T | None:
        """The answer; None when the query fails, and then `names` (with spaces between) are told as failed."""
        try:
            found = await query
        except KeeplineError as error:
            self.failed |= dict.fromkeys(names.split(), str(error))
            self._errors.append(error)
            return None
        self._read += 1
        return found

    async def at_rest(
        self,
        fills: Callable[[], Awaitable[tuple[T, ...] | None]],
        positions: Callable[[], Awaitable[tuple[Position, ...] | None]],
        mark: Callable[[tuple[T, ...]], object],
    ) -> tuple[tuple[T, ...] | None, tuple[Position, ...] | None]:
        """Fills, and positions that belong to exactly them: fills are read before and after, until nothing came.

        Args:
            fills: reads what holds the fills.
            positions: reads the positions.
            mark: what is equal of two readings with the same fills.
        """
        before = await fills()
        for _ in range(ROUNDS if before is not None else 0):
            held = await positions()
            after = await fills()
            if held is None or after is None:
                return after, None
            assert before is not None
            if mark(before) == mark(after):
                return after, held
            before = after
        if before is not None:
            self.failed["positions"] = _RESTLESS
        return before, None

    def raise_if_blind(self) -> None:
        """Raise the first failure when nothing could be read.

        Raises:
            KeeplineError: no query had an answer.
        """
        if not self._read and self._errors:
            raise self._errors[0]

    def snapshot(
        self, *, taken_at: datetime, since: datetime, scope: tuple[str, ...], **parts: object
    ) -> Snapshot:
        """The snapshot: what failed for one account is None for all."""
        told = {name: None if name in self.failed else part for name, part in parts.items()}
        return Snapshot(
            taken_at=taken_at,
            since=since,
            scope=scope,
            failed=self.failed,
            **told,  # type: ignore[arg-type]  # the names are those of the fields
        )


def checked_scope(accounts: Iterable[str]) -> tuple[str, ...]:
    """The ids of accounts as they were given.

    Raises:
        ConfigError: there is none, or it is one text.
    """
    if isinstance(accounts, str):
        raise ConfigError(f"is a list of account ids, not the text {accounts!r}", key="accounts")
    found = tuple(accounts)
    if not found:
        raise ConfigError("at least one account is needed", key="accounts")
    return found


def lags_behind(orders: Iterable[Order], fills: Iterable[Fill]) -> bool:
    """Whether orders were read before fills of theirs: more was filled than they tell."""
    filled = {order.id: order.filled for order in orders}
    for fill in fills:
        if fill.order_id in filled:
            filled[fill.order_id] -= fill.quantity
    return any(rest < 0 for rest in filled.values())
