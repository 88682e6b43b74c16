"""Calls that survive: errors told apart, retries on a budget, exact rate limits, a circuit breaker, all in layers.

Invariant: a name's module is imported when the name is first used; a bot that wants one pays for one.
"""

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from keepline.resilience.backoff import Backoff, exponential
    from keepline.resilience.breaker import CircuitBreaker, CircuitState
    from keepline.resilience.classify import BodyReader, Failure
    from keepline.resilience.handler import ErrorHandler
    from keepline.resilience.limiter import RateLimiter
    from keepline.resilience.operation import Operation
    from keepline.resilience.pipeline import Pipeline
    from keepline.resilience.ports import Breaker, Http, Limiter
    from keepline.resilience.retry import Decision, RetryBudget, RetryPolicy

__all__ = [
    "Backoff",
    "BodyReader",
    "Breaker",
    "CircuitBreaker",
    "CircuitState",
    "Decision",
    "ErrorHandler",
    "Failure",
    "Http",
    "Limiter",
    "Operation",
    "Pipeline",
    "RateLimiter",
    "RetryBudget",
    "RetryPolicy",
    "exponential",
]

_HOME = {
    "Backoff": "backoff",
    "BodyReader": "classify",
    "Breaker": "ports",
    "CircuitBreaker": "breaker",
    "CircuitState": "breaker",
    "Decision": "retry",
    "ErrorHandler": "handler",
    "Failure": "classify",
    "Http": "ports",
    "Limiter": "ports",
    "Operation": "operation",
    "Pipeline": "pipeline",
    "RateLimiter": "limiter",
    "RetryBudget": "retry",
    "RetryPolicy": "retry",
    "exponential": "backoff",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
