"""The log on the wire: every record as a JSON object, its fields by name.

Whatever a record holds is shown, so that a new kind of record needs nothing here; ids are written as everywhere else,
times as RFC 3339, bytes as hex digits. Of many deliveries that are moved at once, the first stand for the rest.
Credentials are not in the log.
"""

from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import msgspec
from msgspec import Struct

from app.replay_schemas import replay_id, show_filter
from app.schemas import rfc3339, webhook_id
from outbox.domain.deliveries import State
from outbox.domain.holding import Interval
from outbox.domain.ids import delivery_text, event_text
from outbox.domain.records import (
    AttemptRecorded,
    DeliveriesMoved,
    EventAccepted,
    MovedDelivery,
    Record,
    ReplayAdvanced,
    ReplayRequested,
    WebhookSet,
    WebhookSuspended,
)
from outbox.domain.replays import END_OF_EVENTS
from outbox.domain.webhooks import QUEUEING, Conversion
from outbox.inspecting import MOVED_SHOWN, Entry

_UINT64 = 2**64


def _key(key: int) -> str:
    """Write a 64-bit number, which is not safe in everybody's JSON."""
    return f"{key % _UINT64:016x}"


def _moment(ms: int) -> str | None:
    """Write a moment, or what stands for none: 0."""
    return rfc3339(ms) if ms else None


def _intervals(held: tuple[Interval, ...]) -> list[dict[str, str | None]]:
    return [{"from": rfc3339(start), "until": _moment(end)} for start, end in held]


def _queued(queued: tuple[tuple[int, int, bool], ...]) -> list[dict[str, Any]]:
    return [{"webhook": webhook_id(number), "queue": _key(queue), "waits": waits} for number, queue, waits in queued]


def _conversion(conversion: Conversion) -> dict[str, Any] | None:
    """Write how far a change of order has come, or what stands for none or its end: phase 0."""
    phase, position, until = conversion
    if not phase:
        return None
    if phase == QUEUEING:
        return {"phase": "queueing", "up_to": position, "until": until}
    return {"phase": "promoting", "up_to": _key(position), "until": until}


# How a field is written, and its name if that is not the record's own.
_WRITTEN: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "at_ms": ("at", rfc3339),
    "due_ms": ("due_at", rfc3339),
    "took_ms": ("ms", int),
    "size": ("bytes", int),
    "webhook": ("webhook", webhook_id),
    "targets": ("targets", lambda numbers: [webhook_id(number) for number in numbers]),
    "cause": ("cause", lambda number: replay_id(number) if number else None),
    "next_ms": ("next_at", _moment),
    "excerpt": ("answer", lambda excerpt: excerpt.decode(errors="replace") or None),
    "ordering_key": ("ordering_key", _key),
    "queued": ("queued", _queued),
    "held": ("held", _intervals),
    "opened_ms": ("breaker_since", _moment),
    "opened": ("breaker", lambda opened: "open" if opened else "closed"),
    "conversion": ("conversion", _conversion),
    "rows": ("count", len),
    "kept": ("kept", len),
    "deliveries": ("deliveries", len),
    "keys": ("keys", len),
    "counters": ("counters", len),
    "pruned": ("pruned", lambda pruned: sum(n for _, _, n in pruned)),
    "created_ms": ("created_at", rfc3339),
    "updated_ms": ("updated_at", rfc3339),
    "deleted_ms": ("deleted_at", _moment),
    "suspended_ms": ("suspended_at", _moment),
}


class LogOut(Struct):
    """A page of the log, oldest first; `next` is the `after` of the page that follows."""

    items: list[dict[str, Any]]
    next: int | None


def show_log(entries: list[Entry], limit: int) -> LogOut:
    """Return a page of the log as we show it; it was asked for `limit` entries."""
    return LogOut([show_entry(entry) for entry in entries], entries[-1].seq if len(entries) == limit else None)


def show_entry(entry: Entry) -> dict[str, Any]:
    """Return one record as we show it; one that cannot be read has the type `unreadable` and says why."""
    digest = entry.digest.hex()
    if entry.record is None:
        return {"seq": entry.seq, "type": "unreadable", "digest": digest, "detail": entry.trouble}
    shown: dict[str, Any] = {"seq": entry.seq, "type": type(entry.record).__name__, "digest": digest}
    for name in entry.record.__struct_fields__:
        value = getattr(entry.record, name)
        name, write = _WRITTEN.get(name, (name, _plain))  # noqa: PLW2901 - the field's public name from here on
        shown[name] = write(value)
    return shown | _ids(entry, entry.record)


def _ids(entry: Entry, record: Record) -> dict[str, Any]:  # noqa: PLR0911 - one table
    """Return the members that name things by their public ids."""
    match record:
        case EventAccepted():
            return {"id": event_text(record.id)}
        case AttemptRecorded():
            return {
                "event": _event(entry, record.event),
                "delivery": _delivery(entry, record.event, record.webhook),
                "promoted": _promoted(entry, record),
            }
        case WebhookSuspended():
            return {"event": _event(entry, record.event)}
        case DeliveriesMoved():
            return _moved(entry, record)
        case ReplayRequested():
            event = record.wanted.event
            return {"id": replay_id(entry.seq), "wanted": show_filter(record.wanted, entry.ids.get(event or 0, b""))}
        case ReplayAdvanced():
            # It is through with the events of a webhook where there is no seq.
            seq = None if record.event == END_OF_EVENTS else record.event
            return {"replay": replay_id(record.replay), "event": seq}
        case WebhookSet():
            # The record that first sets a webhook gives it its own seq as number.
            return {"webhook": webhook_id(record.webhook or entry.seq)}
        case _:
            return {}


def _event(entry: Entry, seq: int) -> str | None:
    return event_text(entry.ids[seq]) if seq in entry.ids else None


def _delivery(entry: Entry, seq: int, webhook: int) -> str | None:
    return delivery_text(entry.ids[seq], webhook) if seq in entry.ids else None


def _promoted(entry: Entry, record: AttemptRecorded) -> str | None:
    return None if record.promoted is None else _delivery(entry, record.promoted[0], record.webhook)


def _moved(entry: Entry, record: DeliveriesMoved) -> dict[str, Any]:
    """Return how many deliveries went from which state to which, and the first of them one by one."""
    changes = Counter((_state(row.before), _state(row.state)) for row in record.rows)
    return {
        "changes": [{"from": before, "to": after, "count": n} for (before, after), n in changes.items()],
        "deliveries": [_moved_delivery(entry, record.webhook, row) for row in record.rows[:MOVED_SHOWN]],
    }


def _moved_delivery(entry: Entry, webhook: int, row: MovedDelivery) -> dict[str, Any]:
    return {
        "delivery": _delivery(entry, row.event, webhook),
        "from": _state(row.before),
        "to": _state(row.state),
        "due_at": rfc3339(row.due_ms),
        "attempts": row.attempts,
        "charged": row.charged,
        "queue": None if row.queue is None else _key(row.queue),
        "since": rfc3339(row.since_ms),
    }


def _state(state: State | None) -> str | None:
    return None if state is None else state.word


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex() or None
    if isinstance(value, IntEnum):
        return value.name.lower()
    return msgspec.to_builtins(value)
