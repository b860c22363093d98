"""The ledger of one commit: numbers records, chains them, projects them, and knows the settings as of each of them."""

import hashlib
import os
import secrets
from typing import TypeVar

import msgspec

from outbox.domain.deliveries import Delivery, Outcome
from outbox.domain.errors import CorruptError
from outbox.domain.holding import Interval
from outbox.domain.ids import event_id
from outbox.domain.projecting import Changes, WebhookRow, project, webhook_row
from outbox.domain.records import (
    AttemptRecorded,
    EventAccepted,
    Record,
    WebhookDeleted,
    WebhookSet,
    chained,
    encode,
    subject,
)
from outbox.domain.routing import Webhooks
from outbox.domain.webhooks import Conversion, Credentials, Settings, Webhook
from outbox.journal.queues import Queues
from outbox.store.protocol import Batch, Cut, Facts, Head, LogRow, Waiting

_T = TypeVar("_T")

_NONCE_BYTES = 16
_ID_BYTES = 16
_RANDOM_BYTES = 10
_IDS_AT_ONCE = 64


class Ledger:
    """Collects what one transaction writes. Used inside the transaction only, by one command after another.

    `touched` are the webhooks with new work or settings; those in `nudged` are to be tried at once.
    """

    def __init__(self, facts: Facts, webhooks: Webhooks) -> None:
        """Start after `facts.head` with the settings in force there."""
        self.facts = facts
        self.webhooks = webhooks
        self.touched: set[int] = set()
        self.nudged: set[int] = set()
        self.accepted_keys: dict[bytes, tuple[int, EventAccepted]] = {}
        self._seq, self._digest = facts.head
        self._changes = Changes()
        self._entropy: list[bytes] = []
        self._outcomes: dict[tuple[int, int], Outcome] = {}
        self.queues = Queues(facts.queues)
        self._batch = Batch(log=[], changes=self._changes, bodies=[], secrets=[], erased=[])

    @property
    def next_seq(self) -> int:
        """The seq that the next record gets."""
        return self._seq + 1

    @property
    def head(self) -> Head:
        """The end of the log once this is written."""
        return Head(self._seq, self._digest)

    @property
    def batch(self) -> Batch:
        """What is to be written so far."""
        return self._batch

    def new_event_id(self, now_ms: int) -> bytes:
        """Return a fresh id for an event accepted now."""
        if not self._entropy:
            pool = os.urandom(_RANDOM_BYTES * _IDS_AT_ONCE)
            self._entropy = [pool[at : at + _RANDOM_BYTES] for at in range(0, len(pool), _RANDOM_BYTES)]
        return event_id(now_ms, self._entropy.pop())

    def append(self, record: Record) -> int:
        """Add a record and what it does to the projections; return its seq."""
        data = encode(record)
        self._seq += 1
        self._digest = chained(self._digest, data)
        self._batch.log.append(tuple.__new__(LogRow, (self._seq, subject(record), data, self._digest)))
        project(self._seq, record, self._changes)
        return self._seq

    def append_attempt(self, record: AttemptRecorded) -> None:
        """Add an attempt, and remember what it made of its delivery, and of the one it let go."""
        made = len(self._changes.outcomes)
        self.append(record)
        for outcome in self._changes.outcomes[made:]:
            self._outcomes[outcome[:2]] = outcome

    def delivery(self, webhook: int, event: int) -> Delivery | None:
        """Return a wanted delivery as it is now, with what this commit has done to it so far."""
        key = (webhook, event)
        known, outcome = self.facts.deliveries.get(key), self._outcomes.get(key)
        return known if known is None or outcome is None else Delivery(*outcome, known.queue, known.since_ms)

    def let_next_go(self, webhook: int, queue: int) -> Waiting | None:
        """Settle a queue's head; return the delivery that takes its place, if there is one."""
        known = self.webhooks.get(webhook)
        if known is not None and known.conversion.queueing:
            return None  # the conversion lets the first one go once all of them are in the queue
        following = self.queues.settle_head(webhook, queue)
        if following is None:
            return None
        # An attempt of it, in flight since before it had to wait, may have ended in this very commit.
        outcome = self._outcomes.get((webhook, following.event))
        return following._replace(attempts=outcome.attempts, charged=outcome.charged) if outcome else following

    def add_body(self, event: int, body: bytes) -> None:
        """Add the body of the event with that seq."""
        self._batch.bodies.append((event, body))

    def cut(self, cut: Cut) -> None:
        """Take records and bodies away, which a checkpoint that was appended stands for."""
        self._batch.cut = cut

    def replace_webhook(self, webhook: Webhook) -> None:
        """Let the settings from here on hold `webhook` in the place of its earlier self."""
        self.webhooks = self.webhooks.replaced(webhook)
        self.touched.add(webhook.number)

    def set_webhook(self, record: WebhookSet, credentials: Credentials) -> Webhook:
        """Append a WebhookSet with its credentials put where they belong; return the webhook as it then stands.

        `record.secret` is the id of the material in force until now (empty if there is none), which is erased.
        """
        if record.secret:
            self._batch.erased.append(record.secret)
        secret, fingerprint = b"", b""
        if credentials != Credentials():
            secret = secrets.token_bytes(_ID_BYTES)
            material = secrets.token_bytes(_NONCE_BYTES) + msgspec.msgpack.encode(credentials)
            fingerprint = hashlib.sha256(material).digest()
            self._batch.secrets.append((secret, material))
        record = msgspec.structs.replace(record, secret=secret, fingerprint=fingerprint)
        row = webhook_row(self.append(record), record)
        known = self.webhooks.get(row.number)
        if known is not None:
            row = row._replace(created_ms=known.created_ms)
        webhook = msgspec.structs.replace(_webhook(row, credentials), revision=self._seq)
        self.replace_webhook(webhook)
        self.nudged.add(webhook.number)
        return webhook

    def delete_webhook(self, number: int, secret: bytes, at_ms: int) -> None:
        """Append a WebhookDeleted and erase the webhook's credentials."""
        if secret:
            self._batch.erased.append(secret)
        self.append(WebhookDeleted(number, at_ms))
        self.webhooks = self.webhooks.without(number)
        self.touched.add(number)


