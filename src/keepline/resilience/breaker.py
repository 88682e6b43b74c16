"""The circuit breaker: stops calling a side that fails, lets a few probes through later, closes when they succeed.

Invariants:
  * All that decides is in `circuit`; here are the clock, one lock per circuit, and the judgement of errors.
  * No lock is held while a call runs. A cancelled call counts as nothing and its cancellation goes on unchanged.
  * While nothing fails, a call asks no lock.
"""

import difflib
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import fields
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import CircuitOpen, ConfigError
from keepline.resilience.circuit import Circuit, CircuitSettings, CircuitState, Permit
from keepline.resilience.verdict import Verdict, judge
from keepline.telemetry import REGISTRY, event

__all__ = ["CircuitBreaker", "CircuitState", "Verdict", "judge"]

log = logging.getLogger("keepline.resilience")

P = ParamSpec("P")
T = TypeVar("T")

_MOST_CIRCUITS = 1000

_state = REGISTRY.gauge(
    "circuit_state", "0 closed, 1 half-open, 2 open, 3 isolated.", "host", "operations"
)
_changes = REGISTRY.counter(
    "circuit_transitions_total", "Changes of state by the new one.", "host", "operations", "to"
)
_refusals = REGISTRY.counter(
    "circuit_refused_total", "Calls turned away by a circuit.", "host", "operations"
)


