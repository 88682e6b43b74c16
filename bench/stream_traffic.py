"""A recorded session for the bench of streams: quotes, trades and depth of three contracts as ProjectX sends them.

Generated from a seed, so that every run and every library has the same bytes: half of it quotes (one in twenty whole,
the others with what changed), three tenths depth with ten levels, two tenths trades, one to three of them.
"""

import random
from collections.abc import Iterator

from keepline.stream.codec import codec
from keepline.stream.messages import Invocation

__all__ = ["TARGETS", "frames", "messages"]

TARGETS = ("GatewayQuote", "GatewayTrade", "GatewayDepth")
CONTRACTS = {"EP": 6000.0, "ENQ": 21000.0, "MGC": 2700.0}
MINUTE = "2026-01-05T15:04"


def messages(count: int, seed: int = 7) -> Iterator[Invocation]:
    """So many events."""
    chance = random.Random(seed)
    prices = dict(CONTRACTS)
    for number in range(count):
        symbol = chance.choice(tuple(CONTRACTS))
        prices[symbol] += chance.choice((-0.25, 0.0, 0.25))
        moment = f"{MINUTE}:{chance.randrange(60):02}.{chance.randrange(10**6):06}+00:00"
        at = number % 10
        if at < 5:
            what, payload = "Quote", _quote(chance, symbol, prices[symbol], moment)
        elif at < 8:
            what, payload = "Depth", _depth(chance, prices[symbol], moment)
        else:
            what, payload = "Trade", _trades(chance, symbol, prices[symbol], moment)
        yield Invocation(f"Gateway{what}", [f"CON.F.US.{symbol}.H26", payload])


def _quote(chance: random.Random, symbol: str, price: float, moment: str) -> dict[str, object]:
    changed: dict[str, object] = {
        "symbol": f"F.US.{symbol}",
        "lastPrice": price,
        "bestBid": price - 0.25,
        "bestAsk": price + 0.25,
        "volume": chance.randrange(1_000_000),
        "lastUpdated": moment,
        "timestamp": moment,
    }
    if chance.random() < 0.05:
        changed |= {
            "symbolName": f"/{symbol}",
            "open": price - 20,
            "high": price + 30.5,
            "low": price - 42.25,
        }
    if chance.random() < 0.5:
        changed |= {"change": 12.75, "changePercent": 0.21}
    return changed  # fmt: skip


def _depth(chance: random.Random, price: float, moment: str) -> list[dict[str, object]]:
    return [
        {
            "timestamp": moment,
            "type": chance.choice((1, 2)),
            "price": price + level * 0.25,
            "volume": chance.randrange(60),
            "currentVolume": chance.randrange(60),
        }
        for level in range(-5, 5)
    ]


def _trades(
    chance: random.Random, symbol: str, price: float, moment: str
) -> list[dict[str, object]]:
    return [
        {
            "symbolId": f"F.US.{symbol}",
            "price": price,
            "timestamp": moment,
            "type": chance.randrange(2),
            "volume": chance.randrange(1, 9),
        }
        for _ in range(chance.randrange(1, 4))
    ]


def frames(count: int, encoding: str) -> list[bytes]:
    """The same as one frame for each message."""
    encode = codec(encoding).encode
    return [encode(message) for message in messages(count)]
