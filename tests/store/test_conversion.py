"""A change of order: what is unsettled is put into its new queues chunk by chunk, while everything else goes on."""

from itertools import pairwise
from typing import get_args

import pytest

from outbox.domain.deliveries import Effect, Move
from outbox.domain.records import DeliveriesMoved, OrderConverted
from outbox.domain.webhooks import NO_CONVERSION, Order
from outbox.journal.sweeping import ROWS_CHUNK
from outbox.store.sqlite import facts
from tests.store.books import ACKNOWLEDGED, DEAD, PENDING, WAITING, Books

ORDERS: tuple[Order, ...] = get_args(Order)
CHANGES = pytest.mark.parametrize(
    ("before", "after"), [(one, other) for one in ORDERS for other in ORDERS if one != other]
)
CHATS = "aabcabdacbb"


def moved(books: Books) -> list[DeliveriesMoved]:
    """Return what was moved so far."""
    return [record for record in books.records() if isinstance(record, DeliveriesMoved)]


def expected(order: Order, chats: str) -> list[int]:
    """Return the states of deliveries of these chats under an order."""
    if order == "none":
        return [PENDING] * len(chats)
    keys = chats if order == "chat" else "i" * len(chats)
    return [WAITING if key in keys[:at] else PENDING for at, key in enumerate(keys)]


@CHANGES
async def test_a_backlog_is_converted(books: Books, small_chunks: None, before: Order, after: Order) -> None:
    """Each delivery comes to stand as if the webhook had had that order from the beginning; due times and ages stay."""
    webhook = await books.set("shop", order=before)
    events = []
    for chat in CHATS:
        books.now_ms += 1000
        events += await books.accept("shop", chat)
    assert books.states(webhook) == expected(before, CHATS)
    rows = [books.delivery(webhook, event) for event in events]
    books.now_ms += 1000
    await books.set("shop", order=after)
    await books.convert(webhook)
    assert books.states(webhook) == expected(after, CHATS)
    assert books.webhook(webhook).conversion == NO_CONVERSION
    for row, event in zip(rows, events, strict=True):
        converted = books.delivery(webhook, event)
        assert converted._replace(state=row.state, queue=row.queue) == row
    assert all(len(record.rows) <= 3 for record in moved(books))
    assert {record.move for record in moved(books)} <= {Move.CONVERT, Move.PROMOTE}


async def test_a_large_backlog_goes_in_chunks_of_250(books: Books) -> None:
    """And so do the queues' first ones, where there are many queues."""
    webhook = await books.set("shop")
    chats = [str(number % 420) for number in range(2 * ROWS_CHUNK + 1)]
    await books.accept_batch("shop", chats)
    await books.set("shop", order="chat")
    assert await books.convert(webhook, steps=3)
    assert books.states(webhook) == [WAITING] * len(chats)
    assert await books.convert(webhook, steps=2) is False
    assert books.states(webhook) == [PENDING] * 420 + [WAITING] * (len(chats) - 420)
    assert [len(record.rows) for record in moved(books)] == [250, 250, 1, 250, 170]


