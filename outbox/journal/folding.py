"""Verify that everything stored follows from the log, and that the log is whole.

It runs beside a working service: every look is one short read transaction, compared with the records of that same
instant. First the chain from beginning to end, with the small projections; then the events, range by range.
"""

from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import TypeVar

from outbox.domain.deliveries import Delivery, State
from outbox.domain.errors import CorruptError
from outbox.domain.ids import body_digest, event_text
from outbox.domain.projecting import Changes, EventRow, KeyRow, WebhookRow, project
from outbox.domain.records import Checkpoint, EventAccepted, Kept, Record, decode
from outbox.journal import chaining
from outbox.journal.beginnings import beginning
from outbox.journal.chaining import Chain, Report
from outbox.journal.ledger import read_credentials
from outbox.store.protocol import Head, LogRow, Reader, Slice

PAGE = 1000

Progress = Callable[[int, int], None]
_RowT = TypeVar("_RowT", EventRow, Delivery, KeyRow)


async def verify(reader: Reader, kept: Head | None, progress: Progress = lambda _done, _all: None) -> Report:
    """Check the log, the projections, the bodies and the file; `kept` is the head kept outside the database.

    `progress` is called with the records looked at so far and the number of all.
    """
    last = (await reader.head()).seq
    report, chain = Report(problems=[]), None
    while chain is None:
        report = Report(problems=[])
        try:
            start = await beginning(reader)
        except CorruptError as error:
            report.add(f"the log: {error.detail}")
            return report
        chain = await _follow(reader, Chain(report, kept, start), last, progress)
    async for number in _ranges(reader, chain):
        first, until = number * chaining.RANGE, (number + 1) * chaining.RANGE - 1
        also = [*chain.touching.pop(number, ()), *chain.cuts(first, until)]
        found = await reader.slice(first, until, chain.seq, also)
        chain.follow([row for row in found.log if row.seq > chain.seq])
        chain.touching.pop(number, None)
        await _check_range(reader, report, chain, found, number)
        progress(last + number * chaining.RANGE, 2 * max(last, number * chaining.RANGE))
    for problem in await reader.check():
        report.add(f"the file: {problem}")
    return report


async def _follow(reader: Reader, chain: Chain, last: int, progress: Progress) -> Chain | None:
    """Follow the log to its end, and compare what is small; None if it was cut meanwhile: then it is begun anew."""
    while page := await reader.log(chain.seq, PAGE):
        if await _was_cut(reader, chain, page):
            return None
        chain.follow(page)
        progress(chain.seq, 2 * max(last, chain.seq))
        if len(page) < PAGE:
            break
    tail = await reader.tail(chain.seq)
    if await _was_cut(reader, chain, tail.log):
        return None
    chain.follow(tail.log)
    chain.finish(tail)
    _check_secrets(chain.report, tail.webhooks, await reader.webhooks())
    return chain


async def _was_cut(reader: Reader, chain: Chain, rows: Sequence[LogRow]) -> bool:
    """Say whether records are missing, but since somebody prunes."""
    if not rows or rows[-1].seq - chain.seq == len(rows):
        return False
    return (await beginning(reader)).seq > chain.seq


async def _ranges(reader: Reader, chain: Chain) -> AsyncIterator[int]:
    """Yield the ranges of events; of those that the log was cut behind, only the ones of which something is left."""
    number = 0
    while number <= chain.seq // chaining.RANGE:
        if (number + 1) * chaining.RANGE <= chain.floor:
            at = bisect_left(chain.vouched, number)
            stored = await reader.next_stored(number * chaining.RANGE - 1)
            following = [*chain.vouched[at : at + 1], *([] if stored is None else [stored // chaining.RANGE])]
            number = max(number, min([*following, chain.floor // chaining.RANGE]))
        yield number
        number += 1


def _check_secrets(
    report: Report, rows: list[WebhookRow], current: tuple[list[WebhookRow], dict[bytes, bytes]]
) -> None:
    unchanged = set(rows) & set(current[0])
    for row in unchanged:
        if row.deleted_ms is None and read_credentials(row, current[1]) is None:
            report.add(f"the credentials of webhook {row.number} are missing or not those that were set")


async def _check_range(reader: Reader, report: Report, chain: Chain, found: Slice, number: int) -> None:
    """Compare what is stored about the events of a range with the fold of their records."""
    expected = _Expected(number, chain.floor)
    for row, record in _readable(found.log):
        expected.fold(row.seq, record)
    _compare(report, "event", set(expected.events), set(found.events))
    _compare(report, "delivery", set(expected.deliveries.values()), set(found.deliveries))
    # A key's row may have moved on to a later event, but a row that is there must have its record.
    _compare(report, "idempotency key", expected.keys & set(found.keys), set(found.keys))
    stored = {Kept(row.seq, sha256(row.record).digest()) for row in found.log if expected.is_kept(row.seq)}
    for seq in sorted({one.seq for one in expected.kept ^ stored}):
        report.add(f"the log: record {seq} is not what its checkpoint has kept")
    report.records += len(stored)
    report.events += len(found.events)
    report.deliveries += len(found.deliveries)
    for seq, event in expected.accepted.items():
        await _check_body(reader, report, seq, event)


class _Expected:
    """What the records say that a range of events should have."""

    def __init__(self, number: int, floor: int) -> None:
        self.events: list[EventRow] = []
        self.deliveries: dict[tuple[int, int], Delivery] = {}
        self.keys: set[KeyRow] = set()
        self.kept: set[Kept] = set()
        self.accepted: dict[int, EventAccepted] = {}
        self._span = range(number * chaining.RANGE, (number + 1) * chaining.RANGE)
        self._floor = floor

    def is_kept(self, seq: int) -> bool:
        """Say whether the record with that seq is of this range, and of those that a checkpoint must have kept."""
        return seq <= self._floor and seq in self._span

    def fold(self, seq: int, record: Record) -> None:
        """Apply the next record."""
        if isinstance(record, Checkpoint):
            self._cut(record)
            return
        if isinstance(record, EventAccepted):
            if seq not in self._span:
                return
            self.accepted[seq] = record
        elif seq <= self._floor:
            return
        made = Changes()
        project(seq, record, made)
        self.events += made.events
        if seq > self._floor:
            self.keys.update(made.keys)
            _apply(self.deliveries, made, self._span)

    def _cut(self, record: Checkpoint) -> None:
        span = range(record.first, record.last + 1)
        self.deliveries = {key: row for key, row in self.deliveries.items() if row.event not in span}
        self.deliveries.update((row[:2], row) for row in record.deliveries if row.event in self._span)
        self.keys = {row for row in self.keys if row.event not in span}
        self.keys.update(KeyRow(key, event) for key, event in record.keys if event in self._span)
        self.kept = {one for one in self.kept if one.seq not in span}
        self.kept.update(one for one in record.kept if one.seq in self._span)


def _readable(rows: Iterable[LogRow]) -> Iterator[tuple[LogRow, Record]]:
    for row in sorted(rows):
        try:
            yield row, decode(row.record)
        except CorruptError:
            continue  # the walk along the chain has named it


def _apply(expected: dict[tuple[int, int], Delivery], made: Changes, events: range) -> None:
    """Fold one record's changes into the rows that a range of events is expected to have."""
    for row in (*made.deliveries, *made.moved):
        if row.event in events:
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
