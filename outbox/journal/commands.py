"""What can be asked of the journal. Each command decides inside the commit, from facts, and answers afterwards.

A command that refuses (raises an OutboxError in `decide`) disturbs no other command of its commit.
"""

from collections.abc import Callable
from typing import ClassVar, Protocol, TypeVar

from msgspec import Struct, structs

from outbox.domain.deliveries import Effect, State
from outbox.domain.errors import ConflictError, CorruptError, NotFoundError
from outbox.domain.events import Event
from outbox.domain.records import AttemptRecorded, DeliveriesBuried, EventAccepted, WebhookSet, decode
from outbox.domain.webhooks import Address, Credentials, Settings, Source, Webhook, check_changeable, check_settings
from outbox.journal.ledger import Ledger
from outbox.store.protocol import Wants

BURY_CHUNK = 1000
_RECORD_BYTES = 512
_PENDING = int(State.PENDING)

T_co = TypeVar("T_co", covariant=True)


class Command(Protocol[T_co]):
    """One thing to be decided and recorded, and what its caller gets back."""

    alone: ClassVar[bool]
    """Whether it must be the only one of its commit, because it counts rows that others might be changing."""

    @property
    def size(self) -> int:
        """The bytes it holds in the queue and adds to a commit, roughly."""

    def want(self, wants: Wants) -> None:
        """Name the rows that `decide` must know."""

    def decide(self, ledger: Ledger) -> T_co:
        """Append records to `ledger` and return the answer; it is given out only once the commit is on disk."""


class Accepted(Struct, frozen=True, gc=False):
    """The answer to an accepted event; `replayed` says that the key was known and nothing was stored."""

    id: bytes
    seq: int
    deliveries: int
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
            earlier = decode(fact.record)
            if not isinstance(earlier, EventAccepted):
                msg = f"the record {fact.event}, which an idempotency key points at, is no event's"
                raise CorruptError(msg)
            seq, record = fact.event, earlier
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
        return len(self.event.body) + _RECORD_BYTES

    def want(self, wants: Wants) -> None:
        """See `Command.want`."""
        if self.key is not None:
            wants.keys.append(self.key.digest)

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
        return sum(len(event.body) + _RECORD_BYTES for event in self.events)

    def want(self, wants: Wants) -> None:
        """See `Command.want`."""
        if self.key is not None:
            wants.keys.append(self.key.digest)

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


def _accept(  # noqa: PLR0913, PLR0917 - the hot path, and the two last ones are rare
    ledger: Ledger, event: Event, now_ms: int, key: bytes, batch: int = 1, request: bytes = b""
) -> tuple[int, EventAccepted]:
    targets = ledger.webhooks.targets(event.kind, event.instance)
    record = EventAccepted(
        ledger.new_event_id(now_ms), now_ms, event.kind, event.instance, event.digest, len(event.body),
        event.ordering_key, targets, event.dated, event.hops, key, batch, request,
    )  # fmt: skip
    seq = ledger.append(record)
    ledger.add_body(seq, event.body)
    ledger.touched.update(targets)
    return seq, record


class RecordAttempts(Struct, frozen=True):
    """Record attempts. An effect holds only if the delivery is pending and the attempt is its next one."""

    attempts: list[AttemptRecorded]

    alone: ClassVar[bool] = False

    @property
    def size(self) -> int:
        """See `Command.size`."""
        return sum(_RECORD_BYTES + len(attempt.excerpt) for attempt in self.attempts)

    def want(self, wants: Wants) -> None:
        """See `Command.want`."""
        wants.deliveries += [(attempt.webhook, attempt.event) for attempt in self.attempts]

    def decide(self, ledger: Ledger) -> list[Effect]:
        """See `Command.decide`; return the effects they really had."""
        effects = []
        for attempt in self.attempts:
            delivery = ledger.delivery(attempt.webhook, attempt.event)
            legal = delivery is not None and delivery.state == _PENDING and delivery.attempts == attempt.attempt - 1
            record = attempt if legal else structs.replace(attempt, effect=Effect.LATE, reason="")
            ledger.append(record)
            effects.append(record.effect)
        return effects


class SetWebhook(Struct, frozen=True):
    """Set the webhook of a scope, an instance and a name: a new one, or the whole of the one that is there.

    `settings_for` gets the webhook that is there, or None, and returns what is to be in force.
    """

    address: Address
    source: Source
    now_ms: int
    settings_for: Callable[[Webhook | None], tuple[Settings, Credentials]]

    alone: ClassVar[bool] = False

    @property
    def size(self) -> int:
        """See `Command.size`."""
        return _RECORD_BYTES

    def want(self, wants: Wants) -> None:
        """See `Command.want`: the settings are known."""

    def decide(self, ledger: Ledger) -> tuple[Webhook, bool]:
        """See `Command.decide`; return the webhook and if it is new. Raises InvalidError, or as `settings_for` does."""
        known = ledger.webhooks.find(*self.address)
        settings, credentials = self.settings_for(known)
        check_settings(settings, credentials)
        record = WebhookSet(
            webhook=known.number if known else 0,
            at_ms=self.now_ms,
            scope=self.address.scope,
            instance=self.address.instance,
            name=self.address.name,
            settings=settings,
            source=self.source,
            secret=known.secret_id if known else b"",
            fingerprint=b"",
        )
        return ledger.set_webhook(record, credentials), known is None


class DeleteWebhook(Struct, frozen=True):
    """Delete a webhook: a tombstone at once; its deliveries are buried afterwards, chunk by chunk."""

    address: Address
    now_ms: int

    alone: ClassVar[bool] = False

    @property
    def size(self) -> int:
        """See `Command.size`."""
        return _RECORD_BYTES

    def want(self, wants: Wants) -> None:
        """See `Command.want`: the settings are known."""

    def decide(self, ledger: Ledger) -> Webhook:
        """See `Command.decide`; return what was deleted. Raises NotFoundError and ConflictError."""
        known = ledger.webhooks.find(*self.address)
        if known is None:
            raise NotFoundError(self.address.missing)
        check_changeable(known)
        ledger.delete_webhook(known.number, known.secret_id, self.now_ms)
        return known


class Bury(Struct, frozen=True):
    """Settle as dead the next chunk of a webhook's unsettled deliveries after the event `after`."""

    webhook: int
    after: int
    now_ms: int
    reason: str

    alone: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """See `Command.size`."""
        return _RECORD_BYTES

    def want(self, wants: Wants) -> None:
        """See `Command.want`."""
        wants.unsettled.append((self.webhook, self.after, BURY_CHUNK))

    def decide(self, ledger: Ledger) -> int | None:
        """See `Command.decide`; return the last event buried, or None when there was nothing left."""
        found = ledger.facts.unsettled.get(self.webhook)
        if found is None:
            return None
        first, last, pending, waiting = found
        if pending + waiting:
            ledger.append(DeliveriesBuried(self.webhook, first, last, self.now_ms, self.reason, pending, waiting))
        return last
