"""Deadlines of many tasks on one timer: a POST that ends in time, as nearly all do, costs an entry in a dictionary."""

import asyncio
from types import TracebackType
from typing import Self

COARSE_S = 0.01
"""A deadline is kept to within this many seconds, so that thousands of hanging POSTs do not wake the loop each."""


class Deadlines:
    """Hands out deadlines to the tasks of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start without any."""
        self._loop = loop
        self._open: dict[Deadline, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def within(self, seconds: float) -> "Deadline":
        """Return a context manager for the current task: its block is cancelled, and raises TimeoutError, if late."""
        return Deadline(self, seconds)

    def add(self, deadline: "Deadline", seconds: float) -> None:
        """Cancel the deadline's task in that many seconds."""
        end = self._open[deadline] = self._loop.time() + seconds
        if self._timer is None or end < self._timer.when():
            self._arm(end)

    def remove(self, deadline: "Deadline") -> float:
        """Forget a deadline; return the seconds that were left. The timer stays, for mostly the next one needs it."""
        end = self._open.pop(deadline, None)
        return 0.0 if end is None else max(end - self._loop.time(), 0.0)

    def _arm(self, end: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(end, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for deadline in [deadline for deadline, end in self._open.items() if end <= now]:
            del self._open[deadline]
            deadline.pass_by()
        if self._open:
            self._arm(max(min(self._open.values()), now + COARSE_S))


class Deadline:
    """One task's deadline, as `asyncio.timeout` has it: it makes out by itself whose a cancellation is."""

    __slots__ = ("_all", "_cancelling", "_passed", "_seconds", "task")

    def __init__(self, all_of_them: Deadlines, seconds: float) -> None:
        """Prepare it for the current task."""
        self.task = asyncio.current_task()
        self._all = all_of_them
        self._seconds = seconds
        self._passed = False
        self._cancelling = 0

    def stop(self) -> float:
        """Stop counting; return the seconds that were left."""
        return self._all.remove(self)

    def pass_by(self) -> None:
        """Cancel the task: it is late."""
        self._passed = True
        if self.task is not None:
            self.task.cancel()

    def __enter__(self) -> Self:
        """Begin to count."""
        if self.task is not None:
            self._cancelling = self.task.cancelling()
        self._all.add(self, self._seconds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop counting. Raises TimeoutError where it was this deadline, and nobody else, that cancelled."""
        if not self._passed:
            self._all.remove(self)
        elif (
            self.task is not None
            and self.task.uncancel() <= self._cancelling
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
        ):
            raise TimeoutError from error
