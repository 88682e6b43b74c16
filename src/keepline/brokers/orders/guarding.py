"""The guard of an order gateway: a function of the bot that is asked before new risk is taken.

Invariant: what is not clearly a yes is a no; a guard whose answer nobody could read lets nothing pass.
"""

import inspect
from collections.abc import Callable
from typing import TypeAlias

from keepline.brokers.base import OrderIntent
from keepline.errors import ConfigError, Refused

__all__ = ["Guard", "ask_guard", "checked_guard"]

Guard: TypeAlias = Callable[[OrderIntent], object]
"""Called with an intent; raises, or returns False, to refuse it."""


def checked_guard(guard: Guard | None) -> Guard | None:
    """The guard as it was given.

    Raises:
        ConfigError: it is not callable, or a coroutine function, which nobody would await.
    """
    if guard is None:
        return None
    given: object = guard  # whatever its type says
    called = getattr(given, "__call__", None)  # noqa: B004 - whether it is a coroutine function
    if not callable(given) or any(map(inspect.iscoroutinefunction, (given, called))):
        raise ConfigError(
            f"is a plain function that raises or returns False to refuse, not {guard!r}",
            key="guard",
        )
    return guard


def ask_guard(guard: Guard, intent: OrderIntent) -> None:
    """Return when the guard lets an intent pass.

    Raises:
        ConfigError: it returned something to await: its answer is not known, so nothing passes.
        Refused: it returned False.
        Exception: whatever it raises.
    """
    answer = guard(intent)
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise ConfigError(
            f"returned something to await, and its answer is needed now; intent {intent.id}"
            " was not sent",
            key="guard",
        )
    if answer is False:
        raise Refused(f"the guard refused intent {intent.id}; nothing was sent")
