"""What the journal and the relay ask of a store: few methods, each with its guarantee in one line."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from outbox.domain.deliveries import Delivery
from outbox.domain.projecting import Changes, EventRow, KeyRow, ReplayRow, WebhookRow
from outbox.domain.records import GENESIS


class Head(NamedTuple):
    """The end of the log: the last seq (0 when it is empty) and the digest of the chain up to it."""

    seq: int = 0
    digest: bytes = GENESIS


class LogRow(NamedTuple):
    """One row of the log. `record` is encoded, `digest` is that of the chain up to and with it."""

    seq: int
    subject: int
    record: bytes
    digest: bytes


class KeyFact(NamedTuple):
    """What is known under an idempotency key: the event's seq and its encoded EventAccepted."""

    event: int
    record: bytes


class UnsettledRange(NamedTuple):
    """A run of a webhook's deliveries in order of events: where it begins and ends, how many pend and wait in it."""

    first: int
    last: int
    pending: int
    waiting: int


class UnsettledRun(NamedTuple):
    """Unsettled deliveries in order of events; `reached` is the event up to which these are all (None: to the end)."""

    found: "list[FoundDelivery]"
    reached: int | None


class Waiting(NamedTuple):
    """A delivery that stands in a queue behind another, with its attempts so far."""

    event: int
    attempts: int
    charged: int
    since_ms: int


class QueueFact(NamedTuple):
    """A queue of a webhook: whether one of it is pending, and the first that wait; `complete` says: all that wait.

    Of those that wait, at least one more is there than the wanted deliveries could let go, if there are as many.
    """

    busy: bool
    waiting: list[Waiting]
    complete: bool


class Wants(Struct):
    """The rows a commit must know.

    Deliveries by (webhook, event), and with each that stands in a queue, this queue (those in `alone` without it);
    queues by (webhook, queue); keys; runs of unsettled deliveries by (webhook, after, limit), with their events'
    records by (webhook, after, before, limit); and those that would be the heads of the queues without one by (webhook,
    after, limit). For a checkpoint, all deliveries of the events in `span`, and the rows of webhooks.
    """

    deliveries: list[tuple[int, int]] = []
    alone: list[tuple[int, int]] = []
    keys: list[bytes] = []
    unsettled: list[tuple[int, int, int]] = []
    queues: list[tuple[int, int]] = []
    rows: list[tuple[int, int, int, int]] = []
    headless: list[tuple[int, int, int]] = []
    span: tuple[int, int] | None = None
    webhooks: list[int] = []


class Facts(Struct):
    """What a commit found: the head, and the wanted rows as they are in this very transaction."""

    head: Head
    deliveries: dict[tuple[int, int], Delivery] = {}
    keys: dict[bytes, KeyFact] = {}
    unsettled: dict[int, UnsettledRange] = {}
    queues: dict[tuple[int, int], QueueFact] = {}
    rows: dict[int, UnsettledRun] = {}
    headless: dict[int, list[Delivery]] = {}
    span: list[Delivery] = []
    webhooks: list[WebhookRow] = []


class Cut(NamedTuple):
    """What a checkpoint takes away that is no projection: records and bodies of a span, but for some; and keys."""

    first: int
    last: int
    kept: list[int]
    keys: list[KeyRow]


class Batch(Struct):
    """What a commit writes: records, bodies by event, secrets by id, secrets to erase, and the projections' changes.

    With `cut`, the records and bodies of a span are taken away before.
    """

    log: list[LogRow]
    changes: Changes
    bodies: list[tuple[int, bytes]]
    secrets: list[tuple[bytes, bytes]]
    erased: list[bytes]
    cut: Cut | None = None


class Due(NamedTuple):
    """A delivery that may be attempted, with the encoded EventAccepted of its event.

    `digest` is that of the chain up to and with it, `previous` that up to it: GENESIS where no record is before it.
    """

    event: int
    due_ms: int
    attempts: int
    charged: int
    since_ms: int
    record: bytes
    digest: bytes
    previous: bytes


LOOKED_AT_ONCE = 20_000
"""The rows that one step of a listing looks at, at most, so that none keeps its reader for long."""


class EventFilter(Struct, frozen=True, kw_only=True):
    """The events a listing is after; None means any. They were accepted from `since_ms` on and before `until_ms`."""

    kind: str | None = None
    instance: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None


class Position(NamedTuple):
    """Where a walk down the deliveries has come to: it goes on with those that compare less."""

    event: int
    webhook: int


