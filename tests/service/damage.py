# ruff: noqa: S608 - the queries are put together by tests
"""Ways to damage a stopped service's file, as a failing disk or a careless hand would."""

import sqlite3
from contextlib import closing
from pathlib import Path


def change(database: Path, *statements: str) -> None:
    """Run SQL statements in the file, past everything that the service would do."""
    with closing(sqlite3.connect(database)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount > 0, statement
        connection.commit()


def ask(database: Path, query: str) -> list[tuple[object, ...]]:
    """Return the rows of a query."""
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def flip(database: Path, table: str, column: str, where: str, at: int) -> None:
    """Flip one bit of one byte of a blob; `at` counts from 0, or from the end if negative."""
    with closing(sqlite3.connect(database)) as connection:
        (blob,) = connection.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchone()
        changed = bytearray(blob)
        changed[at] ^= 1
        done = connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (bytes(changed),))
        assert done.rowcount == 1
        connection.commit()


def flip_on_disk(file: Path, held: bytes, at: int) -> None:
    """Flip one bit in the file itself, wherever it holds these bytes; `at` counts into them, from 0 or from the end."""
    content = bytearray(file.read_bytes())
    place, found = content.find(held), 0
    while place >= 0:
        content[place + (at if at >= 0 else len(held) + at)] ^= 1
        place, found = content.find(held), found + 1
    assert found
    file.write_bytes(content)


def lose_tail(database: Path, after: int) -> None:
    """Take the file back to where its log ended with `after`; what came later must be events without deliveries."""
    count = len(ask(database, f"SELECT 1 FROM log WHERE seq > {after}"))
    change(
        database,
        f"DELETE FROM log WHERE seq > {after}",
        f"DELETE FROM body WHERE event > {after}",
        f"DELETE FROM event WHERE seq > {after}",
        f"UPDATE counter SET n = n - {count} WHERE webhook = 0 AND state = -1",
    )


def overwrite(database: Path, part: float) -> None:
    """Overwrite two pages, that far into the file, with what is no page."""
    with database.open("r+b") as file:
        file.seek(int(database.stat().st_size * part) // 4096 * 4096)
        file.write(b"\xff" * 8192)
