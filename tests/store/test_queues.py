"""Queues: one delivery of a key at a time, in order of events, whatever happens to those before it."""

import pytest

from outbox.domain.deliveries import Effect
from outbox.domain.errors import CorruptError, StoreRefusedError
from outbox.domain.records import AttemptRecorded, EventAccepted
from outbox.journal.queues import Queues
from outbox.store.protocol import QueueFact
from tests.store.books import ACKNOWLEDGED, DEAD, PENDING, WAITING, Books

ENDS = pytest.mark.parametrize(("effect", "end"), [(Effect.ACKNOWLEDGE, ACKNOWLEDGED), (Effect.BURY, DEAD)])
APART = pytest.mark.parametrize("apart", [True, False], ids=["commit by commit", "in one commit"])


@APART
async def test_the_first_of_a_chat_is_pending_and_the_rest_wait(books: Books, apart: bool) -> None:  # noqa: FBT001
    """Chats stand beside each other; whether their events came in one commit or in several makes no difference."""
    webhook = await books.set("shop", order="chat")
    chats = ["a", "a", "b", "a", "c", "b"]
    if apart:
        events = [event for chat in chats for event in await books.accept("shop", chat)]
    else:
        events = await books.accept("shop", *chats)
    assert books.states(webhook) == [PENDING, WAITING, PENDING, WAITING, PENDING, WAITING]
    queues = [books.delivery(webhook, event).queue for event in events]
    assert None not in queues
    assert [queues.index(queue) for queue in queues] == [chats.index(chat) for chat in chats]


async def test_a_batch_enters_its_queues_in_order(books: Books) -> None:
    """All of a batch is decided together, against what was there and against itself."""
    webhook = await books.set("shop", order="chat")
    await books.accept("shop", "a")
    await books.accept_batch("shop", ["b", "a", "b"])
    assert books.states(webhook) == [PENDING, PENDING, WAITING, WAITING]


async def test_an_instance_is_one_queue(books: Books) -> None:
    """Its chats wait for each other, and other instances do not."""
    webhook = await books.set("shop", order="instance")
    other = await books.set("mall", order="instance")
    await books.accept("shop", "a", "b", "c")
    await books.accept("mall", "a")
    assert books.states(webhook) == [PENDING, WAITING, WAITING]
    assert books.states(other) == [PENDING]


@ENDS
async def test_the_end_of_a_head_lets_the_next_go(books: Books, effect: Effect, end: int) -> None:
    """The first that waits, of the same queue; its age goes on, it is due at once, and the record names it."""
    webhook = await books.set("shop", order="chat")
    first, other, second, third = await books.accept("shop", "a", "b", "a", "a")
    accepted_ms = books.now_ms
    books.now_ms += 60_000
    assert await books.record(webhook, first, effect) is effect
    assert books.states(webhook) == [end, PENDING, PENDING, WAITING]
    delivery = books.delivery(webhook, second)
    assert (delivery.due_ms, delivery.since_ms) == (books.now_ms + 5, accepted_ms)
    record = books.last()
    assert isinstance(record, AttemptRecorded)
    assert (record.promoted, record.waiting) == ((second, 0, 0), False)
    assert await books.record(webhook, second, effect) is effect
    assert books.states(webhook) == [end, PENDING, end, PENDING]
    assert books.delivery(webhook, other).state == PENDING
    await books.record(webhook, third, effect)
    assert await books.accept("shop", "a")
    assert books.states(webhook) == [end, PENDING, end, end, PENDING]


async def test_a_head_that_is_tried_again_keeps_its_place(books: Books) -> None:
    """However long it takes, those behind it wait."""
    webhook = await books.set("shop", order="chat")
    first, _ = await books.accept("shop", "a", "a")
    for attempt in (1, 2, 3):
        assert await books.record(webhook, first, Effect.RETRY, attempt=attempt) is Effect.RETRY
        assert books.states(webhook) == [PENDING, WAITING]
    assert books.delivery(webhook, first)[3:6] == (books.now_ms + 1000, 3, 1)


@ENDS
async def test_settling_and_accepting_in_one_commit_settle_first(books: Books, effect: Effect, end: int) -> None:
    """The queue is empty when the new one comes: it is the next head."""
    webhook = await books.set("shop", order="chat")
    (first,) = await books.accept("shop", "a")
    await books.do(books.outcome(webhook, first, effect), books.accepting("shop", "a"), books.accepting("shop", "a"))
    assert books.states(webhook) == [end, PENDING, WAITING]


