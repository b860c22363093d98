import asyncio
import json
import random
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from outbox.inspecting import open_inspector
from tests.faults.load import Load
from tests.harness import Receiver, Service, running
from tests.service.damage import ask, change, flip, overwrite

LOCAL = "loja01"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that answers 500 until told otherwise."""
    async with Receiver(lambda _arrival: 500) as made:
        yield made


def names(folder: Path) -> list[str]:
    """Return the names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


async def json_of(service: Service, *arguments: str, status: int = 0) -> Any:
    """Return the document that a command prints with --json; see that it is the only thing it prints."""
    found, output, errors = await service.command(*arguments, "--json")
    assert (found, errors) == (status, ""), (output, errors)
    return json.loads(output)


async def verified(path: Path) -> Any:
    """Return what a file holds; fail if anything is wrong with it."""
    async with open_inspector(path) as inspector:
        report = await inspector.verify(lambda _done, _all: None)
    assert report.problems == []
    return report


async def test_a_backup_under_load_holds_what_was_accepted_before_it_began(tmp_path: Path, receiver: Receiver) -> None:
    """Beside a service that takes events in and posts them: the copy is of one instant, checked, and its owner's."""
    async with running(tmp_path) as service:
        await service.set_webhook(LOCAL, receiver.url, headers={"x-secret": "canary"}, secret="whsec_" + "A" * 43 + "=")
        load = Load(random.Random(7))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.produce(service.address))
            await load.wait_for(200)
            before = set(load.ledger.accepted.values())
            copy = tmp_path / "copies.db"
            told = await json_of(service, "backup", str(copy))
            load.stop()
        assert told["file"] == str(copy)
        report = await verified(copy)
        assert (report.records, report.events) == (told["records"], told["events"])
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        assert not (tmp_path / "copies.db.part").exists()
        held = {bytes(row[0]).hex() for row in ask(copy, "SELECT id FROM event")}  # type: ignore[call-overload]
        assert {name.removeprefix("evt_") for name in before} <= held
        assert ask(copy, "SELECT count(*) FROM secret") == [(1,)]


async def test_a_restored_backup_goes_on_from_where_it_was(tmp_path: Path, receiver: Receiver) -> None:
    """What was pending is delivered, what was accepted later is not there, what was there before is kept aside."""
    copy = tmp_path / "copy.db"
    async with running(tmp_path) as service:
        await service.set_webhook(LOCAL, receiver.url, headers={"x-secret": "canary"})
        waiting = await service.accept()
        assert (await service.command("backup", str(copy)))[0] == 0
        later = await service.accept()
        assert await service.stop() == 0
        head = (tmp_path / "outbox.db.head").read_bytes()
        receiver.arrivals.clear()
        receiver.answer = lambda _arrival: 200
        told = await json_of(service, "restore", str(copy))
        aside = Path(told["aside"])
        assert (told["file"], told["restored"], told["problems"]) == (str(service.database), True, [])
        assert aside.name.startswith("outbox.db.replaced-")
        assert (await verified(aside)).events == 2
        assert aside.with_name(aside.name + ".head").read_bytes() == head
        assert stat.S_IMODE(service.database.stat().st_mode) == 0o600
        await service.start()
        await service.wait_until_settled()
        assert {(arrival.webhook_id, arrival.headers["x-secret"]) for arrival in receiver.arrivals} == {
            (waiting, "canary")
        }
        assert (await service.request("GET", f"/events/{later}")).status == 404
        assert not [line for line in service.log if line["event"] == "log.tail_lost"]
        await service.accept()
        await service.wait_until_settled()
    assert (await verified(copy)).events == 1


async def test_a_restore_where_nothing_is_yet(tmp_path: Path) -> None:
    """The folder is made, and nothing is put aside."""
    async with running(tmp_path) as service:
        await service.accept()
        assert (await service.command("backup", "copy.db"))[0] == 0
    elsewhere = Service(tmp_path)
    elsewhere.settings["OUTBOX_DATABASE_URL"] = f"sqlite:///{tmp_path / 'new' / 'outbox.db'}"
    status, output, errors = await elsewhere.command("restore", "copy.db")
    assert (status, errors) == (0, "")
    assert output == f"1 records, 1 events, 0 deliveries, 1 bodies: all is well, now in {tmp_path}/new/outbox.db\n"
    assert (await verified(tmp_path / "new" / "outbox.db")).events == 1


