"""Recording the outcomes of attempts: what they do to their deliveries, to the next in the queue, to the webhook."""

from msgspec import Struct, structs

from outbox.domain.deliveries import TRANSITIONS, Delivery, Effect, State
from outbox.domain.holding import held_after
from outbox.domain.records import AttemptRecorded, WebhookSuspended
from outbox.domain.routing import Webhooks
from outbox.journal.commands import RECORD_BYTES, Asking
from outbox.journal.ledger import Ledger
from outbox.store.protocol import Wants

_PENDING, _WAITING = int(State.PENDING), int(State.WAITING)


class Outcome(Struct, frozen=True, gc=False):
    """An attempt that has ended, and what was so when it began.

    That is the revision of the settings, and of the delivery the attempts charged and from when its age counted (None:
    as it does now).
    """

    attempt: AttemptRecorded
    revision: int = 0
    charged: int = 0
    since_ms: int | None = None


class RecordAttempts(Asking, frozen=True):
    """Record attempts. An effect holds only if the delivery is unsettled and the attempt is its next one.

    A 410 suspends the webhook, unless that has been set anew since the attempt began.
    """

    outcomes: list[Outcome]

    @property
    def size(self) -> int:
        """See `Command.size`."""
        return sum(RECORD_BYTES + len(outcome.attempt.excerpt) for outcome in self.outcomes)

    def want(self, wants: Wants, _webhooks: Webhooks) -> None:
        """See `Command.want`."""
        wants.deliveries += [(outcome.attempt.webhook, outcome.attempt.event) for outcome in self.outcomes]

    def decide(self, ledger: Ledger) -> list[Effect]:
        """See `Command.decide`; return the effects they really had."""
        return [_record(ledger, outcome) for outcome in self.outcomes]


def _record(ledger: Ledger, outcome: Outcome) -> Effect:
    attempt = outcome.attempt
    delivery = ledger.delivery(attempt.webhook, attempt.event)
    if delivery is None or delivery.state > _WAITING or delivery.attempts != attempt.attempt - 1:
        attempt = structs.replace(attempt, effect=Effect.LATE, reason="")
    else:
        if outcome.since_ms not in {None, delivery.since_ms}:
            attempt = _replayed(outcome, delivery)
        if delivery.queue is not None or delivery.state != _PENDING:
            attempt = _in_queue(ledger, attempt, delivery)
    ledger.append_attempt(attempt)
    if outcome.attempt.effect is Effect.SUSPEND:
        _suspend(ledger, outcome)
    return attempt.effect


def _replayed(outcome: Outcome, delivery: Delivery) -> AttemptRecorded:
    """Return the attempt as it counts for a delivery that was replayed while it was under way.

    The budget has begun anew, and what failed before the replay is tried again when the replay says.
    """
    attempt = outcome.attempt
    charged = delivery.charged + attempt.charged - outcome.charged
    due_ms = delivery.due_ms if attempt.effect is Effect.RETRY else attempt.due_ms
    return structs.replace(attempt, charged=charged, due_ms=due_ms)


def _in_queue(ledger: Ledger, attempt: AttemptRecorded, delivery: Delivery) -> AttemptRecorded:
    """Return the attempt with what it does to the queue that its delivery stands in."""
    state, queue = State(delivery.state), delivery.queue
    waiting = state is State.WAITING
    if queue is None or not TRANSITIONS[state, attempt.effect].settled:
        return structs.replace(attempt, waiting=waiting)
    if waiting:
        ledger.queues.settle_waiting(attempt.webhook, queue, attempt.event)
        return structs.replace(attempt, waiting=True)
    promoted = ledger.let_next_go(attempt.webhook, queue)
    if promoted is None:
        return attempt
    ledger.touched.add(attempt.webhook)
    return structs.replace(attempt, promoted=promoted[:3])


def _suspend(ledger: Ledger, outcome: Outcome) -> None:
    attempt = outcome.attempt
    webhook = ledger.webhooks.get(attempt.webhook)
    if webhook is None or webhook.suspended_ms or webhook.revision != outcome.revision:
        return
    now_ms = attempt.at_ms + attempt.took_ms
    held = held_after(webhook.held, now_ms, holding=True)
    ledger.append(WebhookSuspended(webhook.number, now_ms, attempt.event, held))
    ledger.replace_webhook(structs.replace(webhook, suspended_ms=now_ms, held=held))
