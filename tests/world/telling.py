"""What the log says, worked out record by record from the contract's words, without the code of the projections."""

from typing import TypeVar

from msgspec import Struct, field

from outbox.domain.deliveries import Effect, Move, State
from outbox.domain.records import (
    AttemptRecorded,
    BreakerMoved,
    DeliveriesBuried,
    DeliveriesMoved,
    EventAccepted,
    MovedDelivery,
    Record,
    ReplayAdvanced,
    ReplayRequested,
    WebhookDeleted,
    WebhookSet,
)

_T = TypeVar("_T")


class Account(Struct):
    """One delivery: when it is due, its queue, its attempts in force, its state, and why it is dead if it is.

    `disturbed` says that its order was changed, or that it was replayed: an attempt may have been in flight then, which
    began before it was due as it stands since.
    """

    due_ms: int
    state: State
    queue: int | None = None
    attempts: list[AttemptRecorded] = field(default_factory=list)
    reason: str = ""
    disturbed: bool = False

    def settle(self, state: State, reason: str = "") -> None:
        """Come to an end."""
        self.state, self.reason = state, reason


class Told(Struct):
    """Everything that the log says. `punctual` says that no clock was set back while it was written.

    `replayed` counts the deliveries that a replay, by number, has moved so far. `nudged` has, by webhook, since
    when one with an open breaker has a probe to make that waits for no due time.
    """

    punctual: bool
    events: dict[int, EventAccepted] = field(default_factory=dict)
    accounts: dict[tuple[int, int], Account] = field(default_factory=dict)
    webhooks: dict[int, WebhookSet] = field(default_factory=dict)
    replayed: dict[int, int] = field(default_factory=dict)
    opened: set[int] = field(default_factory=set)
    nudged: dict[int, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def follow(self, seq: int, record: Record) -> None:
        """Take in the next record."""
        self._nudge(record)
        problems: list[str] = []
        match record:
            case WebhookSet():
                self.webhooks[record.webhook or seq] = record
            case WebhookDeleted():
                del self.webhooks[record.webhook]
            case EventAccepted():
                problems = self._accepted(seq, record)
            case AttemptRecorded():
                problems = self._attempted(record)
            case DeliveriesBuried():
                self._buried(record)
            case DeliveriesMoved():
                problems = [problem for row in record.rows for problem in self._moved(record, row)]
            case ReplayRequested():
                self.replayed[seq] = 0
            case ReplayAdvanced():
                what = f"replay {record.replay} has moved so many:"
                problems = _unlike(what, self.replayed[record.replay], record.replayed)
            case _:
                pass
        self.problems += [f"record {seq}: {problem}" for problem in problems]

    def _nudge(self, record: Record) -> None:
        """Note which breaker is open, and what is reason to try at once all the same."""
        match record:
            case BreakerMoved(opened=True):
                self.opened.add(record.webhook)
            case BreakerMoved():
                self.opened.discard(record.webhook)
            case WebhookSet() | DeliveriesMoved(move=Move.ADD | Move.REOPEN):
                self.nudged[record.webhook] = record.at_ms
            case _:
                pass

    def _accepted(self, seq: int, record: EventAccepted) -> list[str]:
        self.events[seq] = record
        queued = {
            webhook: (State.WAITING if waits else State.PENDING, queue) for webhook, queue, waits in record.queued
        }
        for webhook in record.targets:
            self.accounts[webhook, seq] = Account(record.at_ms, *queued.get(webhook, (State.PENDING, None)))
        wanted = {
            number
            for number, webhook in self.webhooks.items()
            if webhook.settings.enabled
            and (not webhook.settings.events or record.kind in webhook.settings.events)
            and (webhook.scope == "global" or webhook.instance == record.instance)
        }
        ordered = {number for number in wanted if self.webhooks[number].settings.order != "none"}
        return [
            *_unlike("the event is for webhooks", wanted, set(record.targets)),
            *_unlike("the event stands in queues of webhooks", ordered, set(queued)),
        ]

    def _attempted(self, record: AttemptRecorded) -> list[str]:
        account = self.accounts[record.webhook, record.event]
        what = f"attempt {record.attempt} of event {record.event}"
        next_one = not account.state.settled and record.attempt == len(account.attempts) + 1
        if record.effect is Effect.LATE:
            return [f"{what} came late, though it is the next one"] if next_one else []
        problems = _unlike(
            f"{what} is of a delivery", State.WAITING if record.waiting else State.PENDING, account.state
        )
        if not next_one:
            problems.append(f"{what} follows {len(account.attempts)} others")
        nudged = record.webhook in self.opened and record.at_ms >= self.nudged.get(record.webhook, record.at_ms + 1)
        if nudged:
            del self.nudged[record.webhook]
        if self.punctual and record.at_ms < account.due_ms and not account.disturbed and not nudged:
            problems.append(f"{what} is made {account.due_ms - record.at_ms} ms before it is due")
        account.attempts.append(record)
        account.due_ms = record.due_ms
        if record.effect is Effect.ACKNOWLEDGE:
            account.settle(State.ACKNOWLEDGED)
        elif record.effect is Effect.BURY:
            account.settle(State.DEAD, record.reason)
        if record.promoted is not None:
            problems += self._promoted(record.webhook, record.promoted[0], record.at_ms + record.took_ms)
        return problems

    def _promoted(self, webhook: int, event: int, due_ms: int) -> list[str]:
        account = self.accounts[webhook, event]
        problems = [
            *_unlike(f"the promoted event {event} is", State.WAITING, account.state),
            *_unlike("the promoted event is", self._first(webhook, account.queue), event),
        ]
        account.state, account.due_ms = State.PENDING, due_ms
        return problems

    def _first(self, webhook: int, queue: int | None) -> int:
        """Return the first event that waits in a queue."""
        return min(
            event
            for (number, event), account in self.accounts.items()
            if number == webhook and account.queue == queue and account.state is State.WAITING
        )

    def _buried(self, record: DeliveriesBuried) -> None:
        for (webhook, event), account in self.accounts.items():
            if webhook == record.webhook and record.first <= event <= record.last and not account.state.settled:
                account.settle(State.DEAD, record.reason)

    def _moved(self, record: DeliveriesMoved, row: MovedDelivery) -> list[str]:
        known = self.accounts.get((record.webhook, row.event))
        problems = _unlike(f"the moved event {row.event} was", row.before, known.state if known else None)
        if record.move is Move.PROMOTE:
            problems += _unlike("the promoted event is", self._first(record.webhook, row.queue), row.event)
        account = known or Account(row.due_ms, row.state)
        account.due_ms, account.state, account.queue = row.due_ms, row.state, row.queue
        if record.cause:
            self.replayed[record.cause] += 1
        account.disturbed |= record.move in {Move.CONVERT, Move.REOPEN}
        if record.move is Move.EXPIRE and row.state is State.DEAD:
            account.reason = record.reason
        self.accounts[record.webhook, row.event] = account
        return problems


def _unlike(what: str, expected: _T, found: _T) -> list[str]:
    return [] if expected == found else [f"{what} {expected!r}, and the log says {found!r}"]
