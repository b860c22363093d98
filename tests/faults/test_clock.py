"""A clock that jumps by hours while the service runs, or while it is stopped."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import cycle
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from outbox.relay.astray import LOOK_S
from tests.faults.clock import Clocks
from tests.harness import Arrival, Receiver, Service

TEN_HOURS_S = 36_000.0
RETRY_S = 60.0

TOGETHER = 3


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver."""
    async with Receiver() as made:
        yield made


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    """The clocks of the service."""
    return Clocks(tmp_path)


@pytest.fixture
async def service(clocks: Clocks, receiver: Receiver, tmp_path: Path) -> Service:
    """A service that is running: what fails is tried again a minute later, at the receiver, three POSTs at a time."""
    every = str(RETRY_S)
    made = Service(tmp_path, WEBHOOK_RETRY_INITIAL_DELAY_SECONDS=every, WEBHOOK_RETRY_MAX_DELAY_SECONDS=every)
    clocks.govern(made)
    await made.start()
    await made.set_webhook("loja01", receiver.url, concurrency=TOGETHER)
    return made


class Crowd:
    """An `answer` that takes its time, and counts the POSTs in flight; `says` is asked for the status."""

    def __init__(self, says: Callable[[], int]) -> None:
        """Begin with none."""
        self.says = says
        self.most = self._now = 0

    async def __call__(self, _arrival: Arrival) -> int:
        """Answer a POST."""
        self._now += 1
        self.most = max(self.most, self._now)
        await asyncio.sleep(0.005)
        self._now -= 1
        return self.says()


def failing(times: int) -> Callable[[Arrival], int]:
    """Return an `answer` that fails so many times."""
    answers = iter([500] * times)
    return lambda _arrival: next(answers, 200)


async def post_many(service: Service, count: int) -> list[str]:
    """Post so many events at once; return their ids."""
    events = [{"event": "call", "instance": "loja01", "data": n} for n in range(count)]
    reply = await service.request("POST", "/events/batch", json.dumps(events))
    assert reply.status == 202, reply
    ids: list[str] = reply.json()["ids"]
    return ids


async def wait_for_record(service: Service, receiver: Receiver) -> None:
    """Wait until everything that has arrived, and nothing else, is in the log with its answer."""

    async def recorded() -> int:
        items = (await service.request("GET", "/deliveries?limit=500")).json()["items"]
        return sum(item["attempts"] for item in items)

    async with asyncio.timeout(30):
        while await recorded() != len(receiver.arrivals):  # noqa: ASYNC110 - it is a process
            await asyncio.sleep(0.02)


def tries(receiver: Receiver) -> Counter[str]:
    """Return how many attempts arrived, by event."""
    return Counter(arrival.webhook_id for arrival in receiver.arrivals)


def assert_counted(receiver: Receiver) -> None:
    """See that of each event every attempt came once, in order."""
    numbers: Counter[str] = Counter()
    for arrival in receiver.arrivals:
        numbers[arrival.webhook_id] += 1
        assert arrival.headers["x-outbox-attempt"] == str(numbers[arrival.webhook_id])


async def assert_no_negative_number(service: Service) -> None:
    """See that no number, age or other, that is shown is below zero."""
    stats = (await service.request("GET", "/stats")).json()
    assert min(entry["oldest_pending_s"] for entry in [stats, *stats["webhooks"]]) >= 0
    text = (await service.request("GET", "/metrics")).body.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert not [sample for sample in samples if sample.value < 0]


async def end(service: Service) -> None:
    """Stop the service, and check everything that it stored."""
    assert await service.stop() == 0
    await service.verify()


