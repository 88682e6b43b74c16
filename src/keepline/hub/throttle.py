"""How often one may fail to sign in: counted by name and by address, with a lock that doubles.

Invariants: an attempt counts as failed from its start until it is known to be good, so that parallel guesses find no
gap; a name that does not exist is treated like one that does; memory is bounded, and no flood of new names or
addresses pushes out one that is locked; only as many locks as half of the memory do. IPv6 addresses count by their /64,
the smallest network that a customer gets.
"""

import ipaddress
import unicodedata
from collections import OrderedDict

from msgspec import Struct

from keepline.hub.refusals import Refusal, RefusalCode, refuse

__all__ = ["LoginThrottle", "Pace", "Ticket", "network_of"]


class Pace(Struct, frozen=True):
    """How patient the throttle is.

    Attributes:
        free: failures in a row without consequence.
        first_lock: seconds of the first lock; each further failure doubles it.
        longest_lock: seconds, the most.
        forget_after: seconds without a failure after which all is forgotten; longer than the longest lock.
    """

    free: int
    first_lock: float = 1.0
    longest_lock: float = 900.0
    forget_after: float = 3600.0

    def lock(self, failures: int) -> float:
        """Seconds of lock after so many failures in a row."""
        if failures < self.free:
            return 0.0
        return min(self.longest_lock, self.first_lock * 2.0 ** min(failures - self.free, 40))


BY_NAME = Pace(free=5)
BY_ADDRESS = Pace(free=20)

_Key = tuple[str, ...]


class Ticket(Struct, frozen=True):
    """An attempt under way, already counted as failed; hand it back as good or as not made.

    Attributes:
        keys: what was counted.
        pair: address and name together.
    """

    keys: tuple[_Key, ...]
    pair: _Key


class _Record(Struct):
    failures: int = 0
    last: float = 0.0
    locked_until: float = 0.0


class LoginThrottle:
    """Counts failures; every method takes `now`, seconds on any clock that only moves forward.

    Args:
        by_name: patience with one name from wherever it is tried.
        by_address: patience with one address whatever name it tries.
        capacity: names and addresses that are remembered; 2 or more.
    """

    def __init__(
        self, *, by_name: Pace = BY_NAME, by_address: Pace = BY_ADDRESS, capacity: int = 20_000
    ) -> None:
        self._paces = {"name": by_name, "address": by_address, "pair": by_name}
        self._capacity = capacity
        self._watched: OrderedDict[_Key, _Record] = OrderedDict()
        self._locked: OrderedDict[_Key, _Record] = OrderedDict()
        self._familiar: OrderedDict[_Key, None] = OrderedDict()

    def attempt(self, address: str, name: str, now: float) -> Ticket | Refusal:
        """Begin a sign-in.

        Args:
            address: the peer's IP address.
            name: the user name as given.
            now: seconds.

        Returns:
            A ticket, or `throttled` with the seconds to wait; the words are the same whether the name exists or not.
        """
        pair: _Key = ("pair", network_of(address), _folded(name))
        keys = self._keys(pair)
        wait = max(self._wait(key, now) for key in keys)
        if wait > 0:
            return refuse(RefusalCode.THROTTLED, retry_after=wait)
        for key in keys:
            self._count(key, now)
        return Ticket(keys, pair)

    def succeeded(self, ticket: Ticket) -> None:
        """The password was right: the name starts afresh, and this address is familiar to it from now on.

        The address keeps its other failures: an attacker with one good account gains nothing from signing in.
        """
        for key in ticket.keys:
            if key[0] == "address":
                self._take_back(key)
            else:
                self._forget(key)
        self._familiar[ticket.pair] = None
        self._familiar.move_to_end(ticket.pair)
        while len(self._familiar) > self._capacity:
            self._familiar.popitem(last=False)

    def not_made(self, ticket: Ticket) -> None:
        """The password was never compared: the attempt does not count."""
        for key in ticket.keys:
            self._take_back(key)

    def __len__(self) -> int:
        return len(self._watched) + len(self._locked)

    def _keys(self, pair: _Key) -> tuple[_Key, ...]:
        _, network, name = pair
        # From where a user has signed in before, strangers' failures do not lock them out, and their own still count.
        by_name: _Key = pair if pair in self._familiar else ("name", name)
        return ("address", network), by_name

    def _wait(self, key: _Key, now: float) -> float:
        record = self._record(key, now)
        return 0.0 if record is None else record.locked_until - now

    def _record(self, key: _Key, now: float) -> _Record | None:
        record = self._locked.get(key) or self._watched.get(key)
        if record is not None and now - record.last >= self._paces[key[0]].forget_after:
            self._forget(key)
            return None
        return record

    def _count(self, key: _Key, now: float) -> None:
        record = self._record(key, now) or _Record()
        record.failures += 1
        record.last = now
        self._place(key, record)

    def _place(self, key: _Key, record: _Record) -> None:
        self._forget(key)
        lock = self._paces[key[0]].lock(record.failures)
        record.locked_until = record.last + lock if lock else 0.0
        (self._locked if lock else self._watched)[key] = record
        if len(self) > self._capacity:
            # each kind keeps half of the memory: what is new can be counted even if all that is old is locked
            fuller = len(self._watched) > self._capacity // 2
            (self._watched if fuller else self._locked).popitem(last=False)

    def _take_back(self, key: _Key) -> None:
        record = self._locked.get(key) or self._watched.get(key)
        if record is None:
            return
        record.failures -= 1
        if record.failures <= 0:
            self._forget(key)
        else:
            self._place(key, record)

    def _forget(self, key: _Key) -> None:
        self._watched.pop(key, None)
        self._locked.pop(key, None)

    def __repr__(self) -> str:
        return f"<LoginThrottle watches {len(self._watched)}, locks {len(self._locked)}>"


def network_of(address: str) -> str:
    """What one customer has: an IPv4 address, an IPv6 /64; an IPv4 address in IPv6 clothes is the IPv4 one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name[:256]).casefold()
