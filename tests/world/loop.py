"""An event loop on virtual time: it never waits, but moves its clock on to the next timer."""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio

SPIN_LIMIT = 200_000
"""The rounds that the loop may go at one moment: many more than any amount of work that is due at once takes."""

_T = TypeVar("_T")


class DeadlockError(AssertionError):
    """Somebody waits, and there is no timer that could end it."""


class SpinningError(AssertionError):
    """The loop goes round and round, and no time passes."""


class _Timeline:
    """Stands where a loop has its selector; there is nothing to select from, so waiting is moving the clock."""

    def __init__(self, doom: Callable[[AssertionError], None]) -> None:
        self.now_s = 0.0
        self.rounds = 0
        self._rounds_now = 0
        self._doom = doom

    def select(self, timeout_s: float | None) -> list[Any]:
        self.rounds += 1
        self._rounds_now += 1
        if timeout_s is None:
            self._doom(DeadlockError("\n".join(["nothing is ready, no timer is set, and these wait:", *waiting()])))
        elif timeout_s > 0:
            self.now_s += timeout_s
            self._rounds_now = 0
        elif self._rounds_now % SPIN_LIMIT == 0:
            self._doom(SpinningError("\n".join([f"{SPIN_LIMIT} rounds at one moment; the tasks are:", *waiting()])))
        return []

    def close(self) -> None:
        """Hold nothing that would have to be closed."""


class VirtualLoop(asyncio.BaseEventLoop):
    """A loop without files, sockets and threads: whatever is asked of it happens at once, or at its moment.

    What would have been run in another thread runs right here; no name of a host resolves.
    """

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Timeline(self._doom)
        self._clock_resolution = 1e-6
        self._thread = threading.get_ident()
        self._main: asyncio.Task[Any] | None = None
        self._doomed: AssertionError | None = None

    def run(self, function: Callable[..., Coroutine[Any, Any, _T]], *args: object) -> _T:
        """Run `function(*args)` to its end. Raises DeadlockError and SpinningError, and what it raises."""

        async def main() -> _T:
            self._main = asyncio.current_task()
            return await function(*args)

        try:
            return anyio.run(main, backend_options={"loop_factory": lambda: self})
        finally:
            if self._doomed is not None:
                raise self._doomed

    def _doom(self, error: AssertionError) -> None:
        """End the run with `error`: in order, by a cancellation, unless it comes to nothing as well."""
        if self._doomed is not None or self._main is None:
            raise error
        self._doomed = error
        self._main.cancel()

    @property
    def rounds(self) -> int:
        """How often the loop went round so far: what idleness is measured by."""
        return self._selector.rounds

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._selector.now_s

    def _process_events(self, event_list: list[Any]) -> None:
        """Find nothing to do: the timeline has no events."""

    def _write_to_self(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("another thread speaks to the virtual loop: that could not be repeated")

    def run_in_executor(self, executor: Any, func: Callable[..., _T], *args: Any) -> "asyncio.Future[_T]":  # type: ignore[override]
        """Run `func` now."""
        future: asyncio.Future[_T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it is handed on
            future.set_exception(error)
        return future

    async def getaddrinfo(self, host: Any, *_args: Any, **_options: Any) -> Any:
        """Resolve nothing."""
        raise socket.gaierror(socket.EAI_NONAME, f"{host!r} does not resolve in a virtual world")


def run(function: Callable[..., Coroutine[Any, Any, _T]], *args: object) -> _T:
    """Run `function(*args)` on a virtual loop of its own, from the moment 0."""
    return VirtualLoop().run(function, *args)


def virtual_loop() -> VirtualLoop:
    """Return the running loop, which is a virtual one."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def waiting() -> list[str]:
    """Return where each task waits, innermost frame last."""
    lines = []
    for task in sorted(asyncio.all_tasks(asyncio.get_running_loop()), key=asyncio.Task.get_name):
        lines.append(f"- {task.get_name()}")
        coroutine: Any = task.get_coro()
        while coroutine is not None:
            frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
            if frame is not None:
                lines.append(f"    {frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})")
            coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return lines
