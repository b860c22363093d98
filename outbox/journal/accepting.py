"""Accepting events: routing and recording them with their deliveries, each once per idempotency key."""

from typing import ClassVar

from msgspec import Struct

from outbox.domain.errors import ConflictError
from outbox.domain.events import Event
from outbox.domain.records import EventAccepted, decode_or_blank
from outbox.domain.routing import Webhooks
from outbox.journal.commands import RECORD_BYTES
from outbox.journal.ledger import Ledger
from outbox.store.protocol import Wants

_AT_ONCE = 1000
"""The events that may be decided in one go on the event loop, which they hold up for some milliseconds."""


class Accepted(Struct, frozen=True, gc=False):
    """The answer to an accepted event; `replayed` says that the key was known and nothing was stored."""

    id: bytes
    seq: int
    deliveries: int
    replayed: bool = False


class AcceptedBatch(Struct, frozen=True):
    """The answer to an accepted batch: the events are numbered in a row from `first_seq`."""

    first_seq: int
    ids: list[bytes]
    replayed: bool = False


class Key(Struct, frozen=True, gc=False):
    """An idempotency key: its 16-byte digest, the SHA-256 of what was sent under it, and how long it counts."""

    digest: bytes
    request: bytes
    window_ms: int

    def known(self, ledger: Ledger, now_ms: int) -> tuple[int, EventAccepted] | None:
        """Return the event (the first, of a batch) accepted under this key within the window, with its seq.

        Raises ConflictError when something else was sent under the key.
        """
        seq, record = ledger.accepted_keys.get(self.digest, (0, None))
        if record is None:
            fact = ledger.facts.keys.get(self.digest)
            if fact is None:
                return None
            # One that cannot be read is as old as can be: it will not be delivered, and this is another chance for it.
            seq, record = fact.event, decode_or_blank(fact.record)
        if record.at_ms + self.window_ms <= now_ms:
            return None
        if (record.request or record.digest) != self.request:
            msg = "this idempotency key was used for another body: choose a new key for a new event"
            raise ConflictError(msg)
        return seq, record


class Accept(Struct, frozen=True, gc=False):
    """Accept one event: route it, and record it with its deliveries."""

    event: Event
    now_ms: int
    key: Key | None = None

    alone: ClassVar[bool] = False

    @property
    def size(self) -> int:
        """See `Command.size`."""
        return len(self.event.body) + RECORD_BYTES

    def asks(self, webhooks: Webhooks) -> bool:
        """See `Command.asks`."""
        return self.key is not None or webhooks.ordered

    def want(self, wants: Wants, webhooks: Webhooks) -> None:
        """See `Command.want`."""
        if self.key is not None:
            wants.keys.append(self.key.digest)
        _want_queues(self.event, wants, webhooks)

    def decide(self, ledger: Ledger) -> Accepted:
        """See `Command.decide`. Raises ConflictError when the key stands for another body."""
        key = self.key
        if key is not None and (known := key.known(ledger, self.now_ms)):
            seq, record = known
            return Accepted(record.id, seq, len(record.targets), replayed=True)
        seq, record = _accept(ledger, self.event, self.now_ms, key.digest if key else b"")
        if key is not None:
            ledger.accepted_keys[key.digest] = (seq, record)
        return Accepted(record.id, seq, len(record.targets))


class AcceptBatch(Struct, frozen=True):
    """Accept many events, all or none, in one commit. `first` is the seq of the first; they are numbered in a row."""

    events: list[Event]
    now_ms: int
    key: Key | None = None

    alone: ClassVar[bool] = False

    @property
    def size(self) -> int:
        """See `Command.size`."""
        return sum(len(event.body) + RECORD_BYTES for event in self.events)

    def asks(self, webhooks: Webhooks) -> bool:
        """See `Command.asks`."""
        return self.key is not None or webhooks.ordered or len(self.events) > _AT_ONCE

    def want(self, wants: Wants, webhooks: Webhooks) -> None:
        """See `Command.want`."""
        if self.key is not None:
            wants.keys.append(self.key.digest)
        if webhooks.ordered:
            for event in self.events:
                _want_queues(event, wants, webhooks)

    def decide(self, ledger: Ledger) -> tuple[int, list[bytes]]:
        """See `Command.decide`; return the first seq and the ids, none of them when the batch is a repeat.

        Raises ConflictError when the key stands for another batch.
        """
        key = self.key
        if key is None:
            accepted = [_accept(ledger, event, self.now_ms, b"") for event in self.events]
        elif known := key.known(ledger, self.now_ms):
            return known[0], []
        else:
            mark = (len(self.events), key.request)
            accepted = [_accept(ledger, self.events[0], self.now_ms, key.digest, *mark)]
            accepted += [_accept(ledger, event, self.now_ms, b"") for event in self.events[1:]]
            ledger.accepted_keys[key.digest] = accepted[0]
        return accepted[0][0], [record.id for _, record in accepted]


def _want_queues(event: Event, wants: Wants, webhooks: Webhooks) -> None:
    if webhooks.ordered:
        targets = webhooks.targets(event.kind, event.instance)
        wants.queues += [
            (webhook.number, queue) for webhook, queue in webhooks.queues(targets, event.instance, event.ordering_key)
        ]


def _accept(  # noqa: PLR0913, PLR0917 - the hot path, and the two last ones are rare
    ledger: Ledger, event: Event, now_ms: int, key: bytes, batch: int = 1, request: bytes = b""
) -> tuple[int, EventAccepted]:
    webhooks = ledger.webhooks
    targets = webhooks.targets(event.kind, event.instance)
    queued = _enter(ledger, event, targets, now_ms) if webhooks.ordered else ()
    record = EventAccepted(
        ledger.new_event_id(now_ms), now_ms, event.kind, event.instance, event.digest, len(event.body),
        event.ordering_key, targets, event.dated, event.hops, key, batch, request, queued,
    )  # fmt: skip
    seq = ledger.append(record)
    ledger.add_body(seq, event.body)
    ledger.touched.update(targets)
    return seq, record


def _enter(ledger: Ledger, event: Event, targets: tuple[int, ...], now_ms: int) -> tuple[tuple[int, int, bool], ...]:
    """Put the event into the queues of the targets that ask for order."""
    seq = ledger.next_seq
    queued = []
    for webhook, queue in ledger.webhooks.queues(targets, event.instance, event.ordering_key):
        waits = ledger.queues.enter(webhook.number, queue, seq, now_ms)
        queued.append((webhook.number, queue, waits or webhook.conversion.queueing))
    return tuple(queued)
