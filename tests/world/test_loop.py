import asyncio
import socket
import threading
import time

import anyio
import anyio.to_thread
import pytest

from tests.world.loop import DeadlockError, SpinningError, VirtualLoop, run, virtual_loop

DAY_S = 86_400


def test_days_pass_in_no_time() -> None:
    """Whoever sleeps wakes at the very moment, in order, and the clock shows it."""
    woken: list[tuple[str, float]] = []

    async def sleep(name: str, seconds: float) -> None:
        await anyio.sleep(seconds)
        woken.append((name, anyio.current_time()))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sleep, "long", 30 * DAY_S)
            tasks.start_soon(sleep, "short", 0.001)
            with anyio.move_on_after(DAY_S):
                await anyio.sleep_forever()
            woken.append(("timeout", anyio.current_time()))

    started = time.monotonic()
    run(main)
    assert woken == [("short", 0.001), ("timeout", DAY_S), ("long", 30 * DAY_S)]
    assert time.monotonic() - started < 5


def test_a_deadlock_is_an_error_that_names_who_waits() -> None:
    """When nothing can happen any more the run ends, cleanup included, and says where each task waits."""
    cleaned = []

    async def forlorn() -> None:
        try:
            await anyio.Event().wait()
        finally:
            cleaned.append("up")

    with pytest.raises(DeadlockError, match=r"(?s)nothing is ready.*test_a_deadlock\S*forlorn"):
        run(forlorn)
    assert cleaned == ["up"]


def test_a_deadlock_that_survives_its_cancellation_is_an_error_too() -> None:
    """Not even a shielded wait can hang the run."""

    async def stubborn() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.Event().wait()

    with pytest.raises(DeadlockError):
        run(stubborn)


def test_a_loop_in_which_no_time_passes_is_an_error() -> None:
    """Busy waiting is noticed."""

    async def busy() -> None:
        while True:  # noqa: ASYNC110 - just that
            await asyncio.sleep(0)

    with pytest.raises(SpinningError, match="busy"):
        run(busy)


def test_an_error_of_the_program_is_what_comes_out() -> None:
    """A run raises what its function raises."""

    async def broken() -> None:
        raise KeyError("program")

    with pytest.raises(KeyError, match="program"):
        run(broken)


def test_there_is_nothing_outside() -> None:
    """No name resolves, what is for an executor runs at once, and no other thread may interfere."""

    async def main() -> None:
        loop = virtual_loop()
        with pytest.raises(socket.gaierror):
            await anyio.getaddrinfo("example.org", 80)
        assert await loop.run_in_executor(None, threading.get_ident) == threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 // 0)
        refused = []

        def interfere() -> None:
            try:
                loop.call_soon_threadsafe(print)
            except RuntimeError as error:
                refused.append(str(error))

        thread = threading.Thread(target=interfere)
        thread.start()
        thread.join()
        assert refused == ["another thread speaks to the virtual loop: that could not be repeated"]

    run(main)


def test_idleness_can_be_measured() -> None:
    """A loop that sleeps goes round twice or so, however long it sleeps."""

    async def main() -> int:
        before = virtual_loop().rounds
        await anyio.sleep(DAY_S)
        return virtual_loop().rounds - before

    assert VirtualLoop().run(main) < 5
