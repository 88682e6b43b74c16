"""The sandbox's test hub: every shape that a call can have, for clients to be tried against.

Invariants: every method is in `TABLE` with its types; nothing here knows the market.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from keepline.clock import Clock
from keepline.sandbox.signalr_calls import Method, methods
from keepline.sandbox.signalr_callwork import Caller, HubError

__all__ = ["TABLE", "TestHub"]

_TICK = 0.01

TABLE: Mapping[str, Method] = methods(
    (
        Method("Echo", (object,)),
        Method("Add", (int, int)),
        Method("Nothing"),
        Method("Count"),
        Method("WhoAmI"),
        Method("Big", (int,)),
        Method("Throw", (str,)),
        Method("Bug"),
        Method("Slow", (float,)),
        Method("Push", (str, int)),
        Method("Upload", uploads=1),
        Method("UploadTwo", (str,), uploads=2),
        Method("AskClient", (str, object), beside=True),
        Method("Abort"),
        Method("CloseAndReturn"),
        Method("Die"),
        Method("Stream", (int,), streaming=True),
        Method("StreamSlow", (int, float), streaming=True),
        Method("StreamForever", streaming=True),
        Method("StreamFail", (int,), streaming=True),
        Method("StreamBack", uploads=1, streaming=True),
    )
)
"""The methods by lower-case name."""


class TestHub:
    """The hub at `/hubs/test`; anybody may connect.

    Args:
        clock: of slow answers.
    """

    __test__ = False  # no class of tests, whatever its name says
    name = "test"
    route = "test_hub"
    table = TABLE

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def call(self, caller: Caller, method: Method, arguments: tuple[Any, ...]) -> object:
        """Do what a method of `TABLE` says that answers once."""
        match method.name, arguments:
            case "Echo", (value,):
                return value
            case "Add", (left, right):
                return left + right
            case "Count", ():
                caller.memory["count"] = caller.memory.get("count", 0) + 1
                return caller.memory["count"]
            case "WhoAmI", ():
                return caller.id
            case "Big", (size,):
                return "x" * size
            case "Throw", (words,):
                raise HubError(words)
            case "Bug", ():
                raise RuntimeError("nobody is told this")
            case "Slow", (seconds,):
                await self._clock.sleep(seconds)
            case "Push", (target, count):
                for number in range(count):
                    caller.event(target, (number,))
            case "Upload", (items,):
                return [item async for item in items]
            case "UploadTwo", (word, left, right):
                return [word, [item async for item in left], [item async for item in right]]
            case "AskClient", (target, question):
                return await caller.ask(target, question)
            case "Abort", ():
                caller.cut("close")
            case "CloseAndReturn", ():
                caller.cut("close_reconnect")
            case "Die", ():
                caller.cut("abort")
        return None

    async def stream(
        self, _: Caller, method: Method, arguments: tuple[Any, ...]
    ) -> AsyncIterator[object]:
        """Do what a method of `TABLE` says that answers with a stream."""
        if method.name == "StreamBack":
            async for item in arguments[0]:
                yield item
            return
        count = 2**31 if method.name == "StreamForever" else arguments[0]
        pause = arguments[1] if method.name == "StreamSlow" else 0.0
        for number in range(count):
            yield number
            await (self._clock.sleep(pause) if pause else asyncio.sleep(0))
            if method.name == "StreamForever":
                await self._clock.sleep(_TICK)
        if method.name == "StreamFail":
            raise HubError("ran out")

    def answered(self, _: Caller, __: Method, ___: tuple[Any, ...]) -> None:
        """Nothing follows an answer here."""