@ENDS
async def test_settling_and_accepting_in_one_commit_accept_first(books: Books, effect: Effect, end: int) -> None:
    """The new one waits, and is let go before anybody could read that."""
    webhook = await books.set("shop", order="chat")
    (first,) = await books.accept("shop", "a")
    _, _, second = await books.do(
        books.accepting("shop", "a"), books.outcome(webhook, first, effect), books.accepting("shop", "a")
    )
    assert books.states(webhook) == [end, PENDING, WAITING]
    record = next(record for record in books.records() if isinstance(record, AttemptRecorded))
    assert record.promoted == (second.seq - 2, 0, 0)


async def test_the_next_goes_before_one_that_came_in_the_same_commit(books: Books) -> None:
    """Who waits in the store comes before who comes now, wherever its outcome stands in the commit."""
    webhook = await books.set("shop", order="chat")
    first, second = await books.accept("shop", "a", "a")
    await books.do(
        books.accepting("shop", "a"), books.outcome(webhook, first, Effect.ACKNOWLEDGE), books.accepting("shop", "a")
    )
    assert books.states(webhook) == [ACKNOWLEDGED, PENDING, WAITING, WAITING]
    assert books.delivery(webhook, second).state == PENDING


async def test_many_heads_are_settled_in_one_commit(books: Books) -> None:
    """Each lets its own follower go; a queue that ends is free again."""
    webhook = await books.set("shop", order="chat")
    chats = [str(number) for number in range(40)]
    events = await books.accept_batch("shop", chats + chats[:30] + chats[:10])
    await books.do(*[books.outcome(webhook, event, Effect.ACKNOWLEDGE) for event in events[:40]])
    assert books.states(webhook) == [ACKNOWLEDGED] * 40 + [PENDING] * 30 + [WAITING] * 10
    await books.accept("shop", "39", "0")
    assert books.states(webhook)[-2:] == [PENDING, WAITING]


async def test_a_webhook_without_order_stands_beside_one_with(books: Books) -> None:
    """An event goes to both; nothing waits for the first, and it has no queue."""
    ordered = await books.set("shop", order="chat")
    await books.do(books.setting("shop", name="free"))
    free = max(webhook.number for webhook in books.journal.webhooks)
    first, second = await books.accept("shop", "a", "a")
    assert books.states(ordered) == [PENDING, WAITING]
    assert books.states(free) == [PENDING, PENDING]
    assert books.delivery(free, second).queue is None
    await books.record(free, second, Effect.ACKNOWLEDGE)
    assert books.states(ordered) == [PENDING, WAITING]
    await books.record(ordered, first, Effect.ACKNOWLEDGE)
    assert books.states(free) == [PENDING, ACKNOWLEDGED]


async def test_without_order_nothing_about_queues_is_written(books: Books) -> None:
    """No queue, no promotion: what most webhooks are pays for nothing."""
    webhook = await books.set("shop")
    events = await books.accept("shop", "a", "a")
    await books.record(webhook, events[0], Effect.ACKNOWLEDGE)
    accepted, attempt = books.records()[1], books.last()
    assert isinstance(accepted, EventAccepted)
    assert isinstance(attempt, AttemptRecorded)
    assert (accepted.queued, attempt.promoted) == ((), None)
    assert books.states(webhook) == [ACKNOWLEDGED, PENDING]


@pytest.mark.parametrize("attempt", [1, 3])
async def test_a_late_outcome_changes_nothing(books: Books, attempt: int) -> None:
    """One whose number is not the next one's is recorded, and neither its delivery nor the queue moves."""
    webhook = await books.set("shop", order="chat")
    first, _ = await books.accept("shop", "a", "a")
    await books.record(webhook, first, Effect.RETRY)
    before = books.projections()
    assert await books.record(webhook, first, Effect.ACKNOWLEDGE, attempt=attempt) is Effect.LATE
    assert books.projections() == before
    record = books.last()
    assert isinstance(record, AttemptRecorded)
    assert (record.effect, record.attempt, record.promoted) == (Effect.LATE, attempt, None)


async def test_an_outcome_after_the_end_is_late(books: Books) -> None:
    """An end is an end: a second success of the same attempt promotes nobody."""
    webhook = await books.set("shop", order="chat")
    first, _, _ = await books.accept("shop", "a", "a", "a")
    command = books.outcome(webhook, first, Effect.ACKNOWLEDGE)
    assert await books.do(command, command) == [[Effect.ACKNOWLEDGE], [Effect.LATE]]
    assert await books.record(webhook, first, Effect.BURY, attempt=2) is Effect.LATE
    assert books.states(webhook) == [ACKNOWLEDGED, PENDING, WAITING]


async def test_a_delivery_that_never_was_is_late(books: Books) -> None:
    """An attempt for a webhook that the event was never for is a fact of the log, and no more."""
    webhook = await books.set("shop", order="chat")
    (event,) = await books.accept("shop", "a")
    assert await books.record(webhook + 999, event, Effect.ACKNOWLEDGE) is Effect.LATE


