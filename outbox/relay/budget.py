"""A budget of bytes that many tasks take from: what keeps a backlog of large bodies out of memory."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

import anyio

_T = TypeVar("_T")


class ByteBudget:
    """Admits holders until their bytes reach `total`; one larger than all of it is admitted alone. First come first."""

    def __init__(self, total: int) -> None:
        """Start with nothing taken."""
        self._total = total
        self._used = 0
        self._waiting: deque[tuple[int, anyio.Event]] = deque()

    @property
    def used(self) -> int:
        """The bytes taken now."""
        return self._used

    async def take(self, size: int) -> None:
        """Wait until `size` bytes are free, and take them."""
        if not self._waiting and self._fits(size):
            self._used += size
            return
        entry = (size, anyio.Event())
        self._waiting.append(entry)
        try:
            await entry[1].wait()
        except BaseException:
            if entry[1].is_set():
                self.give_back(size)
            else:
                self._waiting.remove(entry)
                self._admit()
            raise

    def give_back(self, size: int) -> None:
        """Return `size` bytes that were taken."""
        self._used -= size
        self._admit()

    def _fits(self, size: int) -> bool:
        return self._used == 0 or self._used + size <= self._total

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, admitted = self._waiting.popleft()
            self._used += size
            admitted.set()


def portions(items: Iterable[_T], size: Callable[[_T], int], most: int) -> list[list[_T]]:
    """Split items into runs whose sizes together are `most` bytes, or which are one item."""
    runs: list[list[_T]] = []
    taken = 0
    for item in items:
        if not runs or taken + size(item) > most:
            runs.append([])
            taken = 0
        runs[-1].append(item)
        taken += size(item)
    return runs
