"""Following the log from where its chain begins to its end, and what follows from it that is small."""

from array import array
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable

import msgspec

from outbox.domain.errors import CorruptError
from outbox.domain.projecting import Changes, ReplayRow, WebhookRow, begin, project
from outbox.domain.records import (
    AttemptRecorded,
    Checkpoint,
    DeliveriesBuried,
    DeliveriesMoved,
    Record,
    chained,
    decode,
)
from outbox.journal.ledger import settings_of
from outbox.store.protocol import Head, LogRow, Tail

RANGE = 500
PROBLEMS_MAX = 100


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


class Chain:
    """Follows the log record by record, folding what is small enough to be kept in memory.

    `touching` holds, by range of events, the seqs of the records that change its deliveries without being about one of
    its events. Up to `floor` the log was cut; `vouched` are the ranges, in order, of which checkpoints have kept some.
    """

    def __init__(self, report: Report, kept: Head | None, start: Head) -> None:
        """Follow from `start`, where the chain begins; `kept` is the head kept outside the database."""
        self.seq = self.floor = start.seq
        self.vouched: list[int] = []
        self.touching: defaultdict[int, array[int]] = defaultdict(lambda: array("q"))
        self._start = start.seq
        self._digest = start.digest
        self._cuts: list[tuple[int, int]] = []
        self.report = report
        self._kept = kept
        self._counters: Counter[tuple[int, int]] = Counter()
        self._webhooks: dict[int, WebhookRow] = {}
        self._replays: dict[int, ReplayRow] = {}

    def follow(self, rows: list[LogRow]) -> None:
        """Follow the next records."""
        for row in rows:
            if row.seq != self.seq + 1:
                self.report.add(f"the log: records {self.seq + 1} to {row.seq - 1} are missing")
            elif chained(self._digest, row.record) != row.digest:
                self.report.add(f"the log: record {row.seq} does not continue the chain")
            if self._kept is not None and row.seq == self._kept.seq and row.digest != self._kept.digest:
                self.report.add(f"the log: record {row.seq} is not the one that the head file remembers")
            self.seq, self._digest = row.seq, row.digest
            self._fold(row)

    def _fold(self, row: LogRow) -> None:
        self.report.records += 1
        try:
            record = decode(row.record)
        except CorruptError as error:
            self.report.add(f"the log: record {row.seq}: {error.detail}")
            return
        changes = Changes()
        project(row.seq, record, changes)
        if isinstance(record, Checkpoint):
            self._cut(row.seq, record, changes)
        self._counters.update(changes.counters)
        for webhook in changes.webhooks:
            known = self._webhooks.get(webhook.number)
            created_ms = known.created_ms if known else webhook.created_ms
            self._webhooks[webhook.number] = webhook._replace(created_ms=created_ms)
        self._webhooks.update((webhook.number, webhook) for webhook in changes.carried)
        for number, fields in changes.marks:
            if number in self._webhooks:
                self._webhooks[number] = self._webhooks[number]._replace(**fields)  # type: ignore[arg-type]
        self._replays.update((replay.number, replay) for replay in changes.replays)
        self._note(row, record)

    def _cut(self, seq: int, record: Checkpoint, changes: Changes) -> None:
        """Note what a checkpoint has cut, and in which record that stands; it replaces what is said of it before."""
        if record.last <= self._start:
            begin(record, changes)
        self.floor = record.floor
        first = bisect_left(self._cuts, (record.first, 0))
        self._cuts[first : bisect_left(self._cuts, (record.last + 1, 0))] = [(record.last, seq)]
        for number in {kept.seq // RANGE for kept in record.kept}:
            at = bisect_left(self.vouched, number)
            if self.vouched[at : at + 1] != [number]:
                insort(self.vouched, number)
        for number in [number for number in self._replays if record.first <= number <= record.last]:
            del self._replays[number]

    def cuts(self, first: int, last: int) -> list[int]:
        """Return the seqs of the checkpoints that say what was kept of the events `first` to `last`."""
        found = []
        for at in range(bisect_left(self._cuts, (first, 0)), len(self._cuts)):
            until, seq = self._cuts[at]
            found.append(seq)
            if until >= last:
                break
        return found

    def _note(self, row: LogRow, record: Record) -> None:
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
            self.report.add(f"the log ends at {self.seq}, but the head file remembers record {self._kept.seq}")
        webhooks = {row.number: row for row in tail.webhooks}
        for number in sorted(self._webhooks.keys() | webhooks.keys()):
            stored = webhooks.get(number)
            if not _same_webhook(stored, self._webhooks.get(number)):
                self.report.add(f"webhook {number}: its row is not what the log says")
        expected = {key: n for key, n in self._counters.items() if n}
        stored_counters = {key: n for key, n in tail.counters.items() if n}
        for key in sorted(expected.keys() | stored_counters.keys()):
            if expected.get(key, 0) != stored_counters.get(key, 0):
                self.report.add(f"counter {key}: {stored_counters.get(key, 0)}, the log says {expected.get(key, 0)}")

        replays = {row.number: row for row in tail.replays}
        for number in sorted(self._replays.keys() | replays.keys()):
            if replays.get(number) != self._replays.get(number):
                self.report.add(f"replay {number}: its row is not what the log says")


def _same_webhook(stored: WebhookRow | None, expected: WebhookRow | None) -> bool:
    """Compare two rows; an earlier release wrote settings without the fields that are new since."""
    if stored is None or expected is None:
        return stored is expected
    try:
        same = settings_of(stored) == settings_of(expected)
    except CorruptError:
        return False
    return same and stored._replace(settings=b"") == expected._replace(settings=b"")
