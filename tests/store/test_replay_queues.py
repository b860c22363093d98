from outbox.domain.deliveries import Effect
from outbox.domain.replays import Place
from outbox.journal.replaying import AdvanceReplay, Candidate
from tests.store.books import ACKNOWLEDGED, DEAD, PENDING, WAITING, Books
from tests.store.replays import SHOP, Replays, settle


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
