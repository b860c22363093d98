from itertools import count, pairwise

import pytest

from outbox.domain.retrying import RetryPolicy
from tests.world.history import HOUR_S
from tests.world.life import DownError
from tests.world.playing import play
from tests.world.receivers import Limited, Losing, Mixed, Receiver, Sighting, Up
from tests.world.world import World


def sightings(receiver: Receiver, marker: int) -> list[Sighting]:
    """Return the POSTs of one event that a receiver has seen."""
    return [sighting for sighting in receiver.sightings if sighting.marker == marker]


def test_a_pause_that_a_receiver_asks_for_holds_nothing_back_afterwards() -> None:
    """What was loaded when the pause began is posted after it, though no new event comes and memory is short."""

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Up(status=429, retry_after_s=10))
        await world.set_webhook(alfa, concurrency=1)
        await world.post(3)
        await world.post(20)
        await world.sleep(5)
        assert len(alfa.calls) == 1
        world.turn(alfa, Up())
        await world.settle(within_s=30)

    play(story, delivery_bytes=1000)


def test_a_paused_lane_keeps_no_memory_from_the_others() -> None:
    """While one receiver has asked for an hour, the bytes of its backlog are free for the rest."""

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Up(status=503, retry_after_s=HOUR_S))
        beta = world.receiver("beta")
        await world.set_webhook(alfa, "loja01", concurrency=1)
        await world.set_webhook(beta, "loja02")
        await world.post(100, instance="loja01")
        await world.sleep(1)
        await world.post(100, instance="loja02")
        await world.sleep(10)
        assert len(beta.markers()) == 100
        assert len(alfa.calls) == 1

    play(story, delivery_bytes=1000)


def test_a_webhook_that_is_disabled_keeps_no_memory_from_the_others() -> None:
    """Nor does a lane that was busy, with more to load, when its webhook was disabled."""

    async def story(world: World) -> None:
        alfa, beta = world.receiver("alfa", Up(slow_s=5)), world.receiver("beta")
        await world.set_webhook(alfa, "loja01", concurrency=1)
        await world.set_webhook(beta, "loja02")
        await world.post(100, instance="loja01", size=20_000)
        await world.sleep(1)
        await world.set_webhook(alfa, "loja01", concurrency=1, enabled=False)
        called = len(alfa.calls)
        await world.post(100, instance="loja02")
        await world.sleep(10)
        assert len(beta.markers()) == 100
        assert len(alfa.calls) == called < 10

    play(story, delivery_bytes=1000)


def test_a_pause_is_not_prolonged_by_setting_the_clock_back() -> None:
    """A receiver that asked for a minute is called again after a minute, whatever the wall clock says."""

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Up(status=429, retry_after_s=60))
        await world.set_webhook(alfa)
        await world.post(1)
        await world.sleep(1)
        world.set_clock(-2 * HOUR_S)
        world.turn(alfa, Up())
        (late,) = await world.post(1)
        await world.sleep(62)
        assert late.marker in alfa.markers()

    play(story)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("hours", [-30, -3, -1.5, 3, 30])
def test_a_clock_that_jumps_by_hours_keeps_nothing_back(hours: float, *, restarted: bool) -> None:
    """What waited for a retry goes out within the longest delay by any clock, each once, and nothing expires."""
    receivers = []

    async def story(world: World) -> None:
        alfa, beta = world.receiver("alfa", Up(status=500)), world.receiver("beta")
        receivers.append(alfa)
        await world.set_webhook(alfa, "loja01")
        await world.set_webhook(beta, "loja02")
        waiting = await world.post(20)
        await world.sleep(HOUR_S / 6)
        world.set_clock(hours * HOUR_S)
        if restarted:
            await world.stop()
            await world.start()
        (beside,) = await world.post(1, instance="loja02")
        await world.sleep(2)
        assert beta.markers() == [beside.marker]
        attempts = len(alfa.calls)
        await world.sleep(600)
        assert len(alfa.calls) - attempts < 40  # due at once by the new clock or not: no storm
        world.turn(alfa, Up())
        (late,) = await world.post(1)
        await world.settle(within_s=HOUR_S + 300)
        assert {late.marker, *(one.marker for one in waiting)} <= set(alfa.markers())

    play(story, retry=RetryPolicy(initial_s=5, max_s=300))
    good = [one.marker for one in receivers[0].sightings[-21:]]
    assert len(set(good)) == 21


def test_what_a_clock_put_off_is_not_put_off_further_by_what_fails_since() -> None:
    """Other deliveries of the webhook, with retries of their own at all times, make nobody wait for longer."""

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Up(status=500))
        await world.set_webhook(alfa)
        (waiting,) = await world.post(1)
        await world.sleep(1)
        world.set_clock(-30 * HOUR_S)
        world.turn(alfa, Mixed((Up(status=500), Up()), (1, 3)))
        for _ in range(30):
            await world.post(1)
            await world.sleep(10)
        assert len(sightings(alfa, waiting.marker)) > 1

    play(story, retry=RetryPolicy(initial_s=60, max_s=60))


