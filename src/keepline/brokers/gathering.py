"""Looking at several sources of a broker in one view: what fails is told by name, the rest is shown.

Invariants: sources are read one after the other in the order given; a source that failed shows nothing; when all fail,
the first failure is raised.
"""

from collections.abc import Awaitable, Iterable
from typing import TypeVar

from keepline.brokers.base import Source
from keepline.errors import KeeplineError

__all__ = ["View"]

T = TypeVar("T")


class View:
    """One view in the making.

    Attributes:
        failed: sources that could not be read whole, with the reason.
    """

    def __init__(self) -> None:
        self.failed: dict[Source, str] = {}
        self._errors: list[KeeplineError] = []
        self._read = 0

    async def see(
        self, sources: Iterable[Source], reading: Awaitable[tuple[T, ...]]
    ) -> tuple[T, ...]:
        """What the reading shows; nothing when it fails, and then `sources` are told as failed."""
        try:
            found = await reading
        except KeeplineError as error:
            self.failed |= dict.fromkeys(sources, str(error))
            self._errors.append(error)
            return ()
        self._read += 1
        return found

    def raise_if_blind(self) -> None:
        """Raise the first failure when no source could be read.

        Raises:
            KeeplineError: nothing could be read at all.
        """
        if not self._read and self._errors:
            raise self._errors[0]
