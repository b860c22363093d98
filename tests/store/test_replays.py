import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
from msgspec.structs import replace

from outbox.domain.deliveries import Delivery, Effect, Move
from outbox.domain.errors import ConflictError, InvalidError, NotFoundError
from outbox.domain.events import read_event
from outbox.domain.ids import delivery_text
from outbox.domain.records import AttemptRecorded, DeliveriesMoved, EventAccepted, ReplayAdvanced
from outbox.domain.replays import CHUNK, END_OF_EVENTS, Place, ReplayFilter
from outbox.domain.webhooks import Address, Credentials, Settings
from outbox.journal.accepting import AcceptBatch
from outbox.journal.damage import Damage
from outbox.journal.reaching import Ways
from outbox.journal.recording import Outcome, RecordAttempts
from outbox.journal.replaying import AdvanceReplay, Candidate, Replay
from outbox.journal.replays import list_replays, view_replay
from outbox.journal.requesting import Requests
from outbox.journal.setting import SetWebhook
from outbox.relay.replaying import Replayer
from tests.store.books import ACKNOWLEDGED, DEAD, PENDING, WAITING, Books

ENDS = {ACKNOWLEDGED: Effect.ACKNOWLEDGE, DEAD: Effect.BURY}
SHOP, OTHER = "shop", "other"


class Clock:
    """The time of the books."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def now_ms(self) -> int:
        """See `outbox.relay.clock.Clock`."""
        return self._books.now_ms


class Replays:
    """Asks for replays, and carries them out while it is open."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.ways = Ways(books.reader)
        self.requests = Requests(books.journal, books.reader, Clock(books).now_ms)
        self.replayer = Replayer(books.journal, self.ways, Clock(books), Damage())

    async def ask(self, rate: float | None = None, **wanted: Any) -> Replay:
        """Ask for a replay, and begin it."""
        return self.begun(await self.requests.many(ReplayFilter(**wanted), rate))

    def begun(self, replay: Replay) -> Replay:
        """Begin a replay that was recorded."""
        self.replayer.begin(replay)
        return replay

    async def until(self, number: int, wanted: Callable[[Replay], bool]) -> Replay:
        """Return a replay once it is as wanted."""
        with anyio.fail_after(30):
            while True:
                replay = (await view_replay(self.books.reader, number)).replay
                if wanted(replay):
                    return replay
                await anyio.sleep(0.005)

    async def finished(self, number: int) -> Replay:
        """Return a replay once it has come to its end."""
        return await self.until(number, lambda replay: bool(replay.row.finished))

    async def done(self, rate: float | None = None, **wanted: Any) -> Replay:
        """Ask for a replay, and return it once it has come to its end."""
        return await self.finished((await self.ask(rate, **wanted)).row.number)

    async def advance(self, replay: Replay, limit: int = CHUNK) -> AdvanceReplay:
        """Return the command for the next chunk of a replay."""
        request, row = replay.request, replay.row
        step = await self.ways.step(
            request.wanted, replay.place, self.books.journal.webhooks, before=row.number, limit=limit
        )
        return AdvanceReplay(replay, step.candidates, step.place, step.finished, self.books.now_ms)


@asynccontextmanager
async def replaying(books: Books) -> AsyncIterator[Replays]:
    """Carry out replays in the background."""
    opened = Replays(books)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(opened.replayer.run)
        try:
            yield opened
        finally:
            opened.replayer.stop()


@pytest.fixture(name="replays")
async def replays_at_work(books: Books) -> AsyncIterator[Replays]:
    """Give replays that are carried out."""
    opened = Replays(books)
    # A fixture's two halves may run in different tasks, which a task group would not survive.
    task = asyncio.create_task(opened.replayer.run())
    yield opened
    opened.replayer.stop()
    await task


async def settle(books: Books, webhook: int, seqs: Iterable[int], state: int) -> None:
    """Record, one after the other, an attempt at each of those deliveries that brings it to that end."""
    known = {event: (attempts, charged) for event, attempts, charged in books.rows(
        "SELECT event, attempts, charged FROM delivery WHERE webhook = ?", webhook
    )}  # fmt: skip
    outcomes = [
        Outcome(
            AttemptRecorded(
                seq, webhook, known[seq][0] + 1, books.now_ms, 5, 200, "", "", b"", ENDS[state], known[seq][1] + 1,
                books.now_ms, "because",
            )
        )
        for seq in seqs
    ]  # fmt: skip
    (effects,) = await books.do(RecordAttempts(outcomes))
    assert set(effects) <= {ENDS[state]}


