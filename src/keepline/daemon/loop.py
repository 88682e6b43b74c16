"""One event loop for a program that runs for long: uvloop's where it is installed."""

import asyncio
from collections.abc import Coroutine
from importlib.util import find_spec
from typing import Any, TypeVar

__all__ = ["run_on_loop"]

T = TypeVar("T")


def run_on_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end."""
    factory = None
    if find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(coroutine)
