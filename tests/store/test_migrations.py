import sqlite3
import time
from pathlib import Path

import pytest

from outbox.domain.errors import CannotStartError
from outbox.inspecting import Wanted, open_inspector
from outbox.journal.ledger import load_webhooks
from outbox.store.sqlite import connections, open_reader, open_store
from outbox.upkeep import rebuild
from tests.harness import Receiver, running
from tests.store.earlier import OFF, SCRIPTS, make_earlier

EARLIER = pytest.mark.parametrize("earlier", range(1, len(SCRIPTS)))


def schema(path: Path) -> tuple[int, set[tuple[str, str, str]]]:
    """Return the version of a file's schema, and its tables and indexes."""
    with sqlite3.connect(path) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        found = connection.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_schema").fetchall()
    connection.close()
    return version, set(found)


def now_ms() -> int:
    """The time of day: what is older than a week is not delivered any more."""
    return int(time.time() * 1000)


@EARLIER
async def test_a_file_of_an_earlier_schema_is_brought_up_to_date(tmp_path: Path, earlier: int) -> None:
    """Opened by a writer it is as a new file, everything in it still follows from its log, and it can be rebuilt."""
    new, old = tmp_path / "new.db", tmp_path / "old.db"
    await (await open_store(new)).aclose()
    make_earlier(old, earlier, now_ms(), "http://127.0.0.1:9")
    assert schema(old)[0] == earlier
    await (await open_store(old)).aclose()
    assert schema(old) == schema(new)
    assert schema(new)[0] == len(SCRIPTS)
    for _ in range(2):
        async with open_inspector(old) as inspector:
            report = await inspector.verify(lambda _done, _all: None)
            assert (report.problems, report.events, report.deliveries) == ([], 6, 7)
            dead = await inspector.deliveries(Wanted(state="dead"), 50)
            assert [(item.delivery.webhook, item.delivery.attempts) for item in dead.items] == [(3, 0), (1, 1), (3, 0)]
        await rebuild(old)


@EARLIER
async def test_what_an_earlier_release_left_is_delivered(tmp_path: Path, earlier: int) -> None:
    """What was pending is delivered after the start, a second attempt as such; what was held stays so."""
    async with Receiver() as receiver:
        make_earlier(tmp_path / "outbox.db", earlier, now_ms(), receiver.url)
        async with running(tmp_path) as service:
            stats = await service.wait_for_stats(lambda stats: not stats["deliveries"]["pending"])
            assert stats["deliveries"] == {"pending": 0, "waiting": 0, "held": 1, "acknowledged": 3, "dead": 3}
            assert sorted(arrival.headers["x-outbox-attempt"] for arrival in receiver.arrivals) == ["1", "2"]
            assert {arrival.headers["authorization"] for arrival in receiver.arrivals} == {"Bearer 1"}
            await service.set_webhook("loja02", f"{receiver.url}/on")
            await receiver.wait_for_count(3)
            await service.wait_until_settled()


async def test_a_webhook_that_was_disabled_then_counts_as_held_since(tmp_path: Path) -> None:
    """The first release did not record since when: its last setting is what is known."""
    path, at_ms = tmp_path / "outbox.db", now_ms()
    make_earlier(path, 2, at_ms, "http://127.0.0.1:9")
    await (await open_store(path)).aclose()
    reader = await open_reader(path)
    webhooks = load_webhooks(*await reader.webhooks())
    await reader.aclose()
    assert {webhook.number: webhook.held for webhook in webhooks} == {1: (), OFF: ((at_ms, 0),)}


async def test_each_migration_alone_leads_to_the_schema(tmp_path: Path) -> None:
    """The scripts, run one after the other, are the schema that a new file has."""
    new, replayed = tmp_path / "new.db", tmp_path / "replayed.db"
    await (await open_store(new)).aclose()
    with sqlite3.connect(replayed) as connection:
        for script in SCRIPTS:
            connection.executescript(script.read_text())
    connection.close()
    assert schema(replayed)[1] == schema(new)[1]


@EARLIER
async def test_a_file_that_no_writer_has_brought_up_to_date_is_not_read(tmp_path: Path, earlier: int) -> None:
    """Whoever only looks is told what to do, and the file stays as it is."""
    path = tmp_path / "old.db"
    make_earlier(path, earlier, now_ms(), "http://127.0.0.1:9")
    with pytest.raises(CannotStartError, match=r"written by an earlier release .* start the service once"):
        await open_reader(path)
    assert schema(path)[0] == earlier


@EARLIER
async def test_a_migration_that_fails_leaves_the_schema_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: int
) -> None:
    """Whatever it had done is taken back; what came before it stays done, and a mended one goes on from there."""
    path, scripts = tmp_path / "old.db", tmp_path / "scripts"
    make_earlier(path, earlier, now_ms(), "http://127.0.0.1:9")
    scripts.mkdir()
    for script in SCRIPTS:
        (scripts / script.name).write_text(script.read_text())
    failing = scripts / SCRIPTS[-1].name
    failing.write_text(f"{failing.read_text()}\nDELETE FROM delivery;\nINSERT INTO nowhere VALUES (1);\n")
    with monkeypatch.context() as patch:
        patch.setattr(connections, "_MIGRATIONS", scripts)
        with pytest.raises(CannotStartError, match="nowhere"):
            await open_store(path)
    version, found = schema(path)
    assert version == len(SCRIPTS) - 1
    with sqlite3.connect(":memory:") as connection:
        for script in SCRIPTS[:version]:
            connection.executescript(script.read_text())
        assert found == set(connection.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_schema").fetchall())
    connection.close()
    await (await open_store(path)).aclose()
    async with open_inspector(path) as inspector:
        report = await inspector.verify(lambda _done, _all: None)
    assert (report.problems, report.events, report.deliveries) == ([], 6, 7)


async def test_a_file_of_a_later_release_is_neither_read_nor_written(tmp_path: Path) -> None:
    """What its tables mean is not known here."""
    path = tmp_path / "outbox.db"
    await (await open_store(path)).aclose()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(SCRIPTS) + 1}")
    connection.close()
    for opening in (open_reader, open_store):
        with pytest.raises(CannotStartError, match="written by a newer release"):
            await opening(path)
