"""Pruning: what lives stays, what is old goes, and the log says the same before and after every chunk."""

import sqlite3
from contextlib import closing
from itertools import pairwise

import pytest

from outbox.domain.deliveries import Effect
from outbox.domain.errors import ConflictError
from outbox.domain.ids import key_digest
from outbox.domain.records import Checkpoint, EventAccepted, WebhookCarried
from outbox.domain.replays import ReplayFilter
from outbox.journal import chaining, folding, pruning
from outbox.journal.accepting import Accept, AcceptBatch, Key
from outbox.journal.folding import verify
from outbox.journal.replaying import RequestReplay
from outbox.store.sqlite.files import HeadFile
from tests.store.books import ACKNOWLEDGED, PENDING, Books, an_event

DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let chunks be of three records, and ranges of four events."""
    monkeypatch.setattr(pruning, "CHUNK", 3)
    monkeypatch.setattr(chaining, "RANGE", 4)
    monkeypatch.setattr(folding, "PAGE", 3)


async def settle(books: Books, webhook: int, events: list[int], effect: Effect = Effect.ACKNOWLEDGE) -> None:
    """Settle deliveries."""
    for event in events:
        await books.record(webhook, event, effect)


async def old_and_new(books: Books) -> tuple[int, list[int], list[int]]:
    """Make old events, all but the third settled, and a day later new ones; return webhook and events."""
    webhook = await books.set("shop", order="chat")
    old = await books.accept("shop", *"aabbcc")
    await settle(books, webhook, [old[0], old[1], old[4]])
    await books.record(webhook, old[2], Effect.RETRY)
    await settle(books, webhook, [old[5]], Effect.BURY)
    books.now_ms += DAY_MS
    new = await books.accept("shop", *"abd")
    await settle(books, webhook, [new[0]])
    return webhook, old, new


async def test_what_is_settled_and_old_goes_and_the_rest_stays(books: Books) -> None:
    """Rows, bodies and records; the numbers say what is gone; the webhook is as it was."""
    webhook, old, new = await old_and_new(books)
    before = books.webhook(webhook)
    end = books.rows("SELECT max(seq) FROM log")[0][0]
    gone = await books.prune(books.now_ms)
    assert (gone.events, gone.deliveries) == (4, 4)
    kept = [old[2], old[3], *new]
    for query in ("SELECT seq FROM event ORDER BY 1", "SELECT event FROM body ORDER BY 1"):
        assert [seq for (seq,) in books.rows(query)] == kept
    assert [event for (event,) in books.rows("SELECT event FROM delivery ORDER BY 1")] == kept
    assert (books.delivery(webhook, old[2]).attempts, books.delivery(webhook, old[2]).state) == (1, PENDING)
    counters = {(number, state): n for number, state, n in books.rows("SELECT * FROM counter") if n}
    assert (counters[0, -1], counters[0, -2], counters[0, -3], counters[0, -4]) == (5, 4, 3, 1)
    assert {type(record) for record in books.records()} >= {Checkpoint, WebhookCarried, EventAccepted}
    await books.check()
    await books.reopen()
    after = books.webhook(webhook)
    assert (after.settings, after.created_ms, after.held) == (before.settings, before.created_ms, before.held)
    first_after = await books.accept("shop", "z")
    assert first_after[0] > end
    await settle(books, webhook, [old[2]], Effect.LATE)
    assert await books.record(webhook, old[2], Effect.ACKNOWLEDGE, attempt=2) == Effect.ACKNOWLEDGE
    assert books.delivery(webhook, old[3]).state == PENDING
    assert (await books.prune(books.now_ms)).events == 1


async def test_after_every_chunk_all_is_well_and_whoever_goes_on_finds_the_rest(books: Books) -> None:
    """Stopped after any number of chunks, and begun anew, again and again."""
    await old_and_new(books)
    for steps in range(1, 12):
        await books.prune(books.now_ms + 1, steps=steps)
        await books.check()
        if steps % 3 == 0:
            await books.reopen()
            books.now_ms += 10
            await books.accept("shop", "e")
            await books.set("shop", order="chat" if steps % 2 else "none")
            await books.convert(books.journal.webhooks.find("instance", "shop").number)  # type: ignore[union-attr]
    await books.prune(books.now_ms + 1)
    await books.check()
    assert len(books.rows("SELECT 1 FROM event")) == 4 + 3


@pytest.mark.parametrize("replayed", [False, True])
async def test_a_replay_that_has_not_ended_is_not_cut(books: Books, *, replayed: bool) -> None:
    """It goes through what was accepted before it, and its request must be found at a start."""
    webhook, old, _ = await old_and_new(books)
    if replayed:
        wanted = ReplayFilter(webhook=webhook, event=old[5])
        ((replay),) = await books.do(RequestReplay(wanted, None, 1, books.now_ms))
    await books.accept("shop", "f")
    books.now_ms += DAY_MS
    await books.prune(books.now_ms)
    if replayed:
        (running,) = await books.reader.replays_running()
        assert running.row.number == replay.row.number
        assert min(seq for (seq,) in books.rows("SELECT seq FROM log WHERE subject < 0")) > 0
    left = {type(record) for record in books.records()}
    await books.check()
    assert left


async def test_keys_that_still_count_keep_their_events(books: Books) -> None:
    """A repeat is recognised after a prune, the whole batch of it; once the window is over it is not."""
    window = DAY_MS
    batch = [an_event("shop", chat) for chat in "abcde"]
    one = an_event("shop", "x")
    keys = [Key(key_digest("batch", b"k"), b"r" * 32, window), Key(key_digest("events", b"l"), one.digest, window)]

    async def repeat() -> tuple[tuple[int, list[bytes]], int]:
        return (
            (await books.do(AcceptBatch(batch, books.now_ms, keys[0])))[0],
            (await books.do(Accept(one, books.now_ms, keys[1])))[0].seq,
        )

    first = await repeat()
    await books.accept("shop", "a")
    books.now_ms += 1000
    assert (await books.prune(books.now_ms, window)).events == 1
    await books.check()
    await books.reopen()
    again = await repeat()
    assert (again[0][0], again[1]) == (first[0][0], first[1])
    different = an_event("shop", "y")
    other = Accept(different, books.now_ms, Key(keys[1].digest, different.digest, window))
    with pytest.raises(ConflictError):
        await books.do(other)
    books.now_ms += window
    assert (await books.prune(books.now_ms, window)).events == 6
    assert books.rows("SELECT * FROM idempotency") == []
    await books.check()
    assert (await repeat())[1] > first[1]


async def test_large_bodies_make_small_chunks(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a chunk is taken away while everybody waits."""
    monkeypatch.setattr(pruning, "CHUNK_BYTES", 100)
    await books.accept("nobody", *"abcdef")
    books.now_ms += 1
    await books.prune(books.now_ms)
    spans = [(record.first, record.last) for record in books.records() if isinstance(record, Checkpoint)]
    assert len(spans) > 3
    assert spans[0][0] == 1
    assert all(first == last + 1 for (_, last), (first, _) in pairwise(spans))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("DELETE FROM log WHERE seq = (SELECT min(seq) FROM log)", "what its checkpoint has kept"),
        (
            "UPDATE log SET record = CAST(record || x'00' AS BLOB) WHERE seq = (SELECT min(seq) FROM log)",
            "its checkpoint has kept",
        ),
        ("INSERT INTO log SELECT 2, 0, record, digest FROM log ORDER BY seq LIMIT 1", "its checkpoint has kept"),
        ("DELETE FROM event WHERE seq = (SELECT min(seq) FROM event)", "event "),
        ("UPDATE delivery SET attempts = 9 WHERE event = (SELECT min(event) FROM delivery)", "delivery "),
        ("DELETE FROM delivery WHERE event = (SELECT min(event) FROM delivery)", "delivery "),
        ("INSERT INTO delivery SELECT webhook, 2, 3, 0, 0, 0, NULL, 0 FROM delivery LIMIT 1", "delivery "),
        ("INSERT INTO event SELECT 2, x'00', kind, instance, 0 FROM event LIMIT 1", "event "),
        ("UPDATE counter SET n = n + 1 WHERE state = -2", "counter "),
        ("UPDATE webhook SET created_ms = 7", "webhook "),
        ("DELETE FROM body WHERE event = (SELECT min(event) FROM body)", "its body is missing"),
        ("DELETE FROM log WHERE subject < -1000", ""),
    ],
)
async def test_what_is_changed_behind_a_checkpoint_is_named(books: Books, change: str, named: str) -> None:
    """What was kept is vouched for, and nothing can be added to it."""
    await old_and_new(books)
    await books.prune(books.now_ms)
    assert (await verify(books.reader, HeadFile(books.path).read())).problems == []
    copy = books.path.with_name("copy.db")
    with closing(sqlite3.connect(books.path)) as connection, closing(sqlite3.connect(copy)) as other:
        connection.backup(other)
        assert other.execute(change).rowcount
        other.commit()
    damaged = await Books(copy).open()
    report = await verify(damaged.reader, None)
    await damaged.close()
    assert report.problems
    assert any(named in problem for problem in report.problems), report.problems


