import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from outbox.domain.records import Checkpoint, decode
from tests.harness import Receiver, Service, running
from tests.service.damage import ask, change

LOCAL = "loja01"
NOW = {"OUTBOX_IDEMPOTENCY_WINDOW": "1"}
MANY = 3000


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A healthy receiver."""
    async with Receiver(lambda _arrival: 200) as made:
        yield made


async def json_of(service: Service, *arguments: str) -> Any:
    """Return the document that a command prints with --json; see that it is the only thing it prints."""
    status, output, errors = await service.command(*arguments, "--json")
    assert (status, errors) == (0, ""), (output, errors)
    return json.loads(output)


async def post_many(service: Service, count: int, filling: int = 10) -> None:
    """Take so many events in."""
    one = {"event": "messages.upsert", "instance": LOCAL, "data": "x" * filling}
    for start in range(0, count, 1000):
        body = json.dumps([one] * min(1000, count - start))
        assert (await service.request("POST", "/events/batch", body)).status == 202


def reachable(service: Service) -> None:
    """Let commands know where the service listens."""
    service.settings["OUTBOX_PORT"] = service.address.rpartition(":")[2]


@pytest.mark.parametrize("beside", [True, False], ids=["beside the service", "without it"])
async def test_prune(tmp_path: Path, receiver: Receiver, *, beside: bool) -> None:
    """What is settled goes; what is pending stays and is delivered; the space is given back; the service goes on."""
    async with running(tmp_path, **NOW) as service:
        await service.set_webhook(LOCAL, receiver.url)
        await post_many(service, MANY, 500)
        await service.wait_until_settled()
        receiver.answer = lambda _arrival: 503
        waiting = await service.accept(data={"n": 1})
        await receiver.wait_for(lambda arrivals: arrivals[-1].webhook_id == waiting)
        reachable(service)
        if not beside:
            assert await service.stop() == 0
        size = service.database.stat().st_size
        gone = await json_of(service, "prune", "--older-than", "0")
        assert (gone["events"], gone["deliveries"]) == (MANY, MANY)
        assert gone["records"] >= 2 * MANY
        if not beside:
            await service.start()
        stats = (await service.request("GET", "/stats")).json()
        assert stats["events"] == 1
        assert stats["pruned"] == {"events": MANY, "acknowledged": MANY, "dead": 0}
        metrics = (await service.request("GET", "/metrics")).body.decode()
        assert f"outbox_events_total {MANY + 1}.0\n" in metrics
        receiver.answer = lambda _arrival: 200
        await service.wait_until_settled()
        shown = await json_of(service, "show", waiting)
        assert shown["deliveries"][0]["state"] == "acknowledged"
        assert shown["attempts"][0]["status"] == 503
        assert (await json_of(service, "verify"))["problems"] == []
        await json_of(service, "rebuild")
        assert (await json_of(service, "verify"))["problems"] == []
        assert (await json_of(service, "backup", "copy.db"))["events"] == 1
        await service.accept()
        await service.wait_until_settled()
        assert await service.stop() == 0
        assert service.database.stat().st_size < size / 3
        assert (await service.command("prune", "--older-than", "30d"))[1] == (
            "0 records, 0 events, 0 deliveries are gone\n"
        )  # fmt: skip


async def test_others_are_served_while_it_prunes(tmp_path: Path, receiver: Receiver) -> None:
    """Events are taken in and delivered between its chunks."""
    async with running(tmp_path, **NOW) as service:
        await service.set_webhook(LOCAL, receiver.url)
        await post_many(service, MANY)
        await service.wait_until_settled()
        reply = await service.request("POST", "/maintenance/prune", {"older_than_s": 0})
        assert reply.status == 202, reply
        assert (await service.request("POST", "/maintenance/prune", {"older_than_s": 0})).status == 409
        meanwhile = []
        while (await service.request("GET", "/maintenance/prune")).json()["running"]:
            meanwhile.append(await service.accept())
        assert len(meanwhile) > 3
        await receiver.wait_for(lambda arrivals: {arrival.webhook_id for arrival in arrivals} >= set(meanwhile))
        found = (await service.request("GET", "/maintenance/prune")).json()
        assert (found["events"], found["error"]) == (MANY, None)
        finished = await service.wait_for_log(lambda line: line["event"] == "prune.finished")
        assert finished["events"] == MANY


@pytest.mark.parametrize("beside", [True, False], ids=["beside the service", "without it"])
async def test_killed_half_way_it_leaves_all_in_order_and_can_be_run_again(
    tmp_path: Path, receiver: Receiver, *, beside: bool
) -> None:
    """What is gone is gone, what is not is not, and the log says the same."""
    async with running(tmp_path, **NOW) as service:
        await service.set_webhook(LOCAL, receiver.url)
        await post_many(service, MANY)
        await service.wait_until_settled()
        if not beside:
            assert await service.stop() == 0
        before = ask(service.database, "SELECT max(seq) FROM log")[0][0]

        def cut() -> int:
            return len(ask(service.database, "SELECT 1 FROM log WHERE subject < -1000000"))

        if beside:
            await service.request("POST", "/maintenance/prune", {"older_than_s": 0})
            while cut() < 3:  # noqa: ASYNC110 - it is a process
                await asyncio.sleep(0.001)
            await service.kill()
        else:
            process = await service.run(["-m", "app.cli", "prune", "--older-than", "0"])
            while cut() < 3:  # noqa: ASYNC110 - it is a process
                await asyncio.sleep(0.001)
            process.kill()
            await process.wait()
        await service.verify()
        left = ask(service.database, "SELECT count(*) FROM event")[0][0]
        assert isinstance(left, int)
        assert 0 < left < MANY
        await service.start()
        reachable(service)
        await service.accept()
        gone = await json_of(service, "prune", "--older-than", "0")
        assert left <= gone["events"] <= left + 1
        assert ask(service.database, "SELECT max(seq) FROM log")[0][0] > before  # type: ignore[operator]


async def test_an_unreadable_record_ends_it(tmp_path: Path) -> None:
    """Nothing behind it is taken away, and the service goes on."""
    service = Service(tmp_path, **NOW)
    await service.start()
    await post_many(service, 600)
    assert await service.stop() == 0
    change(service.database, "UPDATE log SET record = x'c1' WHERE seq = 400")
    assert "cannot be read" in (await service.command("prune", "--older-than", "0"))[2]
    await service.start()
    reachable(service)
    status, _, errors = await service.command("prune", "--older-than", "0")
    assert (status, "cannot be read" in errors) == (1, True)
    await service.accept()
    assert ask(service.database, "SELECT count(*) FROM event WHERE seq >= 350") == [(252,)]
    assert await service.stop() == 0


async def test_wrong_usage(tmp_path: Path) -> None:
    """What is old must be said, in words that are known."""
    service = Service(tmp_path)
    assert (await service.command("prune"))[0] == 2
    status, _, errors = await service.command("prune", "--older-than", "long")
    assert (status, "not 'long'" in errors) == (2, True)
    assert await service.command("prune", "--older-than", "30d") == (
        1, "", f"there is no database {service.database}\n"
    )  # fmt: skip


async def test_checkpoints_are_told_like_any_record(tmp_path: Path) -> None:
    """In the log over HTTP and as a command."""
    async with running(tmp_path, **NOW) as service:
        await post_many(service, 10)
        reachable(service)
        await json_of(service, "prune", "--older-than", "0")
        items = (await service.request("GET", "/log")).json()["items"]
        (last,) = [item for item in items if item["type"] == "Checkpoint"]
        assert (last["first"], last["last"], last["kept"], last["events"]) == (1, 10, 0, 10)
        assert "Checkpoint" in (await service.command("tail"))[1]
        (row,) = ask(service.database, "SELECT record FROM log")
        assert isinstance(decode(bytes(row[0])), Checkpoint)  # type: ignore[call-overload]
