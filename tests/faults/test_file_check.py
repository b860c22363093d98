"""After a stop that was not orderly the file is checked beside the work; what SQLite finds damaged ends the service."""

import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from outbox.inspecting import open_inspector
from outbox.journal.checkup import Checkup
from outbox.journal.damage import Damage
from outbox.store.sqlite import open_store
from outbox.store.sqlite.connections import connect
from outbox.store.sqlite.reading import SqliteReader
from tests.harness import Receiver, Service

EVENTS = 12
PAGE_BYTES = 4096


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """A service at work, with some events for nobody, each of which fills a page."""
    service = Service(tmp_path)
    await service.start()
    for number in range(EVENTS):
        await service.accept(data=filling(number))
    yield service
    if service.process.returncode is None:
        await service.stop()
    assert not [line for line in service.log if line["event"] == "text"]


def filling(number: int) -> str:
    """Return what only that event's body holds."""
    return f"<{number}>" + "x" * 2500


async def readiness(service: Service) -> Any:
    """Return what readiness says."""
    return (await service.request("GET", "/health/ready")).json()


async def checked(service: Service) -> Any:
    """Return what readiness says once the check of the file has ended."""
    await service.wait_for_log(lambda line: line["event"] == "file.check_ended")
    return await readiness(service)


async def start_again(service: Service) -> None:
    """Stop it in order, which moves all into the database file, and start it again."""
    assert await service.stop() == 0
    await service.start()


def spoil_body(database: Path, number: int) -> None:
    """Overwrite the page with an event's body by what is no page."""
    with database.open("r+b") as file:
        place = file.read().find(filling(number).encode())
        assert place >= 0
        file.seek(place // PAGE_BYTES * PAGE_BYTES)
        file.write(b"\xff" * PAGE_BYTES)


async def metrics(service: Service, name: str) -> dict[str, float]:
    """Return the values of a metric by its labels."""
    lines = (await service.request("GET", "/metrics")).body.decode().splitlines()
    found = [line.removeprefix(name).rsplit(" ", 1) for line in lines if line.startswith(name + "{")]
    return {labels: float(value) for labels, value in found}


async def test_the_file_is_checked_after_a_crash_alone(service: Service) -> None:
    """After a kill it is looked at once, and found sound; after an orderly stop there is no need to."""
    await start_again(service)
    assert (await readiness(service))["file_check"] == "not needed"
    await service.kill()
    await service.start()
    ready = await checked(service)
    assert (ready["file_check"], ready["status"], ready["warnings"]) == ("sound", "ready", [])
    assert (await metrics(service, "outbox_file_check"))['{state="sound"}'] == 1
    await start_again(service)
    assert (await readiness(service))["file_check"] == "not needed"
    assert not [line for line in service.log if line["event"].startswith("file.")]


async def test_a_command_in_between_does_not_make_it_forgotten(service: Service) -> None:
    """What writes to the file after a crash, and ends in order, has not looked whether it is sound."""
    await service.kill()
    assert (await service.command("rebuild"))[0] == 0
    await service.start()
    assert (await checked(service))["file_check"] == "sound"


async def test_a_damaged_page_is_told_of_beside_the_work(service: Service) -> None:
    """Events are taken in and sound ones shown; log, readiness and metrics say it at every start until it is mended."""
    await start_again(service)
    await service.kill()
    spoil_body(service.database, 3)
    for _ in range(2):
        await service.start()
        ready = await checked(service)
        assert (ready["file_check"], ready["status"]) == ("damaged", "ready")
        assert "restore a backup" in ready["warnings"][0]
        (line,) = [line for line in service.log if line["event"] == "damage.found"]
        assert (line["level"], line["part"]) == ("error", "file")
        assert (await metrics(service, "outbox_damage_total"))['{part="file"}'] == 1
        assert (await metrics(service, "outbox_file_check"))['{state="damaged"}'] == 1
        event_id = await service.accept()
        assert (await service.request("GET", f"/events/{event_id}")).status == 200
        assert await service.stop() == 0


async def test_sqlites_own_error_ends_the_service_wherever_it_is_met(service: Service) -> None:
    """Whoever looks at a damaged page gets a 500, and the service ends with a message; the next checks the file."""
    await start_again(service)
    event_id = await service.accept(data=filling(EVENTS))
    assert await service.stop() == 0
    spoil_body(service.database, EVENTS)
    await service.start()
    reply = await service.request("GET", f"/events/{event_id}")
    assert (reply.status, "damaged" in reply.json()["detail"]) == (500, True)
    assert await service.wait() == 1
    (line,) = [line for line in service.log if line["event"] == "service.failed"]
    assert "the database file is damaged" in line["reason"]
    await service.launch()
    await service.wait_for_log(lambda line: line["event"] == "file.check_began")


class Endless(SqliteReader):
    """A reader whose check takes for ever."""

    async def quick_check(self) -> list[str]:
        """Read until interrupted."""

        def count(connection: sqlite3.Connection) -> list[str]:
            query = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
            return [str(number) for (number,) in connection.execute(query)]

        return await self._run(count)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_stop_waits_for_no_check(tmp_path: Path, *, cancelled: bool) -> None:
    """Told to stop, or cancelled and told, the check ends at once, and does not call the file sound."""
    store = await open_store(tmp_path / "outbox.db")
    reader = Endless(await connect(tmp_path / "outbox.db", writing=False))
    settled: list[bool] = []
    checkup = Checkup(Damage(), reader, lambda: settled.append(True))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(checkup.run)
            await anyio.sleep(0.05)
            assert checkup.state == "running"
            if cancelled:
                tasks.cancel_scope.cancel()
            checkup.stop()
    assert (checkup.state, settled) == ("not finished", [])
    await reader.aclose()
    await store.aclose()


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0], ids=["its header", "its middle", "its last frame"])
async def test_a_damaged_write_ahead_log_is_a_lost_tail(service: Service, tmp_path: Path, part: float) -> None:
    """What comes before the damage is there and sound; what is lost shows against the head that was kept."""
    async with Receiver() as receiver:
        await start_again(service)
        await service.set_webhook("loja01", receiver.url)
        for number in range(20):
            await service.accept(data=filling(number))
        await service.wait_until_settled()
        last = (await service.request("GET", "/stats")).json()["seq"]
        with anyio.fail_after(10):
            while json.loads((tmp_path / "outbox.db.head").read_bytes())["seq"] < last:  # noqa: ASYNC110 - a process
                await anyio.sleep(0.05)
        await service.kill()
        log = service.folder / "outbox.db-wal"
        content = bytearray(log.read_bytes())
        content[min(int(len(content) * part) + 8, len(content) - 1)] ^= 1
        log.write_bytes(content)
        await service.start()
        lost = await service.wait_for_log(lambda line: line["event"] == "log.tail_lost")
        assert lost["remembered"] == last > lost["found"] >= EVENTS
        ready = await checked(service)
        assert (ready["status"], ready["file_check"]) == ("ready", "sound")
        assert f"the log ends at {lost['found']}" in ready["warnings"][0]
        assert (await metrics(service, "outbox_damage_total"))['{part="tail"}'] == 1
        await service.accept()
        await service.wait_until_settled()
        assert await service.stop() == 0
    async with open_inspector(service.database) as inspector:
        assert (await inspector.verify(lambda _done, _all: None)).problems == []
