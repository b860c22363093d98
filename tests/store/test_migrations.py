import sqlite3
from pathlib import Path

from outbox.domain.deliveries import State
from outbox.inspecting import Wanted, open_inspector
from outbox.store.sqlite import open_store
from tests.harness import ROOT
from tests.store.filling import Planned, fill

SCRIPTS = sorted((ROOT / "outbox" / "store" / "sql" / "sqlite").glob("*.sql"))


def schema(path: Path) -> tuple[int, set[tuple[str, str, str]]]:
    """Return the version of a file's schema, and its tables and indexes."""
    with sqlite3.connect(path) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        found = connection.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_schema").fetchall()
    connection.close()
    return version, set(found)


def go_back(path: Path) -> None:
    """Make a file what schema 1 would have written."""
    with sqlite3.connect(path) as connection:
        connection.execute("DROP INDEX delivery_dead")
        connection.execute("PRAGMA user_version = 1")
    connection.close()


async def test_a_file_of_schema_1_is_brought_up_to_date(tmp_path: Path) -> None:
    """A file written before the index of dead deliveries gets it when it is opened, and lists its dead deliveries."""
    new, old = tmp_path / "new.db", tmp_path / "old.db"
    await (await open_store(new)).aclose()
    states = (State.DEAD, State.PENDING, State.ACKNOWLEDGED)
    fill(old, 30, lambda number: Planned(states={1: states[number % 3]}))
    go_back(old)
    assert schema(old)[0] == 1
    await (await open_store(old)).aclose()
    assert schema(old) == schema(new)
    assert schema(new)[0] == len(SCRIPTS)
    async with open_inspector(old) as inspector:
        dead = await inspector.deliveries(Wanted(state="dead"), 50)
    assert [item.delivery.event for item in dead.items] == list(range(30, 2, -3))


async def test_each_migration_alone_leads_to_the_schema(tmp_path: Path) -> None:
    """The scripts, run one after the other, are the schema that a new file has."""
    new, replayed = tmp_path / "new.db", tmp_path / "replayed.db"
    await (await open_store(new)).aclose()
    with sqlite3.connect(replayed) as connection:
        for script in SCRIPTS:
            connection.executescript(script.read_text())
    connection.close()
    assert schema(replayed)[1] == schema(new)[1]


async def test_a_file_that_no_writer_has_opened_is_read_as_it_is(tmp_path: Path) -> None:
    """A command that looks into a file of schema 1 answers, and leaves the file as it is."""
    path = tmp_path / "old.db"
    fill(path, 30, lambda _number: Planned(states={1: State.DEAD, 2: State.PENDING}))
    go_back(path)
    async with open_inspector(path) as inspector:
        dead = await inspector.deliveries(Wanted(state="dead"), 20)
    assert [item.delivery.event for item in dead.items] == list(range(32, 12, -1))
    assert schema(path)[0] == 1