def test_a_clock_that_is_set_back_holds_up_no_backlog() -> None:
    """What had not even had its first turn goes on in order, with no longer pause than it takes to find out."""

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Up(slow_s=2))
        await world.set_webhook(alfa, concurrency=1)
        await world.post(50)
        world.set_clock(-10 * HOUR_S)
        await world.settle(within_s=200)
        assert alfa.markers() == sorted(alfa.markers())

    play(story)


def test_retries_come_when_they_are_due() -> None:
    """Delays double from attempt to attempt, and no attempt comes early or much late."""
    receivers = []

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Up(slow_s=0.0, status=500))
        receivers.append(alfa)
        await world.set_webhook(alfa)
        await world.post(1)
        await world.sleep(5 * (2**7 - 1) + 1)
        world.turn(alfa, Up())

    play(story, retry=RetryPolicy(initial_s=5, jitter=0))
    moments = [sighting.at_s for sighting in receivers[0].sightings]
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert gaps == pytest.approx([5.0 * 2**number for number in range(8)], abs=0.05)


def test_lost_answers_cost_repeats_and_no_event() -> None:
    """What a receiver took without the answer coming through comes again, numbered on, under the same id."""
    receivers = []

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Mixed((Up(), Losing()), (1, 2)))
        receivers.append(alfa)
        await world.set_webhook(alfa)
        await world.post(20)
        await world.sleep(HOUR_S)

    play(story)
    (alfa,) = receivers
    repeated = [marker for marker in alfa.markers() if len(sightings(alfa, marker)) > 1]
    assert repeated
    for marker in repeated:
        seen = sightings(alfa, marker)
        assert len({sighting.webhook_id for sighting in seen}) == 1
        assert [sighting.attempt for sighting in seen] == list(range(1, len(seen) + 1))


def test_a_receiver_of_small_capacity_gets_everything_in_the_end() -> None:
    """Two places and 429 for what is more: no event is lost, none is given up."""

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Limited(Up(slow_s=0.5), parallel=2, refusal=Up(status=429, retry_after_s=1)))
        await world.set_webhook(alfa)
        await world.post(200)
        await world.sleep(HOUR_S)
        assert world.unsettled() == 0

    play(story)


def test_a_kill_after_any_function_on_the_database_costs_nothing() -> None:
    """The same story, killed after the first function of the writer, the second and so on, until no kill comes."""

    def kill_after(hops: int) -> World:
        async def story(world: World) -> None:
            alfa = world.receiver("alfa", Up(slow_s=0.0, status=500))
            world.life.mortality.hops_left = hops
            try:
                await world.set_webhook(alfa, "loja01")
                await world.post(3)
                await world.sleep(2)
                world.turn(alfa, Up())
                await world.sleep(10)
                await world.delete_webhook("loja01")
            except DownError:
                await world.life.ended.wait()
            await world.ensure_up()

        return play(story, retry=RetryPolicy(initial_s=1))

    for hops in count(1):
        if len(kill_after(hops).lives) == 1:
            break
    assert hops > 8


async def full_disk(world: World) -> None:
    """Have the disk refuse what a burst of deliveries has to write, for half a minute."""
    alfa = world.receiver("alfa")
    await world.set_webhook(alfa, concurrency=4)
    await world.post(20)
    await world.sleep(0.05)
    world.disk.refuses = True
    await world.sleep(30)
    world.disk.refuses = False
    await world.sleep(2)
    assert world.unsettled() == 0
    assert [len(sightings(alfa, marker)) for marker in alfa.markers()] == [1] * 20


def test_outcomes_that_the_disk_refuses_are_recorded_once_it_takes_them() -> None:
    """Nothing that was posted is posted again because its outcome could not be written at once."""
    play(full_disk)


def test_what_is_not_acknowledged_on_disk_is_repeated_after_a_kill() -> None:
    """A kill repeats the attempts whose outcomes were not recorded, under their numbers, and no others."""
    receivers = []

    async def story(world: World) -> None:
        alfa = world.receiver("alfa")
        receivers.append(alfa)
        await world.set_webhook(alfa, concurrency=4)
        await world.post(100)
        await world.sleep(0.2)
        await world.crash()
        await world.start()

    play(story)
    (alfa,) = receivers
    again = [seen for marker in alfa.markers() if len(seen := sightings(alfa, marker)) > 1]
    assert 1 <= len(again) <= 64 + 4
    assert all([sighting.attempt for sighting in seen] == [1, 1] for seen in again)