class FoundEvent(NamedTuple):
    """An event that a listing found, with its encoded EventAccepted."""

    seq: int
    record: bytes


class FoundDelivery(NamedTuple):
    """A delivery that a listing found, with the encoded EventAccepted of its event."""

    delivery: Delivery
    record: bytes


class FoundReplay(NamedTuple):
    """A replay, with its encoded ReplayRequested."""

    row: ReplayRow
    record: bytes


class Run(NamedTuple):
    """One step of a listing, newest first: what it found, and where it has come to (None: to the end).

    `spent` says that it has looked at as many rows as one step may, or has come to the end.
    """

    found: list[FoundDelivery]
    reached: Position | None
    spent: bool


class Span(NamedTuple):
    """The deliveries of a webhook, or the events for it, after one event and before another."""

    webhook: int
    after: int
    before: int


class Stretch(NamedTuple):
    """One step of a replay, oldest event first: what it found, and the event up to which it has looked (None: all)."""

    found: list[FoundEvent]
    reached: int | None


class Slice(NamedTuple):
    """Everything the log says, and the projections hold, about the events of a range, as of one instant."""

    log: list[LogRow]
    events: list[EventRow]
    deliveries: list[Delivery]
    keys: list[KeyRow]


class Tail(NamedTuple):
    """The last records after a seq, and the small projections, as of one instant."""

    log: list[LogRow]
    webhooks: list[WebhookRow]
    counters: dict[tuple[int, int], int]
    replays: list[ReplayRow]


END_OF_TIME_MS = 2**62


class Aged(NamedTuple):
    """What a look at some pending deliveries found: the events of those whose age counts from the cutoff or before.

    `oldest_ms` is from when the age of the oldest other one counts, END_OF_TIME_MS if there is no other; `reached` is
    where to go on, by due time and event, None at the end.
    """

    events: list[int]
    oldest_ms: int
    reached: tuple[int, int] | None


