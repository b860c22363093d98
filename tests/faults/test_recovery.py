import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from outbox.inspecting import open_inspector
from tests.harness import Arrival, Receiver, Service, running

SOON_S = 1.0
LOCAL = "loja01"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that answers 500 until told otherwise."""
    async with Receiver(lambda _arrival: 500) as made:
        yield made


def service_for(receiver: Receiver, folder: Path, **settings: str) -> Service:
    """Return a service, not started, whose global webhook is the receiver."""
    return Service(folder, WEBHOOK_GLOBAL_ENABLED="true", WEBHOOK_GLOBAL_URL=receiver.url, **settings)


async def attempts_made(service: Service, event_id: str, count: int) -> dict[str, Any]:
    """Return the event's delivery once that many attempts of it are on disk."""
    async with asyncio.timeout(20):
        while True:
            event = (await service.request("GET", f"/events/{event_id}")).json()
            if event["deliveries"][0]["attempts"] >= count:
                return dict(event["deliveries"][0])
            await asyncio.sleep(0.01)


async def started_at(service: Service) -> float:
    """Return when the service said that it had started, in seconds since the epoch."""
    line = await service.wait_for_log(lambda line: line["event"] == "service.started")
    return datetime.fromisoformat(line["timestamp"]).timestamp()


async def until(epoch_s: float) -> None:
    """Return when that moment is over."""
    await asyncio.sleep(max(epoch_s - datetime.now(UTC).timestamp(), 0))


def of(event_id: str, arrivals: list[Arrival]) -> list[Arrival]:
    """Return the POSTs that carried the event."""
    return [arrival for arrival in arrivals if arrival.webhook_id == event_id]


def numbers(arrivals: list[Arrival]) -> list[int]:
    """Return the numbers of the attempts in the order they came."""
    return [int(arrival.headers["x-outbox-attempt"]) for arrival in arrivals]


async def stopped_and_verified(service: Service) -> None:
    """Stop the service in order, and check all it stored."""
    assert await service.stop() == 0
    await service.verify()


async def test_pending_deliveries_continue_within_a_second_of_the_start(receiver: Receiver, tmp_path: Path) -> None:
    """Events that wait behind a hanging POST when the service is killed arrive promptly, each under its own id."""
    service = service_for(receiver, tmp_path)
    hang = asyncio.Event()

    async def hanging(_arrival: Arrival) -> int:
        await hang.wait()
        return 200

    receiver.answer = hanging
    await service.start()
    await service.set_webhook(LOCAL, f"{receiver.url}/local", concurrency=1)
    ids = [await service.accept(instance=LOCAL) for _ in range(40)]
    await receiver.wait_for(lambda arrivals: any(arrival.path == "/local" for arrival in arrivals))
    await service.kill()
    hang.set()
    receiver.arrivals.clear()
    receiver.answer = lambda _arrival: 200
    await service.start()
    await receiver.wait_for(lambda arrivals: {a.webhook_id for a in arrivals if a.path == "/local"} == set(ids))
    await receiver.wait_for(lambda arrivals: {a.webhook_id for a in arrivals if a.path == "/"} == set(ids))
    assert max(arrival.at for arrival in receiver.arrivals) - await started_at(service) < SOON_S
    await service.wait_until_settled()
    assert len(receiver.arrivals) == 80
    assert set(numbers(receiver.arrivals)) == {1}
    await stopped_and_verified(service)


async def test_an_attempt_in_flight_is_repeated_with_its_number(receiver: Receiver, tmp_path: Path) -> None:
    """A POST whose answer was cut off by the kill is made again: same id, same number, same body."""
    service = service_for(receiver, tmp_path)
    hang = asyncio.Event()

    async def fail_twice_then_hang(arrival: Arrival) -> int:
        if arrival.headers["x-outbox-attempt"] == "3":
            await hang.wait()
        return 500

    receiver.answer = fail_twice_then_hang
    await service.start()
    event_id = await service.accept(data={"text": "não"})
    await receiver.wait_for_count(3)
    await service.kill()
    hang.set()
    receiver.answer = lambda _arrival: 200
    await service.start()
    await receiver.wait_for_count(4)
    await service.wait_until_settled()
    arrivals = of(event_id, receiver.arrivals)
    assert numbers(arrivals) == [1, 2, 3, 3]
    assert arrivals[3].at - await started_at(service) < SOON_S
    assert arrivals[3].body == arrivals[2].body == arrivals[0].body
    event = (await service.request("GET", f"/events/{event_id}")).json()
    assert [attempt["attempt"] for attempt in event["attempts"]] == [1, 2, 3]
    assert [attempt["status"] for attempt in event["attempts"]] == [500, 500, 200]
    await stopped_and_verified(service)


