"""Verify, where records touch deliveries of other events: what is right passes, and whatever is changed is named."""

import sqlite3

import pytest

from outbox.domain.deliveries import Effect
from outbox.journal import chaining, folding
from outbox.journal.folding import verify
from tests.store.books import Books


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every range be of four events, and every look be at three records."""
    monkeypatch.setattr(chaining, "RANGE", 4)
    monkeypatch.setattr(folding, "PAGE", 3)


async def history(books: Books) -> int:
    """Make a history in which everything occurs that touches deliveries of other events; return an ordered webhook."""
    webhook = await books.set("shop", order="chat")
    events = await books.accept("shop", *"ab" * 10)
    for at in range(8):
        await books.record(webhook, events[at], Effect.ACKNOWLEDGE)
    await books.set("shop", order="instance")
    await books.convert(webhook)
    books.now_ms += 1000
    await books.expire(webhook, events, books.now_ms)
    (event,) = await books.accept("shop", "c")
    await books.record(webhook, event, Effect.SUSPEND, revision=books.webhook(webhook).revision)
    await books.move_breaker(webhook, opened=True)
    gone = await books.set("mall", order="chat")
    await books.accept("mall", *"abab" * 3)
    await books.delete("mall")
    await books.bury(gone)
    await books.set("shop", order="none")
    await books.convert(webhook, steps=1)
    return webhook


async def test_a_history_is_folded_range_by_range(books: Books, small_ranges: None, small_chunks: None) -> None:
    """Promotions, conversions, expiries and burials reach over many ranges; all of them are followed."""
    await history(books)
    report = await verify(books.reader, None)
    assert (report.problems, report.records) == ([], len(books.records()))
    assert report.events == len(books.rows("SELECT 1 FROM event"))
    assert report.deliveries == len(books.rows("SELECT 1 FROM delivery"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE delivery SET state = 3 WHERE state = 2 AND event = (SELECT min(event) FROM delivery)", "delivery "),
        ("UPDATE delivery SET state = 3 WHERE state < 2", "delivery "),
        ("UPDATE delivery SET queue = 7 WHERE state = 3 AND event = (SELECT max(event) FROM delivery)", "delivery "),
        ("UPDATE delivery SET since_ms = since_ms + 1 WHERE event = (SELECT max(event) FROM delivery)", "delivery "),
        ("UPDATE delivery SET due_ms = due_ms + 1 WHERE event = (SELECT min(event) FROM delivery)", "delivery "),
        ("UPDATE delivery SET attempts = 9 WHERE event = (SELECT min(event) FROM delivery)", "delivery "),
        ("DELETE FROM delivery WHERE event = (SELECT max(event) FROM delivery)", "delivery "),
        ("UPDATE counter SET n = n + 1 WHERE state = 1", "counter "),
        ("UPDATE webhook SET suspended_ms = 1 WHERE number = 1", "webhook 1"),
        ("UPDATE webhook SET opened_ms = 0 WHERE number = 1", "webhook 1"),
        ("UPDATE webhook SET phase = phase + 1 WHERE number = 1", "webhook 1"),
        ("UPDATE webhook SET position = position + 1 WHERE number = 1", "webhook 1"),
        ("UPDATE webhook SET until = until + 1 WHERE number = 1", "webhook 1"),
        ("UPDATE webhook SET updated_ms = updated_ms + 1 WHERE number = 1", "webhook 1"),
        ("UPDATE webhook SET held = x'919200cd1000' WHERE number = 1", "webhook 1"),
    ],
)  # fmt: skip
async def test_what_is_changed_is_named(books: Books, small_ranges: None, change: str, named: str) -> None:
    """One column of one row is enough. Rebuilding puts it right again."""
    await history(books)
    with sqlite3.connect(books.path) as connection:
        assert connection.execute(change).rowcount
    connection.close()
    report = await verify(books.reader, None)
    assert report.problems
    assert all(problem.startswith(named) for problem in report.problems)
    await books.store.rebuild()
