"""What holds a webhook back: disabled, suspended by a 410, a breaker that is open. And for how long it was held."""

import pytest

from outbox.domain.deliveries import Effect
from outbox.domain.holding import INTERVALS_MAX
from outbox.domain.records import AttemptRecorded, BreakerMoved, WebhookSet, WebhookSuspended
from tests.store.books import ACKNOWLEDGED, PENDING, START_MS, WAITING, Books


async def gone(books: Books, webhook: int, event: int, attempt: int = 1) -> Effect:
    """Record a 410 to an attempt that was made with the settings in force."""
    revision = books.webhook(webhook).revision
    return await books.record(webhook, event, Effect.SUSPEND, attempt=attempt, revision=revision)


async def test_a_410_suspends_once(books: Books) -> None:
    """The webhook rests from the moment the answer was there; a second 410 is an attempt like any other."""
    webhook = await books.set("shop")
    first, second = await books.accept("shop", "a", "b")
    books.now_ms += 1000
    assert await gone(books, webhook, first) is Effect.SUSPEND
    suspended_ms = START_MS + 1005
    assert books.last() == WebhookSuspended(webhook, suspended_ms, first, ((suspended_ms, 0),))
    known = books.webhook(webhook)
    assert (known.suspended_ms, known.held, known.holds) == (suspended_ms, ((suspended_ms, 0),), True)
    books.now_ms += 1000
    assert await gone(books, webhook, second) is Effect.SUSPEND
    assert isinstance(books.last(), AttemptRecorded)
    assert books.webhook(webhook) == known
    assert books.states(webhook) == [PENDING, PENDING]
    assert books.delivery(webhook, second)[4:6] == (1, 1)


async def test_two_410_in_one_commit_suspend_once(books: Books) -> None:
    """The second one finds the webhook suspended."""
    webhook = await books.set("shop")
    events = await books.accept("shop", "a", "b")
    revision = books.webhook(webhook).revision
    await books.do(*[books.outcome(webhook, event, Effect.SUSPEND, revision=revision) for event in events])
    assert [type(record) for record in books.records()[-3:]] == [AttemptRecorded, WebhookSuspended, AttemptRecorded]


async def test_a_410_of_older_settings_does_not_suspend(books: Books) -> None:
    """What was attempted before the webhook was set anew says nothing about where it leads now."""
    webhook = await books.set("shop")
    (event,) = await books.accept("shop", "a")
    revision = books.webhook(webhook).revision
    await books.set("shop")
    assert await books.record(webhook, event, Effect.SUSPEND, revision=revision) is Effect.SUSPEND
    assert not books.webhook(webhook).holds
    assert books.delivery(webhook, event).attempts == 1


async def test_a_410_of_a_deleted_webhook_is_an_attempt(books: Books) -> None:
    """There is nobody left to suspend."""
    webhook = await books.set("shop")
    (event,) = await books.accept("shop", "a")
    revision = books.webhook(webhook).revision
    await books.delete("shop")
    await books.record(webhook, event, Effect.SUSPEND, revision=revision)
    assert isinstance(books.last(), AttemptRecorded)
    await books.bury(webhook)


async def test_a_late_410_suspends_all_the_same(books: Books) -> None:
    """Whatever became of the delivery, the receiver said that it is gone."""
    webhook = await books.set("shop")
    (event,) = await books.accept("shop", "a")
    await books.record(webhook, event, Effect.ACKNOWLEDGE)
    assert await gone(books, webhook, event) is Effect.LATE
    assert books.webhook(webhook).suspended_ms
    assert books.states(webhook) == [ACKNOWLEDGED]


async def test_what_is_suspended_is_still_routed_to(books: Books) -> None:
    """All of it is kept for when it comes back; what is disabled gets nothing."""
    webhook = await books.set("shop", order="chat")
    (event,) = await books.accept("shop", "a")
    await gone(books, webhook, event)
    await books.accept("shop", "a", "b")
    assert books.states(webhook) == [PENDING, WAITING, PENDING]
    await books.set("shop", order="chat", enabled=False)
    await books.accept("shop", "a")
    assert books.states(webhook) == [PENDING, WAITING, PENDING]


async def test_a_success_acknowledges_what_is_held(books: Books) -> None:
    """An attempt that was in flight when the webhook was suspended counts, and lets the next go."""
    webhook = await books.set("shop", order="chat")
    first, second, _ = await books.accept("shop", "a", "b", "b")
    await gone(books, webhook, first)
    assert await books.record(webhook, second, Effect.ACKNOWLEDGE) is Effect.ACKNOWLEDGE
    assert books.states(webhook) == [PENDING, ACKNOWLEDGED, PENDING]


