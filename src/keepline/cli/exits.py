"""Exit codes: 0 done · 1 failed · 2 usage, configuration · 3 sign in first · 4 unreachable · 130 interrupted."""

import signal
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from keepline.errors import ConfigError, SignInRequired, TokenUnavailable, TransientError

if TYPE_CHECKING:
    from keepline.daemon.run import Cycle

__all__ = [
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "SIGN_IN",
    "UNREACHABLE",
    "USAGE",
    "exit_code",
    "exit_code_of_cycles",
    "exit_code_of_outcomes",
    "exit_code_of_signal",
    "exit_code_of_status",
]

DONE, FAILED, USAGE, SIGN_IN, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130

_WORST_FIRST = (USAGE, SIGN_IN, FAILED, UNREACHABLE, DONE)


def exit_code(error: BaseException) -> int:
    """What an error means to a script."""
    if isinstance(error, ConfigError):
        return USAGE
    if isinstance(error, SignInRequired):
        return SIGN_IN
    if isinstance(error, TransientError | TokenUnavailable | ConnectionError):
        return UNREACHABLE
    return FAILED


def exit_code_of_signal(number: signal.Signals) -> int:
    """Asked to stop is done; Ctrl-C is interrupted."""
    return INTERRUPTED if number == signal.SIGINT else DONE


def exit_code_of_cycles(cycles: "Iterable[Cycle]") -> int:
    """The worst of all credentials: a renewal that failed counts, and so does a bot that did not get its token."""
    codes = {DONE}
    for cycle in cycles:
        codes.add(exit_code_of_outcomes(delivery.outcome for delivery in cycle.deliveries))
        if cycle.error is not None:
            codes.add(exit_code(cycle.error))
    return _worst(codes)


def exit_code_of_outcomes(outcomes: Iterable[str]) -> int:
    """What became of deliveries: 4 when a bot was not there, 1 when one refused."""
    codes = {"delivered": DONE, "superseded": DONE, "unreachable": UNREACHABLE}
    return _worst({DONE} | {codes.get(outcome, FAILED) for outcome in outcomes})


def exit_code_of_status(told: Mapping[str, Any]) -> int:
    """0 all well, 3 when a person must sign in, 1 when something else is wrong, 4 without a daemon."""
    if not told["running"]:
        return UNREACHABLE
    states = {status["state"] for status in told["credentials"].values()}
    if "SIGN_IN_REQUIRED" in states:
        return SIGN_IN
    return DONE if told["ready"] else FAILED


def _worst(codes: set[int]) -> int:
    return next(code for code in _WORST_FIRST if code in codes)
