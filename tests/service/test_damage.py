# ruff: noqa: S608 - the queries are put together by tests
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from outbox.inspecting import open_inspector
from tests.harness import Receiver, Service
from tests.service.damage import ask, change, flip, lose_tail, overwrite


@pytest.fixture
async def stopped(tmp_path: Path) -> AsyncIterator[Service]:
    """A service that was stopped in order: two deliveries of 40 events, a webhook with a header, a deleted one."""
    async with Receiver() as receiver:
        service = Service(tmp_path, WEBHOOK_GLOBAL_ENABLED="true", WEBHOOK_GLOBAL_URL=receiver.url)
        await service.start()
        await service.set_webhook("loja01", receiver.url, headers={"x-key": "value"})
        await service.set_webhook("loja02", receiver.url)
        for number in range(40):
            headers = {"idempotency-key": f"key-{number}"}
            body = {"event": "messages.upsert", "instance": "loja01", "data": {"n": number}}
            assert (await service.request("POST", "/events", body, headers)).status == 202
        await service.wait_until_settled()
        assert (await service.request("DELETE", "/webhooks/instances/loja02")).status == 204
        assert (await service.request("POST", "/deliveries/replay", {"state": "dead"})).status == 202
        assert await service.stop() == 0
        yield service


async def problems(service: Service) -> list[str]:
    """Return what is wrong with a stopped service's file, as `verify` would print it."""
    async with open_inspector(service.database) as inspector:
        return (await inspector.verify(lambda _done, _all: None)).problems


async def problems_printed(service: Service) -> list[str]:
    """Return what `verify` prints; see that its exit status says whether there is anything."""
    status, output, errors = await service.command("verify", "--json")
    found: list[str] = json.loads(output)["problems"]
    assert (status, errors) == (1 if found else 0, "")
    return found


def head(file: Path) -> object:
    """Return the seq that a head file holds."""
    return json.loads(file.read_bytes())["seq"]


async def test_damaged_projections_are_named_and_mended(stopped: Service) -> None:
    """`verify` names every row that the log does not say, `rebuild` mends them all, and the service goes on."""
    (webhook, event), *_ = ask(stopped.database, "SELECT webhook, event FROM delivery ORDER BY event LIMIT 1")
    last = ask(stopped.database, "SELECT max(seq) FROM event")[0][0]
    ((replay,),) = ask(stopped.database, "SELECT number FROM replay")
    change(
        stopped.database,
        f"UPDATE delivery SET state = 3 WHERE webhook = {webhook} AND event = {event}",
        f"DELETE FROM delivery WHERE webhook = {webhook} AND event = {last}",
        f"UPDATE event SET instance = 'other' WHERE seq = {event}",
        f"UPDATE idempotency SET event = {event} WHERE event = {last}",
        f"UPDATE counter SET n = n + 1 WHERE webhook = {webhook} AND state = 2",
        f"UPDATE webhook SET updated_ms = 1 WHERE number = {webhook}",
        f"UPDATE replay SET skipped = 1 WHERE number = {replay}",
        "INSERT INTO delivery (webhook, event, state, due_ms, attempts, charged) VALUES (1, 1, 2, 0, 0, 0)",
    )
    found = "\n".join(await problems_printed(stopped))
    for named in (
        f"Delivery(webhook={webhook}, event={event}, state=3",
        f"Delivery(webhook={webhook}, event={last}",
        "instance='other'",
        "idempotency key",
        f"counter ({webhook}, 2): 41, the log says 40",
        f"webhook {webhook}: its row is not what the log says",
        f"replay {replay}: its row is not what the log says",
        "Delivery(webhook=1, event=1",
    ):
        assert named in found
    status, output, _ = await stopped.command("verify")
    assert status == 1
    assert "problems" in output.splitlines()[-1]
    assert (await stopped.command("rebuild"))[0] == 0
    assert await problems(stopped) == []
    await stopped.start()
    await stopped.accept(instance="loja01")
    await stopped.wait_until_settled()
    assert await stopped.stop() == 0
    assert await problems(stopped) == []


async def test_a_flipped_bit_of_a_body_is_named(stopped: Service) -> None:
    """`verify` names the event whose body is not the one that was accepted; `rebuild` cannot mend that."""
    seq, event_id = ask(stopped.database, "SELECT seq, lower(hex(id)) FROM event ORDER BY seq LIMIT 1")[0]
    flip(stopped.database, "body", "body", f"event = {seq}", 40)
    expected = [f"event evt_{event_id} (seq {seq}): its body is not the one that was accepted"]
    assert await problems_printed(stopped) == expected
    assert (await stopped.command("rebuild"))[0] == 0
    assert await problems(stopped) == expected


async def test_a_lost_body_is_named(stopped: Service) -> None:
    """`verify` names an event whose body is gone."""
    ((seq,),) = ask(stopped.database, "SELECT max(event) FROM body")
    change(stopped.database, f"DELETE FROM body WHERE event = {seq}")
    (found,) = await problems(stopped)
    assert found.endswith(f"(seq {seq}): its body is missing")


