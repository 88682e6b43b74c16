"""Orders, fills, positions and snapshots in few words, and a venue whose truth is known."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from msgspec.structs import replace

from keepline.model import Account, Fill, Order, OrderStatus, OrderType, Position, Side
from keepline.stream.snapshot import Snapshot
from keepline.stream.view import AccountView, Told, total

T0 = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
DAY_BEFORE = T0 - timedelta(days=1)
BUY, SELL = Side.BUY, Side.SELL


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def order(name: str = "1", status: OrderStatus = OrderStatus.OPEN, **more: Any) -> Order:
    given: dict[str, Any] = {
        "account": "A",
        "instrument": "MNQ",
        "side": BUY,
        "type": OrderType.LIMIT,
        "quantity": Decimal(5),
        "limit_price": Decimal(100),
        "entered_at": T0,
    }
    for key in ("quantity", "filled", "limit_price"):
        if key in more:
            more[key] = Decimal(more[key])
    return Order(id=name, status=status, **given | more)


def fill(name: str = "t1", quantity: int = 1, side: Side = BUY, **more: Any) -> Fill:
    given: dict[str, Any] = {
        "order_id": "1",
        "account": "A",
        "instrument": "MNQ",
        "price": Decimal(100),
        "at": T0,
    }
    return Fill(id=name, quantity=Decimal(quantity), side=side, **given | more)


def held(quantity: int, price: int | None = None, **more: Any) -> Position:
    given: dict[str, Any] = {"account": "A", "instrument": "MNQ"}
    average = None if price is None else Decimal(price)
    return Position(quantity=Decimal(quantity), average_price=average, **given | more)


def account(balance: int | None = 1000, name: str = "A") -> Account:
    return Account(id=name, balance=None if balance is None else Decimal(balance))


def snapshot(**more: Any) -> Snapshot:
    """A whole snapshot of account A with nothing in it, unless said otherwise; None for a query that failed."""
    parts = ("accounts", "orders", "open_orders", "positions", "fills")
    given: dict[str, Any] = dict.fromkeys(parts, ())
    given |= {"taken_at": T0, "since": DAY_BEFORE, "scope": ("A",)}
    told = given | {key: list_of(value) for key, value in more.items()}
    failed = {name: "503" for name in parts if told[name] is None}
    return Snapshot(**told, failed=failed)


def list_of(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class Truth:
    """A venue: what is, and the events that it sent."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.seconds = 0.0
        self.orders: dict[str, Order] = {}
        self.fills: dict[str, Fill] = {}
        self.balance = Decimal(1000)
        self.sent: list[Told] = []
        self._count = 0

    @property
    def wall(self) -> datetime:
        return at(self.seconds)

    def positions(self) -> tuple[Position, ...]:
        sums = [
            (name, total(f for f in self.fills.values() if f.instrument == name))
            for name in ("ES", "MNQ")
        ]
        return tuple(
            Position(account="A", instrument=name, quantity=quantity)
            for name, quantity in sums
            if quantity
        )

    def move(self) -> None:
        """Something happens."""
        self.seconds += 0.001
        at_work = [o for o in self.orders.values() if not o.status.is_final]
        step = self.chance.choice(["place", "fill", "fill", "change", "cancel"])
        if step == "place" or not at_work:
            return self._place()
        one = self.chance.choice(at_work)
        if step == "fill":
            return self._fill(one)
        if step == "change":
            price = Decimal(self.chance.randrange(90, 110))
            return self._tell(replace(one, limit_price=price, updated_at=self.wall))
        return self._tell(replace(one, status=OrderStatus.CANCELLED, updated_at=self.wall))

    def _place(self) -> None:
        self._count += 1
        self._tell(
            order(
                str(self._count),
                side=self.chance.choice([BUY, SELL]),
                instrument=self.chance.choice(["ES", "MNQ"]),
                quantity=self.chance.randrange(1, 4),
                entered_at=self.wall,
                updated_at=self.wall,
            )
        )

    def _fill(self, one: Order) -> None:
        self._count += 1
        filled = one.filled + 1
        done = filled == one.quantity
        status = OrderStatus.FILLED if done else OrderStatus.PARTIALLY_FILLED
        trade = fill(
            f"t{self._count}",
            side=one.side,
            order_id=one.id,
            instrument=one.instrument,
            at=self.wall,
        )
        self.fills[trade.id] = trade
        self.balance -= 1
        self._tell(replace(one, filled=filled, status=status, updated_at=self.wall))
        self.sent.append(trade)
        self.sent += self.positions()
        self.sent.append(Account(id="A", balance=self.balance))

    def _tell(self, one: Order) -> None:
        self.orders[one.id] = one
        self.sent.append(one)

    def queries(self, since: datetime) -> Iterator[Snapshot | None]:
        """The queries of a snapshot, one by one, as a source makes them; the snapshot comes last."""
        accounts = (Account(id="A", balance=self.balance),)
        yield None
        working = tuple(o for o in self.orders.values() if not o.status.is_final)
        yield None
        past = tuple(o for o in self.orders.values() if o.entered_at >= since)
        yield None
        fills = self._fills_since(since)
        while True:
            yield None
            positions = self.positions()
            yield None
            before, fills = fills, self._fills_since(since)
            if before == fills:
                break
        yield snapshot(
            taken_at=self.wall,
            since=since,
            accounts=accounts,
            orders=past,
            open_orders=working,
            positions=positions,
            fills=fills,
        )

    def _fills_since(self, since: datetime) -> tuple[Fill, ...]:
        return tuple(f for f in self.fills.values() if f.at >= since)

    def difference(self, view: AccountView) -> str:
        """In what a view is not the truth, "" when it is."""
        orders = {name: _bare(o) for name, o in view.orders.items()}
        checks: list[tuple[str, object, object]] = [
            ("fills", set(view.fills), set(self.fills)),
            ("orders", orders, {name: _bare(o) for name, o in self.orders.items()}),
            (
                "positions",
                {place[1]: p.quantity for place, p in view.positions.items()},
                {p.instrument: p.quantity for p in self.positions()},
            ),
            ("balance", view.accounts["A"].balance, self.balance),
        ]
        return "; ".join(
            f"{what}: {ours} is not {theirs}" for what, ours, theirs in checks if ours != theirs
        )


def _bare(one: Order) -> tuple[object, ...]:
    return one.status, one.filled, one.quantity, one.limit_price
