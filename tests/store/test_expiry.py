"""Expiry: what is older than the cutoff is dead, and lets the next of its queue go."""

from outbox.domain.deliveries import Effect, Move, State
from outbox.domain.records import DeliveriesMoved, MovedDelivery
from tests.store.books import ACKNOWLEDGED, DEAD, PENDING, START_MS, WAITING, Books


async def test_what_is_as_old_as_the_cutoff_expires(books: Books) -> None:
    """Exactly so old is old enough; a millisecond younger is not. The record says why, and how each row is now."""
    webhook = await books.set("shop")
    events = await books.accept("shop", "a", "b")
    books.now_ms += 1
    events += await books.accept("shop", "c")
    assert await books.expire(webhook, events, START_MS - 1) == 0
    assert not isinstance(books.last(), DeliveriesMoved)
    await books.record(webhook, events[1], Effect.RETRY)
    assert await books.expire(webhook, events, START_MS) == 2
    assert books.states(webhook) == [DEAD, DEAD, PENDING]
    rows = (
        MovedDelivery(events[0], State.PENDING, State.DEAD, START_MS, 0, 0, None, START_MS),
        MovedDelivery(events[1], State.PENDING, State.DEAD, START_MS + 1001, 1, 1, None, START_MS),
    )
    assert books.last() == DeliveriesMoved(webhook, START_MS + 1, Move.EXPIRE, rows, "expired")


async def test_a_head_that_expires_lets_the_next_go(books: Books) -> None:
    """The next is due at once, and its own age is not looked at before its turn."""
    webhook = await books.set("shop", order="chat")
    events = await books.accept("shop", *"aaba")
    books.now_ms += 1000
    assert await books.expire(webhook, events, START_MS) == 2
    assert books.states(webhook) == [DEAD, PENDING, DEAD, WAITING]
    assert books.delivery(webhook, events[1]).due_ms == START_MS + 1000
    assert await books.expire(webhook, events, START_MS) == 1
    assert await books.expire(webhook, events, START_MS) == 1
    assert books.states(webhook) == [DEAD] * 4
    await books.accept("shop", "a")
    assert books.states(webhook)[-1] == PENDING


async def test_what_has_moved_on_is_left_alone(books: Books) -> None:
    """Between the look at the deliveries and the commit, one was acknowledged, and one never was."""
    webhook = await books.set("shop")
    events = await books.accept("shop", "a", "b")
    await books.record(webhook, events[0], Effect.ACKNOWLEDGE)
    assert await books.expire(webhook, [events[0], 999_999], START_MS) == 0
    assert books.states(webhook) == [ACKNOWLEDGED, PENDING]


async def test_an_event_named_twice_expires_once(books: Books) -> None:
    """Numbers would be wrong for good otherwise."""
    webhook = await books.set("shop", order="chat")
    events = await books.accept("shop", "a", "a", "a")
    assert await books.expire(webhook, [events[0], events[0], events[1]], START_MS) == 1
    assert books.states(webhook) == [DEAD, PENDING, WAITING]


async def test_an_attempt_of_what_has_expired_is_late(books: Books) -> None:
    """It is recorded, and the delivery stays dead."""
    webhook = await books.set("shop", order="chat")
    events = await books.accept("shop", "a", "a")
    await books.expire(webhook, events[:1], START_MS)
    assert await books.record(webhook, events[0], Effect.ACKNOWLEDGE) is Effect.LATE
    assert books.states(webhook) == [DEAD, PENDING]


async def test_what_a_disabled_or_deleted_webhook_has_may_expire(books: Books) -> None:
    """The command does as it is told: whether time counts is its caller's to say."""
    webhook = await books.set("shop", order="chat")
    events = await books.accept("shop", "a", "a", "a")
    await books.set("shop", order="chat", enabled=False)
    assert await books.expire(webhook, events, START_MS) == 1
    await books.delete("shop")
    assert await books.expire(webhook, events, START_MS) == 1
    assert books.states(webhook) == [DEAD, DEAD, PENDING]
    await books.bury(webhook)
