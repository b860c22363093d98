"""Whether a file holds what the model says that it should: every projection, and which records there are."""

import msgspec

from outbox.domain.deliveries import Delivery
from outbox.domain.records import DeliveriesMoved, Record, decode
from tests.store.books import Books
from tests.store.model import Model


def compare(books: Books, model: Model) -> None:
    """Compare every projection, and which records there are."""
    rows = books.rows
    columns = ", ".join(Delivery._fields)
    assert [Delivery._make(row) for row in rows(f"SELECT {columns} FROM delivery ORDER BY 1, 2")] == (  # noqa: S608 - names of ours
        model.deliveries()
    )
    assert {(webhook, state): n for webhook, state, n in rows("SELECT * FROM counter") if n} == model.counters()
    assert rows("SELECT seq, instance FROM event ORDER BY seq") == [
        (seq, known.instance) for seq, known in model.events.items()
    ]
    assert sorted(rows("SELECT event FROM idempotency")) == sorted((seq,) for seq, _, _ in model.keys.values())
    assert rows("SELECT max(seq) FROM log") == [(model.seq or None,)]
    if model.floor:
        assert [seq for (seq,) in rows("SELECT seq FROM log WHERE seq <= ? ORDER BY 1", model.floor)] == model.kept()
    _compare_replays(books, model)
    _compare_webhooks(books, model)
    books.check_queues()


def _compare_replays(books: Books, model: Model) -> None:
    """Compare how far replays have come."""
    columns = "number, webhook, event, replayed, skipped, next_ms, updated_ms, finished"
    assert books.rows(f"SELECT {columns} FROM replay ORDER BY number") == [  # noqa: S608 - names of ours
        (again.number, *again.place, again.replayed, again.skipped, again.next_ms, again.updated_ms, again.finished)
        for again in model.replays.values()
    ]


def _compare_webhooks(books: Books, model: Model) -> None:
    """Compare the rows of webhooks, and what the journal has in memory."""
    stored = books.rows(
        "SELECT number, instance, name, created_ms, deleted_ms, suspended_ms, opened_ms, held, phase, position,"
        " until, settings FROM webhook ORDER BY number"
    )
    for (*fields, held, phase, position, until, settings), hook in zip(stored, model.hooks.values(), strict=True):
        assert fields == [
            hook.number, hook.instance, hook.name, hook.created_ms, hook.deleted_ms, hook.suspended_ms,
            hook.opened_ms,
        ]  # fmt: skip
        assert tuple(map(tuple, msgspec.msgpack.decode(held))) == hook.held
        assert (phase, position, until) == (hook.phase, hook.position, hook.until)
        chosen = msgspec.msgpack.decode(settings)
        assert (chosen["order"], chosen["enabled"]) == (hook.order, hook.enabled)
    for hook in model.live():
        known = books.webhook(hook.number)
        assert (known.suspended_ms, known.opened_ms, known.held) == (hook.suspended_ms, hook.opened_ms, hook.held)
        assert known.conversion == (hook.phase, hook.position, hook.until)
        assert known.revision == hook.revision


def check_causes(books: Books, model: Model) -> None:
    """Fail unless every delivery that a replay has moved says which one it was, where that was not pruned."""
    moves = {
        seq: (record.cause, len(record.rows))
        for seq, record in stored_records(books)
        if isinstance(record, DeliveriesMoved) and record.cause
    }
    assert moves == model.moves


def check_bodies(books: Books, model: Model) -> None:
    """Fail unless there is a body for each event that there is, and no other."""
    assert books.rows("SELECT event FROM body ORDER BY event") == [(seq,) for seq in model.events]


def prunable(books: Books, model: Model, cutoff_ms: int) -> int:
    """Return the last record that a prune may go through: all that is old, before the first replay that goes on."""
    end = min([model.seq, *(again.number - 1 for again in model.replays.values() if not again.finished)])
    last = 0
    for seq, record in stored_records(books):
        if seq > end or (seq > model.floor and record.at_ms >= cutoff_ms):
            break
        last = seq
    return last


def stored_records(books: Books) -> list[tuple[int, Record]]:
    """Return what is left of the log, each record with its seq."""
    return [(seq, decode(data)) for seq, data in books.rows("SELECT seq, record FROM log ORDER BY seq")]
