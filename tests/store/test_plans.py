import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from outbox.domain.deliveries import State
from outbox.store.protocol import EventFilter, Position, Span
from outbox.store.sqlite import facts, listing, projections, reading, replays
from outbox.store.sqlite.reading import SqliteReader, open_reader
from tests.store.filling import START_MS, Planned, fill

ROWS = 50_000
LARGE = ("log", "event", "delivery", "body", "idempotency", "replay")
NARROW = EventFilter(kind="CALL", instance="loja01", since_ms=START_MS, until_ms=2**40)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with 50,000 events, most of them pending."""
    path = tmp_path_factory.mktemp("plans") / "outbox.db"
    planned = [Planned(states={1: state, 2: State.PENDING}) for state in State]
    fill(path, ROWS, lambda number: planned[number % len(planned)])
    return path


class Spy:
    """Runs queries, and remembers them with how many values each had."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.queries: list[tuple[str, int]] = []

    def execute(self, query: str, values: object = ()) -> sqlite3.Cursor:
        """Run a query as a connection does."""
        assert isinstance(values, tuple | list)
        self.queries.append((query, len(values)))
        return self._connection.execute(query, values)


@pytest.fixture
async def plans(database: Path) -> AsyncIterator[sqlite3.Connection]:
    """Give a connection on which plans can be asked for."""
    connection = sqlite3.connect(database)
    yield connection
    connection.close()


def plan(connection: sqlite3.Connection, query: str, values: int) -> list[str]:
    """Return the steps of a query's plan."""
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", (0,) * values)]


def scans(connection: sqlite3.Connection, query: str, values: int) -> list[str]:
    """Return the steps of a query's plan that go through a whole large table, or sort what they found."""
    aliases = {"e", "l", "d"}
    return [
        step
        for step in plan(connection, query, values)
        if (step.startswith("SCAN") and step.split()[1] in {*LARGE, *aliases}) or "TEMP B-TREE" in step
        # The last row of a table is found at once.
        if not query.endswith("ORDER BY seq DESC LIMIT 1")
    ]


async def test_no_question_scans_a_large_table(database: Path, plans: sqlite3.Connection) -> None:
    """Every query of the lists, the log, the stats and the relay reaches its rows by a key or an index."""
    asked: list[tuple[str, int]] = []
    async with aclosing(await open_reader(database)) as reader:
        await _ask_everything(reader, asked)
    assert len(asked) > 25
    walks = [(query, scans(plans, query, values)) for query, values in asked]
    assert [walk for walk in walks if walk[1]] == []


async def _ask_everything(reader: SqliteReader, asked: list[tuple[str, int]]) -> None:
    """Call every method that a listing, the log, the stats or a lane calls, and note the queries."""
    run = reader._hopper.run

    async def spied(function: object, *arguments: object) -> object:
        def noted(connection: sqlite3.Connection, *values: object) -> object:
            spy = Spy(connection)
            try:
                return function(spy, *values)  # type: ignore[operator]
            finally:
                asked.extend(spy.queries)

        return await run(noted, *arguments)

    reader._hopper.run = spied  # type: ignore[method-assign,assignment]
    top = Position(2**62, 1)
    for wanted in (EventFilter(), NARROW):
        await reader.events_between((0, 2**62), wanted, 10)
        await reader.deliveries_below(top, [0, 1], wanted, 10)
        await reader.dead_below(top, None, wanted, 10)
        await reader.dead_below(top, 1, wanted, 10)
        await reader.replayable(Span(1, 0, 2**62), [0, 3], wanted, 10)
        await reader.addable(Span(1, 0, 2**62), ["CALL", "MESSAGES_UPSERT"], wanted, 10)
        await reader.count_replayable(Span(1, 0, 2**62), [0, 3], wanted)
        await reader.count_addable(Span(1, 0, 2**62), [], wanted)
    await reader.replays(2**62, 10)
    await reader.replays_running()
    await reader.event_floor(2**62)
    await reader.any_since(START_MS, 10)
    await reader.event_ids([3, 4, 5])
    await reader.deliveries([(1, 3), (2, 3), (1, 4)])
    await reader.log(0, 10)
    await reader.head()
    await reader.about(3, 10)
    await reader.event_seq(bytes(16))
    await reader.bodies([3, 4])
    await reader.due(1, 2**62, 10)
    await reader.next_due(1)
    await reader.older(1, 2**62, 2**62, (-1, -1))
    await reader.oldest_pending(1, 10)
    await reader.oldest_pending(1, ROWS)
    await reader.webhooks()
    await reader.counters()


