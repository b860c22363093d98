"""The log on the wire: every record as a JSON object, its fields by name.

Whatever a record holds is shown, so that a new kind of record needs nothing here; ids are written as everywhere else,
times as RFC 3339, bytes as hex digits. Credentials are not in the log.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import msgspec
from msgspec import Struct

from app.schemas import rfc3339, webhook_id
from outbox.domain.ids import delivery_text, event_text
from outbox.domain.records import AttemptRecorded, EventAccepted, Record, WebhookSet
from outbox.inspecting import Entry

_UINT64 = 2**64

# How a field is written, and its name if that is not the record's own.
_WRITTEN: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "at_ms": ("at", rfc3339),
    "due_ms": ("due_at", rfc3339),
    "took_ms": ("ms", int),
    "size": ("bytes", int),
    "webhook": ("webhook", webhook_id),
    "targets": ("targets", lambda numbers: [webhook_id(number) for number in numbers]),
    "excerpt": ("answer", lambda excerpt: excerpt.decode(errors="replace") or None),
    # A 64-bit number is not safe in everybody's JSON.
    "ordering_key": ("ordering_key", lambda key: f"{key % _UINT64:016x}"),
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


def _ids(entry: Entry, record: Record) -> dict[str, Any]:
    """Return the members that name things by their public ids."""
    match record:
        case EventAccepted():
            return {"id": event_text(record.id)}
        case AttemptRecorded():
            ids = {"event": event_text(entry.event), "delivery": delivery_text(entry.event, record.webhook)}
            return ids if entry.event else {"event": None, "delivery": None}
        case WebhookSet():
            # The record that first sets a webhook gives it its own seq as number.
            return {"webhook": webhook_id(record.webhook or entry.seq)}
        case _:
            return {}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex() or None
    if isinstance(value, IntEnum):
        return value.name.lower()
    return msgspec.to_builtins(value)
