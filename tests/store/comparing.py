"""Whether a file holds what the model says that it should: every projection, and the number of records."""

from collections import Counter

import msgspec

from outbox.domain.deliveries import Delivery
from outbox.domain.records import DeliveriesMoved
from tests.store.books import Books
from tests.store.model import Model


def compare(books: Books, model: Model) -> None:
    """Compare every projection, and the number of records."""
    rows = books.rows
    columns = ", ".join(Delivery._fields)
    assert [Delivery._make(row) for row in rows(f"SELECT {columns} FROM delivery ORDER BY 1, 2")] == (  # noqa: S608 - names of ours
        model.deliveries()
    )
    assert {(webhook, state): n for webhook, state, n in rows("SELECT * FROM counter") if n} == model.counters()
    assert rows("SELECT seq, instance FROM event ORDER BY seq") == [
        (seq, instance) for seq, (instance, _) in model.events.items()
    ]
    assert sorted(rows("SELECT event FROM idempotency")) == sorted((seq,) for seq, _, _ in model.keys.values())
    assert rows("SELECT max(seq) FROM log") == [(model.seq or None,)]
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
    """Fail unless every delivery that a replay has moved says which one it was."""
    moved: Counter[int] = Counter()
    for record in books.records():
        if isinstance(record, DeliveriesMoved) and record.cause:
            moved[record.cause] += len(record.rows)
    assert moved == Counter({number: again.replayed for number, again in model.replays.items()})
