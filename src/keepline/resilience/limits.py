"""Which endpoints share which budget: a limiter's rules, read from a mapping and checked before anything runs.

Invariants: a rule that exists makes sense (whole limits from 1 up, finite windows, a burst within the limit); each
endpoint has exactly one rule, the first that matches, or an error that names the rules there are.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeGuard

from keepline.errors import ConfigError

__all__ = ["DEFAULT_LIMITS", "LARGEST_LIMIT", "LimitRule", "limit_rules", "rule_for"]

DEFAULT_LIMITS: Mapping[str, Mapping[str, Any]] = {
    "history": {"limit": 50, "window_seconds": 30.0, "endpoints": ("*/History/*",)},
    "general": {"limit": 200, "window_seconds": 60.0, "endpoints": ("*",)},
}
"""What ProjectX documents (gateway.docs.projectx.com, rate limits): bars apart, all else in one budget."""

LARGEST_LIMIT = 1_000_000
"""A rule keeps the time of each of its last `limit` grants: this many take 8 MB, and no broker allows more."""

_MARGIN_SHARE, _LARGEST_MARGIN = 0.01, 0.25
_KEYS = ("limit", "window_seconds", "burst", "endpoints", "margin_seconds")


@dataclass(frozen=True, slots=True)
class LimitRule:
    """At most `limit` units in any `window_seconds`, at most `burst` of them at once.

    Attributes:
        name: the rule's name; an endpoint of the same name is this rule.
        limit: units (calls, unless a call weighs more) in any window.
        window_seconds: length of the window.
        burst: units that may go at once after quiet; below `limit` calls are spread at `limit / window_seconds`.
        endpoints: patterns with `*` (any text, slashes too), `?` and `[...]`, in any case; empty: by name only.
        margin_seconds: how much longer than the window a grant is remembered. Two calls granted one window apart arrive
            closer together when the first was slow on its way, and the server counts arrivals.
    """

    name: str
    limit: int
    window_seconds: float
    burst: int
    endpoints: tuple[str, ...] = ()
    margin_seconds: float = 0.0

    @property
    def span(self) -> float:
        """Seconds for which a grant counts: the window and its margin."""
        return self.window_seconds + self.margin_seconds

    def matches(self, endpoint: str) -> bool:
        """Whether a pattern of this rule covers the endpoint; `History/x` is looked up as `/History/x` too."""
        text = endpoint.lower()
        forms = (text,) if text.startswith("/") else (text, "/" + text)
        return any(
            fnmatchcase(form, pattern.lower()) for pattern in self.endpoints for form in forms
        )

    def check_weight(self, weight: int) -> None:
        """Refuse a weight that could never be served.

        Raises:
            ConfigError: not a whole number from 1 to the burst.
        """
        if not _is_whole(weight) or not 1 <= weight <= self.burst:
            bound = "limit" if self.burst == self.limit else "burst"
            raise ConfigError(
                f"a call of the rule {self.name!r} weighs a whole number from 1 to its {bound} of {self.burst},"
                f" not {weight!r}",
                key="weight",
            )

    def __str__(self) -> str:
        burst = "" if self.burst == self.limit else f", {self.burst} at once"
        return f"{self.name}: {self.limit} per {self.window_seconds:g} s{burst}"


def limit_rules(config: Mapping[str, Any] | None) -> tuple[LimitRule, ...]:
    """The rules of `{"limits": {NAME: {"limit", "window_seconds", "burst"?, "endpoints"?, "margin_seconds"?}}}`.

    None or an empty mapping gives `DEFAULT_LIMITS`; rules that are given replace them altogether. A rule that has the
    name of a default one and no endpoints takes the default's.

    Raises:
        ConfigError: a key that is not known or a value that makes no sense, with the path of the key.
    """
    if config is None:
        config = {}
    if not isinstance(config, Mapping):
        raise ConfigError(
            f'a limiter takes a mapping {{"limits": ...}}, not {type(config).__name__}',
            key="config",
        )
    for key in config:
        if key != "limits":
            raise ConfigError('is not known here: rules go below "limits"', key=str(key))
    limits = config.get("limits", DEFAULT_LIMITS)
    if not isinstance(limits, Mapping) or not limits:
        raise ConfigError(
            "is a mapping of at least one rule: name to limit and window_seconds", key="limits"
        )
    return tuple(_rule(name, body) for name, body in limits.items())


def rule_for(rules: Iterable[LimitRule], endpoint: object) -> LimitRule:
    """The rule of an endpoint: the one of that name, else the first whose pattern matches.

    Raises:
        ConfigError: no rule covers it.
    """
    rules = tuple(rules)
    if not isinstance(endpoint, str) or not endpoint:
        raise ConfigError(f"is a text such as /api/Order/place, not {endpoint!r}", key="endpoint")
    for rule in rules:
        if rule.name == endpoint:
            return rule
    for rule in rules:
        if rule.matches(endpoint):
            return rule
    names = ", ".join(rule.name for rule in rules)
    raise ConfigError(
        f"no rule covers the endpoint {endpoint[:100]!r} (there are: {names}); use a rule's name or add the"
        ' endpoint to one, for example "endpoints": ["*"] in the last',
        key="limits",
    )


def _rule(name: object, body: object) -> LimitRule:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a rule's name is a text, not {name!r}", key="limits")
    place = f"limits.{name}"
    if not isinstance(body, Mapping):
        raise ConfigError("is a mapping with limit and window_seconds", key=place)
    _refuse_unknown(body, place)
    limit = _whole(body, "limit", place, most=LARGEST_LIMIT)
    window = _seconds(body, "window_seconds", place)
    margin = min(window * _MARGIN_SHARE, _LARGEST_MARGIN)
    return LimitRule(
        name=name,
        limit=limit,
        window_seconds=window,
        burst=_whole(body, "burst", place, most=limit) if "burst" in body else limit,
        endpoints=_patterns(name, body, place),
        margin_seconds=_seconds(body, "margin_seconds", place, or_none=True)
        if "margin_seconds" in body
        else margin,
    )


def _refuse_unknown(body: Mapping[Any, Any], place: str) -> None:
    for key in body:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(_KEYS)}"
            raise ConfigError(f"is not known; {hint}", key=f"{place}.{key}")


def _whole(body: Mapping[str, Any], key: str, place: str, *, most: int) -> int:
    value = body.get(key)
    if not _is_whole(value) or not 1 <= value <= most:
        raise ConfigError(
            f"is a whole number from 1 to {most:,}, not {value!r}", key=f"{place}.{key}"
        )
    return value


def _seconds(body: Mapping[str, Any], key: str, place: str, *, or_none: bool = False) -> float:
    value = body.get(key)
    least = 0.0 if or_none else math.nextafter(0.0, 1.0)
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value < math.inf:
        return float(value)
    bound = "from 0 up" if or_none else "above 0"
    raise ConfigError(f"is a number of seconds {bound}, not {value!r}", key=f"{place}.{key}")


def _patterns(name: str, body: Mapping[str, Any], place: str) -> tuple[str, ...]:
    if "endpoints" not in body:
        return tuple(DEFAULT_LIMITS.get(name, {}).get("endpoints", ()))
    patterns = body["endpoints"]
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise ConfigError(
            f'is a list of patterns such as ["*/History/*"], not {patterns!r}',
            key=f"{place}.endpoints",
        )
    found = tuple(patterns)
    for pattern in found:
        if not isinstance(pattern, str) or not pattern:
            raise ConfigError(
                f"a pattern is a text that is not empty, not {pattern!r}", key=f"{place}.endpoints"
            )
    return found


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
