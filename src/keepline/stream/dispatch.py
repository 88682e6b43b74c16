"""From calls of the server to handlers: a table, and one loop that allocates nothing for a call.

Invariants: names are compared without regard to case; a handler that raises stops no other; calls reach the
handlers in the order in which they arrived, and the handlers of one target run in the order in which they were
added.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from keepline.errors import ConfigError
from keepline.stream.binding import Types
from keepline.stream.messages import Invocation

__all__ = ["Dispatch", "Handler"]

Handler: TypeAlias = Callable[..., Any]
"""Takes the arguments of a call."""

_REMEMBERED = 1024  # spellings of targets; a peer cannot make us remember more


class Dispatch:
    """Handlers by target.

    Args:
        types: where the types of arguments are registered.
        failed: is told of a handler that raised: the call and the error. It must not raise.
        returned: is given what a handler returned, unless that is None: the call and the value (a coroutine to run, an
            answer that nobody waits for). It must not raise.

    Attributes:
        types: as given; None makes a table.
        failed: as given.
        returned: as given.
    """

    __slots__ = ("_handlers", "_spelt", "failed", "returned", "types")

    def __init__(
        self,
        types: Types | None = None,
        *,
        failed: Callable[[Invocation, Exception], None],
        returned: Callable[[Invocation, Any], None],
    ) -> None:
        self.types = types if types is not None else Types()
        self.failed = failed
        self.returned = returned
        self._handlers: dict[str, tuple[Handler, ...]] = {}
        self._spelt: dict[str, tuple[Handler, ...]] = (
            self.types.derived()
        )  # as the peer spells them

    def on(self, target: str, handler: Handler, *argument_types: Any) -> Callable[[], None]:
        """Give the calls of a target to a handler too.

        Args:
            target: the name in any case.
            handler: takes the arguments.
            argument_types: as in `Types.expect`; without them, what is registered stays.

        Returns:
            A callable that removes the handler; a second call does nothing.

        Raises:
            ConfigError: other types are registered for the target.
        """
        name = target.lower()
        known = self.types.arguments(name)
        if argument_types and known is not None and known != argument_types:
            raise ConfigError(f"the arguments of {target!r} are decoded into {known} already")
        if argument_types and known is None:
            self.types.expect(target, *argument_types)
        self._set(name, (*self._handlers.get(name, ()), handler))
        removed = False

        def remove() -> None:
            nonlocal removed
            if not removed:
                removed = True
                left = list(self._handlers[name])
                left.remove(handler)
                self._set(name, tuple(left))
                if not left:
                    self.types.forget(name)

        return remove

    def _set(self, name: str, handlers: tuple[Handler, ...]) -> None:
        self._handlers[name] = handlers
        self.types.changed()

    def handlers(self, target: str) -> tuple[Handler, ...]:
        """The handlers of a target, in the order in which they were added."""
        found = self._spelt.get(target)
        if found is None:
            found = self._handlers.get(target.lower(), ())
            if len(self._spelt) < _REMEMBERED:
                self._spelt[target] = found
        return found

    def deliver(self, events: Iterable[Any]) -> list[Any]:
        """Hand every call that nobody waits for to its handlers.

        Returns:
            The other events in order, calls with an id among them: those are the face's to answer.
        """
        rest: list[Any] = []
        spelt = self._spelt
        for event in events:
            if type(event) is not Invocation or event.id is not None:
                rest.append(event)
                continue
            handlers = spelt.get(event.target)
            if handlers is None:
                handlers = self.handlers(event.target)
            for handler in handlers:
                try:
                    result = handler(*event.arguments)
                except Exception as error:
                    self.failed(event, error)
                    continue
                if result is not None:
                    self.returned(event, result)
        return rest
