"""What people ask: one event with its deliveries and attempts, and the state of everything in a few numbers."""

from collections.abc import Iterable, Iterator
from contextlib import suppress

from msgspec import Struct

from outbox.domain.deliveries import EXPIRED, Delivery, Effect, State
from outbox.domain.errors import CorruptError, NotFoundError
from outbox.domain.ids import event_text, parse_event
from outbox.domain.projecting import EVENTS_COUNTER, PRUNED, PRUNED_EVENTS, WebhookRow
from outbox.domain.records import AttemptRecorded, DeliveriesBuried, DeliveriesMoved, EventAccepted, Record, decode
from outbox.domain.webhooks import WebhookState, webhook_state
from outbox.journal.ledger import settings_of
from outbox.journal.walking import look_up, read_events
from outbox.store.protocol import LogRow, Reader

ATTEMPTS_SHOWN = 1000
_LOOKED_THROUGH = 1000


class EventView(Struct, frozen=True):
    """One event: its record, its body (None if it is gone), its deliveries and its attempts in order.

    Of a record that cannot be read, the event's own shows what the tables know, and an attempt's is left out. `reasons`
    says by webhook why a delivery is dead, as far as that can be found out without going through the log.
    """

    seq: int
    accepted: EventAccepted
    body: bytes | None
    deliveries: list[Delivery]
    attempts: list[AttemptRecorded]
    webhooks: dict[int, WebhookRow]
    reasons: dict[int, str]

    def url(self, webhook: int) -> str:
        """Return the URL, without user and password, that a webhook has now or had when it was deleted."""
        return settings_of(self.webhooks[webhook]).url


class Homes:
    """Which of some webhooks may have a delivery of an event: its targets, and those that may have got it later."""

    def __init__(self, rows: Iterable[WebhookRow]) -> None:
        """Index webhooks, deleted ones too, by the instance they belong to."""
        self._numbers: set[int] = set()
        self._by_instance: dict[str, list[int]] = {}
        for row in rows:
            self._numbers.add(row.number)
            self._by_instance.setdefault(row.instance, []).append(row.number)

    def of(self, event: EventAccepted) -> list[int]:
        """Return their numbers, the oldest first."""
        found = self._numbers.intersection(event.targets)
        return sorted(found.union(self._by_instance.get("", ()), self._by_instance.get(event.instance, ())))


class WebhookStats(Struct, frozen=True):
    """The deliveries of one live webhook by state, as they read; `oldest_ms` is when its oldest pending one came."""

    webhook: WebhookRow
    enabled: bool
    state: WebhookState
    deliveries: dict[str, int]
    oldest_ms: int | None


class Stats(Struct, frozen=True):
    """All numbers at one glance: events, deliveries by state (held included), live webhooks, the end of the log.

    `pruned` counts what is gone: `events`, and deliveries that were `acknowledged` and `dead`.
    """

    events: int
    deliveries: dict[str, int]
    webhooks: list[WebhookStats]
    oldest_ms: int | None
    seq: int
    pruned: dict[str, int]


def is_held(row: WebhookRow) -> bool:
    """Say whether the unsettled deliveries of a webhook read as held: it is disabled or suspended, and not deleted."""
    return row.deleted_ms is None and (row.suspended_ms > 0 or not settings_of(row).enabled)


def state_word(delivery: Delivery, row: WebhookRow) -> str:
    """Return the state of a delivery as it reads."""
    state = State(delivery.state)
    return state.word if state.settled or not is_held(row) else "held"


async def view_event(reader: Reader, event_id: str) -> EventView:
    """Return all there is about one event. Raises NotFoundError and CorruptError."""
    seq = await reader.event_seq(parse_event(event_id))
    if seq is None:
        msg = f"there is no event {event_id}"
        raise NotFoundError(msg)
    rows = await reader.log(seq - 1, 1)
    if not rows or rows[0].seq != seq:
        msg = f"the record of event {event_text(parse_event(event_id))} (seq {seq}) is not in the log"
        raise CorruptError(msg)
    record = (await read_events(reader, [(seq, rows[0].record)]))[seq]
    webhook_rows, _ = await reader.webhooks()
    # The deliveries first: a settled one is then never shown without the attempt that settled it.
    deliveries = await look_up(reader, [(webhook, seq) for webhook in Homes(webhook_rows).of(record)])
    attempts = [
        made for made in _readable(await reader.about(seq, ATTEMPTS_SHOWN)) if isinstance(made, AttemptRecorded)
    ]
    webhooks = {row.number: row for row in webhook_rows}
    dead = [delivery for delivery in deliveries if delivery.state == State.DEAD]
    return EventView(
        seq=seq,
        accepted=record,
        body=await reader.body(seq),
        deliveries=deliveries,
        attempts=attempts,
        webhooks=webhooks,
        reasons={
            delivery.webhook: await _reason(reader, delivery, attempts, webhooks[delivery.webhook]) for delivery in dead
        },
    )


