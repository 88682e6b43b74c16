"""What the sandbox trades: futures for ProjectX and shares for Schwab, one line each.

Invariants: a tick is exact (Decimal); an id names one instrument for ever.

Source of ticks and tick values: CME Group's contract specifications; the prices are invented.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

__all__ = ["LISTINGS", "Listing"]

_BEYOND = Decimal(10**12)  # no price is as high, and Decimal cannot divide what is much higher


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One instrument.

    Attributes:
        id: as orders name it.
        symbol: ProjectX's `symbolId`, Schwab's symbol.
        name: as people say it.
        description: in words.
        tick: the smallest step of its price.
        tick_value: what a tick is worth per unit, in dollars.
        price: around which the walk goes.
        depth: how many units one order gets filled per second.
        margin: held per unit; None when the whole price is paid.
        fee: per unit and fill.
        active: whether it can be traded.
        cusip: Schwab's number of it.
    """

    id: str
    symbol: str
    name: str
    description: str
    tick: Decimal
    tick_value: Decimal
    price: Decimal
    depth: int = 10
    margin: Decimal | None = Decimal(500)
    fee: Decimal = Decimal("0.37")
    active: bool = True
    cusip: str = ""

    @property
    def is_future(self) -> bool:
        """Whether it is held on margin: ProjectX's; Schwab's are shares."""
        return self.margin is not None

    def on_tick(self, price: Decimal) -> bool:
        """Whether a price is a whole number of ticks."""
        return abs(price) < _BEYOND and price % self.tick == 0

    def rounded(self, price: float) -> Decimal:
        """The nearest price that exists."""
        return round(price / float(self.tick)) * self.tick

    def worth(self, points: Decimal, size: Decimal) -> Decimal:
        """Dollars that a move of so many points makes on so many units."""
        return points / self.tick * self.tick_value * size


def _future(
    code: str, month: str, words: str, tick: str, value: str, price: str, *, active: bool = True
) -> Listing:
    return Listing(
        id=f"CON.F.US.{code}.{month}",
        symbol=f"F.US.{code}",
        name=f"{code}{month[0]}{month[-1]}",
        description=words,
        tick=Decimal(tick),
        tick_value=Decimal(value),
        price=Decimal(price),
        active=active,
    )


def _share(symbol: str, words: str, cusip: str, price: str) -> Listing:
    cent = Decimal("0.01")
    return Listing(
        id=symbol,
        symbol=symbol,
        name=symbol,
        description=words,
        tick=cent,
        tick_value=cent,
        price=Decimal(price),
        depth=500,
        margin=None,
        fee=Decimal(0),
        cusip=cusip,
    )


LISTINGS: Mapping[str, Listing] = MappingProxyType(
    {
        listing.id: listing
        for listing in (
            _future("MES", "Z26", "Micro E-mini S&P 500: December 2026", "0.25", "1.25", "6000"),
            _future("MNQ", "Z26", "Micro E-mini Nasdaq-100: December 2026", "0.25", "0.5", "21500"),
            _future("EP", "Z26", "E-mini S&P 500: December 2026", "0.25", "12.5", "6000"),
            _future("MGC", "Z26", "Micro Gold: December 2026", "0.1", "1", "2650"),
            _future("MCLE", "Z26", "Micro Crude Oil: December 2026", "0.01", "1", "71"),
            _future("TYA", "Z26", "10-Year T-Note: December 2026", "0.015625", "15.625", "110"),
            _future("MES", "H25", "Micro E-mini S&P 500: March 2025", "0.25", "1.25", "5700",
                    active=False),
            _share("AAPL", "Apple Inc", "037833100", "230"),
            _share("F", "Ford Motor Co", "345370860", "11"),
            _share("MSFT", "Microsoft Corp", "594918104", "430"),
            _share("SPY", "SPDR S&P 500 ETF Trust", "78462F103", "600"),
        )
    }
)  # fmt: skip
"""Every instrument of the venue, by id."""