async def test_an_open_delivery_keeps_all_of_its_event(books: Books) -> None:
    """Also those that are settled, with their attempts."""
    one, two = await books.set("shop"), (await books.do(books.setting("shop", name="b")))[0][0].number
    (event,) = await books.accept("shop", "a")
    await books.record(one, event, Effect.ACKNOWLEDGE)
    await books.record(two, event, Effect.RETRY)
    books.now_ms += 1
    await books.prune(books.now_ms)
    assert [books.delivery(number, event).state for number in (one, two)] == [ACKNOWLEDGED, PENDING]
    assert len(books.rows("SELECT 1 FROM log WHERE subject = ?", event)) == 2


async def test_verify_beside_a_prune_is_not_misled(books: Books) -> None:
    """Between any two of its looks another chunk is cut away: what it says of its instants is right all the same."""
    await old_and_new(books)
    await books.accept("shop", *"klmnop" * 4)
    books.now_ms += 1
    looks = 0
    genuine = type(books.reader).slice, type(books.reader).log

    async def cut() -> None:
        nonlocal looks
        looks += 1
        if looks % 5 == 0 and looks < 60:
            await books.prune(books.now_ms, steps=looks // 5)

    class Reader(type(books.reader)):  # type: ignore[misc]
        async def slice(self, *arguments: object) -> object:
            await cut()
            return await genuine[0](self, *arguments)  # type: ignore[arg-type]

        async def log(self, *arguments: object) -> object:
            await cut()
            return await genuine[1](self, *arguments)  # type: ignore[arg-type]

    reader = Reader(books.reader._hopper)  # type: ignore[attr-defined]
    report = await verify(reader, HeadFile(books.path).read())
    assert report.problems == []
    assert looks > 10
