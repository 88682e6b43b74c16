"""How much of a limit is used, and how risky that is: the one table.

Invariants: a decider; utilisation is of the net exposure, whatever its sign; a limit that is 0 or absent divides
nothing.
"""

import enum

from keepline.errors import ConfigError

__all__ = ["RISK_TABLE", "RiskLevel", "risk_level", "utilization_pct"]


class RiskLevel(enum.Enum):
    """What a person should make of an exposure."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


RISK_TABLE = (
    (90.0, RiskLevel.CRITICAL),
    (75.0, RiskLevel.HIGH),
    (50.0, RiskLevel.MEDIUM),
    (0.0, RiskLevel.LOW),
)
"""Utilisation in percent from which on a level holds, the highest first."""


def utilization_pct(net: float, limit: float | None) -> float | None:
    """How much of the limit the net exposure uses, in percent; above 100 it is broken.

    Args:
        net: long minus short.
        limit: of the net exposure; None for no limit.

    Returns:
        None where nothing can be divided: no limit, or a limit of 0.

    Raises:
        ConfigError: a negative limit.
    """
    if limit is None:
        return None
    if limit < 0:
        raise ConfigError(f"a limit is not negative: {limit!r}", key="limit")
    return None if limit == 0 else abs(net) / limit * 100.0


def risk_level(net: float, limit: float | None) -> RiskLevel:
    """The level of a net exposure.

    Without a limit nothing can be broken, so it is low; a limit of 0 says that any exposure is too much.

    Raises:
        ConfigError: a negative limit.
    """
    used = utilization_pct(net, limit)
    if used is None:
        return RiskLevel.LOW if limit is None or net == 0 else RiskLevel.CRITICAL
    return next(level for bound, level in RISK_TABLE if used >= bound)
