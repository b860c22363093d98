"""Deadlines: who is late is cancelled, on one timer, and hears TimeoutError; a cancellation by others stays one."""

import asyncio
import contextlib

import pytest

from outbox.relay.deadlines import COARSE_S, Deadlines


async def hang(deadlines: Deadlines, seconds: float) -> float:
    """Wait for ever under a deadline; return the seconds until it passed."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(TimeoutError), deadlines.within(seconds):
        await loop.create_future()
    return loop.time() - began


async def test_a_block_that_is_late_is_cancelled_and_its_task_goes_on() -> None:
    """The task is not left cancelled: it can wait for something else afterwards."""
    assert await hang(Deadlines(asyncio.get_running_loop()), 0.02) >= 0.019
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_block_that_ends_in_time_is_left_alone() -> None:
    """The timer that was set for it fires for nobody."""
    deadlines = Deadlines(asyncio.get_running_loop())
    with deadlines.within(0.01):
        pass
    assert await hang(deadlines, 0.03) >= 0.029


async def test_each_of_many_is_cancelled_at_its_own_time() -> None:
    """An earlier deadline that comes later moves the timer forward; the later ones follow."""
    deadlines = Deadlines(asyncio.get_running_loop())
    wanted = [0.09, 0.03, 0.06, 0.03]
    took = await asyncio.gather(*[hang(deadlines, seconds) for seconds in wanted])
    assert all(0 <= seconds - want + 0.001 < COARSE_S + 0.03 for seconds, want in zip(took, wanted, strict=True)), took


async def test_a_deadline_that_was_stopped_tells_what_was_left() -> None:
    """The block goes on without it; stopped twice, or too late, there is nothing left."""
    deadlines = Deadlines(asyncio.get_running_loop())
    with deadlines.within(0.01) as deadline:
        assert 0 < deadline.stop() <= 0.01
        assert deadline.stop() == 0
        assert await hang(deadlines, 0.02) >= 0.019


async def test_an_error_of_the_block_passes() -> None:
    """An error is not hidden by the deadline, and takes the deadline away."""
    deadlines = Deadlines(asyncio.get_running_loop())
    with pytest.raises(ValueError, match="broken"), deadlines.within(0.01):
        raise ValueError("broken")
    assert await hang(deadlines, 0.03) >= 0.029


@pytest.mark.parametrize("late", [False, True])
async def test_who_is_cancelled_by_others_hears_that(*, late: bool) -> None:
    """A cancellation from outside is no timeout, even if the deadline passes at the same moment."""
    loop = asyncio.get_running_loop()
    deadlines, began = Deadlines(asyncio.get_running_loop()), loop.create_future()

    async def wait() -> None:
        with deadlines.within(60) as deadline:
            began.set_result(deadline)
            await loop.create_future()

    task = loop.create_task(wait())
    deadline = await began
    task.cancel()
    if late:
        deadline.pass_by()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_from_before_does_not_count() -> None:
    """A task that goes on after it was cancelled can be late like any other."""
    loop = asyncio.get_running_loop()
    began = loop.create_future()

    async def wait() -> float:
        with contextlib.suppress(asyncio.CancelledError):
            began.set_result(None)
            await loop.create_future()
        return await hang(Deadlines(asyncio.get_running_loop()), 0.01)

    task = loop.create_task(wait())
    await began
    task.cancel()
    assert await task >= 0.009


async def test_a_cancellation_swallowed_by_the_block_is_forgotten() -> None:
    """A block that ends by itself though it was cancelled as late has ended: nothing of the cancellation stays."""
    deadlines = Deadlines(asyncio.get_running_loop())
    with deadlines.within(0.01), contextlib.suppress(asyncio.CancelledError):
        await asyncio.get_running_loop().create_future()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
