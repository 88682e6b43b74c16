"""Our hub as `bench/hub` runs it: sign-in, rights, journal, metrics, canary and heartbeat are on, nothing is tuned.

Its four channels carry the load; an alert each second goes through the journal beside it.
"""

import asyncio
import functools
import tempfile
import time
from pathlib import Path

import jwt

from bench.hub_servers import CHANNELS, FEED, MIXES, publish
from keepline import AnalyticsHub
from keepline.hub.opening import GateSettings
from keepline.hub.settings import HubConfig

__all__ = ["greeting", "ours"]

SECRET = "a-secret-of-the-bench-that-is-long-enough"
USERS = 20
SYMBOLS = 400
"""Enough that a key comes again only after several frames: nothing is conflated, all is delivered."""
NAMES = ("routing-metrics", "lp-performance", "exposure-updates", "system")
KINDS = ("routing-decision", "lp-metrics", "exposure-change", "state")
assert len(NAMES) == CHANNELS


@functools.cache
def token(user: int) -> str:
    now = int(time.time())
    claims = {
        "sub": f"user{user}",
        "role": "admin",
        "account": "",
        "iss": "keepline",
        "aud": "keepline-hub",
        "iat": now,
        "exp": now + 43_200,
    }
    return jwt.encode(claims, SECRET, "HS256")


def greeting(
    number: int, mixed: bool
) -> tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Path, headers, what to say and what to await, of client number i."""
    mix = MIXES[number % len(MIXES) if mixed else 0]
    names = ",".join(f'"{name}"' for name in (*[NAMES[index] for index in mix], "alerts"))
    return (
        "/ws/analytics",
        (f"Authorization: Bearer {token(number % USERS)}",),
        (f'{{"action":"subscribe","channels":[{names}]}}',),
        ('"welcome"', '"subscribed"'),
    )


async def ours(port: int, rate: float, style: str, deflate: bool) -> None:
    directory = Path(tempfile.mkdtemp())
    gate = GateSettings(directory=directory, secret=SECRET, argon2id=(64, 1, 1))
    users = gate.users()
    for user in range(USERS):
        users.add(
            f"user{user}", "a-long-word-for-bench", role="admin", account="", now=time.time() - 5
        )
    hub = AnalyticsHub(HubConfig(port=port, directory=directory, gate=gate))

    def give(stamps: list[tuple[int, int]]) -> None:
        for number, stamp in stamps:
            place = number % CHANNELS
            symbol = f"SYM{number % SYMBOLS}"
            hub.publish(
                NAMES[place],
                KINDS[place],
                {
                    "symbol": symbol,
                    "side": "BUY",
                    "volume": 1.5,
                    "lpSelected": "LP-ALPHA",
                    "at": f"@{stamp}",
                },
                key=symbol,
            )

    async def alerts() -> None:
        for number in range(1_000_000):
            await asyncio.sleep(1.013)  # in no step with the rest
            await hub.publish_durable(
                "alerts", "alert", {"severity": "info", "title": f"Number {number}"}
            )

    async with hub:
        beside = (
            [] if rate < 60 else [alerts()]
        )  # a frame before it, and a message is not the first after quiet
        await asyncio.gather(publish(rate, give, FEED), *beside)