@pytest.mark.parametrize("count", [0, 1, 3, 6])
async def test_the_end_is_found_at_the_edge_of_a_chunk(books: Books, small_chunks: None, count: int) -> None:
    """No delivery, a part of a chunk, whole chunks: all are converted, and then it is over."""
    webhook = await books.set("shop")
    await books.accept("shop", *[str(number) for number in range(count)])
    await books.set("shop", order="chat")
    steps = 1
    while await books.convert(webhook, steps=1):
        steps += 1
    assert steps == 2 * (count // 3 + 1)
    assert books.states(webhook) == [PENDING] * count
    assert await books.convert(webhook) is False


@CHANGES
async def test_events_that_come_between_the_chunks_keep_their_place(
    books: Books, small_chunks: None, before: Order, after: Order
) -> None:
    """They go into their new queues at once, behind all that came before, whatever is converted already."""
    webhook = await books.set("shop", order=before)
    await books.accept("shop", *CHATS)
    await books.set("shop", order=after)
    came = ""
    while await books.convert(webhook, steps=1):
        await books.accept("shop", "a", "e")
        came += "ae"
    assert books.states(webhook) == expected(after, CHATS + came)


async def test_new_events_do_not_keep_a_conversion_from_ending(books: Books, small_chunks: None) -> None:
    """More of them come than a chunk takes, and none of them is converted: they were born into the new order."""
    webhook = await books.set("shop")
    await books.accept("shop", *CHATS)
    await books.set("shop", order="instance")
    for _ in range(len(CHATS) // 3 + 2):
        await books.accept("shop", *"aaaaa")
        await books.convert(webhook, steps=1)
    assert books.webhook(webhook).conversion == NO_CONVERSION
    assert sum(len(record.rows) for record in moved(books) if record.move is Move.CONVERT) == len(CHATS)


@pytest.mark.parametrize(
    ("effect", "at"),
    [*[(effect, at) for effect in (Effect.ACKNOWLEDGE, Effect.RETRY) for at in (0, 2, 4, 6)],
     (Effect.BURY, 2), (Effect.BURY, 5), (Effect.SUSPEND, 2)],
)  # fmt: skip
@CHANGES
async def test_an_outcome_that_comes_between_the_chunks_counts(
    books: Books, small_chunks: None, *, before: Order, after: Order, at: int, effect: Effect
) -> None:
    """Of an attempt that was in flight when the order was changed: before, amid or after the conversion of its row."""
    webhook = await books.set("shop", order=before)
    events = await books.accept("shop", *CHATS)
    heads = [event for event, state in zip(events, books.states(webhook), strict=True) if state == PENDING]
    revision = books.webhook(webhook).revision
    await books.set("shop", order=after)
    await books.convert(webhook, steps=at)
    for event in heads:
        assert await books.record(webhook, event, effect, revision=revision) is effect
    await books.convert(webhook)
    settled = {Effect.ACKNOWLEDGE: ACKNOWLEDGED, Effect.BURY: DEAD}.get(effect)
    left = [(event, chat) for event, chat in zip(events, CHATS, strict=True) if event not in heads or not settled]
    states = dict(zip(events, books.states(webhook), strict=True))
    assert [states[event] for event, _ in left] == expected(after, "".join(chat for _, chat in left))
    assert all(states[event] == settled for event in heads if settled)
    assert [books.delivery(webhook, event).attempts for event in heads] == [1] * len(heads)


@CHANGES
async def test_nobody_is_let_go_before_all_are_in_their_queues(
    books: Books, small_chunks: None, before: Order, after: Order
) -> None:
    """A head of the old order that is settled, or expires, leaves a newer one of its queue alone: older may come."""
    webhook = await books.set("shop", order=before)
    events = await books.accept("shop", "a", "", "a", "b", "", "a")
    heads = [event for event, state in zip(events, books.states(webhook), strict=True) if state == PENDING]
    await books.set("shop", order=after)
    new = await books.accept("shop", "", "a")
    assert await books.record(webhook, heads[0], Effect.ACKNOWLEDGE) is Effect.ACKNOWLEDGE
    if heads[1:]:
        assert await books.expire(webhook, heads[1:2], books.now_ms) == 1
    assert [books.delivery(webhook, event).state for event in new] == [PENDING if after == "none" else WAITING] * 2
    await books.convert(webhook)
    books.check_queues()


@pytest.mark.parametrize("first", [0, 1, 2, 4, 5, 7])
@pytest.mark.parametrize("second", [0, 1, 4])
async def test_there_and_back_again(books: Books, small_chunks: None, first: int, second: int) -> None:
    """A change that overtakes another one, however far that has come, begins anew; events come all the while."""
    webhook = await books.set("shop", order="chat")
    chats = CHATS
    await books.accept("shop", *CHATS)
    changes: list[tuple[Order, int]] = [("none", first), ("chat", second), ("instance", 1), ("chat", first)]
    for order, steps in changes:
        await books.set("shop", order=order)
        await books.accept("shop", "a")
        await books.convert(webhook, steps=steps)
        await books.accept("shop", "f", "b")
        chats += "afb"
    await books.convert(webhook)
    assert books.states(webhook) == expected("chat", chats)


@CHANGES
async def test_a_restart_takes_a_conversion_up(books: Books, small_chunks: None, before: Order, after: Order) -> None:
    """How far it has come stands in the webhook's row; nothing is converted twice."""
    webhook = await books.set("shop", order=before)
    await books.accept("shop", *CHATS)
    await books.set("shop", order=after)
    await books.reopen()
    while await books.convert(webhook, steps=1):
        await books.check()
        position = books.webhook(webhook).conversion
        await books.reopen()
        assert books.webhook(webhook).conversion == position
    assert books.states(webhook) == expected(after, CHATS)
    assert sum(len(record.rows) for record in moved(books) if record.move is Move.CONVERT) == len(CHATS)


async def test_settled_deliveries_are_gone_through_in_bounded_steps(
    books: Books, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long history holds no commit up: each looks at so many rows, and records how far it has come."""
    monkeypatch.setattr(facts, "LOOKED_AT_ONCE", 4)
    webhook = await books.set("shop")
    events = await books.accept("shop", *CHATS)
    kept = {events[0], events[-1]}
    await books.do(*[books.outcome(webhook, event, Effect.ACKNOWLEDGE) for event in events if event not in kept])
    await books.set("shop", order="instance")
    await books.convert(webhook)
    positions = [record.conversion.position for record in books.records() if isinstance(record, OrderConverted)]
    assert positions[:2] == [events[3], events[7]]
    assert [state for state in books.states(webhook) if state != ACKNOWLEDGED] == [PENDING, WAITING]


async def test_settings_of_the_same_order_leave_a_conversion_as_it_is(books: Books, small_chunks: None) -> None:
    """Whatever else is set, and whether it is disabled: it goes on where it was."""
    webhook = await books.set("shop")
    await books.accept("shop", *CHATS)
    await books.set("shop", order="chat")
    await books.convert(webhook, steps=2)
    position = books.webhook(webhook).conversion
    await books.set("shop", order="chat", enabled=False)
    assert books.webhook(webhook).conversion == position
    await books.convert(webhook)
    assert books.states(webhook) == expected("chat", CHATS)
    await books.set("shop", order="chat")
    assert books.webhook(webhook).conversion == NO_CONVERSION


async def test_a_webhook_that_is_deleted_meanwhile_is_converted_no_more(books: Books, small_chunks: None) -> None:
    """It is buried, from wherever the conversion has come to."""
    webhook = await books.set("shop", order="chat")
    await books.accept("shop", *CHATS)
    await books.set("shop", order="instance")
    await books.convert(webhook, steps=2)
    await books.delete("shop")
    assert await books.convert(webhook) is False
    await books.bury(webhook)
    assert set(books.states(webhook)) == {DEAD}


async def test_a_conversion_disturbs_no_other_webhook(books: Books, small_chunks: None) -> None:
    """Its rows are its own."""
    webhook, other = await books.set("shop"), await books.set("mall", order="chat")
    await books.accept("shop", *CHATS)
    await books.accept("mall", *CHATS)
    await books.set("shop", order="instance")
    await books.convert(webhook)
    assert books.states(other) == expected("chat", CHATS)
    assert books.states(webhook) == expected("instance", CHATS)


async def test_how_far_a_conversion_is_only_goes_forward(books: Books, small_chunks: None) -> None:
    """Every record of it says something new."""
    webhook = await books.set("shop", order="instance")
    await books.accept("shop", *CHATS)
    await books.set("shop", order="chat")
    await books.convert(webhook)
    steps = [record.conversion[:2] for record in books.records() if isinstance(record, OrderConverted)]
    assert all(before < after for before, after in pairwise(steps[:-1]))
    assert steps[-1] == (0, 0)
