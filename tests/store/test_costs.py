"""What commits cost in a file with long queues: counted in steps of SQLite's machine, which no other load changes."""

import sqlite3
from collections.abc import Iterator

import pytest

from outbox.domain.deliveries import Effect, Outcome
from outbox.domain.projecting import Changes, project
from outbox.domain.records import AttemptRecorded, DeliveriesBuried
from outbox.store.protocol import Head, Wants
from outbox.store.sqlite.connections import migrate
from outbox.store.sqlite.facts import find_facts
from outbox.store.sqlite.projections import write_changes

LONG, MANY, HISTORY = 1, 2, 3
"""Webhooks: with one queue of 50,000 that wait; with 5,000 queues; with 50,000 settled deliveries and one pending."""
FIRST = 1_000
ROWS = 50_000
QUEUES = 5_000
QUEUE = -7
ADD = "INSERT INTO delivery VALUES (?,?,?,0,0,0,?,0)"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """Return a connection to a file with these webhooks' deliveries."""
    connection = sqlite3.connect(tmp_path_factory.mktemp("costs") / "outbox.db", isolation_level=None)
    migrate(connection)
    connection.execute("BEGIN")
    waiting = [(LONG, FIRST + at, int(at > 0), QUEUE) for at in range(ROWS)]
    queued = [(MANY, FIRST + at, at // QUEUES, at % QUEUES - 99) for at in range(2 * QUEUES)]
    history = [(HISTORY, FIRST + at, 2, None) for at in range(ROWS)]
    connection.executemany(ADD, [*waiting, *queued, *history, (HISTORY, FIRST + ROWS, 0, None)])
    connection.execute("COMMIT")
    yield connection
    connection.close()


def steps(connection: sqlite3.Connection, wants: Wants | None, changes: Changes | None = None) -> int:
    """Count the steps that a commit takes to find its facts and to write its changes, which are taken back."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    connection.execute("BEGIN IMMEDIATE")
    connection.set_progress_handler(count, 1)
    if wants is not None:
        find_facts(connection, wants, Head())
    if changes is not None:
        write_changes(connection, changes)
    connection.set_progress_handler(None, 0)
    connection.execute("ROLLBACK")
    return counted


def settling(event: int, webhook: int, promoted: tuple[int, int, int] | None) -> Changes:
    """Return what the end of a head does."""
    record = AttemptRecorded(
        event=event, webhook=webhook, attempt=1, at_ms=0, took_ms=0, status=200, error="", detail="", excerpt=b"",
        effect=Effect.ACKNOWLEDGE, charged=1, due_ms=0, reason="", promoted=promoted,
    )  # fmt: skip
    changes = Changes()
    project(1, record, changes)
    return changes


def test_an_event_enters_a_long_queue_as_cheaply_as_an_empty_one(file: sqlite3.Connection) -> None:
    """Whether anybody waits is all that is asked."""
    empty = steps(file, Wants(queues=[(LONG, 99)]))
    assert empty < 200
    assert steps(file, Wants(queues=[(LONG, QUEUE)])) < empty + 50


def test_a_large_batch_of_one_chat_costs_what_an_event_does(file: sqlite3.Connection) -> None:
    """Ten thousand events of a queue do not ask for ten thousand of those that wait, nor of any other queue."""
    batch = [(LONG, QUEUE)] * 10_000
    one = steps(file, Wants(queues=[(LONG, QUEUE)]))
    assert steps(file, Wants(queues=batch)) == one
    others = [(MANY, queue) for queue in range(400)]
    assert steps(file, Wants(queues=batch + others)) < one + 100 * len(others)


def test_a_head_of_a_long_queue_is_settled_as_cheaply_as_any(file: sqlite3.Connection) -> None:
    """The next one is found by an index, and only it is looked at."""
    assert steps(file, Wants(deliveries=[(LONG, FIRST)]), settling(FIRST, LONG, (FIRST + 1, 0, 0))) < 600
    assert steps(file, Wants(deliveries=[(MANY, FIRST)]), settling(FIRST, MANY, (FIRST + QUEUES, 0, 0))) < 600


def test_many_outcomes_cost_so_much_each(file: sqlite3.Connection) -> None:
    """Sixty-four heads of sixty-four queues, beside a long one that is asked for as well."""
    heads = [(MANY, FIRST + at) for at in range(64)]
    assert steps(file, Wants(deliveries=[*heads, (LONG, FIRST)])) < 65 * 250


def test_outcomes_of_what_was_in_flight_look_at_as_many_as_they_may_let_go(file: sqlite3.Connection) -> None:
    """After a change of order, several attempts of one queue may end in one commit."""
    inside = [(LONG, FIRST + at) for at in range(32)]
    assert steps(file, Wants(deliveries=inside)) < 32 * 250


def test_a_chunk_of_a_conversion_looks_at_so_many_rows(file: sqlite3.Connection) -> None:
    """Of a long history of settled deliveries, of a long queue, and of many queues."""
    assert steps(file, Wants(rows=[(HISTORY, 0, 2**62, 1000)])) < 20_000 * 20
    assert steps(file, Wants(rows=[(LONG, 0, 2**62, 1000)])) < 20_000 * 20 + 1000 * 50
    assert steps(file, Wants(headless=[(LONG, -(2**63), 1000)])) < 200


def test_queues_that_are_let_go_already_are_passed_by(file: sqlite3.Connection) -> None:
    """A chunk begins behind the queues of the one before."""
    all_of_them = steps(file, Wants(headless=[(MANY, -(2**63), 1000)]))
    assert steps(file, Wants(headless=[(MANY, QUEUES - 199, 1000)])) < all_of_them / 20


def test_a_chunk_of_a_burial_looks_at_so_many_rows(file: sqlite3.Connection) -> None:
    """Whatever their states."""
    for webhook in (LONG, HISTORY):
        assert steps(file, Wants(unsettled=[(webhook, 0, 1000)])) < 1000 * 25
    changes = Changes()
    project(1, DeliveriesBuried(LONG, FIRST, FIRST + 9, 0, "", 1, 9), changes)
    assert steps(file, None, changes) < 10 * 150


def test_without_order_an_outcome_touches_one_row(file: sqlite3.Connection) -> None:
    """Neither queues nor those that wait are looked at."""
    changes = Changes()
    changes.outcomes.append(Outcome(HISTORY, FIRST + ROWS, 2, 0, 1, 1))
    assert steps(file, Wants(deliveries=[(HISTORY, FIRST + ROWS)]), changes) < 220
