"""Verify that everything stored follows from the log, and that the log is whole.

It runs beside a working service: every look is one short read transaction, compared with the records of that same
instant. First the chain from beginning to end, with the small projections; then the events, range by range.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from outbox.domain.deliveries import Delivery, State
from outbox.domain.errors import CorruptError
from outbox.domain.ids import body_digest, event_text
from outbox.domain.projecting import Changes, EventRow, KeyRow, ReplayRow, WebhookRow, project
from outbox.domain.records import (
    GENESIS,
    AttemptRecorded,
    DeliveriesBuried,
    DeliveriesMoved,
    EventAccepted,
    Record,
    chained,
    decode,
)
from outbox.journal.ledger import read_credentials, settings_of
from outbox.store.protocol import Head, LogRow, Reader, Slice, Tail

PAGE = 1000
RANGE = 500
PROBLEMS_MAX = 100

Progress = Callable[[int, int], None]
_RowT = TypeVar("_RowT", EventRow, Delivery, KeyRow)


class Report(msgspec.Struct):
    """What was looked at, and what is wrong: nothing, when `problems` is empty."""

    records: int = 0
    events: int = 0
    deliveries: int = 0
    bodies: int = 0
    problems: list[str] = []

    def add(self, problem: str) -> None:
        """Note a problem; past a hundred only their number would help."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


