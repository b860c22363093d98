"""Stories of webhooks that are held, of receivers that are gone or down for long, and of deliveries that grow old."""

from itertools import pairwise
from typing import Any

import pytest

from outbox.domain.retrying import RetryPolicy
from outbox.store.protocol import Aged
from outbox.store.sqlite.reading import SqliteReader
from tests.world.history import DAY_S, HOUR_S, MINUTE_S
from tests.world.playing import play
from tests.world.receivers import Receiver, Refusing, Up
from tests.world.world import World


def dead(world: World) -> int:
    """Return the number of dead deliveries, as of the last commit."""
    look = world.life.look
    assert look is not None
    (count,) = look.execute("SELECT coalesce(sum(n), 0) FROM counter WHERE state = 3").fetchone()
    return int(count)


def test_a_receiver_that_is_down_for_three_days_gets_all_ten_thousand_events() -> None:
    """An outage costs about twelve probes an hour and no event, and the backlog goes out once it is over."""
    receivers = []

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Refusing())
        receivers.append(alfa)
        await world.set_webhook(alfa)
        await world.post(10_000)
        await world.sleep(3 * DAY_S)
        assert world.unsettled() == 10_000
        assert 11 * 72 < len(alfa.calls) < 14 * 72 + 50
        world.turn(alfa, Up())
        await world.settle(within_s=10 * MINUTE_S)
        assert dead(world) == 0

    world = play(story)
    (alfa,) = receivers
    assert len(alfa.markers()) == len(alfa.sightings) == len(world.posted) == 10_000
    assert alfa.most_inside <= 32


def test_an_open_breaker_stays_open_through_kills_and_costs_no_storm() -> None:
    """Each start makes one probe at once; an hour with a kill every minute is no reason for more than that."""
    receivers: list[Receiver] = []

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Refusing())
        receivers.append(alfa)
        await world.set_webhook(alfa)
        await world.post(200)
        await world.sleep(HOUR_S)
        before = len(alfa.calls)
        for _ in range(60):
            await world.crash()
            await world.start()
            await world.sleep(MINUTE_S)
        assert len(alfa.calls) - before <= 60 * 5
        world.turn(alfa, Up())
        await world.settle(within_s=10 * MINUTE_S)

    play(story)


def test_an_outage_does_not_have_the_backlog_gone_through_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a day with five thousand deliveries that wait for a receiver, looking for old ones costs a glance a minute."""
    looks: list[int] = []
    genuine = SqliteReader.older

    async def counted(self: SqliteReader, *arguments: Any) -> Aged:
        looks.append(1)
        return await genuine(self, *arguments)

    monkeypatch.setattr(SqliteReader, "older", counted)

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Refusing())
        await world.set_webhook(alfa)
        await world.post(5000)
        await world.sleep(DAY_S)
        assert 1000 < len(looks) < 1500

    play(story)


def test_no_probe_comes_when_a_breaker_has_just_opened() -> None:
    """What the lane was looking for when the fifth failure came waits for the first probe's time, too."""

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Up(status=500))
        await world.set_webhook(alfa, concurrency=1)
        world.disk.hop_s = 0.05
        for _ in range(100):
            await world.post(1)
            await world.sleep(0.02)
        await world.sleep(60)
        assert len(alfa.calls) == 5

    for seed in range(10):
        play(story, seed=seed, retry=RetryPolicy(initial_s=600))


def test_probes_take_turns_among_the_deliveries() -> None:
    """No single event is what an outage is tried out with."""
    receivers: list[Receiver] = []

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Up(status=503))
        receivers.append(alfa)
        await world.set_webhook(alfa)
        await world.post(50)
        await world.sleep(3 * HOUR_S)

    play(story)
    (alfa,) = receivers
    probed = [sighting.marker for sighting in alfa.sightings[20:40]]
    assert len(set(probed)) == len(probed)
    gaps = [later - earlier for earlier, later in pairwise(alfa.calls[25:40])]
    assert all(200 < gap < 370 for gap in gaps)


def test_a_receiver_that_is_gone_is_left_alone_until_its_webhook_is_set_again() -> None:
    """A 410 suspends: events are still routed, none is posted, and setting the webhook again lets all go."""

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Up(status=410))
        await world.set_webhook(alfa, concurrency=1)
        await world.post(10)
        await world.sleep(MINUTE_S)
        assert len(alfa.calls) == 1
        await world.post(10)
        await world.crash()
        await world.start()
        world.turn(alfa, Up())
        await world.sleep(3 * DAY_S)
        assert len(alfa.calls) == 1
        assert world.unsettled() == 20
        await world.set_webhook(alfa)
        await world.settle(within_s=10)
        assert len(alfa.markers()) == 20

    play(story)


def test_what_nobody_takes_grows_old_and_dies_but_not_while_it_is_held() -> None:
    """After seven days of attempts a delivery is dead; days in which its webhook was disabled do not count."""

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Refusing())
        await world.set_webhook(alfa)
        await world.post(10)
        await world.sleep(4 * DAY_S)
        await world.set_webhook(alfa, enabled=False)
        await world.sleep(10 * DAY_S)
        await world.set_webhook(alfa)
        await world.sleep(2 * DAY_S)
        assert (world.unsettled(), dead(world)) == (10, 0)
        await world.sleep(1.1 * DAY_S)
        assert (world.unsettled(), dead(world)) == (0, 10)

    play(story)


def test_a_webhook_that_is_disabled_gets_nothing_and_loses_nothing() -> None:
    """What was pending is held, and goes when the webhook is enabled; what came meanwhile was not for it."""

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Up(slow_s=1))
        await world.set_webhook(alfa, concurrency=1)
        await world.post(20)
        await world.sleep(2)
        await world.set_webhook(alfa, concurrency=1, enabled=False)
        await world.sleep(2)
        called = len(alfa.calls)
        await world.post(5)
        await world.sleep(DAY_S)
        assert len(alfa.calls) == called < 20
        await world.set_webhook(alfa)
        await world.settle(within_s=30)
        assert sorted(alfa.markers()) == list(range(20))

    play(story)