async def test_a_damaged_body_is_never_delivered(stopped: Service, tmp_path: Path) -> None:
    """A pending delivery whose body fails its digest ends as dead with that reason, without a POST or a copy."""
    async with Receiver(lambda _arrival: 503) as receiver:
        stopped.settings["WEBHOOK_GLOBAL_URL"] = receiver.url
        await stopped.start()
        event_id = await stopped.accept()
        await receiver.wait_for_count(1)
        assert await stopped.stop() == 0
        flip(stopped.database, "body", "body", "event = (SELECT max(event) FROM body)", -2)
        posts = len(receiver.arrivals)
        await stopped.start()
        stats = await stopped.wait_until_settled()
        assert stats["deliveries"]["dead"] == 1
        event = (await stopped.request("GET", f"/events/{event_id}")).json()
        assert event["payload"] is None
        assert (event["attempts"][-1]["error"], event["attempts"][-1]["status"]) == ("corrupt_body", None)
        path = f"/deliveries/{event['deliveries'][0]['id']}/replay"
        copy = await stopped.request("POST", path, {"to": receiver.url})
        assert copy.json() == {"id": None, "deliveries": 1, "status": None, "error": "corrupt_body"}
        assert len(receiver.arrivals) == posts
        assert await stopped.stop() == 0


@pytest.mark.parametrize("at", [2, -1], ids=["its id", "its last byte"])
async def test_a_flipped_bit_of_a_record_is_named(stopped: Service, at: int) -> None:
    """`verify` names the record that does not continue the chain."""
    seq = ask(stopped.database, "SELECT min(seq) FROM event")[0][0]
    flip(stopped.database, "log", "record", f"seq = {seq}", at)
    assert f"the log: record {seq} does not continue the chain" in await problems_printed(stopped)


async def test_a_log_that_cannot_be_read_is_not_folded(stopped: Service) -> None:
    """`rebuild` says which record it is, and leaves the projections as they are."""
    seq = ask(stopped.database, "SELECT min(seq) FROM event")[0][0]
    flip(stopped.database, "log", "record", f"seq = {seq}", 0)
    before = ask(stopped.database, "SELECT * FROM delivery")
    status, output, errors = await stopped.command("rebuild")
    assert (status, output) == (1, "")
    assert str(seq) in errors
    assert "Traceback" not in errors
    assert ask(stopped.database, "SELECT * FROM delivery") == before


async def test_a_missing_and_a_forged_record_are_named(stopped: Service) -> None:
    """A hole in the log, and a digest that was made to fit, do not go unnoticed."""
    flip(stopped.database, "log", "digest", "seq = 5", 0)
    change(stopped.database, "DELETE FROM log WHERE seq = 10")
    found = await problems(stopped)
    assert "the log: record 5 does not continue the chain" in found
    assert "the log: records 10 to 10 are missing" in found


async def test_lost_credentials_are_named(stopped: Service) -> None:
    """Credentials that are missing, or not those that were set, are named; what needs them is held."""
    change(stopped.database, "DELETE FROM secret")
    (found,) = await problems(stopped)
    assert "credentials of webhook" in found
    await stopped.start()
    assert "credentials of webhook" in (await stopped.request("GET", "/health/ready")).json()["warnings"][0]
    assert await stopped.stop() == 0


async def test_a_lost_tail_is_noticed(tmp_path: Path) -> None:
    """A file taken back to an earlier end of the log is sound in itself; the head kept beside it tells."""
    service = Service(tmp_path)
    await service.start()
    for _ in range(10):
        await service.accept()
    assert await service.stop() == 0
    lose_tail(service.database, 7)
    assert await problems_printed(service) == ["the log ends at 7, but the head file remembers record 10"]
    await service.start()
    lost = await service.wait_for_log(lambda line: line["event"] == "log.tail_lost")
    assert (lost["level"], lost["remembered"], lost["found"]) == ("error", 10, 7)
    assert head(Path(lost["evidence"])) == 10
    await service.accept()
    assert await service.stop() == 0
    assert await problems(service) == []
    await service.start()
    assert await service.stop() == 0
    assert not [line for line in service.log if line["event"] == "log.tail_lost"]


async def test_a_head_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """The head is kept beside the log for safety only: without it events are taken in, with a warning in the log."""
    (tmp_path / "outbox.db.head.new").mkdir()
    service = Service(tmp_path)
    await service.start()
    await service.accept()
    await service.wait_for_log(lambda line: line["event"] == "head.not_kept")
    await service.accept()
    assert await service.stop() == 0
    await service.verify()


@pytest.mark.parametrize("content", [b"", b'{"seq": 3, "digest": "zz"}', b"\xff" * 100])
async def test_an_unreadable_head_file_is_no_error(stopped: Service, content: bytes) -> None:
    """Missing or damaged, it is written again."""
    (stopped.folder / "outbox.db.head").write_bytes(content)
    assert await problems(stopped) == []
    await stopped.start()
    await stopped.accept()
    assert await stopped.stop() == 0
    assert head(stopped.folder / "outbox.db.head") == ask(stopped.database, "SELECT max(seq) FROM log")[0][0]
    assert not [line for line in stopped.log if line["event"] == "log.tail_lost"]


@pytest.mark.parametrize("part", [0.0, 0.2, 0.6])
async def test_overwritten_pages_are_noticed(stopped: Service, part: float) -> None:
    """Pages that hold something else make `verify` fail with words, and the start too if it meets them."""
    overwrite(stopped.database, part)
    status, output, errors = await stopped.command("verify")
    assert status == 1
    assert "Traceback" not in errors
    assert "malformed" in output + errors or "damaged" in output + errors or "not a database" in output + errors
    await stopped.launch()
    line = await stopped.wait_for_log(lambda line: line["event"] in {"service.started", "service.failed"})
    status = await (stopped.stop() if line["event"] == "service.started" else stopped.wait())
    # It stops by itself, with a message, if it meets the damage after the start.
    failed = any(line["event"] == "service.failed" for line in stopped.log)
    assert status == (1 if failed else 0), stopped.log
    assert not [line for line in stopped.log if line["event"] == "text"]