class Reader(Protocol):
    """Reads what is committed; never blocks the writer and never writes."""

    async def head(self) -> Head:
        """Return the end of the log."""

    async def log(self, after: int, limit: int) -> list[LogRow]:
        """Return up to `limit` records that follow the seq `after`, in order."""

    async def records(self, seqs: Sequence[int]) -> list[LogRow]:
        """Return the records with those seqs."""

    async def about(self, subject: int, limit: int) -> list[LogRow]:
        """Return the first `limit` records about an event (its seq) or a webhook (minus its number), in order."""

    async def event_seq(self, event_id: bytes) -> int | None:
        """Return the seq of the event with that id, or None."""

    async def body(self, event: int) -> bytes | None:
        """Return the body of an event, or None if it is gone."""

    async def bodies(self, events: Sequence[int]) -> dict[int, bytes]:
        """Return the bodies of several events in one go."""

    async def deliveries(self, pairs: Sequence[tuple[int, int]]) -> list[Delivery]:
        """Return the deliveries with those (webhook, event)."""

    async def due(
        self, webhook: int, until_ms: int, limit: int, but: Collection[int] = (), *, after_ms: int = -1
    ) -> list[Due]:
        """Return up to `limit` pending deliveries due after `after_ms`, by `until_ms`, in that order, but not these."""

    async def older(self, webhook: int, cutoff_ms: int, due_ms: int, after: tuple[int, int]) -> Aged:
        """Look at some pending deliveries due by `due_ms`, in order of (due, event) after `after`."""

    async def next_due(self, webhook: int, after_ms: int = -1) -> int | None:
        """Return when the webhook's first pending delivery due later than `after_ms` is due, or None."""

    async def webhooks(self) -> tuple[list[WebhookRow], dict[bytes, bytes]]:
        """Return all webhooks, deleted ones too, and the secrets' material by id."""

    async def counters(self) -> dict[tuple[int, int], int]:
        """Return the number of deliveries by (webhook, state), and of events under EVENTS_COUNTER."""

    async def oldest_pending(self, webhook: int, pending: int) -> int | None:
        """Return when the oldest event among a webhook's pending deliveries, some `pending`, was accepted, or None."""

    async def slice(self, first: int, last: int, since: int, also: Sequence[int] = ()) -> Slice:
        """Return what log and projections say of a range of events, with all records after `since`, and `also`."""

    async def checkpoint(self) -> LogRow | None:
        """Return the last checkpoint, None if nothing was ever pruned."""

    async def next_stored(self, after: int) -> int | None:
        """Return the seq of the first record, event or delivery's event that follows the seq `after`, or None."""

    async def tail(self, after: int) -> Tail:
        """Return what follows the seq `after`, with the small projections of the same instant."""

    async def event_floor(self, before: int) -> int:
        """Return the seq of the last event that a walk down from `before` may look at, or 0 if it may see them all."""

    async def events_between(self, span: tuple[int, int], wanted: EventFilter, limit: int) -> list[FoundEvent]:
        """Return up to `limit` wanted events from the first to before the second seq of `span`, newest first."""

    async def deliveries_below(self, before: Position, states: Sequence[int], wanted: EventFilter, limit: int) -> Run:
        """Return up to `limit` deliveries of that webhook, in those states and of wanted events before that event."""

    async def dead_below(self, before: Position, webhook: int | None, wanted: EventFilter, limit: int) -> Run:
        """Return up to `limit` dead deliveries of wanted events, of one webhook or of all."""

    async def any_since(self, since_ms: int, below: int) -> bool:
        """Say whether an event below that seq was accepted at `since_ms` or later; never no by mistake."""

    async def replayable(self, span: Span, states: Sequence[int], wanted: EventFilter, limit: int) -> Stretch:
        """Return the events of up to `limit` deliveries of the span, in those states and of wanted events."""

    async def addable(self, span: Span, kinds: Sequence[str], wanted: EventFilter, limit: int) -> Stretch:
        """Return up to `limit` wanted events of the span, of those kinds (none: any), that the webhook has not got."""

    async def count_replayable(self, span: Span, states: Sequence[int], wanted: EventFilter) -> tuple[int, int | None]:
        """Count what `replayable` would find, and return also the event up to which it has looked (None: all)."""

    async def count_addable(self, span: Span, kinds: Sequence[str], wanted: EventFilter) -> tuple[int, int | None]:
        """Count what `addable` would find, and return also the event up to which it has looked (None: all)."""

    async def replays(self, before: int, limit: int) -> list[FoundReplay]:
        """Return up to `limit` replays with numbers below `before`, the newest first."""

    async def replays_running(self) -> list[FoundReplay]:
        """Return the replays that have not come to their end, the oldest first."""

    async def event_rows(self, seqs: Sequence[int]) -> list[EventRow]:
        """Return what the table of events says of those with those seqs."""

    async def event_ids(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """Return the ids of events by seq; one that is not there is left out."""

    async def check(self) -> list[str]:
        """Return what the engine's own check finds wrong with the file; nothing when it is sound."""

    async def quick_check(self) -> list[str]:
        """Return what a quicker check finds wrong, which leaves indexes aside; others are served in between."""

    def interrupt(self) -> None:
        """Make what the reader is doing at this moment, if anything, fail with StoreRefusedError."""

    async def aclose(self) -> None:
        """Give the connection back."""


Decide = Callable[[Facts], Batch]


class Store(Protocol):
    """The one writer's side of a store."""

    async def commit(self, wants: Wants, decide: Decide, written: Callable[[], None] | None = None) -> Head:
        """Read, decide and write in one transaction that is on disk on return; all of it is stored, or nothing.

        `decide` and then `written` are called off the event loop; after `written` only the disk is waited for.
        Raises StoreRefusedError when nothing was stored, OutcomeUnknownError when that is not known, CorruptError.
        """

    @property
    def unmoved_bytes(self) -> int:
        """About how much is committed and not in its final place."""

    @property
    def warning(self) -> str:
        """What will be trouble if nobody does anything about it; nothing, if all is well."""

    @property
    def unchecked(self) -> bool:
        """Whether nobody has looked if the file is sound, since somebody had it open and did not end in order."""

    def settle(self) -> None:
        """Note that somebody has looked, and that it is sound."""

    async def prove(self) -> None:
        """Write and sync something that changes nothing. Raises what `commit` raises."""

    async def run(self) -> None:
        """Do the housekeeping (keep the head outside the database, move the write-ahead log) until cancelled."""

    async def rebuild(self) -> int:
        """Throw the projections away, fold them again from the log in one transaction; return the records folded."""

    async def shrink(self) -> None:
        """Give the file's free space back, in small steps between commits, where the file can."""

    async def reader(self) -> Reader:
        """Return a reader with a connection of its own."""

    async def aclose(self) -> None:
        """Finish what runs and close the file."""
