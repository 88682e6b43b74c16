"""One event loop for a program that runs for long, and a thread for what may block it for ever."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from typing import Any, TypeVar

__all__ = ["from_thread", "run_on_loop"]

T = TypeVar("T")


def run_on_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end, on uvloop's loop where it is installed."""
    factory = None
    if find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(coroutine)


async def from_thread(work: Callable[[], T], *, name: str) -> T:
    """What `work` returns or raises; unlike `asyncio.to_thread` it keeps no program from ending while it waits."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: Exception | None) -> None:
        if answer.done():  # whoever waited has gone
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]  # the result, as there is no error

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as problem:
            error = problem
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await answer