@pytest.mark.parametrize("enabled", [True, False])
async def test_any_setting_ends_a_suspension(books: Books, enabled: bool) -> None:  # noqa: FBT001
    """Also one that changes nothing; one that disables goes on holding, but for another reason."""
    webhook = await books.set("shop")
    (event,) = await books.accept("shop", "a")
    await gone(books, webhook, event)
    books.now_ms += 60_000
    await books.set("shop", enabled=enabled)
    known = books.webhook(webhook)
    assert (known.suspended_ms, known.holds) == (0, not enabled)
    assert known.held == ((START_MS + 5, START_MS + 60_000 if enabled else 0),)
    record = books.last()
    assert isinstance(record, WebhookSet)
    assert record.held == known.held


async def test_a_suspension_outlives_a_restart(books: Books) -> None:
    """It stands in the webhook's row, and so do the times when it was held."""
    webhook = await books.set("shop")
    (event,) = await books.accept("shop", "a")
    await gone(books, webhook, event)
    before = books.webhook(webhook)
    await books.reopen()
    after = books.webhook(webhook)
    assert (after.suspended_ms, after.held) == (before.suspended_ms, before.held)
    assert after.suspended_ms


async def test_the_times_of_holding_are_kept(books: Books) -> None:
    """Disabled from the first, enabled, disabled, set again while disabled, suspended while enabled: each as it was."""
    webhook = await books.set("shop", enabled=False)
    for enabled in (True, False, False, True):
        books.now_ms += 1000
        await books.set("shop", enabled=enabled)
    (event,) = await books.accept("shop", "a")
    books.now_ms += 1000
    await gone(books, webhook, event)
    books.now_ms += 1000
    await books.set("shop")
    held = ((0, 1000), (2000, 4000), (5005, 6000))
    assert books.webhook(webhook).held == tuple((START_MS + start, START_MS + end) for start, end in held)


async def test_the_times_of_holding_stay_few(books: Books) -> None:
    """However often a webhook is switched off and on, its record does not grow without a bound."""
    webhook = await books.set("shop")
    for at in range(2 * INTERVALS_MAX + 6):
        books.now_ms += 1000
        await books.set("shop", enabled=bool(at % 2))
    held = books.webhook(webhook).held
    assert len(held) == INTERVALS_MAX
    assert held[0] == (START_MS + 1000, START_MS + 8000)


async def test_a_new_webhook_has_never_been_held(books: Books) -> None:
    """The same name set again after a deletion is another webhook."""
    await books.set("shop", enabled=False)
    books.now_ms += 1000
    await books.delete("shop")
    webhook = await books.set("shop")
    assert books.webhook(webhook).held == ()


async def test_a_breaker_is_recorded_when_it_moves(books: Books) -> None:
    """Since when it is open stands in the webhook's row; to open what is open is no news."""
    webhook = await books.set("shop")
    seq = len(books.records())
    assert [await books.move_breaker(webhook, opened=opened) for opened in (False, True, True)] == [False, True, False]
    assert books.records()[seq:] == [BreakerMoved(webhook, START_MS, opened=True, reason="because")]
    assert books.webhook(webhook).opened_ms == START_MS
    await books.reopen()
    books.now_ms += 1000
    assert [await books.move_breaker(webhook, opened=opened) for opened in (True, False, False)] == [False, True, False]
    assert books.records()[seq + 1 :] == [BreakerMoved(webhook, START_MS + 1000, opened=False, reason="because")]
    assert books.webhook(webhook).opened_ms == 0


async def test_a_breaker_stays_open_when_the_webhook_is_set(books: Books) -> None:
    """Only a success closes it."""
    webhook = await books.set("shop")
    await books.move_breaker(webhook, opened=True)
    books.now_ms += 1000
    await books.set("shop")
    assert books.webhook(webhook).opened_ms == START_MS


async def test_a_deleted_webhook_has_no_breaker(books: Books) -> None:
    """Nothing is recorded of it."""
    webhook = await books.set("shop")
    await books.delete("shop")
    assert await books.move_breaker(webhook, opened=True) is False


async def test_a_breaker_moves_amid_other_commands(books: Books) -> None:
    """Nobody else waits for a breaker: what comes with it is committed with it."""
    commits: list[set[int]] = []
    webhook = await books.set("shop")
    (event,) = await books.accept("shop", "a")
    revision = books.webhook(webhook).revision
    books.journal.listen(lambda touched, _nudged: commits.append(touched))
    await books.do(
        books.accepting("shop", "a"),
        books.outcome(webhook, event, Effect.SUSPEND, revision=revision),
        books.moving(webhook, opened=True),
        books.moving(webhook, opened=False),
        books.moving(webhook, opened=True),
    )
    known = books.webhook(webhook)
    assert (known.opened_ms, known.suspended_ms, known.holds) == (START_MS, START_MS + 5, True)
    assert commits == [{webhook}]
