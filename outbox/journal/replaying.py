"""Replaying deliveries: recording that it is wanted, and doing it chunk by chunk."""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from msgspec import Struct

from outbox.domain.deliveries import Delivery, Move, State
from outbox.domain.errors import ConflictError, NotFoundError
from outbox.domain.projecting import ReplayRow, replay_row
from outbox.domain.records import DeliveriesMoved, MovedDelivery, ReplayAdvanced, ReplayRequested
from outbox.domain.replays import Place, ReplayFilter, due_times
from outbox.domain.routing import Webhooks
from outbox.domain.webhooks import Webhook, queue_of
from outbox.journal.commands import RECORD_BYTES, Asking
from outbox.journal.ledger import Ledger
from outbox.store.protocol import Wants

_MOVED_BYTES = 48


class Replay(Struct, frozen=True):
    """A replay: what was asked for, and how far it has come."""

    request: ReplayRequested
    row: ReplayRow

    @property
    def place(self) -> Place:
        """How far it has come."""
        return Place(self.row.webhook, self.row.event)


class Candidate(NamedTuple):
    """An event whose delivery is to be replayed, with what says in which queue that stands."""

    event: int
    instance: str
    chat_key: int

    def queue(self, webhook: Webhook) -> int | None:
        """Return the queue of its delivery as the webhook's order is now."""
        return queue_of(webhook.settings.order, self.instance, self.chat_key)


class RequestReplay(Asking, frozen=True):
    """Record that a replay is wanted, `matched` deliveries of it (None: nobody has counted them)."""

    wanted: ReplayFilter
    rate: float | None
    matched: int | None
    now_ms: int

    def want(self, wants: Wants, _webhooks: Webhooks) -> None:
        """See `Command.want`."""
        if self._one is not None:
            wants.alone.append(self._one)

    def decide(self, ledger: Ledger) -> Replay:
        """See `Command.decide`. Raises NotFoundError, and ConflictError for what cannot be replayed as it stands."""
        one = self._one
        delivery = ledger.facts.deliveries.get(one) if one else None
        if one and delivery is None:
            msg = "there is no such delivery"
            raise NotFoundError(msg)
        if self.wanted.webhook is not None and ledger.webhooks.get(self.wanted.webhook) is None:
            msg = "the webhook was deleted: its deliveries stay as they are"
            raise ConflictError(msg)
        if delivery and State(delivery.state) not in self.wanted.states:
            msg = 'the delivery was acknowledged: say "acknowledged": true to send it again'
            raise ConflictError(msg)
        request = ReplayRequested(self.now_ms, self.wanted, self.rate, self.matched)
        return Replay(request, replay_row(ledger.append(request), request))

    @property
    def _one(self) -> tuple[int, int] | None:
        """The one delivery that is wanted, if it is one."""
        webhook, event = self.wanted.webhook, self.wanted.event
        return None if webhook is None or event is None else (webhook, event)


class AdvanceReplay(Asking, frozen=True):
    """Take a replay on to `place`, past the candidates of that webhook, and see what they have become meanwhile."""

    replay: Replay
    found: list[Candidate]
    place: Place
    finished: bool
    now_ms: int

    alone: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """See `Command.size`."""
        return RECORD_BYTES + len(self.found) * _MOVED_BYTES

    def want(self, wants: Wants, webhooks: Webhooks) -> None:
        """See `Command.want`."""
        number = self.place.webhook
        wants.alone += [(number, candidate.event) for candidate in self.found]
        webhook = webhooks.get(number)
        if webhook is not None and webhook.settings.order != "none":
            queues = {candidate.queue(webhook) for candidate in self.found}
            wants.queues += [(number, queue) for queue in queues if queue is not None]

    def decide(self, ledger: Ledger) -> Replay | None:
        """See `Command.decide`; return how far it has come, or None while the webhook's order is being converted."""
        webhook = ledger.webhooks.get(self.place.webhook)
        if self.found and webhook is not None and webhook.conversion.phase:
            return None
        row, request = self.replay.row, self.replay.request
        times = due_times(request.rate, row.next_ms, self.now_ms)
        moved: tuple[MovedDelivery, ...] = ()
        if webhook is not None and request.wanted.reaches(webhook):
            moved = tuple(self._moved(ledger, webhook, times))
        if webhook is not None and moved:
            move = Move.ADD if request.wanted.adds else Move.REOPEN
            ledger.append(DeliveriesMoved(webhook.number, self.now_ms, move, moved, cause=row.number))
            ledger.touched.add(webhook.number)
            if row.webhook != webhook.number:
                ledger.nudged.add(webhook.number)
        advanced = ReplayAdvanced(
            replay=row.number,
            at_ms=self.now_ms,
            webhook=self.place.webhook,
            event=self.place.event,
            replayed=row.replayed + len(moved),
            skipped=row.skipped + len(self.found) - len(moved),
            next_ms=0 if request.rate is None else next(times),
            finished=self.finished,
        )
        return Replay(request, replay_row(ledger.append(advanced), advanced))

    def _moved(self, ledger: Ledger, webhook: Webhook, times: Iterator[int]) -> Iterator[MovedDelivery]:
        wanted = self.replay.request.wanted
        for candidate in self.found:
            known = ledger.facts.deliveries.get((webhook.number, candidate.event))
            if known is None and wanted.adds:
                before, attempts = None, 0
            elif known is not None and not wanted.adds and State(known.state) in wanted.states:
                before, attempts = State(known.state), known.attempts
            else:
                continue
            state, queue = _standing(ledger, webhook, candidate, known, self.now_ms)
            yield MovedDelivery(candidate.event, before, state, next(times), attempts, 0, queue, self.now_ms)


def _standing(
    ledger: Ledger, webhook: Webhook, candidate: Candidate, known: Delivery | None, now_ms: int
) -> tuple[State, int | None]:
    """Return the state and the queue that a delivery gets: behind the head of its queue, if there is one."""
    if known is not None and not State(known.state).settled:
        return State(known.state), known.queue
    # A settled one may keep the key of an earlier order.
    queue = candidate.queue(webhook)
    if queue is None:
        return State.PENDING, None
    waits = ledger.queues.enter(webhook.number, queue, candidate.event, now_ms)
    return State.WAITING if waits else State.PENDING, queue
