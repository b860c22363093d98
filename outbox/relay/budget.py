"""A budget of bytes that many tasks take from: what keeps a backlog of large bodies out of memory."""

from collections import deque

import anyio


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