async def test_no_restore_beside_a_service(tmp_path: Path) -> None:
    """The file is the service's: nothing is changed."""
    async with running(tmp_path) as service:
        await service.accept()
        assert (await service.command("backup", "copy.db"))[0] == 0
        before = names(tmp_path)
        status, output, errors = await service.command("restore", "copy.db")
        assert (status, output) == (1, "")
        assert "already works with this database" in errors
        assert errors.endswith(": stop the service first\n")
        assert names(tmp_path) == before


async def test_a_backup_of_a_file_of_a_killed_service(tmp_path: Path, receiver: Receiver) -> None:
    """What is in the write-ahead log only is in the copy; and a restore over such a file keeps that aside too."""
    service = Service(tmp_path)
    await service.start()
    await service.set_webhook(LOCAL, receiver.url)
    await service.accept()
    await service.kill()
    assert (tmp_path / "outbox.db-wal").stat().st_size
    told = await json_of(service, "backup", "copy.db")
    assert told["events"] == 1
    told = await json_of(service, "restore", "copy.db")
    assert (await verified(Path(told["aside"]))).events == 1
    assert not (tmp_path / "outbox.db-wal").exists()


@pytest.mark.parametrize("damage", ["a body", "a record", "a table", "a page", "no outbox", "nothing"])
async def test_a_backup_that_does_not_verify_is_not_restored(tmp_path: Path, receiver: Receiver, damage: str) -> None:
    """It says why, and changes nothing; undamaged it would do."""
    receiver.answer = lambda _arrival: 200
    copy = tmp_path / "copy.db"
    async with running(tmp_path) as service:
        await service.set_webhook(LOCAL, receiver.url)
        for _ in range(30):
            await service.accept(data="x" * 1000)
        await service.wait_until_settled()
        assert (await service.command("backup", str(copy)))[0] == 0
        assert await service.stop() == 0
        if damage == "a body":
            flip(copy, "body", "body", "event = 3", 9)
        elif damage == "a record":
            flip(copy, "log", "record", "seq = 3", -1)
        elif damage == "a table":
            change(copy, "UPDATE delivery SET state = 3 WHERE event = 3")
        elif damage == "a page":
            overwrite(copy, 0.5)
        elif damage == "no outbox":
            copy.unlink()
            ask(copy, "PRAGMA user_version = 4")
        else:
            copy.unlink()
        content, before = service.database.read_bytes(), names(tmp_path)
        status, output, errors = await service.command("restore", str(copy))
        assert status == 1
        assert output + errors
        assert "Traceback" not in errors
        assert (service.database.read_bytes(), names(tmp_path)) == (content, before)


async def test_a_damaged_body_is_copied_and_named(tmp_path: Path) -> None:
    """One bad body is no reason to have no backup of the others, but the exit status says it."""
    service = Service(tmp_path)
    await service.start()
    event_id = await service.accept(data="x" * 1000)
    assert await service.stop() == 0
    flip(service.database, "body", "body", "event = 1", 9)
    told = await json_of(service, "backup", "copy.db", status=1)
    assert told["problems"] == [f"event {event_id} (seq 1): its body is not the one that was accepted"]
    assert (tmp_path / "copy.db").exists()


async def test_a_record_that_cannot_be_read_ends_a_backup(tmp_path: Path) -> None:
    """What follows from the log cannot be made then: there is no copy, and nothing is left of it."""
    service = Service(tmp_path)
    await service.start()
    await service.accept()
    assert await service.stop() == 0
    change(service.database, "UPDATE log SET record = x'c1'")
    status, _, errors = await service.command("backup", "copy.db")
    assert status == 1
    assert "cannot be read" in errors
    assert not [name for name in names(tmp_path) if name.startswith("copy")]


async def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    """Neither by a backup, nor by two at the same time."""
    async with running(tmp_path) as service:
        await service.accept()
        (tmp_path / "copy.db").write_text("mine")
        assert await service.command("backup", "copy.db") == (
            1, "", "copy.db is there already: choose another name\n"
        )  # fmt: skip
        assert (tmp_path / "copy.db").read_text() == "mine"
        assert (await service.command("backup", "nowhere/copy.db"))[2].startswith("cannot write nowhere/copy.db.part: ")
        done = await asyncio.gather(*(service.command("backup", "new.db") for _ in range(3)))
        assert min(status for status, _, _ in done) == 0
        assert {errors for status, _, errors in done if status} <= {
            "cannot write new.db.part: another program is at it\n",
            "new.db is there already: choose another name\n",
        }
        await verified(tmp_path / "new.db")