def load_webhooks(rows: list[WebhookRow], materials: dict[bytes, bytes]) -> Webhooks:
    """Return the live webhooks of the projection, damaged those whose credentials are.

    Raises CorruptError where settings cannot be read.
    """
    live = []
    for row in rows:
        if row.deleted_ms is None:
            credentials = read_credentials(row, materials)
            webhook = _webhook(row, credentials or Credentials())
            live.append(webhook if credentials else msgspec.structs.replace(webhook, damaged=True))
    return Webhooks(live)


def read_credentials(row: WebhookRow, materials: dict[bytes, bytes]) -> Credentials | None:
    """Return a webhook's credentials; None where they are missing or not those that were set."""
    if not row.secret:
        return Credentials()
    material = materials.get(row.secret, b"")
    if hashlib.sha256(material).digest() != row.fingerprint:
        return None
    return msgspec.msgpack.decode(material[_NONCE_BYTES:], type=Credentials)


def settings_of(row: WebhookRow) -> Settings:
    """Return the settings that a row of the projection holds. Raises CorruptError."""
    return _decoded(row, row.settings, Settings)


def _decoded(row: WebhookRow, data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"the row of webhook {row.number} cannot be read ({error}): run rebuild, which makes it anew from the log"
        raise CorruptError(msg) from error


def _webhook(row: WebhookRow, credentials: Credentials) -> Webhook:
    settings = settings_of(row)
    held = _decoded(row, row.held, tuple[Interval, ...])
    if not held and not settings.enabled:
        held = ((row.updated_ms, 0),)  # the first release did not record when a webhook was held
    return Webhook(
        number=row.number,
        scope="global" if row.scope == "global" else "instance",
        instance=row.instance,
        name=row.name,
        settings=settings,
        credentials=credentials,
        source="environment" if row.source == "environment" else "api",
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
        secret_id=row.secret,
        suspended_ms=row.suspended_ms,
        held=held,
        opened_ms=row.opened_ms,
        conversion=Conversion(row.phase, row.position, row.until),
    )
