"""What touches many deliveries without an attempt, chunk by chunk: burying, converting to another order, expiring."""

from typing import ClassVar

from msgspec import structs

from outbox.domain.deliveries import Delivery, Move, State
from outbox.domain.records import DeliveriesBuried, DeliveriesMoved, MovedDelivery, OrderConverted, decode_or_blank
from outbox.domain.routing import Webhooks
from outbox.domain.webhooks import (
    NO_CONVERSION,
    PROMOTING,
    QUEUEING,
    START_OF_QUEUES,
    Conversion,
    Webhook,
    queue_of,
)
from outbox.journal.commands import RECORD_BYTES, Asking
from outbox.journal.ledger import Ledger
from outbox.store.protocol import UnsettledRun, Wants

CHUNK = 500
ROWS_CHUNK = 250
"""The deliveries that a record names one by one: each is read, decided on and written, while everybody else waits."""

_MOVED_BYTES = 48


class Bury(Asking, frozen=True):
    """Settle as dead the next chunk of a webhook's unsettled deliveries after the event `after`."""

    webhook: int
    after: int
    now_ms: int
    reason: str

    alone: ClassVar[bool] = True

    def want(self, wants: Wants, _webhooks: Webhooks) -> None:
        """See `Command.want`."""
        wants.unsettled.append((self.webhook, self.after, CHUNK))

    def decide(self, ledger: Ledger) -> int | None:
        """See `Command.decide`; return the last event buried, or None when there was nothing left."""
        found = ledger.facts.unsettled.get(self.webhook)
        if found is None:
            return None
        first, last, pending, waiting = found
        if pending + waiting:
            ledger.append(DeliveriesBuried(self.webhook, first, last, self.now_ms, self.reason, pending, waiting))
        return last


class Convert(Asking, frozen=True):
    """Convert the next chunk of a webhook's unsettled deliveries to the order that was set.

    First all of them are put into their queues, where they wait (or are made pending, where no order is asked for);
    then the queues let their first deliveries go.
    """

    webhook: int
    now_ms: int

    alone: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """See `Command.size`."""
        return ROWS_CHUNK * _MOVED_BYTES

    def want(self, wants: Wants, webhooks: Webhooks) -> None:
        """See `Command.want`."""
        webhook = webhooks.get(self.webhook)
        if webhook is None:
            return
        phase, position, until = webhook.conversion
        if phase == QUEUEING:
            wants.rows.append((self.webhook, position, until, ROWS_CHUNK))
        elif phase == PROMOTING:
            wants.headless.append((self.webhook, position, ROWS_CHUNK))

    def decide(self, ledger: Ledger) -> bool:
        """See `Command.decide`; say whether there is more to convert."""
        webhook = ledger.webhooks.get(self.webhook)
        if webhook is None or not webhook.conversion.phase:
            return False
        if webhook.conversion.queueing:
            reached = self._queue(ledger, webhook, ledger.facts.rows[self.webhook])
        else:
            reached = self._promote(ledger, webhook, ledger.facts.headless[self.webhook])
        ledger.append(OrderConverted(self.webhook, self.now_ms, reached))
        ledger.replace_webhook(structs.replace(webhook, conversion=reached))
        return reached.phase > 0

    def _queue(self, ledger: Ledger, webhook: Webhook, run: UnsettledRun) -> Conversion:
        order = webhook.settings.order
        rows = []
        for delivery, record in run.found:
            event = decode_or_blank(record)  # one that is damaged dies in whatever queue
            queue = queue_of(order, event.instance, event.ordering_key)
            state = State.PENDING if queue is None else State.WAITING
            rows.append(_moved(delivery, state)._replace(queue=queue))
        _append(ledger, DeliveriesMoved(webhook.number, self.now_ms, Move.CONVERT, tuple(rows)))
        if run.reached is not None:
            return webhook.conversion._replace(position=run.reached)
        if order == "none":
            return NO_CONVERSION
        return webhook.conversion._replace(phase=PROMOTING, position=START_OF_QUEUES)

    def _promote(self, ledger: Ledger, webhook: Webhook, heads: list[Delivery]) -> Conversion:
        rows = [_moved(head, State.PENDING) for head in heads]
        _append(ledger, DeliveriesMoved(self.webhook, self.now_ms, Move.PROMOTE, tuple(rows)))
        if len(heads) == ROWS_CHUNK:
            return webhook.conversion._replace(position=heads[-1].queue or 0)
        return NO_CONVERSION


class Expire(Asking, frozen=True):
    """Settle as dead those of a webhook's pending deliveries that are older than `cutoff_ms`.

    A delivery that was acknowledged or reopened in the meantime is left alone.
    """

    webhook: int
    events: list[int]
    cutoff_ms: int
    now_ms: int
    reason: str

    alone: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """See `Command.size`."""
        return RECORD_BYTES + len(self.events) * 2 * _MOVED_BYTES

    def want(self, wants: Wants, _webhooks: Webhooks) -> None:
        """See `Command.want`."""
        wants.deliveries += [(self.webhook, event) for event in self.events]

    def decide(self, ledger: Ledger) -> int:
        """See `Command.decide`; return how many expired."""
        rows: list[MovedDelivery] = []
        expired = 0
        for event in dict.fromkeys(self.events):
            delivery = ledger.facts.deliveries.get((self.webhook, event))
            if delivery is None or delivery.state != State.PENDING or delivery.since_ms > self.cutoff_ms:
                continue
            expired += 1
            rows.append(_moved(delivery, State.DEAD))
            rows += self._let_go(ledger, delivery)
        _append(ledger, DeliveriesMoved(self.webhook, self.now_ms, Move.EXPIRE, tuple(rows), self.reason))
        return expired

    def _let_go(self, ledger: Ledger, delivery: Delivery) -> list[MovedDelivery]:
        """Return the next of the queue, if there is one."""
        if delivery.queue is None:
            return []
        following = ledger.let_next_go(self.webhook, delivery.queue)
        if following is None:
            return []
        return [
            MovedDelivery(
                following.event, State.WAITING, State.PENDING, self.now_ms, following.attempts, following.charged,
                delivery.queue, following.since_ms,
            )
        ]  # fmt: skip


def _append(ledger: Ledger, record: DeliveriesMoved) -> None:
    if record.rows:
        ledger.append(record)
        ledger.touched.add(record.webhook)


def _moved(delivery: Delivery, state: State) -> MovedDelivery:
    return MovedDelivery(delivery.event, State(delivery.state), state, *delivery[3:])
