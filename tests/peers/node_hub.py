"""The official SignalR client under Node, told what to do line by line, and what it tells."""

import asyncio
import itertools
import json
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

__all__ = ["Node", "NodeError", "running"]


class NodeError(Exception):
    """The official client raised."""


class Node:
    """A Node process with any number of connections of the official client, by name.

    Attributes:
        told: its events, oldest first: what handlers, streams and the connections' life said.
    """

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._more = asyncio.Event()
        self.told: list[dict[str, Any]] = []

    async def read(self) -> None:
        """Take what it says, until it ends."""
        while line := await self._out.readline():
            said = json.loads(line)
            if "id" in said and "event" not in said:
                answer = self._answers.pop(said["id"])
                if answer.cancelled():
                    continue
                if said.get("error") is None:
                    answer.set_result(said["result"])
                else:
                    answer.set_exception(NodeError(said["error"]))
            else:
                self.told.append(said)
                self._more.set()

    def begin(self, do: str, **options: Any) -> "asyncio.Future[Any]":
        """Have something done; its answer, for later."""
        number = next(self._numbers)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        self._in.write(json.dumps({"id": number, "do": do, **options}).encode() + b"\n")
        return answer

    async def do(self, do: str, **options: Any) -> Any:
        """Have something done and wait for it.

        Raises:
            NodeError: the client raised.
        """
        return await self.begin(do, **options)

    async def until(self, condition: Callable[[list[dict[str, Any]]], object]) -> None:
        """Return once something holds of what was told."""
        while not condition(self.told):
            self._more.clear()
            await self._more.wait()

    def of(self, event: str, **which: Any) -> list[dict[str, Any]]:
        """What was told of one kind."""
        return [
            one
            for one in self.told
            if one["event"] == event and all(one.get(key) == value for key, value in which.items())
        ]

    async def first(self, event: str, **which: Any) -> dict[str, Any]:
        """The first event of a kind, once it came."""
        await self.until(lambda _: self.of(event, **which))
        return self.of(event, **which)[0]

    def items(self, name: str) -> list[Any]:
        """What a stream brought so far."""
        return [one["item"] for one in self.of("item", name=name)]

    def calls(self, target: str, hub: str = "hub") -> list[list[Any]]:
        """The arguments of each call of a handler so far."""
        return [one["args"] for one in self.of("call", target=target, hub=hub)]


@asynccontextmanager
async def running(node: str, folder: Path) -> AsyncIterator[Node]:
    """Start the driver; it ends with the block."""
    process = await asyncio.create_subprocess_exec(
        node, "driver.mjs", cwd=folder, env=dict(os.environ), stdin=PIPE, stdout=PIPE, limit=1 << 24
    )
    made = Node(process)
    reading = asyncio.create_task(made.read())
    try:
        await made.first("ready")
        yield made
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        await reading
