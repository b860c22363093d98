from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from outbox.domain.deliveries import Delivery, Effect, Move
from outbox.domain.errors import ConflictError, InvalidError, NotFoundError
from outbox.domain.ids import delivery_text
from outbox.domain.records import ReplayAdvanced
from outbox.domain.replays import CHUNK, END_OF_EVENTS, Place, ReplayFilter
from outbox.journal.reaching import Ways
from outbox.journal.recording import RecordAttempts
from outbox.journal.replays import list_replays, view_replay
from tests.store.books import ACKNOWLEDGED, DEAD, PENDING, Books
from tests.store.replays import OTHER, SHOP, Replays, id_of, moved, moves, replaying, settle


async def test_ten_thousand_dead_deliveries_are_reopened_in_recorded_chunks(books: Books, replays: Replays) -> None:
    """None of the acknowledged ones is; budget and age begin anew, attempts go on counting."""
    webhook = await books.set(SHOP)
    seqs = await books.accept_batch(SHOP, ["a"] * 10_000)
    await settle(books, webhook, seqs[::10], ACKNOWLEDGED)
    dead = [seq for seq in seqs if (seq - seqs[0]) % 10]
    await settle(books, webhook, dead, DEAD)
    books.now_ms += 5000
    replay = await replays.done(state="dead")
    assert (replay.request.matched, replay.row.replayed, replay.row.skipped) == (9000, 9000, 0)
    chunks = moves(books)
    assert [len(chunk.rows) for chunk in chunks] == [CHUNK] * (9000 // CHUNK)
    assert {(chunk.move, chunk.cause) for chunk in chunks} == {(Move.REOPEN, replay.row.number)}
    assert moved(books) == dead
    rows = set(
        books.rows("SELECT state, due_ms, attempts, charged, since_ms FROM delivery WHERE state <> ?", ACKNOWLEDGED)
    )
    assert rows == {(PENDING, books.now_ms, 1, 0, books.now_ms)}
    assert [seq for (seq,) in books.rows("SELECT event FROM delivery WHERE state = ?", ACKNOWLEDGED)] == seqs[::10]
    # Done again, nothing is dead any more.
    again = await replays.done(state="dead")
    assert (again.request.matched, again.row.replayed, len(moves(books))) == (0, 0, len(chunks))


async def test_a_replay_that_was_interrupted_is_taken_up_where_it_was(books: Books) -> None:
    """A fresh journal on the same file finishes it; every delivery is reopened once."""
    webhook = await books.set(SHOP)
    seqs = await books.accept_batch(SHOP, ["a"] * 3 * CHUNK)
    await settle(books, webhook, seqs, DEAD)
    first = Replays(books)
    replay = await first.requests.many(ReplayFilter(state="dead"), None)
    (half,) = await books.do(await first.advance(replay))
    assert (half.row.replayed, half.row.finished) == (CHUNK, 0)
    # What was read for the next chunk is lost with the process.
    await first.advance(half)
    await books.reopen()
    async with replaying(books) as second:
        whole = await second.finished(replay.row.number)
    assert (whole.row.replayed, whole.row.skipped) == (len(seqs), 0)
    assert moved(books) == seqs


async def test_what_has_changed_when_its_turn_comes_is_left_alone(books: Books) -> None:
    """A chunk looks at each delivery again: what was acknowledged since it was found is skipped, and counted so."""
    webhook = await books.set(SHOP)
    seqs = await books.accept(SHOP, "a", "b", "c", "d")
    replays = Replays(books)
    advance = await replays.advance(await replays.requests.many(ReplayFilter(state="pending"), None))
    assert [candidate.event for candidate in advance.found] == seqs
    await settle(books, webhook, seqs[1:3], ACKNOWLEDGED)
    (advanced,) = await books.do(advance)
    assert (advanced.row.replayed, advanced.row.skipped, advanced.row.finished) == (2, 2, 1)
    assert books.states(webhook) == [PENDING, ACKNOWLEDGED, ACKNOWLEDGED, PENDING]


@pytest.mark.parametrize(
    ("wanted", "reopened"),
    [
        ({"state": "acknowledged"}, [0]),
        ({"state": "dead"}, [1]),
        ({"state": "pending"}, [2]),
        ({"kind": "CALL"}, [1, 2]),
        ({"kind": "CALL", "acknowledged": True}, [0, 1, 2]),
        ({"state": "dead", "acknowledged": True}, [1]),
        ({"state": "held"}, []),
        ({"kind": "MESSAGES_UPSERT"}, []),
        ({"instance": OTHER}, []),
    ],
)
async def test_the_acknowledged_go_out_again_only_if_told(
    books: Books, replays: Replays, wanted: dict[str, Any], reopened: list[int]
) -> None:
    """Filters narrow by state, kind and instance; without a word about them, acknowledged deliveries stay."""
    webhook = await books.set(SHOP)
    seqs = await books.accept(SHOP, "a", "b", "c")
    await settle(books, webhook, seqs[:1], ACKNOWLEDGED)
    await settle(books, webhook, seqs[1:2], DEAD)
    replay = await replays.done(**wanted)
    assert (replay.request.matched, replay.row.replayed) == (len(reopened), len(reopened))
    assert moved(books) == [seqs[number] for number in reopened]


async def test_times_and_webhooks_narrow_too(books: Books, replays: Replays) -> None:
    """`since` is the first moment that counts and `until` the first that does not; other webhooks are left alone."""
    one = await books.set(SHOP)
    ((made, _),) = await books.do(books.setting(SHOP, name="two"))
    two = int(made.number)
    seqs = await books.accept(SHOP, "a")
    books.now_ms += 1
    split_ms = books.now_ms
    seqs += await books.accept(SHOP, "b")
    for webhook in (one, two):
        await settle(books, webhook, seqs, DEAD)
    assert (await replays.done(since_ms=split_ms, webhook=two)).row.replayed == 1
    assert books.states(two) == [DEAD, PENDING]
    assert (await replays.done(until_ms=split_ms, webhook=one)).row.replayed == 1
    assert books.states(one) == [PENDING, DEAD]
    rest = await replays.done(state="dead", instance=SHOP)
    assert (rest.request.matched, rest.row.replayed) == (2, 2)


async def test_held_deliveries_are_those_of_webhooks_that_hold(books: Books, replays: Replays) -> None:
    """A disabled webhook's deliveries read as held, and are found as such; they stay held."""
    on, off = await books.set(SHOP), await books.set(OTHER)
    await books.accept(SHOP, "a", "b")
    await books.accept(OTHER, "a")
    await books.set(OTHER, enabled=False)
    assert (await replays.done(state="held")).row.replayed == 1
    assert {record.webhook for record in moves(books)} == {off}
    assert (await replays.done(state="pending")).row.replayed == 2
    assert {record.webhook for record in moves(books)[1:]} == {on}


async def test_a_rate_spaces_the_due_times(books: Books) -> None:
    """A chunk goes on where the one before ended, also after a restart; a pause makes up for nothing."""
    await books.set(SHOP)
    seqs = await books.accept(SHOP, *"abcdefgh")
    start_ms = books.now_ms
    number = (await Replays(books).requests.many(ReplayFilter(instance=SHOP), 2.0)).row.number
    for pause_ms in (0, 0, 10_000):
        books.now_ms += pause_ms
        ((replay,), _) = await Ways(books.reader).running()
        (advanced,) = await books.do(await Replays(books).advance(replay, limit=3))
        await books.reopen()
    due = [due_ms - start_ms for (due_ms,) in books.rows("SELECT due_ms FROM delivery ORDER BY event")]
    assert due == [0, 500, 1000, 1500, 2000, 2500, 10_000, 10_500]
    assert (advanced.row.number, advanced.row.finished, advanced.row.next_ms) == (number, 1, start_ms + 11_000)
    assert len(seqs) == len(due)


async def test_a_replay_with_a_rate_takes_its_time(books: Books, replays: Replays) -> None:
    """Chunks come when their time has come: four of them at ten a second take the time of the first three."""
    webhook = await books.set(SHOP)
    await books.accept_batch(SHOP, ["a"] * 4 * CHUNK)
    started = anyio.current_time()
    replay = await replays.done(rate=10.0 * CHUNK, webhook=webhook)
    assert anyio.current_time() - started > 0.28
    assert replay.row.replayed == 4 * CHUNK
    ((first_ms, last_ms),) = books.rows("SELECT min(due_ms), max(due_ms) FROM delivery")
    assert last_ms - first_ms == 400


async def test_a_slow_replay_delays_no_other(books: Books, replays: Replays) -> None:
    """One that makes a delivery due every hundred seconds is overtaken by one that came later."""
    one, two = await books.set(SHOP), await books.set(OTHER)
    for instance in (SHOP, OTHER):
        await books.accept(instance, *"abcde")
    slow = await replays.ask(rate=0.01, webhook=one)
    await replays.until(slow.row.number, lambda replay: replay.row.replayed == 1)
    assert (await replays.done(webhook=two)).row.replayed == 5
    running = (await view_replay(books.reader, slow.row.number)).replay.row
    assert (running.replayed, running.finished) == (1, 0)


async def test_a_replay_can_be_ended_where_it_is(books: Books, replays: Replays) -> None:
    """Even while it waits for an order to be converted, or for its rate; what it has done stays, the rest too."""
    webhook = await books.set(SHOP)
    await books.accept(SHOP, *"abc")
    slow = await replays.ask(rate=0.01, webhook=webhook)
    await replays.until(slow.row.number, lambda replay: replay.row.replayed == 1)
    await books.set(SHOP, order="chat")
    waiting = await replays.ask(webhook=webhook)
    for number, replayed in ((slow.row.number, 1), (waiting.row.number, 0)):
        await replays.replayer.cancel(number)
        row = (await view_replay(books.reader, number)).replay.row
        assert (row.finished, row.replayed, row.skipped) == (1, replayed, 0)
        await replays.replayer.cancel(number)
    await books.convert(webhook)
    assert len(moves(books)) == 3


async def test_deleted_webhooks_are_left_alone(books: Books, replays: Replays) -> None:
    """Named, it is a conflict; among others, it is passed over."""
    gone, kept = await books.set(SHOP), await books.set(OTHER)
    for instance, webhook in ((SHOP, gone), (OTHER, kept)):
        await settle(books, webhook, await books.accept(instance, "a"), DEAD)
    await books.delete(SHOP)
    with pytest.raises(ConflictError, match="deleted"):
        await replays.requests.many(ReplayFilter(webhook=gone), None)
    with pytest.raises(InvalidError, match=r"no webhook wh_99 - at `\$\.webhook`"):
        await replays.requests.many(ReplayFilter(webhook=99), None)
    replay = await replays.done(state="dead")
    assert (replay.request.matched, replay.row.replayed) == (1, 1)
    assert (books.states(gone), books.states(kept)) == ([DEAD], [PENDING])


async def test_a_webhook_deleted_half_way_keeps_its_dead(books: Books) -> None:
    """What was found before the deletion is not reopened after it, and the replay comes to its end."""
    webhook = await books.set(SHOP)
    await settle(books, webhook, await books.accept(SHOP, "a"), DEAD)
    replays = Replays(books)
    advance = await replays.advance(await replays.requests.many(ReplayFilter(state="dead"), None))
    await books.delete(SHOP)
    (advanced,) = await books.do(advance)
    assert (advanced.row.replayed, advanced.row.skipped, advanced.row.finished) == (0, 1, 1)
    assert books.states(webhook) == [DEAD]


async def test_one_delivery_is_replayed_alone(books: Books, replays: Replays) -> None:
    """Its neighbours stay; an acknowledged one only if told, an unknown one is not found."""
    webhook = await books.set(SHOP)
    seqs = await books.accept(SHOP, "a", "b", "c")
    await settle(books, webhook, seqs, DEAD)
    ids = [id_of(books, webhook, seq) for seq in seqs]
    replay = replays.begun(await replays.requests.one(ids[1], acknowledged=False))
    await replays.finished(replay.row.number)
    assert books.states(webhook) == [DEAD, PENDING, DEAD]
    await settle(books, webhook, [seqs[1]], ACKNOWLEDGED)
    with pytest.raises(ConflictError, match="acknowledged"):
        await replays.requests.one(ids[1], acknowledged=False)
    again = replays.begun(await replays.requests.one(ids[1], acknowledged=True))
    await replays.finished(again.row.number)
    assert books.states(webhook) == [DEAD, PENDING, DEAD]
    views = (await list_replays(books.reader, 10)).items
    assert [view.replay.row.number for view in views] == [again.row.number, replay.row.number]
    assert {delivery_text(view.event_id, webhook) for view in views} == {ids[1]}
    for wrong in (ids[0].rpartition("_")[0] + "_99", "dlv_" + "0" * 32 + "_1", "nonsense"):
        with pytest.raises(NotFoundError, match="no delivery"):
            await replays.requests.one(wrong, acknowledged=False)
    with pytest.raises(NotFoundError):
        await view_replay(books.reader, 1)


async def test_what_was_in_flight_counts_and_is_tried_again_when_the_replay_says(
    books: Books, replays: Replays
) -> None:
    """It goes on alone, but what it was charged before the replay is forgotten, and a failure waits no longer."""
    webhook = await books.set(SHOP)
    seqs = await books.accept(SHOP, "a", "b")
    accepted_ms = books.now_ms
    for seq in seqs:
        for attempt in (1, 2):
            await books.do(books.outcome(webhook, seq, Effect.RETRY, attempt=attempt, charged=attempt))
    ends = (Effect.RETRY, Effect.ACKNOWLEDGE)
    flying = [
        replace(books.outcome(webhook, seq, effect, attempt=3, charged=3).outcomes[0], charged=2, since_ms=accepted_ms)
        for seq, effect in zip(seqs, ends, strict=True)
    ]
    books.now_ms += 100
    await replays.done(state="pending")
    replayed = Delivery(webhook, seqs[0], PENDING, books.now_ms, 2, 0, None, books.now_ms)
    assert books.delivery(webhook, seqs[0]) == replayed
    assert await books.do(RecordAttempts(flying)) == [list(ends)]
    assert books.delivery(webhook, seqs[0]) == replayed._replace(attempts=3, charged=1)
    row = books.delivery(webhook, seqs[1])
    assert (row.state, row.attempts, row.charged) == (ACKNOWLEDGED, 3, 1)


async def test_a_webhook_is_tried_at_once_but_not_for_every_chunk(books: Books, replays: Replays) -> None:
    """Its lane is nudged by the first chunk; a receiver that is down is not probed a thousand times."""
    nudged: list[int] = []
    touched: list[int] = []
    one, two = await books.set(SHOP), await books.set(OTHER)
    for instance in (SHOP, OTHER):
        await books.accept_batch(instance, ["a"] * (2 * CHUNK + 1))

    def listen(woken: set[int], tried: set[int]) -> None:
        nudged.extend(tried)
        touched.extend(woken)

    books.journal.listen(listen)
    await replays.done(state="pending")
    await books.journal.drain()  # what is on disk may have been told to nobody yet
    assert (nudged, touched) == ([one, two], [one] * 3 + [two] * 3)


async def test_a_long_way_without_a_match_is_walked_in_steps(
    books: Books, replays: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step looks at so many rows and no more; where nothing is found nothing is recorded until the end."""
    monkeypatch.setattr("outbox.store.sqlite.replays.LOOKED_AT_ONCE", 7)
    webhook = await books.set(SHOP)
    seqs = await books.accept_batch(SHOP, ["a"] * 50)
    await settle(books, webhook, [*seqs[:20], *seqs[21:41]], ACKNOWLEDGED)
    step = await replays.ways.step(ReplayFilter(state="pending"), Place(), books.journal.webhooks, limit=CHUNK)
    assert (step.found, step.place, step.finished) == ([], Place(webhook, seqs[6]), False)
    replay = await replays.done(kind="CALL")
    assert (replay.request.matched, moved(books)) == (10, [seqs[20], *seqs[41:]])
    advanced = [record for record in books.records() if isinstance(record, ReplayAdvanced)]
    assert [record.replayed for record in advanced] == [1, 2, 9, 10]
    assert advanced[-1].event == END_OF_EVENTS
