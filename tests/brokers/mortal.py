"""A process that has imported everything and forks a bot on demand, which dies before its n-th step as by kill -9.

It reads one JSON command per line from standard input, says the pid, and lets the bot go at the next line. Then come
what the bot said when it lived to its end, and `{"done": …}` with the signal that ended it.
"""

import asyncio
import json
import os
import signal
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

from keepline.brokers.base import OrderIntent
from keepline.brokers.orders import OrderGateway, OrderJournal
from keepline.brokers.orders.store import JournalFile
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.trading import ProjectXTrading
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.trading import SchwabTrading
from keepline.http import HttpSession
from keepline.model import OrderType, Side

STEPS = ("begin", "insert", "update", "commit", "restore", "new_fills")


def say(**line: Any) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


class Steps:
    """Counts the steps of a bot: what it does to its journal, and its requests before and after."""

    def __init__(self, kill_at: int | None) -> None:
        self.seen: list[str] = []
        self._kill_at = kill_at

    def step(self, name: str) -> None:
        if len(self.seen) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        self.seen.append(name)

    def watch(self, http: HttpSession) -> None:
        for name in STEPS:
            setattr(JournalFile, name, self._before(name, getattr(JournalFile, name)))
        request = http.request

        async def asked(method: str, url: str, **more: Any) -> Any:
            name = f"{method} {url.rpartition('/')[2]}"
            self.step(name)
            try:
                return await request(method, url, **more)
            finally:
                self.step(f"after {name}")

        http.request = asked  # type: ignore[method-assign]

    def _before(self, name: str, function: Any) -> Any:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            self.step(name)
            return function(*args, **kwargs)

        return stepped


async def bot(command: dict[str, Any]) -> None:
    """Place one order, and say what became of it."""
    steps = Steps(command["kill_at"])

    async def tokens() -> str:
        return str(command["token"])

    async with HttpSession() as http:
        steps.watch(http)
        broker: Any
        if command["broker"] == "projectx":
            broker = ProjectXTrading(ProjectXClient(tokens, base_url=command["url"], http=http))
        else:
            broker = SchwabTrading(SchwabClient(tokens, base_url=command["url"], http=http))
        intent = OrderIntent(
            id="entry",
            account=command["account"],
            instrument=command["instrument"],
            side=Side.BUY,
            quantity=Decimal(command["quantity"]),
            type=OrderType.MARKET,
        )
        async with OrderGateway(broker, OrderJournal(Path(command["journal"]))) as gateway:
            outcome = await (await gateway.place(intent)).final()
    say(state=outcome.state.value, steps=steps.seen)


def child(command: dict[str, Any]) -> None:
    status = 1
    try:
        asyncio.run(bot(command))
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    for line in sys.stdin:
        command = json.loads(line)
        gate, opener = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.read(gate, 1)
            child(command)
        say(pid=pid)
        sys.stdin.readline()
        os.write(opener, b"!")
        os.close(gate)
        os.close(opener)
        say(done=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
