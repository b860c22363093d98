"""Records: the facts the log can hold, and their encoding.

A record is a msgspec Struct encoded as a MessagePack array whose first element is the tag below. Nothing that was
ever written may become unreadable: tags are never reused, fields are only ever appended, and with a default that says
what their absence meant. A record does not hold its own seq; records that refer to an event hold that event's seq.
"""

import hashlib
from typing import NamedTuple

import msgspec
from msgspec import Struct

from outbox.domain.deliveries import Delivery, Effect, Move, State
from outbox.domain.errors import CorruptError
from outbox.domain.holding import Interval
from outbox.domain.replays import ReplayFilter
from outbox.domain.webhooks import NO_CONVERSION, Conversion, Scope, Settings, Source

GENESIS = bytes(32)
CHECKPOINTS = -(1 << 62)
"""What all checkpoints are about, so that the last one is found."""


class EventAccepted(Struct, frozen=True, array_like=True, tag=1, gc=False):
    """An event was accepted, and this is whom it must reach: `targets` are webhook numbers, fixed here for good.

    `digest` is the SHA-256 of the body, `size` its bytes; `dated` says whether the body has a `date_time` of its own;
    `idempotency` is the 16-byte digest of the producer's key, or empty. The first event of a batch with a key holds
    the number of its events in `batch` and the SHA-256 of the whole batch in `request`; elsewhere the body's is meant.
    `queued` holds, for every target that asks for order, its number, the delivery's queue, and whether it waits there
    behind another.
    """

    id: bytes
    at_ms: int
    kind: str
    instance: str
    digest: bytes
    size: int
    ordering_key: int
    targets: tuple[int, ...]
    dated: bool
    hops: int
    idempotency: bytes
    batch: int = 1
    request: bytes = b""
    queued: tuple[tuple[int, int, bool], ...] = ()


class AttemptRecorded(Struct, frozen=True, array_like=True, tag=2, gc=False):
    """One POST was made, and this is what came of it.

    `status` is None where no answer came, `error` then names why; `detail` is for people; `excerpt` is the first KiB
    of a failure's answer. `effect` is what it did to the delivery, whose `charged` attempts and due time follow;
    `reason` says why the delivery is dead. `waiting` says that the delivery stood behind another one of its queue;
    `promoted` is the next of the queue, which this outcome lets go: its event, and its attempts and charged attempts.
    """

    event: int
    webhook: int
    attempt: int
    at_ms: int
    took_ms: int
    status: int | None
    error: str
    detail: str
    excerpt: bytes
    effect: Effect
    charged: int
    due_ms: int
    reason: str
    waiting: bool = False
    promoted: tuple[int, int, int] | None = None


class WebhookSet(Struct, frozen=True, array_like=True, tag=3):
    """A webhook was set. `webhook` is its number, 0 meaning that this record is its first and gives the number.

    Credentials are not here, since the log forgets nothing: `secret` is their id in the table of secrets (empty: there
    are none) and `fingerprint` the digest they must match. What follows is how things stand after this record: the
    times when the webhook was held, since when its breaker is open (0: it is closed), and how far a change of its
    order has come. A suspension is over.
    """

    webhook: int
    at_ms: int
    scope: Scope
    instance: str
    name: str
    settings: Settings
    source: Source
    secret: bytes
    fingerprint: bytes
    held: tuple[Interval, ...] = ()
    opened_ms: int = 0
    conversion: Conversion = NO_CONVERSION


class WebhookDeleted(Struct, frozen=True, array_like=True, tag=4):
    """A webhook was deleted: nothing is routed to it from here on, and its unsettled deliveries will be settled."""

    webhook: int
    at_ms: int


class DeliveriesBuried(Struct, frozen=True, array_like=True, tag=5):
    """All unsettled deliveries of `webhook` whose event is in `first..last` are dead; so many were in each state."""

    webhook: int
    first: int
    last: int
    at_ms: int
    reason: str
    pending: int
    waiting: int


class WebhookSuspended(Struct, frozen=True, array_like=True, tag=6):
    """A receiver answered 410 to the event with the seq `event`: the webhook rests until it is set again.

    Where `event` is 0, its credentials were found damaged. `held` are the times when it was held, this one, which has
    begun, among them.
    """

    webhook: int
    at_ms: int
    event: int
    held: tuple[Interval, ...]


class BreakerMoved(Struct, frozen=True, array_like=True, tag=7):
    """The circuit breaker of a webhook's lane opened or closed; `reason` says what made it."""

    webhook: int
    at_ms: int
    opened: bool
    reason: str


class MovedDelivery(NamedTuple):
    """One delivery of a DeliveriesMoved: its state before (None: it is new), and how its row is afterwards."""

    event: int
    before: State | None
    state: State
    due_ms: int
    attempts: int
    charged: int
    queue: int | None
    since_ms: int


class DeliveriesMoved(Struct, frozen=True, array_like=True, tag=8):
    """A chunk of a webhook's deliveries was changed without an attempt; `cause` is the seq of a replay, or 0."""

    webhook: int
    at_ms: int
    move: Move
    rows: tuple[MovedDelivery, ...]
    reason: str = ""
    cause: int = 0


