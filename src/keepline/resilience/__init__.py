"""Calls that survive: backoff first; classification, limits, breaker and pipeline join here."""

from keepline.resilience.backoff import Backoff, exponential

__all__ = ["Backoff", "exponential"]