def test_the_claim_goes_by_its_index(plans: sqlite3.Connection) -> None:
    """With 50,000 deliveries, a lane finds the longest due ones by the index that is made for it, without sorting."""
    steps = plan(plans, reading._DUE, 5)
    assert any("delivery USING INDEX delivery_due (webhook=? AND due_ms>? AND due_ms<?)" in step for step in steps)
    assert scans(plans, reading._DUE, 5) == []
    assert "USING INDEX delivery_due" in plan(plans, reading._NEXT_DUE, 2)[0]


def test_lists_go_by_the_keys_they_are_made_for(plans: sqlite3.Connection) -> None:
    """Each walk has its way: events and a webhook's deliveries by primary key, dead ones by their partial index."""
    assert "e USING INTEGER PRIMARY KEY" in plan(plans, f"{listing._EVENTS} ORDER BY e.seq DESC LIMIT ?", 3)[0]
    of_webhook = listing._OF_WEBHOOK.format("?") + " ORDER BY d.event DESC LIMIT ?"
    assert "d USING PRIMARY KEY (webhook=? AND event>? AND event<?)" in plan(plans, of_webhook, 5)[0]
    dead = f"{listing._DEAD} ORDER BY d.event DESC, d.webhook DESC LIMIT ?"
    assert "USING INDEX delivery_dead" in plan(plans, dead, 4)[0]
    one = listing._DEAD + listing.conditions(EventFilter(), 1)[0]
    assert "USING INDEX delivery_dead" in plan(plans, f"{one} ORDER BY d.event DESC, d.webhook DESC LIMIT ?", 5)[0]
    assert "USING COVERING INDEX" in " ".join(plan(plans, listing._SINCE, 2))


def test_a_replay_goes_along_the_keys_there_are(plans: sqlite3.Connection) -> None:
    """Through a webhook's deliveries, or through the events, oldest first; what it joins is looked up."""
    deliveries = replays._FOUND.format(replays._DELIVERIES.format("?"), "d.event")
    assert any("d USING PRIMARY KEY (webhook=? AND event>? AND event<?)" in step for step in plan(plans, deliveries, 5))
    events = replays._FOUND.format(replays._EVENTS, "e.seq")
    assert any("e USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in step for step in plan(plans, events, 4))
    assert any("delivery USING PRIMARY KEY (webhook=? AND event=?)" in step for step in plan(plans, events, 4))
    assert "USING INDEX replay_running" in plan(plans, replays._RUNNING, 0)[0]


@pytest.mark.parametrize(
    ("query", "width", "way"),
    [
        (facts._DELIVERIES, 2, "delivery USING PRIMARY KEY (webhook=? AND event=?)"),
        (facts._KEYS, 1, "idempotency USING PRIMARY KEY (key=?)"),
        (facts._QUEUES.format(2), 2, "INDEX delivery_head (webhook=? AND queue=?)"),
        (facts._QUEUES.format(2), 2, "INDEX delivery_waiting (webhook=? AND queue=?)"),
    ],
    ids=["deliveries", "keys", "heads", "waiting"],
)
def test_a_commit_finds_its_rows_by_key(plans: sqlite3.Connection, query: str, width: int, way: str) -> None:
    """What a commit must know is looked up row by row."""
    marks = "(" + ",".join("?" * width) + ")"
    query = query.format(f"{marks},{marks}")
    assert scans(plans, query, 2 * width) == []
    assert any(way in step for step in plan(plans, query, 2 * width))


@pytest.mark.parametrize(
    ("query", "values"),
    [(facts._UNSETTLED, 3), (facts._LAST_LOOKED_AT, 4), (facts._RUN_WITH_RECORDS, 4), (projections._BURY, 3)],
    ids=["unsettled", "last", "run", "bury"],
)
def test_a_sweep_walks_along_the_key(plans: sqlite3.Connection, query: str, values: int) -> None:
    """From one event to another: what it comes upon there, it needs, or passes by within bounds."""
    assert scans(plans, query, values) == []
    assert any("delivery USING PRIMARY KEY (webhook=? AND event>?" in step for step in plan(plans, query, values))