class CircuitBreaker:
    """A circuit, and by `for_` one for each host and class of operations, all with the same settings.

    `await breaker.call(function, ...)` is the quickest way; `async with breaker:` and `with breaker:` guard a block,
    which must be left by the task (or thread) that entered it; `enter` and `leave` are for callers that measure a call
    themselves. A time limit belongs inside: from outside it arrives as a cancellation, and a cancelled call says
    nothing. Safe to share between threads and event loops.

    Args:
        config: settings by name, as in `CircuitSettings`, or such an object; None for the defaults.
        clock: where time comes from; the wall clock is never asked.
        judge: what an error says about the other side.

    Raises:
        ConfigError: a setting is not known or makes no sense.

    Example:
        >>> breaker = CircuitBreaker({"minimum_calls": 20})
        >>> orders = breaker.for_("api.topstepx.com", "orders")
        >>> orders.state
        <CircuitState.CLOSED: 'closed'>
    """

    def __init__(
        self,
        config: Mapping[str, Any] | CircuitSettings | None = None,
        *,
        clock: Clock | None = None,
        judge: Callable[[BaseException], Verdict] = judge,
    ) -> None:
        self.settings = _settings(config)
        self._clock = clock or SYSTEM_CLOCK
        self._now = self._clock.boottime
        self._judge = judge
        self._labels = ("", "")
        self._circuit = Circuit(self.settings)
        self._lock = threading.Lock()
        self._places: ContextVar[_Place | None] = ContextVar("place", default=None)
        self._circuits: dict[tuple[str, str], CircuitBreaker] = {}

    def for_(self, host: str, operations: str = "") -> "CircuitBreaker":
        """The breaker of a host and a class of operations: the same object for the same words.

        Args:
            host: for example `api.topstepx.com`.
            operations: for example `orders` or `history`: what fails together belongs together. Never an id.

        Raises:
            ConfigError: not texts, or so many that ids must have got in.
        """
        key = (host, operations)
        found = self._circuits.get(key)
        return found if found is not None else self._add(key)

    async def call(
        self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`await function(*args, **kwargs)`, counted.

        Raises:
            CircuitOpen: the circuit is open, isolated, or has enough probes under way; the function was not called.
            Exception: whatever the function raised, unchanged.
        """
        permit = self._circuit.pass_freely or self._ask()
        begun = self._now()
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            self._end(permit, begun, error)
            raise
        if not self._circuit.went_well(permit, begun, self._now()):
            self._end(permit, begun, None)
        return result

    def enter(self) -> Permit:
        """Let a call in, for callers that measure it themselves; the permit goes to `leave`, exactly once.

        Raises:
            CircuitOpen: as in `call`.
        """
        return self._circuit.pass_freely or self._ask()

    def leave(self, permit: Permit, seconds: float, error: BaseException | None = None) -> None:
        """The call that was let in took the other side `seconds`, and ended with `error`, or well."""
        now = self._now()
        if error is not None or not self._circuit.went_well(permit, now - seconds, now):
            self._end(permit, now - seconds, error)

    @property
    def state(self) -> CircuitState:
        """What a call that came now would meet."""
        with self._lock:
            return self._circuit.state_at(self._now())

    @property
    def retry_after(self) -> float | None:
        """Seconds until a new try makes sense, 0 when it would be let in now, None while isolated."""
        with self._lock:
            return self._circuit.retry_after(self._now())

    def isolate(self) -> None:
        """Turn every call away until `close()`, in this circuit and those of `for_`."""
        self._by_hand(Circuit.isolate)

    def close(self) -> None:
        """Close by hand and forget what was counted, in this circuit and those of `for_`."""
        self._by_hand(Circuit.close)

    def get_stats(self) -> dict[str, Any]:
        """State and counts of this circuit and, below `circuits`, of those of `for_`. JSON-ready."""
        with self._lock:
            now, circuit = self._now(), self._circuit
            calls, failed, slow = circuit.counts(now)
            stats = {
                "state": circuit.state_at(now).value,
                "retry_after": circuit.retry_after(now),
                "calls": calls,
                "failed": failed,
                "slow": slow,
                "failure_rate": failed / calls if calls else 0.0,
                "slow_call_rate": slow / calls if calls else 0.0,
                "probing": circuit.probing(now),
                "opened": circuit.opened,
                "refused": circuit.refused,
                "late": circuit.late,
            }
        others = {
            " ".join(key).strip(): one.get_stats() for key, one in list(self._circuits.items())
        }
        return {**stats, "circuits": others}

    async def __aenter__(self) -> Self:
        self._hold(self._circuit.pass_freely or self._ask())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release(error)

    def __enter__(self) -> Self:
        self._hold(self._circuit.pass_freely or self._ask())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release(error)

    def _hold(self, permit: Permit) -> None:
        place = self._places.get()
        try:
            place.vacancy.pop()  # type: ignore[union-attr]
        except (AttributeError, IndexError):
            place = _Place(place)
            self._places.set(place)
        place.permit, place.begun = permit, self._now()  # type: ignore[union-attr]

    def _release(self, error: BaseException | None) -> None:
        place = self._places.get()
        while place is not None and place.vacancy:
            place = place.outer
        if place is None:
            return  # a generator's block, closed in another context than it was opened in
        permit, begun = place.permit, place.begun
        place.vacancy.append(True)
        if error is not None or not self._circuit.went_well(permit, begun, self._now()):
            self._end(permit, begun, error)

    def _ask(self) -> Permit:
        with self._lock:
            now = self._now()
            permit = self._circuit.enter(now)
            state, seconds = self._circuit.state, self._circuit.retry_after(now)
        self._report()
        if permit is None:
            _refusals.inc(*self._labels)
            raise CircuitOpen(self._why(state, seconds), retry_after=seconds)
        return permit

    def _end(self, permit: Permit, begun: float, error: BaseException | None) -> None:
        if isinstance(error, GeneratorExit) and self._lock.locked():
            return  # thrown away, perhaps by the garbage collector in a thread that holds the lock: the lease runs out
        verdict = Verdict.ANSWERED if error is None else self._judge(error)
        with self._lock:
            now = self._now()
            if verdict is Verdict.ANSWERED:
                self._circuit.succeeded(permit, begun, now)
            elif verdict is Verdict.FAILED:
                self._circuit.failed(permit, begun, now)
            else:
                self._circuit.ended(permit, now)
        self._report()

    def _by_hand(self, change: Callable[[Circuit, float], None]) -> None:
        with self._lock:
            change(self._circuit, self._now())
        self._report()
        for other in list(self._circuits.values()):
            other._by_hand(change)

    def _report(self) -> None:
        """Tell metrics and log what changed; the lock keeps the gauge at the newest state."""
        with self._lock:
            news, self._circuit.news = self._circuit.news, []
            for _, state, _ in news:
                _state.set(state.number, *self._labels)
                _changes.inc(*self._labels, state.value)
        for before, state, why in news:
            level = logging.INFO if state is CircuitState.CLOSED else logging.WARNING
            event(
                log, level, f"Circuit {state.value}", circuit=self._name, was=before.value, why=why
            )

    def _add(self, key: tuple[str, str]) -> "CircuitBreaker":
        host, operations = key
        if not host or not all(isinstance(text, str) for text in key):
            raise ConfigError(f"a circuit is named by two texts, not {key!r}", key="host")
        one = CircuitBreaker(self.settings, clock=self._clock, judge=self._judge)
        one._labels = key
        with self._lock:
            if len(self._circuits) >= _MOST_CIRCUITS and key not in self._circuits:
                raise ConfigError(
                    f"there are {_MOST_CIRCUITS} circuits already, and {operations[:50]!r} would be one more:"
                    " name a class of operations, not an order or a request",
                    key="operations",
                )
            found = self._circuits.setdefault(key, one)
        _state.set(found._circuit.state.number, *key)
        return found

    @property
    def _name(self) -> str:
        return " ".join(self._labels).strip() or "default"

    def _why(self, state: CircuitState, seconds: float | None) -> str:
        if seconds is None:
            return f"the circuit {self._name} is isolated: nothing is sent until close() is called"
        if state is CircuitState.HALF_OPEN:
            return f"the circuit {self._name} is half-open and its probes are under way; try again in {seconds:.3g} s"
        return f"the circuit {self._name} is open: too many calls failed or were slow; try again in {seconds:.3g} s"

    def __repr__(self) -> str:
        return (
            f"<CircuitBreaker {self._name} {self.state.value}, {len(self._circuits)} more circuits>"
        )


class _Place:
    """Where an open block keeps its permit until it is left, found again through the context of its task or thread.

    A place serves block after block, since a new one costs more than all the rest; a task finds the place of the one
    that started it, and takes it only while it is vacant, which `pop` decides for one taker alone.
    """

    __slots__ = ("begun", "outer", "permit", "vacancy")

    def __init__(self, outer: "_Place | None") -> None:
        self.vacancy: list[bool] = []
        self.outer = outer
        self.permit: Any = None
        self.begun = 0.0
        # a task that starts the next one inside its block, and so on for ever, must not grow a chain of old places
        while outer is not None and outer.outer is not None and outer.outer.vacancy:
            outer.outer = outer.outer.outer


def _settings(config: Mapping[str, Any] | CircuitSettings | None) -> CircuitSettings:
    if isinstance(config, CircuitSettings):
        return config
    if config is None:
        return CircuitSettings()
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"a breaker takes a mapping of settings, not {type(config).__name__}", key="config"
        )
    known = [field.name for field in fields(CircuitSettings)]
    for key in config:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise ConfigError(f"is not known; {hint}", key=str(key))
    return CircuitSettings(**config)