async def verify(reader: Reader, kept: Head | None, progress: Progress = lambda _done, _all: None) -> Report:
    """Check the log, the projections, the bodies and the file; `kept` is the head kept outside the database.

    `progress` is called with the records looked at so far and the number of all.
    """
    report = Report(problems=[])
    chain = _Chain(report, kept)
    last = (await reader.head()).seq
    while page := await reader.log(chain.seq, PAGE):
        chain.follow(page)
        progress(chain.seq, 2 * max(last, chain.seq))
        if len(page) < PAGE:
            break
    tail = await reader.tail(chain.seq)
    chain.follow(tail.log)
    chain.finish(tail)
    _check_secrets(report, tail.webhooks, await reader.webhooks())
    for number in range(chain.seq // RANGE + 1):
        found = await reader.slice(number * RANGE, (number + 1) * RANGE - 1, chain.seq)
        chain.follow([row for row in found.log if row.seq > chain.seq])
        await _check_range(reader, report, found, chain.touching.pop(number, ()), number)
        progress(last + number * RANGE, 2 * max(last, number * RANGE))
    for problem in await reader.check():
        report.add(f"the file: {problem}")
    return report


class _Chain:
    """Follows the log record by record, folding what is small enough to be kept in memory.

    `touching` holds, by range of events, the seqs of the records that change its deliveries without being about one of
    its events.
    """

    def __init__(self, report: Report, kept: Head | None) -> None:
        self.seq = 0
        self.touching: defaultdict[int, array[int]] = defaultdict(lambda: array("q"))
        self._digest = GENESIS
        self._report = report
        self._kept = kept
        self._counters: Counter[tuple[int, int]] = Counter()
        self._webhooks: dict[int, WebhookRow] = {}
        self._replays: dict[int, ReplayRow] = {}

    def follow(self, rows: list[LogRow]) -> None:
        for row in rows:
            if row.seq != self.seq + 1:
                self._report.add(f"the log: records {self.seq + 1} to {row.seq - 1} are missing")
            elif chained(self._digest, row.record) != row.digest:
                self._report.add(f"the log: record {row.seq} does not continue the chain")
            if self._kept is not None and row.seq == self._kept.seq and row.digest != self._kept.digest:
                self._report.add(f"the log: record {row.seq} is not the one that the head file remembers")
            self.seq, self._digest = row.seq, row.digest
            self._fold(row)

    def _fold(self, row: LogRow) -> None:
        self._report.records += 1
        try:
            record = decode(row.record)
        except CorruptError as error:
            self._report.add(f"the log: record {row.seq}: {error.detail}")
            return
        changes = Changes()
        project(row.seq, record, changes)
        self._counters.update(changes.counters)
        for webhook in changes.webhooks:
            known = self._webhooks.get(webhook.number)
            created_ms = known.created_ms if known else webhook.created_ms
            self._webhooks[webhook.number] = webhook._replace(created_ms=created_ms)
        for number, fields in changes.marks:
            if number in self._webhooks:
                self._webhooks[number] = self._webhooks[number]._replace(**fields)  # type: ignore[arg-type]
        self._replays.update((replay.number, replay) for replay in changes.replays)
        if isinstance(record, DeliveriesBuried):
            self._touches(row.seq, range(record.first // RANGE, record.last // RANGE + 1))
        elif isinstance(record, DeliveriesMoved):
            self._touches(row.seq, {moved.event // RANGE for moved in record.rows})
        elif isinstance(record, AttemptRecorded) and record.promoted is not None:
            self._touches(row.seq, {record.promoted[0] // RANGE} - {record.event // RANGE})

    def _touches(self, seq: int, ranges: Iterable[int]) -> None:
        for number in ranges:
            self.touching[number].append(seq)

    def finish(self, tail: Tail) -> None:
        """Compare the small projections, as of the instant of the last record followed."""
        if self._kept is not None and self._kept.seq > self.seq:
            self._report.add(f"the log ends at {self.seq}, but the head file remembers record {self._kept.seq}")
        webhooks = {row.number: row for row in tail.webhooks}
        for number in sorted(self._webhooks.keys() | webhooks.keys()):
            stored = webhooks.get(number)
            if not _same_webhook(stored, self._webhooks.get(number)):
                self._report.add(f"webhook {number}: its row is not what the log says")
        expected = {key: n for key, n in self._counters.items() if n}
        stored_counters = {key: n for key, n in tail.counters.items() if n}
        for key in sorted(expected.keys() | stored_counters.keys()):
            if expected.get(key, 0) != stored_counters.get(key, 0):
                self._report.add(f"counter {key}: {stored_counters.get(key, 0)}, the log says {expected.get(key, 0)}")

        replays = {row.number: row for row in tail.replays}
        for number in sorted(self._replays.keys() | replays.keys()):
            if replays.get(number) != self._replays.get(number):
                self._report.add(f"replay {number}: its row is not what the log says")


def _same_webhook(stored: WebhookRow | None, expected: WebhookRow | None) -> bool:
    """Compare two rows; an earlier release wrote settings without the fields that are new since."""
    if stored is None or expected is None:
        return stored is expected
    try:
        same = settings_of(stored) == settings_of(expected)
    except CorruptError:
        return False
    return same and stored._replace(settings=b"") == expected._replace(settings=b"")


def _check_secrets(
    report: Report, rows: list[WebhookRow], current: tuple[list[WebhookRow], dict[bytes, bytes]]
) -> None:
    unchanged = set(rows) & set(current[0])
    for row in unchanged:
        if row.deleted_ms is None and read_credentials(row, current[1]) is None:
            report.add(f"the credentials of webhook {row.number} are missing or not those that were set")


async def _check_range(reader: Reader, report: Report, found: Slice, touching: Sequence[int], number: int) -> None:
    """Compare what is stored about the events of a range with the fold of their records."""
    own = [row for row in found.log if (row.subject or row.seq) // RANGE == number]
    changes = Changes()
    expected: dict[tuple[int, int], Delivery] = {}
    accepted: dict[int, EventAccepted] = {}
    for start in range(0, len(touching), PAGE):
        own += await reader.records(touching[start : start + PAGE])
    for seq, record in _readable(own):
        if isinstance(record, EventAccepted):
            if seq // RANGE != number:
                continue
            accepted[seq] = record
        made = Changes()
        project(seq, record, made)
        _apply(expected, made, number)
        changes.events += made.events
        changes.keys += made.keys
    _compare(report, "event", set(changes.events), set(found.events))
    _compare(report, "delivery", set(expected.values()), set(found.deliveries))
    # A key's row may have moved on to a later event, but a row that is there must have its record.
    _compare(report, "idempotency key", set(changes.keys) & set(found.keys), set(found.keys))
    report.events += len(found.events)
    report.deliveries += len(found.deliveries)
    for seq, event in accepted.items():
        await _check_body(reader, report, seq, event)


def _readable(rows: Iterable[LogRow]) -> Iterator[tuple[int, Record]]:
    for row in sorted(rows):
        try:
            yield row.seq, decode(row.record)
        except CorruptError:
            continue  # the walk along the chain has named it


def _apply(expected: dict[tuple[int, int], Delivery], made: Changes, number: int) -> None:
    """Fold one record's changes into the rows that a range of events is expected to have."""
    for row in (*made.deliveries, *made.moved):
        if row.event // RANGE == number:
            expected[row.webhook, row.event] = row
    for outcome in made.outcomes:
        known = expected.get((outcome.webhook, outcome.event))
        if known is not None:
            expected[outcome.webhook, outcome.event] = Delivery(*outcome, known.queue, known.since_ms)
    for webhook, first, last in made.buried:
        for key, row in expected.items():
            if row.webhook == webhook and first <= row.event <= last and not State(row.state).settled:
                expected[key] = row._replace(state=int(State.DEAD))


def _compare(report: Report, what: str, expected: set[_RowT], stored: set[_RowT]) -> None:
    for row in sorted(expected - stored):
        report.add(f"{what} {row}: the log says so, but it is missing or different")
    for row in sorted(stored - expected):
        report.add(f"{what} {row}: it is stored, but not what the log says")


async def _check_body(reader: Reader, report: Report, seq: int, event: EventAccepted) -> None:
    body = await reader.body(seq)
    if body is None or body_digest(body) != event.digest:
        fault = "is missing" if body is None else "is not the one that was accepted"
        report.add(f"event {event_text(event.id)} (seq {seq}): its body {fault}")
    else:
        report.bodies += 1