async def test_ten_hours_ahead_bring_no_storm(service: Service, clocks: Clocks, receiver: Receiver) -> None:
    """What becomes due is tried once, never more at a time than are allowed, and what fails again waits anew."""
    receiver.answer = crowd = Crowd(cycle((500, 200)).__next__)
    ids = await post_many(service, 60)
    await receiver.wait_for_count(60)
    await wait_for_record(service, receiver)
    for _ in range(2):
        pending = (await service.request("GET", "/stats")).json()["deliveries"]["pending"]
        expected = len(receiver.arrivals) + pending
        clocks.jump(TEN_HOURS_S)
        # Whatever the lane holds to be due goes out before what came last.
        for more in (1, 2):
            ids.append(await service.accept())
            await receiver.wait_for_count(expected + more)
            await wait_for_record(service, receiver)
        assert len(receiver.arrivals) == expected + 2
    crowd.says = lambda: 200
    clocks.jump(TEN_HOURS_S)
    ids.append(await service.accept())
    stats = await service.wait_until_settled()
    assert stats["deliveries"]["acknowledged"] == len(ids)
    assert_counted(receiver)
    assert tries(receiver).keys() == set(ids)
    assert crowd.most <= TOGETHER
    await end(service)


async def test_ten_hours_back_put_nothing_off_for_ten_hours(
    service: Service, clocks: Clocks, receiver: Receiver
) -> None:
    """What is new goes out at once, and what waited for a retry within a minute."""
    receiver.answer = failing(1)
    first = await service.accept()
    await receiver.wait_for_count(1)
    await wait_for_record(service, receiver)
    clocks.jump(-TEN_HOURS_S)
    others = [await service.accept() for _ in range(3)]
    await receiver.wait_for_count(4)
    await wait_for_record(service, receiver)  # a POST in flight would be told that its time is over
    clocks.let_pass(LOOK_S)
    await service.wait_until_settled()
    assert_counted(receiver)
    assert tries(receiver) == dict.fromkeys(others, 1) | {first: 2}
    await end(service)


async def test_a_clock_that_is_set_while_the_service_is_stopped(
    service: Service, clocks: Clocks, receiver: Receiver
) -> None:
    """It starts, ahead and back; ids are as unique as ever, keys are known, and a repeat is known by its id."""
    receiver.answer = failing(2)
    repeated = json.dumps({"event": "call", "instance": "loja01", "data": "repeated"})
    first = await service.request("POST", "/events", repeated, {"idempotency-key": "k"})
    ids = [first.json()["id"]]
    for before, ahead_s, after in ((1, TEN_HOURS_S, 2), (22, -2 * TEN_HOURS_S, 23)):
        await receiver.wait_for_count(before)
        await wait_for_record(service, receiver)
        await end(service)
        clocks.jump(ahead_s)
        await service.start()
        assert (await service.request("GET", "/health/ready")).status == 200
        again = await service.request("POST", "/events", repeated, {"idempotency-key": "k"})
        assert (again.body, again.headers["idempotency-replayed"]) == (first.body, "true")
        await receiver.wait_for_count(after)
        ids += await post_many(service, 20)
    await service.wait_until_settled()
    assert_counted(receiver)
    assert tries(receiver) == dict.fromkeys(ids, 1) | {ids[0]: 3}
    listed = (await service.request("GET", "/events?limit=500")).json()["items"]
    assert [item["id"] for item in sorted(listed, key=lambda item: item["seq"])] == ids
    await end(service)


async def test_a_clock_that_is_set_while_events_come_in(service: Service, clocks: Clocks, receiver: Receiver) -> None:
    """Every event is taken, no number that is shown is negative, and what a POST took is no matter of the clock."""
    healed = asyncio.Event()

    async def wait(_arrival: Arrival) -> int:
        await healed.wait()
        return 200

    receiver.answer = wait
    ids: list[str] = []
    for ahead_s in (0.0, TEN_HOURS_S, -TEN_HOURS_S, -TEN_HOURS_S, TEN_HOURS_S):
        clocks.jump(ahead_s)
        ids += [await service.accept() for _ in range(10)]
        await assert_no_negative_number(service)
    await receiver.wait_for_count(TOGETHER)
    clocks.jump(TEN_HOURS_S)
    await assert_no_negative_number(service)
    healed.set()
    await service.wait_until_settled()
    assert_counted(receiver)
    assert tries(receiver).keys() == set(ids)
    for event in ids:
        (attempt,) = (await service.request("GET", f"/events/{event}")).json()["attempts"]
        assert 0 <= attempt["ms"] < 60_000
    await end(service)
