"""Files as earlier releases left them: their schema, and records and rows in the shape of then.

Nothing here goes by today's structs, so that a change of these cannot make the past look different.
"""

import hashlib
import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from tests.harness import ROOT

SCRIPTS = sorted((ROOT / "outbox" / "store" / "sql" / "sqlite").glob("*.sql"))
APPLICATION_ID = 0x45764F42
EVENT, ATTEMPT, SET, DELETED, BURIED = 1, 2, 3, 4, 5
PENDING, ACKNOWLEDGED, DEAD = 0, 2, 3
RETRY, ACKNOWLEDGE, BURY = 1, 2, 3
FIRST, OFF, GONE = 1, 2, 3
"""The numbers of the three webhooks: one that works, one that was disabled, one that was deleted."""
KEY = b"k" * 16
ORDER = 3
"""The schema that brought order; a file of it has the records of then if it was written before."""


class EarlierFile:
    """A file in the making: each method adds a record; rows are added by hand, as they stood at the end."""

    def __init__(self, path: Path, schema: int, at_ms: int) -> None:
        """Make an empty file of that schema, in which all happens at `at_ms`."""
        self._connection = sqlite3.connect(path)
        for script in SCRIPTS[:schema]:
            self._connection.executescript(script.read_text())
        self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._connection.execute(f"PRAGMA user_version = {schema}")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._schema = schema
        self._digest = bytes(32)
        self._seq = 0
        self.at_ms = at_ms

    def append(self, subject: int, *record: Any) -> int:
        """Add a record, its tag first; return its seq."""
        data = msgspec.msgpack.encode(record)
        self._digest = hashlib.sha256(self._digest + data).digest()
        self._seq += 1
        self.row("log", self._seq, subject, data, self._digest)
        return self._seq

    def row(self, table: str, *values: object) -> None:
        """Add a row."""
        marks = ",".join("?" * len(values))
        self._connection.execute(f"INSERT INTO {table} VALUES ({marks})", values)  # noqa: S608 - a name of ours

    def webhook(self, number: int, instance: str, url: str, *, enabled: bool = True, secret: bytes = b"") -> bytes:
        """Set a webhook, a new one if the number is 0; return its settings as its row has them."""
        settings = {
            "url": url, "enabled": enabled, "by_events": False, "events": [], "base64": True, "route_style": None,
            "concurrency": 32, "timeout_ms": None,
        }  # fmt: skip
        fingerprint = hashlib.sha256(secret).digest() if secret else b""
        self.append(
            -number, SET, number, self.at_ms, "instance", instance, "", settings, "api", secret[:16], fingerprint
        )
        if secret:
            self.row("secret", secret[:16], secret)
        return msgspec.msgpack.encode(settings)

    def event(self, instance: str, *targets: int, key: bytes = b"") -> int:
        """Accept an event for those webhooks; return its seq."""
        event_id = self.at_ms.to_bytes(6, "big") + bytes([0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, self._seq])
        body = msgspec.json.encode({"event": "call", "instance": instance, "data": self._seq, "date_time": "now"})
        fields = (
            EVENT, event_id, self.at_ms, "CALL", instance, hashlib.sha256(body).digest(), len(body), 7, targets, True,
            0, key,
        )  # fmt: skip
        # Before schema 2 came, events had no fields for batches.
        seq = self.append(0, *fields, *(() if self._schema == 1 else (1, b"")))
        self.row("body", seq, body)
        self.row("event", seq, event_id, "CALL", instance, self.at_ms)
        if key:
            self.row("idempotency", key, seq)
        return seq

    def attempt(self, event: int, webhook: int, effect: int, status: int) -> None:
        """Record a first attempt."""
        self.append(
            event, ATTEMPT, event, webhook, 1, self.at_ms, 9, status, "", "", b"", effect, 1, self.at_ms + 9, ""
        )

    def close(self) -> None:
        """Write it down."""
        self._connection.commit()
        self._connection.close()


def make_earlier(path: Path, schema: int, at_ms: int, url: str, more: int = 0) -> None:
    """Make a file in which everything occurs that the first release knew; its webhooks are at `url`.

    Two deliveries to the first webhook are pending (a second attempt, and a first one), one to the disabled webhook is,
    three are dead and one is acknowledged. `more` events, for nobody, come last.
    """
    file = EarlierFile(path, schema, at_ms)
    secret = bytes(16) + msgspec.msgpack.encode({"headers": {"authorization": "Bearer 1"}})
    first = file.webhook(0, "loja01", f"{url}/first", secret=secret)
    file.webhook(0, "loja02", f"{url}/off")
    gone = file.webhook(0, "loja03", f"{url}/gone")
    again, bad = file.event("loja01", FIRST, GONE), file.event("loja01", FIRST, key=KEY)
    file.attempt(again, FIRST, RETRY, 500)
    file.attempt(bad, FIRST, BURY, 422)
    good, lost = file.event("loja02", OFF), file.event("loja03", GONE)
    file.attempt(good, OFF, ACKNOWLEDGE, 200)
    file.append(-GONE, DELETED, GONE, at_ms)
    file.append(-GONE, BURIED, GONE, again, lost, at_ms, "the webhook was deleted", 2, 0)
    held, fresh = file.event("loja02", OFF), file.event("loja01", FIRST)
    off = file.webhook(OFF, "loja02", f"{url}/off", enabled=False)
    for _ in range(more):
        file.event("loja04")
    for webhook, event, state, attempts in (
        (FIRST, again, PENDING, 1), (FIRST, bad, DEAD, 1), (FIRST, fresh, PENDING, 0), (OFF, good, ACKNOWLEDGED, 1),
        (OFF, held, PENDING, 0), (GONE, again, DEAD, 0), (GONE, lost, DEAD, 0),
    ):  # fmt: skip
        since = (None, at_ms) if schema >= ORDER else ()
        file.row("delivery", webhook, event, state, at_ms + 9 * attempts, attempts, attempts, *since)
    kept = (secret[:16], hashlib.sha256(secret).digest())
    never = (0, b"\x90", 0, 0, 0, 0) if schema >= ORDER else ()
    file.row("webhook", FIRST, "instance", "loja01", "", first, "api", *kept, at_ms, at_ms, None, *never)
    file.row("webhook", OFF, "instance", "loja02", "", off, "api", b"", b"", at_ms, at_ms, None, *never)
    file.row("webhook", GONE, "instance", "loja03", "", gone, "api", b"", b"", at_ms, at_ms, at_ms, *never)
    counts = {(0, -1): 6 + more, (FIRST, PENDING): 2, (FIRST, DEAD): 1, (OFF, ACKNOWLEDGED): 1, (OFF, PENDING): 1}
    for (number, state), n in {**counts, (GONE, PENDING): 0, (GONE, DEAD): 2}.items():
        file.row("counter", number, state, n)
    file.close()
