"""The demo's desk and its hub: invented trading told through the notify functions, seen by a screen of the demo's own.

Invariants: every figure is made up and comes from the clock's chance; the sign-in is made for one showing and gone with
its directory; nothing listens beyond loopback.
"""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from keepline.clock import Clock
from keepline.daemon.hubpart import CHANNEL, states
from keepline.desk.notify import (
    notify_alert,
    notify_exposure_change,
    notify_lp_status_change,
    notify_routing_decision,
    use_publisher,
)
from keepline.errors import KeeplineError, TransientError
from keepline.http import HttpSession
from keepline.hub.opening import GateSettings
from keepline.hub.server import AnalyticsHub
from keepline.hub.settings import HubConfig
from keepline.hub.tail import Tail

__all__ = ["USER", "DemoDesk", "DemoHub"]

USER = "demo"

STEP_SECONDS = 0.25
_CHANNELS = ("exposure-updates", "lp-performance", "routing-metrics", "alerts", "system")
_SYMBOLS = {"EURUSD": 1.08, "GBPUSD": 1.27, "USDJPY": 151.0, "XAUUSD": 2350.0}
_PROVIDERS = ("Alder", "Birch", "Cedar")
_DECISIONS = ("ABOOK", "BBOOK", "HYBRID", "PARTIAL_HEDGE", "REJECT")
_LIMIT = 500_000.0
_QUIET_STEPS = 40


class DemoDesk:
    """A desk that trades with itself.

    Args:
        chance: a number in [0, 1) at each call.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._net = dict.fromkeys(_SYMBOLS, 0.0)
        self._degraded = ""
        self._since_alert = _QUIET_STEPS

    def step(self) -> None:
        """A moment of trading, told to whoever the notify functions go to."""
        self._trade()
        self._look_at_providers()
        total = sum(abs(net) for net in self._net.values())
        net = sum(self._net.values())
        share = {name: round(total / len(_PROVIDERS), 2) for name in _PROVIDERS}
        by_symbol = {symbol: round(each, 2) for symbol, each in self._net.items()}
        notify_exposure_change(round(total, 2), round(net, 2), _LIMIT, by_symbol, share)
        self._since_alert += 1
        if abs(net) > 0.6 * _LIMIT and self._since_alert > _QUIET_STEPS:
            self._since_alert = 0
            words = f"net {net:,.0f} of {_LIMIT:,.0f}"
            notify_alert("warning", "exposure", "Exposure is high", words, "demo desk", ["Hedge"])

    def _trade(self) -> None:
        symbol = self._one_of(tuple(_SYMBOLS))
        buys = self._chance() < 0.5
        volume = round(0.1 + 4.9 * self._chance(), 2)
        decision = self._one_of(_DECISIONS)
        rejected = decision == "REJECT"
        notify_routing_decision(
            symbol,
            "buy" if buys else "sell",
            volume,
            decision,
            None if rejected or decision == "BBOOK" else self._one_of(_PROVIDERS),
            None if rejected else round(2 + 30 * self._chance(), 1),
            round(0.2 + self._chance(), 2),
            None if rejected else round(self._chance() - 0.4, 2),
        )
        if not rejected:
            self._net[symbol] += volume * 10_000 * (1 if buys else -1)

    def _look_at_providers(self) -> None:
        if self._chance() < 0.03:
            self._degraded = "" if self._degraded else self._one_of(_PROVIDERS)
            if self._degraded:
                title = f"{self._degraded} is slow"
                items = ["Send less there", "Call them"]
                notify_alert("error", "liquidity", title, "200 ms and more", "demo desk", items)
        for name in _PROVIDERS:
            slow = name == self._degraded
            notify_lp_status_change(
                name,
                "degraded" if slow else "connected",
                round(0.3 + 0.3 * self._chance(), 2),
                round((70 if slow else 95) + 4 * self._chance(), 1),
                round((200 if slow else 8) + 6 * self._chance(), 1),
                round(80 + 40 * self._chance(), 0),
                round((9 if slow else 1) * self._chance(), 2),
                99.9,
            )

    def _one_of(self, names: tuple[str, ...]) -> str:
        return names[int(self._chance() * len(names))]


class DemoHub:
    """The demo's hub in the demo's own loop, with a user for this showing.

    Args:
        directory: everything that it keeps goes there.
        status: the daemon's, as `keepline status` shows it.
        clock: time and chance.

    Attributes:
        password: of the user.
        url: of the page, once it runs.
        received: what the demo's own screen got, by channel.
    """

    def __init__(
        self, directory: Path, status: Callable[[], Mapping[str, Any]], *, clock: Clock
    ) -> None:
        self.password = secrets.token_urlsafe(9)
        self.url = ""
        self.received: Counter[str] = Counter()
        self._directory = directory
        self._status = status
        self._clock = clock
        self._seen = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["DemoHub"]:
        """Serve, trade and watch meanwhile."""
        config = await asyncio.to_thread(self._config)
        async with AnalyticsHub(config, clock=self._clock) as hub:
            self.url = hub.url
            before = use_publisher(hub)
            tasks = [asyncio.create_task(self._trade(hub)), asyncio.create_task(self._watch())]
            try:
                yield self
            finally:
                use_publisher(before)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def seen(self) -> None:
        """Return when the screen has got something of each of the desk's channels."""
        await self._seen.wait()

    def _config(self) -> HubConfig:
        gate = GateSettings(directory=self._directory)
        users = gate.users()
        users.load()
        now = self._clock.wall().timestamp() - 5  # tokens are dated in whole seconds
        users.add(USER, self.password, role="admin", now=now)
        return HubConfig(port=0, directory=self._directory, gate=gate, drain_seconds=0.0)

    async def _trade(self, hub: AnalyticsHub) -> None:
        desk, said = DemoDesk(self._clock.chance), dict[str, Any]()
        while True:
            desk.step()
            for key, state in states(self._status()).items():
                if said.get(key) != state:
                    said[key] = state
                    hub.publish(CHANNEL, *state, key=key)
            await self._clock.sleep(STEP_SECONDS)

    async def _watch(self) -> None:
        """Sign in as a person would, and count what comes."""
        async with HttpSession() as http:
            body = {"username": USER, "password": self.password}
            answer = await http.request("POST", f"{self.url}/login", json=body)
        if answer.status != 200:
            raise TransientError(f"the demo's hub answered {answer.status}", category="server")
        with contextlib.suppress(KeeplineError):  # the hub ends before its screens do
            async for message in Tail(
                self.url, answer.json()["token"], _CHANNELS, clock=self._clock
            ).messages():
                self.received[message["channel"]] += 1
                if len(self.received.keys() & set(_CHANNELS[:3])) == 3:
                    self._seen.set()
