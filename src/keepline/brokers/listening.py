"""Callbacks of values, made callbacks of a stream's messages.

Invariant: what was a coroutine function stays one, and keeps its name in logs.
"""

import inspect
from typing import Any

from keepline.errors import ConfigError
from keepline.stream.callbacks import Callback

__all__ = ["without_key"]


def without_key(callback: Callback) -> Callback:
    """A callback of values for messages that begin with whose the value is.

    Raises:
        ConfigError: it is not callable.
    """
    if not callable(callback):
        raise ConfigError(f"a callback is a function, not {callback!r}", key="callback")
    if inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(
        getattr(callback, "__call__", None)  # noqa: B004 - whether it is a coroutine function
    ):

        async def deliver_async(_: str, value: Any) -> None:
            await callback(value)

        return _named(deliver_async, callback)

    def deliver(_: str, value: Any) -> None:
        callback(value)

    return _named(deliver, callback)


def _named(deliver: Callback, callback: Callback) -> Callback:
    deliver.__qualname__ = getattr(callback, "__qualname__", type(callback).__qualname__)
    return deliver