async def test_a_retry_that_came_due_while_down_is_made_at_once(receiver: Receiver, tmp_path: Path) -> None:
    """A retry whose time passed while the service was dead is made within a second of the start, numbered on."""
    service = service_for(receiver, tmp_path, WEBHOOK_RETRY_INITIAL_DELAY_SECONDS="0.3")
    await service.start()
    event_id = await service.accept()
    delivery = await attempts_made(service, event_id, 2)
    await service.kill()
    made = numbers(receiver.arrivals)
    receiver.answer = lambda _arrival: 200
    await until(datetime.fromisoformat(delivery["due_at"]).timestamp())
    await service.start()
    arrivals = await receiver.wait_for_count(len(made) + 1)
    assert arrivals[-1].webhook_id == event_id
    assert arrivals[-1].at - await started_at(service) < SOON_S
    await service.wait_until_settled()
    # The kill may have met the third attempt between its answer and its record: then the third is repeated.
    assert made in ([1, 2], [1, 2, 3])
    assert numbers(arrivals) == [*made, 3]
    await stopped_and_verified(service)


@pytest.mark.parametrize("crash", [True, False])
async def test_a_retry_due_later_comes_at_its_time(receiver: Receiver, tmp_path: Path, *, crash: bool) -> None:
    """A retry scheduled before the kill (or the stop) is made when it is due, neither before nor much later."""
    slow = {"WEBHOOK_RETRY_INITIAL_DELAY_SECONDS": "3", "WEBHOOK_RETRY_MAX_DELAY_SECONDS": "3"}
    service = service_for(receiver, tmp_path, WEBHOOK_RETRY_JITTER_FACTOR="0", **slow)
    await service.start()
    event_id = await service.accept()
    delivery = await attempts_made(service, event_id, 1)
    due = datetime.fromisoformat(delivery["due_at"]).timestamp()
    if crash:
        await service.kill()
    else:
        assert await service.stop() == 0
    receiver.answer = lambda _arrival: 200
    await service.start()
    arrivals = await receiver.wait_for_count(2)
    assert due <= arrivals[1].at < max(due, await started_at(service)) + SOON_S
    assert numbers(arrivals) == [1, 2]
    assert arrivals[1].webhook_id == event_id
    assert 2.9 < due - arrivals[0].at < 3.5
    await service.wait_until_settled()
    await stopped_and_verified(service)


async def test_only_what_is_not_acknowledged_on_disk_is_repeated(receiver: Receiver, tmp_path: Path) -> None:
    """After a kill in mid-backlog exactly the deliveries without a recorded acknowledgement are made again."""
    receiver.answer = lambda _arrival: 503
    service = service_for(receiver, tmp_path)
    await service.start()
    ids = {await service.accept() for _ in range(300)}
    receiver.arrivals.clear()
    receiver.answer = lambda _arrival: 200
    await receiver.wait_for_count(100)
    await service.kill()
    async with open_inspector(service.database) as inspector:
        recorded = (await inspector.stats()).deliveries
    assert recorded["acknowledged"] + recorded["pending"] == 300
    receiver.arrivals.clear()
    await service.start()
    await service.wait_until_settled()
    again = [arrival.webhook_id for arrival in receiver.arrivals]
    assert len(again) == len(set(again)) == recorded["pending"]
    assert set(again) <= ids
    await stopped_and_verified(service)


async def test_a_killed_service_keeps_its_webhooks(receiver: Receiver, tmp_path: Path) -> None:
    """Settings that were answered with 200 are in force after a kill, credentials included."""
    receiver.answer = lambda _arrival: 200
    service = Service(tmp_path)
    await service.start()
    await service.set_webhook(LOCAL, receiver.url, headers={"x-key": "first"}, events=["MESSAGES_UPSERT"])
    await service.set_webhook(LOCAL, receiver.url, headers={"x-key": "second"}, events=["MESSAGES_UPSERT"])
    await service.kill()
    await service.start()
    await service.accept(event="presence.update", instance=LOCAL)
    await service.accept(instance=LOCAL)
    (arrival,) = await receiver.wait_for_count(1)
    assert arrival.headers["x-key"] == "second"
    assert arrival.json()["event"] == "messages.upsert"
    await service.wait_until_settled()
    await stopped_and_verified(service)


async def test_a_deleted_webhook_is_swept_up_after_a_kill(receiver: Receiver, tmp_path: Path) -> None:
    """What a deleted webhook had pending is dead, and never posted, though the service was killed meanwhile."""
    async with Receiver(lambda _arrival: 503) as other, running(tmp_path) as service:
        await service.set_webhook(LOCAL, other.url)
        for _ in range(200):
            await service.accept(instance=LOCAL)
        assert (await service.request("DELETE", f"/webhooks/instances/{LOCAL}")).status == 204
        await service.kill()
        other.answer = lambda _arrival: 200
        before = len(other.arrivals)
        await service.start()
        stats = await service.wait_until_settled()
        assert stats["deliveries"]["dead"] == 200
        assert len(other.arrivals) == before