def moves(books: Books) -> list[DeliveriesMoved]:
    """Return the records of deliveries that were moved."""
    return [record for record in books.records() if isinstance(record, DeliveriesMoved)]


def moved(books: Books) -> list[int]:
    """Return the events of the deliveries that were moved, in order."""
    return [row.event for record in moves(books) for row in record.rows]


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


async def test_a_reopened_delivery_waits_behind_the_head_and_before_later_ones(books: Books, replays: Replays) -> None:
    """In an ordered webhook, dead ones come back in the order of the log, and settled heads let them go."""
    webhook = await books.set(SHOP, order="chat")
    seqs = await books.accept_batch(SHOP, ["a"] * 5)
    await settle(books, webhook, seqs[:3], DEAD)
    assert books.states(webhook) == [DEAD, DEAD, DEAD, PENDING, WAITING]
    await replays.done(state="dead")
    assert books.states(webhook) == [WAITING, WAITING, WAITING, PENDING, WAITING]
    gone = []
    for _ in seqs:
        ((head,),) = books.rows("SELECT event FROM delivery WHERE state = ?", PENDING)
        await settle(books, webhook, [head], ACKNOWLEDGED)
        gone.append(head)
    assert gone == [seqs[3], *seqs[:3], seqs[4]]


async def test_the_first_of_an_empty_queue_becomes_its_head(books: Books, replays: Replays) -> None:
    """Of a chunk's deliveries of one queue the oldest is pending, the others wait; every queue has its own."""
    webhook = await books.set(SHOP, order="chat")
    seqs = await books.accept_batch(SHOP, ["a", "b"] * 3)
    await settle(books, webhook, seqs, DEAD)
    await replays.done(state="dead")
    assert books.states(webhook) == [PENDING, PENDING, *[WAITING] * 4]
    assert len(books.rows("SELECT DISTINCT queue FROM delivery")) == 2


async def test_what_waits_goes_on_waiting_with_a_new_budget(books: Books, replays: Replays) -> None:
    """Its turn does not come earlier; its age and its attempts are counted anew."""
    webhook = await books.set(SHOP)
    seqs = await books.accept(SHOP, "a", "a")
    for seq in seqs:
        await books.record(webhook, seq, Effect.RETRY)
    await books.set(SHOP, order="chat")
    await books.convert(webhook)
    books.now_ms += 7000
    await replays.done(state="waiting")
    assert books.states(webhook) == [PENDING, WAITING]
    row = books.delivery(webhook, seqs[1])
    assert (row.attempts, row.charged, row.since_ms) == (1, 0, books.now_ms)
    assert books.delivery(webhook, seqs[0]).charged == 1


async def test_queues_are_those_of_the_order_that_is_set_now(books: Books, replays: Replays) -> None:
    """Settled deliveries keep the queue they had; reopened, they stand in that of the present order, or in none."""
    webhook = await books.set(SHOP, order="chat")
    seqs = await books.accept(SHOP, "a", "b")
    await settle(books, webhook, seqs, DEAD)
    await books.set(SHOP, order="instance")
    await books.convert(webhook)
    await replays.done(state="dead")
    assert books.states(webhook) == [PENDING, WAITING]
    await settle(books, webhook, seqs, DEAD)
    await books.set(SHOP)
    await books.convert(webhook)
    await replays.done(state="dead")
    assert books.states(webhook) == [PENDING, PENDING]
    assert books.rows("SELECT DISTINCT queue FROM delivery") == [(None,)]


async def test_a_replay_waits_while_an_order_is_being_converted(books: Books, replays: Replays) -> None:
    """Nothing is reopened until every delivery stands in its new queue; then the replay goes on by itself."""
    webhook = await books.set(SHOP)
    seqs = await books.accept(SHOP, "a", "a", "a")
    await settle(books, webhook, seqs[:1], DEAD)
    await books.set(SHOP, order="chat")
    replay = await replays.ask(state="dead")
    advance = AdvanceReplay(replay, [Candidate(seqs[0], SHOP, 0)], Place(webhook, seqs[0]), finished=False, now_ms=0)
    assert await books.do(advance) == [None]
    assert books.states(webhook) == [DEAD, PENDING, PENDING]
    await books.convert(webhook)
    await replays.finished(replay.row.number)
    assert books.states(webhook) == [WAITING, PENDING, WAITING]


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


