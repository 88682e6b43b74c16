"""Schwab's streamer on the sandbox's socket: moves frames, keeps one connection per user, and applies the faults.

Invariants: every decision about a connection is its session's; a user's newest login has the stream, the one before
gets code 12; a client that does not read is ended, not waited for; nothing runs while nobody is connected.
"""

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from aiohttp import WSMsgType, web

from keepline.clock import Clock
from keepline.sandbox.faults import Fault, Faults
from keepline.sandbox.faulttable import number
from keepline.sandbox.market import Market
from keepline.sandbox.replies import cut, response
from keepline.sandbox.streamer_faults import EVENTS, calls_meant, damaged, glued
from keepline.sandbox.streamer_feed import Activity, StreamerFeed
from keepline.sandbox.streamer_session import Frame, Identity, StreamerSession, StreamerTimes

__all__ = ["SchwabStreamer"]

_MOST_WAITING = 2_000  # frames that a client may be behind before it is too slow
_TAKEN = "Connection closed: another session of the user has logged in"


class SchwabStreamer:
    """All connections to the streamer.

    Args:
        market: the venue's.
        accepts: whether a token opens the API at the venue's time.
        faults: those in force.
        clock: the venue's time.
        counts: where `streamer_logins`, `streamer_commands` and `streamer_kicked` are counted.
        who: what clients have to say.
        times: how long things take.
    """

    def __init__(
        self,
        market: Market,
        *,
        accepts: Callable[[str, float], bool],
        faults: Faults,
        clock: Clock,
        counts: Counter[str],
        who: Identity | None = None,
        times: StreamerTimes | None = None,
    ) -> None:
        self._market, self._accepts, self._clock, self._counts = market, accepts, clock, counts
        self._faults = faults
        self._who, self._times = who or Identity(), times or StreamerTimes()
        self._feed = StreamerFeed(market)
        self._open: list[_Connection] = []
        self._ticker: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    @property
    def keys(self) -> int:
        """How many keys are subscribed, on all connections."""
        return sum(connection.session.keys for connection in self._open)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One connection, from its upgrade to its end."""
        plan = self._faults.plan("websocket", now=self._clock.boottime(), broker="schwab")
        self._counts["faults"] += len(plan.struck)
        if plan.delay:
            await self._clock.sleep(plan.delay)
        if plan.cut or plan.lose:
            return cut(request)
        if plan.reply is not None:
            return response(plan.reply, plan.without, now=self._now())
        socket = web.WebSocketResponse(autoping=True, max_msg_size=1 << 20)
        await socket.prepare(request)
        session = StreamerSession(
            self._feed, accepts=self._accepts, who=self._who, times=self._times, now=self._now()
        )
        connection = _Connection(socket, request, session)
        self._join(connection)
        try:
            await self._listen(connection)
        finally:
            self._leave(connection)
        return socket

    async def stop(self) -> None:
        """End every connection."""
        for connection in list(self._open):
            connection.abort()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
            self._ticker = None

    def fault(self, fault: Fault) -> None:
        """Do what a fault does at once to the connections that are open."""
        if "streamer" not in fault.on:
            return
        said = fault.parameters
        for connection in list(self._open):
            if fault.name == "streamer_code":
                self._end(connection, int(number(said["code"])), str(said["description"]))
            elif fault.name in ("cut_stream", "fill_while_away"):
                self._cut(connection, str(said.get("how", "abort")))

    # ---------------------------------------------------------------------------------------------------- connections

    def _join(self, connection: "_Connection") -> None:
        if not self._open:
            self._market.advance(self._now())
            self._feed.catch_up()
        self._open.append(connection)
        connection.task(self._write(connection), "streamer writer")
        if self._ticker is None or self._ticker.done():
            self._ticker = asyncio.get_running_loop().create_task(
                self._tick(), name="streamer ticker"
            )

    def _leave(self, connection: "_Connection") -> None:
        connection.stop()
        self._open.remove(connection)
        if not self._open and self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    async def _listen(self, connection: "_Connection") -> None:
        async for message in connection.socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                continue
            self._counts["streamer_commands"] += connection.session.receive(
                message.data, self._now()
            )
            # answered a moment later: what comes in the meantime came in parallel
            if not connection.answering:
                connection.answering = True
                connection.task(self._answer(connection), "streamer answer")

    async def _answer(self, connection: "_Connection") -> None:
        await self._clock.sleep(self._times.answer)
        connection.answering = False
        now, session = self._now(), connection.session
        self._market.advance(now)
        struck = self._strike_calls(session.commands)
        if "cut_on_call" in struck:
            self._cut(connection, str(struck["cut_on_call"].parameters["how"]))
            return
        failing = (
            calls_meant(struck["call_fails"], session.commands) if "call_fails" in struck else ()
        )
        was_in = session.logged_in
        frames = session.answers(now, failing=failing)
        silent = self._strike("silent", where=lambda fault: not fault.parameters["answers"])
        self._send(connection, [] if silent else frames)
        if session.logged_in and not was_in:
            self._entered(connection)

    def _entered(self, connection: "_Connection") -> None:
        self._counts["streamer_logins"] += 1
        for other in list(self._open):
            if other is not connection and other.session.logged_in and not other.session.over:
                self._counts["streamer_kicked"] += 1
                self._end(other, 12, _TAKEN)
        if struck := self._strike("accept_then_close"):
            said = struck["accept_then_close"].parameters
            after = self._cut_later(connection, number(said["after"]), str(said["how"]))
            connection.task(after, "streamer cut")

    async def _cut_later(self, connection: "_Connection", seconds: float, how: str) -> None:
        await self._clock.sleep(seconds)
        self._cut(connection, how)

    def _cut(self, connection: "_Connection", how: str) -> None:
        if how == "abort":
            connection.abort()
        elif how == "bye":
            connection.session.over = True
            connection.news.set()
        else:
            self._end(connection, 30, "Stop streaming due to administrator action")

    def _end(self, connection: "_Connection", code: int, words: str) -> None:
        self._send(connection, [connection.session.ended(code, words, now=self._now())])

    # ----------------------------------------------------------------------------------------------------------- news

    async def _tick(self) -> None:
        while self._open:
            await self._clock.sleep(self._times.tick)
            self.step()

    def step(self) -> None:
        """Look at the market and tell every connection what is new."""
        now = self._now()
        self._market.advance(now)
        activities = self._feed.activities()
        for connection in list(self._open):
            self._tell(connection, activities, now)

    def _tell(self, connection: "_Connection", activities: Sequence[Activity], now: float) -> None:
        quiet = bool(self._strike("silent"))
        frames = connection.session.tick(now, activities, quiet=quiet)
        self._send(connection, damaged(frames, connection.held, self._strike_line))

    def _send(self, connection: "_Connection", frames: Sequence[Frame]) -> None:
        if frames and not self._strike("black_hole"):
            connection.waiting.extend(glued(frames) if self._strike("glued_frames") else frames)
        if len(connection.waiting) > _MOST_WAITING:
            connection.waiting.clear()
            words = "Stop streaming due to slowness"
            connection.waiting.append(connection.session.ended(30, words, now=self._now()))
        connection.news.set()

    async def _write(self, connection: "_Connection") -> None:
        while True:
            while connection.waiting:
                frame = connection.waiting.popleft()
                if slow := self._strike("slow_frames"):
                    await self._clock.sleep(number(slow["slow_frames"].parameters["delay"]))
                await connection.socket.send_str(json.dumps(frame))
            if connection.session.over:
                await connection.socket.close()
                return
            connection.news.clear()
            await connection.news.wait()

    def _strike(
        self, name: str, where: Callable[[Fault], bool] = lambda _: True
    ) -> dict[str, Fault]:
        return self._strike_all((name,), where)

    def _strike_line(self, names: frozenset[str]) -> dict[str, Fault]:
        def meant(fault: Fault) -> bool:
            event = fault.parameters.get("event")
            return not event or event in names

        return self._strike_all(EVENTS, meant)

    def _strike_calls(self, commands: Sequence[str]) -> dict[str, Fault]:
        return self._strike_all(
            ("cut_on_call", "call_fails"), lambda fault: bool(calls_meant(fault, commands))
        )

    def _strike_all(self, names: Sequence[str], where: Callable[[Fault], bool]) -> dict[str, Fault]:
        now = self._clock.boottime()
        struck = self._faults.strike(names, "streamer", now=now, where=where)
        self._counts["faults"] += len(struck)
        return struck

    def _now(self) -> float:
        return self._clock.wall().timestamp()

    def __repr__(self) -> str:
        return f"<SchwabStreamer, {len(self._open)} connections>"


class _Connection:
    """One socket with its session, the frames that wait, and its tasks."""

    def __init__(
        self, socket: web.WebSocketResponse, request: web.Request, session: StreamerSession
    ) -> None:
        self.socket, self.session, self._request = socket, session, request
        self.waiting: deque[Frame] = deque()
        self.held: list[Any] = []
        self.news = asyncio.Event()
        self.answering = False
        self._tasks: set[asyncio.Task[None]] = set()

    def task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run something for as long as the connection lives."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def abort(self) -> None:
        """Cut it."""
        self.session.over = True
        cut(self._request)

    def stop(self) -> None:
        """End its tasks."""
        for task in self._tasks:
            task.cancel()