class OrderConverted(Struct, frozen=True, array_like=True, tag=9):
    """A change of a webhook's order has come so far."""

    webhook: int
    at_ms: int
    conversion: Conversion


class ReplayRequested(Struct, frozen=True, array_like=True, tag=10):
    """A replay was requested; this record's seq is its number. It reaches what was accepted before.

    `rate` is how many deliveries a second become due, None meaning all at once; `matched` how many matched when it was
    requested, None if nobody has counted them.
    """

    at_ms: int
    wanted: ReplayFilter
    rate: float | None
    matched: int | None


class ReplayAdvanced(Struct, frozen=True, array_like=True, tag=11):
    """A replay, by number, has come so far: up to the event `event` of the webhook `webhook`.

    `replayed` and `skipped` count the deliveries until now: those changed or added, and those that had become something
    else when their turn came. With a rate, the next one is due at `next_ms`.
    """

    replay: int
    at_ms: int
    webhook: int
    event: int
    replayed: int
    skipped: int
    next_ms: int
    finished: bool


class Kept(NamedTuple):
    """A record that a checkpoint kept: its seq, and the SHA-256 of its encoding."""

    seq: int
    digest: bytes


class Checkpoint(Struct, frozen=True, array_like=True, tag=12):
    """Of the records `first..last` only what still lives is there: events that are not settled, and their attempts.

    `kept` are the records that stay where they are. `deliveries` are all rows of the events among them, and `keys`
    their idempotency keys that still count, each with the event's seq. The chain begins behind the record `floor`, with
    its digest `chain`. `counters` (webhook, state, n) is what the records taken away from the chain had counted, to
    begin with; `events`, and `pruned` (webhook, state, n), is how many events and deliveries are gone.
    """

    at_ms: int
    first: int
    last: int
    floor: int
    chain: bytes
    kept: tuple[Kept, ...]
    deliveries: tuple[Delivery, ...]
    keys: tuple[tuple[bytes, int], ...]
    counters: tuple[tuple[int, int, int], ...]
    events: int
    pruned: tuple[tuple[int, int, int], ...]


class WebhookCarried(Struct, frozen=True, array_like=True, tag=13):
    """How a webhook stands at this point of the log, since records about it are taken away.

    The fields mean what they mean in WebhookSet; `deleted_ms` and `suspended_ms` are 0 where it is not.
    """

    webhook: int
    at_ms: int
    scope: Scope
    instance: str
    name: str
    settings: Settings
    source: Source
    secret: bytes
    fingerprint: bytes
    created_ms: int
    updated_ms: int
    deleted_ms: int
    suspended_ms: int
    held: tuple[Interval, ...]
    opened_ms: int
    conversion: Conversion


Record = (
    EventAccepted
    | AttemptRecorded
    | WebhookSet
    | WebhookDeleted
    | DeliveriesBuried
    | WebhookSuspended
    | BreakerMoved
    | DeliveriesMoved
    | OrderConverted
    | ReplayRequested
    | ReplayAdvanced
    | Checkpoint
    | WebhookCarried
)

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)

encode = _ENCODER.encode


def decode(data: bytes) -> Record:
    """Return the record that `data` encodes. Raises CorruptError."""
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"a record of the log cannot be read: {error}"
        raise CorruptError(msg) from error


def decode_event(data: bytes) -> EventAccepted:
    """Return the record of an event. Raises CorruptError."""
    record = decode(data)
    if not isinstance(record, EventAccepted):
        msg = f"the record of an event is a {type(record).__name__} in the log"
        raise CorruptError(msg)
    return record


def decode_checkpoint(seq: int, data: bytes) -> Checkpoint:
    """Return the checkpoint that the record `seq` must be. Raises CorruptError."""
    record = decode(data)
    if not isinstance(record, Checkpoint):
        msg = f"the record {seq} is not the checkpoint that it should be"
        raise CorruptError(msg)
    return record


UNREADABLE = EventAccepted(bytes(16), 0, "", "", b"", 0, 0, (), dated=False, hops=0, idempotency=b"")
"""What stands for the record of an event that cannot be read. No body matches it, so nothing of it is ever sent."""


def decode_or_blank(data: bytes) -> EventAccepted:
    """Return the record of an event, or UNREADABLE: one damaged record must not keep others from being seen."""
    try:
        return decode_event(data)
    except CorruptError:
        return UNREADABLE


def chained(previous: bytes, data: bytes) -> bytes:
    """Return the digest, 32 bytes, of an encoded record that follows the one with the digest `previous`."""
    return hashlib.sha256(previous + data).digest()


def subject(record: Record) -> int:
    """Return what a record is about, as the log's index has it: an event's seq, or minus a webhook's number.

    What gives a number, as an EventAccepted, a webhook's first WebhookSet and a ReplayRequested do, is found by its own
    seq and needs none: 0. A ReplayAdvanced is about its replay: minus its number. Checkpoints have CHECKPOINTS.
    """
    match record:
        case EventAccepted() | ReplayRequested():
            return 0
        case ReplayAdvanced():
            return -record.replay
        case Checkpoint():
            return CHECKPOINTS
        case AttemptRecorded():
            return record.event
        case _:
            return -record.webhook
