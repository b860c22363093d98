"""Stories of webhooks that ask for order. At every POST the world checks that nothing earlier of its queue is left."""

import anyio
import pytest

from outbox.domain.retrying import Answer
from tests.world.history import HOUR_S, MINUTE_S
from tests.world.playing import play
from tests.world.receivers import Flapping, Losing, Mixed, Receiver, Refusing, Silent, Up, Visit
from tests.world.world import World

CHATS = [f"c{number}" for number in range(20)]
TROUBLED = Mixed((Up(), Up(status=500), Losing(), Up(status=503), Silent()), (6, 2, 2, 1, 1))


def first_seen_by_chat(world: World, receiver: Receiver) -> dict[str, list[int]]:
    """Return the markers of the events that a receiver saw, by chat, in the order they were first seen."""
    seen: dict[str, list[int]] = {}
    for marker in receiver.markers():
        seen.setdefault(world.posted[marker].chat, []).append(marker)
    return seen


@pytest.mark.parametrize("seed", range(4))
def test_chats_keep_their_order_through_crashes_and_failures(seed: int) -> None:
    """With twenty chats, a receiver that fails in every way and kills amid it, each chat's events come in order."""
    receivers = []

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", TROUBLED)
        receivers.append(alfa)
        await world.set_webhook(alfa, "loja01", order="chat")
        for _ in range(8):
            for _ in range(30):
                await world.post(1, chat=world.rng.choice(CHATS))
                await world.sleep(world.rng.random() * 0.1)
            await world.sleep(world.rng.random() * MINUTE_S)
            if world.rng.random() < 0.6:
                await world.crash()
                await world.start()
        await world.sleep(HOUR_S)

    world = play(story, seed=seed)
    seen = first_seen_by_chat(world, receivers[0])
    assert set(seen) == set(CHATS)
    assert all(markers == sorted(markers) for markers in seen.values())
    assert sum(len(markers) for markers in seen.values()) == 240


def test_a_chat_that_is_stuck_holds_up_no_other_chat() -> None:
    """The event that its receiver does not take waits, what is behind it too, and everything else goes."""
    stuck = 0

    class Picky:
        """Takes everything but one event."""

        async def meet(self, visit: Visit) -> Answer:
            return await Up(status=500 if visit.sighting.marker == stuck else 200).meet(visit)

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Picky())
        await world.set_webhook(alfa, order="chat")
        for chat in ("c1", "c1", "c2", "c3", "c2"):
            await world.post(1, chat=chat)
        await world.sleep(MINUTE_S)
        assert alfa.markers() == [0, 2, 3, 4]
        assert world.unsettled() == 2

    play(story)


@pytest.mark.parametrize("seed", range(6))
def test_order_may_be_changed_amid_everything(seed: int) -> None:
    """After each change what was posted before it may still land, and from then on everybody waits for their turn."""

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Flapping((Up(slow_s=0.5), Up(status=500)), each_s=20))
        await world.set_webhook(alfa, "loja01")

        async def produce() -> None:
            for _ in range(100):
                await world.post(3, chat=world.rng.choice(CHATS[:4]))
                await world.sleep(world.rng.random())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(produce)
            for _ in range(5):
                await world.sleep(world.rng.random() * 10)
                order = world.rng.choice(("none", "instance", "chat"))
                await world.set_webhook(alfa, "loja01", order=order)
        world.disk.hop_s = 0.1

    play(story, seed=seed)


def test_what_waited_for_memory_while_the_order_was_changed_goes_in_order() -> None:
    """Deliveries that were claimed when there was no order are not posted all at once when there is one."""
    receivers = []

    async def story(world: World) -> None:
        alfa, beta = world.receiver("alfa"), world.receiver("beta", Silent())
        receivers.append(alfa)
        await world.set_webhook(alfa, "loja01")
        await world.set_webhook(beta, "loja02")
        await world.post(1, instance="loja02", size=5000)
        await world.sleep(1)
        await world.post(20, instance="loja01")
        await world.sleep(1)
        assert not alfa.calls
        await world.set_webhook(alfa, "loja01", order="chat")
        await world.sleep(MINUTE_S)

    play(story, delivery_bytes=1000)
    (alfa,) = receivers
    assert alfa.markers() == list(range(1, 21))
    assert alfa.most_inside == 1


def test_a_long_queue_goes_on_after_a_kill_in_the_middle() -> None:
    """A queue whose head was in flight has a head again, and nobody in it is left behind or posted early."""

    async def story(world: World) -> None:
        alfa = world.receiver("alfa", Refusing())
        await world.set_webhook(alfa, order="instance")
        await world.post(50)
        world.turn(alfa, Up(slow_s=0.1))
        for _ in range(5):
            await world.sleep(world.rng.random() * 2)
            await world.crash()
            await world.start()

    play(story)