async def _reason(reader: Reader, delivery: Delivery, attempts: list[AttemptRecorded], row: WebhookRow) -> str:
    """Return why a delivery is dead; an empty text where its last attempt is not among the `attempts`."""
    own = [record for record in attempts if record.webhook == row.number and record.effect is not Effect.LATE]
    if own and own[-1].attempt < delivery.attempts:
        return ""
    # A replay begins the charged attempts anew: what died again without an attempt has fewer of them.
    if own and own[-1].effect is Effect.BURY and own[-1].charged == delivery.charged:
        return own[-1].reason
    return EXPIRED if row.deleted_ms is None else await _last_reason(reader, delivery)


async def _last_reason(reader: Reader, delivery: Delivery) -> str:
    """Return why a delivery of a deleted webhook died without an attempt, from the first records about the webhook."""
    reason = ""
    for record in _readable(await reader.about(-delivery.webhook, _LOOKED_THROUGH)):
        if isinstance(record, DeliveriesMoved):
            states = [moved.state for moved in record.rows if moved.event == delivery.event]
            reason = record.reason if State.DEAD in states else "" if states else reason
        elif isinstance(record, DeliveriesBuried) and record.first <= delivery.event <= record.last:
            reason = reason or record.reason
    return reason


def _readable(rows: Iterable[LogRow]) -> Iterator[Record]:
    """Yield the records that can be read; `verify` names the others."""
    for row in rows:
        with suppress(CorruptError):
            yield decode(row.record)


async def event_ids(reader: Reader, first: int, count: int) -> list[bytes]:
    """Return the ids of `count` events that were accepted in a row from the seq `first`. Raises CorruptError."""
    records = [decode(row.record) for row in await reader.log(first - 1, count)]
    ids = [record.id for record in records if isinstance(record, EventAccepted)]
    if len(ids) != count:
        msg = f"the log has not the {count} events that followed {first}"
        raise CorruptError(msg)
    return ids


async def gather_stats(reader: Reader) -> Stats:
    """Return the numbers, from counters."""
    counters = await reader.counters()
    rows, _ = await reader.webhooks()
    total = dict.fromkeys(_WORDS, 0)
    webhooks = []
    for row in rows:
        counts = _counts(counters, row)
        for word, n in counts.items():
            total[word] += n
        if row.deleted_ms is None:
            waiting = counts["pending"] + counts["waiting"] + counts["held"]
            oldest = await reader.oldest_pending(row.number, waiting) if waiting else None
            settings = settings_of(row)
            state = webhook_state(settings, row.suspended_ms)
            webhooks.append(WebhookStats(row, settings.enabled, state, counts, oldest))
    return Stats(
        events=counters.get(EVENTS_COUNTER, 0),
        deliveries=total,
        webhooks=webhooks,
        oldest_ms=min((entry.oldest_ms for entry in webhooks if entry.oldest_ms is not None), default=None),
        seq=(await reader.head()).seq,
        pruned={
            "events": counters.get(PRUNED_EVENTS, 0),
            **{state.word: counters.get(key, 0) for state, key in PRUNED.items()},
        },
    )


_WORDS = ("pending", "waiting", "held", "acknowledged", "dead")


def _counts(counters: dict[tuple[int, int], int], row: WebhookRow) -> dict[str, int]:
    counts = {state.word: counters.get((row.number, state), 0) for state in State}
    counts["held"] = 0
    if is_held(row):
        counts["held"] = counts["pending"] + counts["waiting"]
        counts["pending"] = counts["waiting"] = 0
    return {word: counts[word] for word in _WORDS}
