"""The numbers by which a credential is kept: when to renew, how long to wait, how many may queue.

Invariant: a configuration that exists is sound; every wrong key, type or number was refused with its path before
anything started.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from keepline.credentials.token import DEFAULT_LIFETIME_SECONDS
from keepline.errors import ConfigError
from keepline.resilience.backoff import Backoff

__all__ = ["STEADY_RETRY_SECONDS", "TokenManagerConfig"]

STEADY_RETRY_SECONDS = 300.0
"""Seconds between attempts once the listed delays are used up."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenManagerConfig:
    """How one credential is kept.

    Attributes:
        name: the credential's name in messages, metrics and `keepline login NAME`.
        refresh_buffer_seconds: renew this long before expiry at the latest; 2 h suit a token that lives a day.
        refresh_at_fraction: renew when this share of the life is over, if that is later; 5/6 is 25 of 30 minutes.
        max_retries: how many delays of `retry_delays` are used before the steady 300 s.
        retry_delays: seconds before the first, second, … new attempt, spread by 10 %.
        max_queue_depth: callers that may wait for a token at once; one more gets QueueFull.
        queue_timeout_seconds: how long a caller waits before it gets TokenUnavailable.
        refresh_timeout_seconds: bound of one exchange with the issuer, and of the wait for another process's one.
        default_lifetime_seconds: what a bare token from outside counts as living.
    """

    name: str = "default"
    refresh_buffer_seconds: float = 7200.0
    refresh_at_fraction: float = 5 / 6
    max_retries: int = 4
    retry_delays: Sequence[float] = (30.0, 60.0, 120.0, 300.0)
    max_queue_depth: int = 100
    queue_timeout_seconds: float = 10.0
    refresh_timeout_seconds: float = 30.0
    default_lifetime_seconds: float = DEFAULT_LIFETIME_SECONDS

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_number("refresh_buffer_seconds", self.refresh_buffer_seconds, zero=True)
        _check_number("refresh_at_fraction", self.refresh_at_fraction)
        if self.refresh_at_fraction >= 1:
            raise ConfigError(
                f"is the share of a life after which it is renewed, below 1, not {self.refresh_at_fraction!r}",
                key="refresh_at_fraction",
            )
        _check_count("max_retries", self.max_retries, least=0)
        object.__setattr__(self, "retry_delays", _delays(self.retry_delays))
        _check_count("max_queue_depth", self.max_queue_depth, least=1)
        for name in (
            "queue_timeout_seconds",
            "refresh_timeout_seconds",
            "default_lifetime_seconds",
        ):
            _check_number(name, getattr(self, name))

    @classmethod
    def of(cls, config: "TokenManagerConfig | Mapping[str, object]") -> "TokenManagerConfig":
        """The configuration itself, or the one that a mapping (a TOML table, say) describes.

        Raises:
            ConfigError: an unknown key, with the nearest known one, or a value of the wrong type or range.
        """
        if isinstance(config, cls):
            return config
        if not isinstance(config, Mapping):
            raise ConfigError(
                f"a TokenManagerConfig or a mapping of its fields is needed, not {type(config).__name__}",
                key="config",
            )
        known = [field.name for field in fields(cls)]
        for key in config:
            if key not in known:
                raise ConfigError(_unknown(key, known), key=str(key))
        return cls(**config)  # type: ignore[arg-type]  # __post_init__ checks each type

    def buffer(self, lifetime: float) -> float:
        """Seconds before expiry at which a token of this lifetime is renewed: the smaller buffer wins."""
        return min(self.refresh_buffer_seconds, lifetime * (1 - self.refresh_at_fraction))

    @property
    def backoff(self) -> Backoff:
        """`max_retries` delays from `retry_delays` (its last one repeats), then a steady one."""
        listed = tuple(self.retry_delays[: self.max_retries])
        more = (self.retry_delays[-1],) * (self.max_retries - len(listed))
        return Backoff((*listed, *more) or (STEADY_RETRY_SECONDS,), steady=STEADY_RETRY_SECONDS)


def _unknown(key: object, known: list[str]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return f"unknown setting; {hint}"


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"a credential's name is letters, digits, dot, dash and underscore, not {name!r}",
            key="name",
        )


def _check_number(key: str, value: object, *, zero: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"a number is needed, not {type(value).__name__} {value!r}", key=key)
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        least = "from 0 up" if zero else "above 0"
        raise ConfigError(f"a number {least} is needed, not {value!r}", key=key)


def _check_count(key: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(
            f"a whole number is needed, not {type(value).__name__} {value!r}", key=key
        )
    if value < least:
        raise ConfigError(f"a whole number from {least} up is needed, not {value}", key=key)


def _delays(value: object) -> tuple[float, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ConfigError(
            f"a list of seconds is needed, not {type(value).__name__} {value!r}", key="retry_delays"
        )
    if not value:
        raise ConfigError("at least one delay is needed", key="retry_delays")
    for index, delay in enumerate(value):
        _check_number(f"retry_delays[{index}]", delay)
    return tuple(float(delay) for delay in value)
