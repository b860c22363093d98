"""Databases with much in them, made quickly: rows as the journal would write them, without a service."""

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from outbox.domain.deliveries import State
from outbox.domain.ids import event_id
from outbox.domain.projecting import EVENTS_COUNTER, Changes, project
from outbox.domain.records import GENESIS, EventAccepted, Record, WebhookSet, chained, encode
from outbox.domain.webhooks import Settings
from outbox.store.sqlite.connections import migrate

START_MS = 1_700_000_000_000
SECOND_MS = 1000


class Planned(Struct, frozen=True):
    """What the event with a number is to be: `states` are those of its deliveries, by webhook number."""

    kind: str = "CALL"
    instance: str = "loja01"
    states: dict[int, State] = {}
    at_ms: int | None = None


def fill(path: Path, events: int, plan: Callable[[int], Planned], webhooks: int = 2, disabled: int = 0) -> None:
    """Make a database with webhooks (numbers 1 and on, the last `disabled` ones disabled) and so many events."""
    with sqlite3.connect(path, isolation_level=None) as connection:
        migrate(connection)
        connection.execute("BEGIN")
        _write(connection, events, plan, webhooks, disabled)
    connection.close()


def _write(
    connection: sqlite3.Connection, events: int, plan: Callable[[int], Planned], webhooks: int, disabled: int
) -> None:
    log: list[tuple[int, int, bytes, bytes]] = []
    changes = Changes()
    digest = GENESIS
    for seq in range(1, webhooks + events + 1):
        record: Record
        if seq <= webhooks:
            settings = Settings(url=f"http://127.0.0.1/{seq}", enabled=seq <= webhooks - disabled)
            record = WebhookSet(0, START_MS, "instance", f"loja{seq:02}", "", settings, "api", b"", b"")
        else:
            number = seq - webhooks - 1
            planned = plan(number)
            at_ms = START_MS + number * SECOND_MS if planned.at_ms is None else planned.at_ms
            record = EventAccepted(
                event_id(at_ms, hashlib.sha256(seq.to_bytes(8, "big")).digest()[:10]), at_ms, planned.kind,
                planned.instance, bytes(32), 2, 0, tuple(planned.states), dated=False, hops=0, idempotency=b"",
            )  # fmt: skip
        data = encode(record)
        digest = chained(digest, data)
        log.append((seq, 0, data, digest))
        project(seq, record, changes)
    connection.executemany("INSERT INTO log VALUES (?,?,?,?)", log)
    connection.executemany("INSERT INTO event VALUES (?,?,?,?,?)", changes.events)
    connection.executemany("INSERT INTO webhook VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", changes.webhooks)
    states = {seq: plan(seq - webhooks - 1).states for seq in range(webhooks + 1, webhooks + events + 1)}
    rows = [row._replace(state=int(states[row.event][row.webhook])) for row in changes.deliveries]
    connection.executemany("INSERT INTO delivery VALUES (?,?,?,?,?,?,?,?)", rows)
    connection.execute("INSERT INTO counter VALUES (?,?,?)", (*EVENTS_COUNTER, events))
    connection.execute("INSERT INTO counter SELECT webhook, state, count(*) FROM delivery GROUP BY webhook, state")