async def test_two_attempts_of_a_head_in_one_commit(books: Books) -> None:
    """The second goes by what the first has done."""
    webhook = await books.set("shop", order="chat")
    first, _ = await books.accept("shop", "a", "a")
    await books.do(
        books.outcome(webhook, first, Effect.RETRY), books.outcome(webhook, first, Effect.ACKNOWLEDGE, attempt=2)
    )
    assert books.states(webhook) == [ACKNOWLEDGED, PENDING]
    assert books.delivery(webhook, first).attempts == 2


async def test_one_that_waits_is_let_go_with_the_attempts_that_were_made(books: Books) -> None:
    """Also with one that ended in the same commit: it was in flight when its delivery was put behind another."""
    webhook = await books.set("shop", order="chat")
    first, second = await books.accept("shop", "a", "a")
    await books.do(books.outcome(webhook, second, Effect.RETRY), books.outcome(webhook, first, Effect.ACKNOWLEDGE))
    assert books.delivery(webhook, second)[2:6] == (PENDING, books.now_ms + 5, 1, 1)
    assert await books.record(webhook, second, Effect.ACKNOWLEDGE, attempt=2) is Effect.ACKNOWLEDGE


async def test_one_that_is_settled_while_it_waits_is_passed_over(books: Books) -> None:
    """Also if the head is settled in the same commit, before it or after it."""
    webhook = await books.set("shop", order="chat")
    events = await books.accept("shop", *"aaaaa")
    await books.do(*[books.outcome(webhook, events[at], Effect.ACKNOWLEDGE) for at in (1, 0)])
    assert books.states(webhook) == [ACKNOWLEDGED, ACKNOWLEDGED, PENDING, WAITING, WAITING]
    await books.do(*[books.outcome(webhook, events[at], Effect.ACKNOWLEDGE) for at in (2, 3)])
    assert books.states(webhook) == [ACKNOWLEDGED] * 4 + [PENDING]


async def test_heads_of_a_disabled_webhook_move_on(books: Books) -> None:
    """What was in flight when it was disabled is recorded, and the queue behind it with it."""
    webhook = await books.set("shop", order="chat")
    first, _ = await books.accept("shop", "a", "a")
    await books.set("shop", order="chat", enabled=False)
    assert await books.record(webhook, first, Effect.ACKNOWLEDGE) is Effect.ACKNOWLEDGE
    assert books.states(webhook) == [ACKNOWLEDGED, PENDING]


async def test_queues_of_a_deleted_webhook_are_buried(books: Books, small_chunks: None) -> None:
    """Chunk by chunk, with outcomes of what was in flight in between."""
    webhook = await books.set("shop", order="chat")
    events = await books.accept("shop", *"aabbab")
    await books.delete("shop")
    await books.bury(webhook, steps=1)
    assert books.states(webhook) == [DEAD] * 3 + [WAITING, WAITING, WAITING]
    assert await books.record(webhook, events[0], Effect.ACKNOWLEDGE) is Effect.LATE
    await books.bury(webhook)
    assert books.states(webhook) == [DEAD] * 6


async def test_an_outcome_between_deletion_and_burial_counts(books: Books) -> None:
    """A success is a success, as long as the delivery is not settled."""
    webhook = await books.set("shop", order="chat")
    events = await books.accept("shop", *"aa")
    await books.delete("shop")
    assert await books.record(webhook, events[0], Effect.ACKNOWLEDGE) is Effect.ACKNOWLEDGE
    await books.bury(webhook)
    assert books.states(webhook) == [ACKNOWLEDGED, DEAD]


async def test_the_store_refuses_a_second_head(books: Books) -> None:
    """If the code were wrong, the commit would fail, and not the order."""
    webhook = await books.set("shop", order="chat")
    first, _ = await books.accept("shop", "a", "a")
    queue = books.delivery(webhook, first).queue
    empty = {(webhook, queue): QueueFact(busy=False, waiting=[], complete=True)}

    def mistaken(found: object) -> Queues:
        return Queues(empty)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("outbox.journal.ledger.Queues", mistaken)
        with pytest.raises(StoreRefusedError, match="UNIQUE"):
            await books.accept("shop", "a")
    assert books.states(webhook) == [PENDING, WAITING]


def test_a_queue_that_was_not_asked_for_is_a_fault() -> None:
    """To take it for an empty one would break the order."""
    with pytest.raises(CorruptError, match="the queue 7 of webhook 3 was not asked for"):
        Queues({}).enter(3, 7, 9, 0)