def id_of(books: Books, webhook: int, seq: int) -> str:
    """Return the id of a delivery."""
    record = books.records()[seq - 1]
    assert isinstance(record, EventAccepted)
    return delivery_text(record.id, webhook)


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


async def accept_kinds(books: Books, *events: tuple[str, str]) -> list[int]:
    """Accept events of these kinds on these instances; return their seqs."""
    bodies = [msgspec.json.encode({"event": kind, "instance": instance, "data": {}}) for kind, instance in events]
    ((first, ids),) = await books.do(AcceptBatch([read_event(body) for body in bodies], books.now_ms))
    return list(range(first, first + len(ids)))


def setting(books: Books, address: Address, *kinds: str) -> SetWebhook:
    """Return the command that sets a webhook which takes those kinds, or all."""
    settings = Settings(url="http://h.test/", events=kinds)
    return SetWebhook(address, "api", books.now_ms, lambda _known: (settings, Credentials()))


async def test_events_are_added_for_a_webhook_that_was_set_too_late(books: Books, replays: Replays) -> None:
    """It gets those of its instance and its kinds that it has not got, each once."""
    first = await books.set(SHOP)
    seqs = await accept_kinds(books, ("message.upsert", OTHER), ("message.upsert", SHOP), ("call", SHOP))
    made = [
        setting(books, Address("instance", SHOP, "late"), "MESSAGES_UPSERT"),
        setting(books, Address("global")),
    ]
    late, everywhere = [webhook.number for webhook, _ in await books.do(*made)]
    seqs += await accept_kinds(books, ("message.upsert", SHOP))
    replay = await replays.done(webhook=late, adds=True)
    assert (replay.request.matched, replay.row.replayed, moved(books)) == (1, 1, [seqs[1]])
    assert {record.move for record in moves(books)} == {Move.ADD}
    assert books.delivery(late, seqs[1]) == Delivery(late, seqs[1], PENDING, books.now_ms, 0, 0, None, books.now_ms)
    replay = await replays.done(webhook=everywhere, adds=True, kind="MESSAGES_UPSERT")
    assert (replay.request.matched, moved(books)[1:]) == (2, seqs[:2])
    again = await replays.done(webhook=everywhere, adds=True)
    assert (again.request.matched, again.row.replayed, moved(books)[3:]) == (1, 1, [seqs[2]])
    assert len(books.states(first)) == 3
    for wanted, place in ((ReplayFilter(instance=OTHER), "instance"), (ReplayFilter(kind="CALL"), "event")):
        with pytest.raises(InvalidError, match=rf"at `\$\.{place}`"):
            await replays.requests.many(replace(wanted, webhook=late, adds=True), None)


async def test_what_a_webhook_takes_when_its_turn_comes_is_added(books: Books) -> None:
    """Set anew since the request, it gets nothing that it does not take any more."""
    await accept_kinds(books, ("call", SHOP), ("message.upsert", SHOP))
    ((webhook, _),) = await books.do(setting(books, Address("global"), "CALL"))
    replays = Replays(books)
    replay = await replays.requests.many(ReplayFilter(webhook=webhook.number, adds=True, kind="CALL"), None)
    await books.do(setting(books, Address("global"), "MESSAGES_UPSERT"))
    advance = await replays.advance(replay)
    assert (advance.found, advance.finished) == ([], True)
    assert replay.request.matched == 1


async def test_added_deliveries_stand_in_their_queues(books: Books, replays: Replays) -> None:
    """For an ordered webhook they go before what came later, but behind the head there is."""
    early = await books.accept(SHOP, "a", "a")
    webhook = await books.set(SHOP, order="instance")
    later = await books.accept(SHOP, "a", "a")
    await replays.done(webhook=webhook, adds=True)
    assert books.states(webhook) == [WAITING, WAITING, PENDING, WAITING]
    await settle(books, webhook, [later[0]], ACKNOWLEDGED)
    assert books.delivery(webhook, early[0]).state == PENDING


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
