"""The commands that wait for their turn at Schwab's streamer, and what it has confirmed.

Invariants: commands of one kind that wait together leave as one; the first keys of a service leave as SUBS, later ones
as ADD, so that nothing of an earlier session stays; no more keys are wanted than may be.
"""

from collections import deque

from msgspec import Struct

from keepline.brokers.schwab.streamer_fields import ACCOUNT_ACTIVITY

__all__ = ["Command", "Commands"]

_WANT = "WANT"  # becomes SUBS or ADD when it leaves


class Command(Struct):
    """One request for one or several topics.

    Attributes:
        verb: `SUBS`, `ADD`, `UNSUBS`, `VIEW`, `LOGIN` or `LOGOUT`.
        service: whose.
        keys: in the order in which they were asked for.
        fields: numbers with commas, "" where none are needed.
        refs: who waits for the answer.
        asks: the answer itself is wanted, whatever it is.
    """

    verb: str
    service: str
    keys: dict[str, None]
    fields: str = ""
    refs: list[str] = []
    asks: bool = False

    @property
    def name(self) -> str:
        """As errors name it."""
        return f"{self.verb} {self.service}"

    def parameters(self) -> dict[str, str]:
        """What the request says; VIEW is about all keys of its service."""
        keys = {} if self.verb == "VIEW" else {"keys": ",".join(self.keys)}
        return keys | ({"fields": self.fields} if self.fields else {})


class Commands:
    """Those of one connection.

    Args:
        most_keys: how many keys may be wanted at a time.
    """

    def __init__(self, most_keys: int) -> None:
        self._most_keys = most_keys
        self._queue: deque[Command] = deque()
        self._wanted: dict[tuple[str, str], None] = {}
        self._confirmed: dict[str, dict[str, str]] = {}  # by service: keys with their fields

    @property
    def keys(self) -> int:
        """How many keys the streamer has confirmed."""
        return sum(map(len, self._confirmed.values()))

    def __len__(self) -> int:
        return len(self._queue)

    def want(self, service: str, key: str, fields: str, ref: str) -> bool:
        """Put a subscription into the queue; False when there are too many already."""
        place = (service, key)
        if place not in self._wanted and len(self._wanted) >= self._most_keys:
            return False
        self._wanted[place] = None
        self._put(_WANT, service, key, fields, ref)
        return True

    def end(self, service: str, key: str, ref: str) -> None:
        """Put the end of a subscription into the queue."""
        self._put("UNSUBS", service, key, "", ref)

    def ask(self, ref: str) -> bool:
        """Put in a request that changes nothing and is answered; False when nothing is subscribed yet."""
        for service in sorted(self._confirmed, key=lambda name: name == ACCOUNT_ACTIVITY):
            key, fields = next(iter(self._confirmed[service].items()))
            verb = "SUBS" if service == ACCOUNT_ACTIVITY else "VIEW"
            self._queue.append(Command(verb, service, {key: None}, fields, [ref], asks=True))
            return True
        return False

    def next(self) -> Command | None:
        """The next to leave, None when nothing waits."""
        if not self._queue:
            return None
        command = self._queue.popleft()
        if command.verb == _WANT:
            known = self._confirmed.get(command.service)
            command.verb = "ADD" if known and command.service != ACCOUNT_ACTIVITY else "SUBS"
        return command

    def confirm(self, command: Command) -> None:
        """The streamer said yes."""
        keys = self._confirmed.setdefault(command.service, {})
        if command.verb in ("SUBS", "ADD"):
            keys.update(dict.fromkeys(command.keys, command.fields))
        elif command.verb == "UNSUBS":
            for key in command.keys:
                keys.pop(key, None)
                self._wanted.pop((command.service, key), None)
        if not keys:
            del self._confirmed[command.service]

    def fail(self, command: Command) -> None:
        """The streamer said no, or nothing: what was not confirmed before is not wanted any more."""
        known = self._confirmed.get(command.service, {})
        for key in command.keys:
            if key not in known:
                self._wanted.pop((command.service, key), None)

    def clear(self) -> None:
        """The connection is over."""
        self._queue.clear()
        self._wanted.clear()
        self._confirmed.clear()

    def _put(self, verb: str, service: str, key: str, fields: str, ref: str) -> None:
        last = self._queue[-1] if self._queue else None
        same = last is not None and (last.verb, last.service, last.fields) == (
            verb,
            service,
            fields,
        )
        if last is not None and same and service != ACCOUNT_ACTIVITY:
            last.keys[key] = None
            last.refs.append(ref)
        else:
            self._queue.append(Command(verb, service, {key: None}, fields, [ref]))
