"""What a store should hold, worked out in the plainest way: dictionaries, gone through from end to end each time.

It knows no commit, no chunk but where a command says so, no index and no fact: whatever those make wrong shows in a
comparison with it.
"""

from collections import Counter
from dataclasses import dataclass, field

from outbox.domain.deliveries import Delivery, Effect
from outbox.domain.holding import held_after
from outbox.domain.replays import END_OF_EVENTS, Place, ReplayFilter
from outbox.domain.webhooks import Order
from tests.store.books import ACKNOWLEDGED, DEAD, PENDING, WAITING
from tests.store.entries import Again, Hook, Known, Row

TOOK_MS = 5
RETRY_MS = 1000
START = -(2**63)
QUEUEING, PROMOTING = 1, 2


@dataclass
class Model:
    """Everything that is stored.

    `seq` counts the records, `floor` is the last of those that prunes have gone through. `attempts` are the records of
    attempts, each with its event; `moves` those of replays, each with the replay and how many deliveries it has moved.
    `pruned` is what is gone, by the names of its counters.
    """

    chunk: int
    seq: int = 0
    now_ms: int = 0
    hooks: dict[int, Hook] = field(default_factory=dict)
    events: dict[int, Known] = field(default_factory=dict)
    rows: dict[tuple[int, int], Row] = field(default_factory=dict)
    keys: dict[str, tuple[int, int, object]] = field(default_factory=dict)
    replays: dict[int, Again] = field(default_factory=dict)
    floor: int = 0
    attempts: dict[int, int] = field(default_factory=dict)
    moves: dict[int, tuple[int, int]] = field(default_factory=dict)
    pruned: Counter[tuple[int, int]] = field(default_factory=Counter)

    # ------------------------------------------------------------------------------------------------------- webhooks

    def live(self) -> list[Hook]:
        """Return the webhooks that are not deleted."""
        return [hook for hook in self.hooks.values() if hook.deleted_ms is None]

    def find(self, instance: str, name: str) -> Hook | None:
        """Return the live webhook of that instance and name."""
        return next((hook for hook in self.live() if (hook.instance, hook.name) == (instance, name)), None)

    def set(self, instance: str, name: str, order: Order, *, enabled: bool) -> None:
        """Set a webhook."""
        self.seq += 1
        hook = self.find(instance, name)
        if hook is None:
            hook = self.hooks[self.seq] = Hook(self.seq, instance, name, self.now_ms, order=order)
        elif hook.order != order:
            hook.phase, hook.position, hook.until = QUEUEING, 0, self.seq
        hook.enabled, hook.order, hook.revision, hook.suspended_ms = enabled, order, self.seq, 0
        hook.held = held_after(hook.held, self.now_ms, holding=not enabled)

    def delete(self, hook: Hook) -> None:
        """Delete a webhook."""
        self.seq += 1
        hook.deleted_ms = self.now_ms

    def bury(self, hook: Hook) -> None:
        """Bury the next chunk of what a deleted webhook has left."""
        run = [event for number, event in sorted(self.rows) if number == hook.number and event > hook.buried]
        dying = [row for event in run[: self.chunk] if (row := self.rows[hook.number, event]).unsettled]
        for row in dying:
            row.state = DEAD
        self.seq += bool(dying)
        hook.buried = run[: self.chunk][-1] if run else 1 << 62

    def move_breaker(self, hook: Hook, *, opened: bool) -> bool:
        """Open or close a breaker; say whether that was news."""
        if hook.deleted_ms is not None or (hook.opened_ms > 0) == opened:
            return False
        self.seq += 1
        hook.opened_ms = self.now_ms if opened else 0
        return True

    def forget(self) -> None:
        """Forget what is not stored, as a restart does."""
        for hook in self.hooks.values():
            hook.revision = 0

    # --------------------------------------------------------------------------------------------------------- events

    def accept(self, instance: str, chats: list[str], key: str = "", window_ms: int = 0) -> int | str:
        """Accept events, one or a batch; return the first's seq, or what became of a key that is known."""
        request = (instance, tuple(chats))
        if key and key in self.keys and self.keys[key][1] + window_ms > self.now_ms:
            return self.keys[key][0] if self.keys[key][2] == request else "conflict"
        first = self.seq + 1
        if key:
            self.keys[key] = (first, self.now_ms, request)
        for chat in chats:
            self.seq += 1
            self.events[self.seq] = Known(instance, chat, self.now_ms, self.now_ms if key else None)
            for hook in self.live():
                if hook.enabled and hook.instance == instance:
                    self._add(hook, chat)
        return first

    def _add(self, hook: Hook, chat: str) -> None:
        queue = hook.key(chat)
        waits = queue is not None and (hook.phase == QUEUEING or bool(self.queue(hook.number, queue)))
        self.rows[hook.number, self.seq] = Row(WAITING if waits else PENDING, self.now_ms, queue, self.now_ms)

    def queue(self, number: int, queue: int) -> list[int]:
        """Return the unsettled events of a queue, in order."""
        return [
            event
            for (webhook, event), row in sorted(self.rows.items())
            if webhook == number and row.queue == queue and row.unsettled
        ]

    # ------------------------------------------------------------------------------------------------------- attempts

    def attempt(self, number: int, event: int, attempt: int, effect: Effect, revision: int) -> Effect:
        """Record an attempt; return the effect it really had."""
        self.seq += 1
        self.attempts[self.seq] = event
        row = self.rows.get((number, event))
        had = effect
        if row is None or not row.unsettled or row.attempts != attempt - 1:
            had = Effect.LATE
        else:
            row.attempts, row.charged, row.due_ms = attempt, attempt, self.now_ms + RETRY_MS
            if effect in {Effect.ACKNOWLEDGE, Effect.BURY}:
                self._settle(number, row, ACKNOWLEDGED if effect is Effect.ACKNOWLEDGE else DEAD, TOOK_MS)
        hook = self.hooks.get(number)
        if effect is Effect.SUSPEND and hook and hook.deleted_ms is None and not hook.suspended_ms:
            self._suspend(hook, revision)
        return had

    def _settle(self, number: int, row: Row, state: int, later_ms: int) -> int | None:
        """Settle a delivery; return the event of the one that is let go, if there is one."""
        was, row.state = row.state, state
        hook = self.hooks[number]
        if was != PENDING or row.queue is None or (hook.deleted_ms is None and hook.phase == QUEUEING):
            return None
        following = self.queue(number, row.queue)
        if not following:
            return None
        freed = self.rows[number, following[0]]
        freed.state, freed.due_ms = PENDING, self.now_ms + later_ms
        return following[0]

    def _suspend(self, hook: Hook, revision: int) -> None:
        if hook.revision == revision:
            self.seq += 1
            hook.suspended_ms = self.now_ms + TOOK_MS
            hook.held = held_after(hook.held, hook.suspended_ms, holding=True)

    def expire(self, number: int, events: list[int], cutoff_ms: int) -> int:
        """Expire what is too old and pending as the command begins; return how many."""
        old = [
            event
            for event in dict.fromkeys(events)
            if (row := self.rows.get((number, event))) and row.state == PENDING and row.since_ms <= cutoff_ms
        ]
        for event in old:
            self._settle(number, self.rows[number, event], DEAD, 0)
        self.seq += bool(old)
        return len(old)

    # ----------------------------------------------------------------------------------------------------- conversion

    def convert(self, hook: Hook) -> bool:
        """Convert the next chunk; say whether there is more."""
        if hook.deleted_ms is not None or not hook.phase:
            return False
        moved = self._enqueue(hook) if hook.phase == QUEUEING else self._promote(hook)
        self.seq += 1 + bool(moved)
        if not hook.phase:
            hook.position = hook.until = 0
        return hook.phase > 0

    def _enqueue(self, hook: Hook) -> int:
        run = [
            event
            for (number, event), row in sorted(self.rows.items())
            if number == hook.number and row.unsettled and hook.position < event < hook.until
        ]
        for event in run[: self.chunk]:
            row = self.rows[hook.number, event]
            row.queue = hook.key(self.events[event].chat)
            row.state = PENDING if row.queue is None else WAITING
        if len(run) >= self.chunk:
            hook.position = run[self.chunk - 1]
        elif hook.order == "none":
            hook.phase = 0
        else:
            hook.phase, hook.position = PROMOTING, START
        return len(run)

    def _promote(self, hook: Hook) -> int:
        keys = sorted({row.queue for (number, _), row in self.rows.items() if number == hook.number and row.queue})
        headless = [
            key
            for key in keys
            if key >= hook.position
            and (members := [self.rows[hook.number, event] for event in self.queue(hook.number, key)])
            and all(row.state == WAITING for row in members)
        ]
        for key in headless[: self.chunk]:
            self.rows[hook.number, self.queue(hook.number, key)[0]].state = PENDING
        if len(headless) >= self.chunk:
            hook.position = headless[self.chunk - 1]
        else:
            hook.phase = 0
        return len(headless)

    # -------------------------------------------------------------------------------------------------------- replays

    def request(self, wanted: ReplayFilter, rate: float | None) -> int:
        """Ask for a replay; return its number."""
        self.seq += 1
        self.replays[self.seq] = Again(self.seq, wanted, rate, self.now_ms)
        return self.seq

    def step(self, again: Again) -> tuple[list[int], Place, bool]:
        """Return the events that the next step of a replay finds, where it leads, and whether that is the end."""
        hook = self._reached(again, again.place)
        if hook is None:
            return [], again.place, True
        after = again.place.event if again.place.webhook == hook.number else 0
        found = [event for event in self._wanted(again, hook) if after < event < again.number][: self.chunk]
        if len(found) == self.chunk:
            return found, Place(hook.number, found[-1]), False
        place = Place(hook.number, END_OF_EVENTS)
        return found, place, self._reached(again, place) is None

    def _reached(self, again: Again, place: Place) -> Hook | None:
        hooks = [
            hook
            for hook in self.live()
            if (hook.number, END_OF_EVENTS) > place and hook.number < again.number and _reaches(again.wanted, hook)
        ]
        return min(hooks, key=lambda hook: hook.number, default=None)

    def _wanted(self, again: Again, hook: Hook) -> list[int]:
        if again.wanted.adds:
            own = [event for event, known in self.events.items() if known.instance == hook.instance]
            return [event for event in own if (hook.number, event) not in self.rows]
        own = sorted(event for number, event in self.rows if number == hook.number)
        return [event for event in own if self.rows[hook.number, event].state in again.wanted.states]

    def advance(self, again: Again, found: list[int], place: Place, *, finished: bool) -> bool:
        """Take a replay on; say whether that was possible."""
        hook = self.hooks.get(place.webhook)
        live = hook is not None and hook.deleted_ms is None
        if hook is not None and live and found and hook.phase:
            return False
        step_ms = 1000 / again.rate if again.rate else 0.0
        start_ms = max(again.next_ms, self.now_ms) if again.rate else self.now_ms
        moved = 0
        if hook is not None and live and _reaches(again.wanted, hook):
            for event in found:
                moved += self._replay(again, hook, event, start_ms + round(moved * step_ms))
        again.replayed += moved
        again.skipped += len(found) - moved
        again.place, again.finished, again.updated_ms = place, finished, self.now_ms
        again.next_ms = start_ms + round(moved * step_ms) if again.rate else 0
        if moved:
            self.seq += 1
            self.moves[self.seq] = (again.number, moved)
        self.seq += 1
        return True

    def _replay(self, again: Again, hook: Hook, event: int, due_ms: int) -> bool:
        row = self.rows.get((hook.number, event))
        if (row is not None) if again.wanted.adds else (row is None or row.state not in again.wanted.states):
            return False
        if row is None or not row.unsettled:
            queue = hook.key(self.events[event].chat)
            waits = queue is not None and bool(self.queue(hook.number, queue))
            attempts = row.attempts if row else 0
            row = Row(WAITING if waits else PENDING, due_ms, queue, self.now_ms, attempts)
            self.rows[hook.number, event] = row
        row.due_ms, row.since_ms, row.charged = due_ms, self.now_ms, 0
        return True

    # -------------------------------------------------------------------------------------------------------- pruning

    def cut(self, first: int, last: int, cutoff_ms: int, keyed_ms: int, *, carried: int) -> tuple[int, int]:
        """Take away a run of records, but for what lives; return how many events and deliveries that was.

        Keys count from `keyed_ms` on. So many webhooks have each a record that says anew how they stand.
        """
        self.seq += carried + 1
        self.floor = max(self.floor, last)
        living = {event for (_, event), row in self.rows.items() if row.unsettled}
        for event, known in self.events.items():
            keyed = known.keyed_ms is not None and known.keyed_ms >= keyed_ms
            if not first <= event <= last or known.at_ms >= cutoff_ms or keyed:
                living.add(event)
        gone = [(row.state, event) for (_, event), row in self.rows.items() if event not in living]
        events = len(self.events.keys() - living)
        self.pruned.update({(0, -2): events, (0, -3): 0, (0, -4): 0})
        self.pruned.update((0, -3 if state == ACKNOWLEDGED else -4) for state, _ in gone)
        self.events = {event: known for event, known in self.events.items() if event in living}
        self.rows = {pair: row for pair, row in self.rows.items() if pair[1] in living}
        self.keys = {key: known for key, known in self.keys.items() if known[0] in living}
        self.attempts = {
            seq: event for seq, event in self.attempts.items() if not first <= seq <= last or event in living
        }
        self.moves = {seq: moved for seq, moved in self.moves.items() if seq > self.floor}
        self.replays = {number: again for number, again in self.replays.items() if number > last}
        return events, len(gone)

    # -------------------------------------------------------------------------------------------------------- looking

    def kept(self) -> list[int]:
        """Return the records that are left of those that prunes have gone through."""
        return sorted(seq for seq in (*self.events, *self.attempts) if seq <= self.floor)

    def deliveries(self) -> list[Delivery]:
        """Return all deliveries, as the table has them."""
        return [
            Delivery(number, event, row.state, row.due_ms, row.attempts, row.charged, row.queue, row.since_ms)
            for (number, event), row in sorted(self.rows.items())
        ]

    def counters(self) -> dict[tuple[int, int], int]:
        """Return how many deliveries are in each state, how many events there are, and what is gone."""
        counted = {(0, -1): len(self.events)} if self.events else {}
        for (number, _), row in self.rows.items():
            counted[number, row.state] = counted.get((number, row.state), 0) + 1
        return counted | {name: n for name, n in self.pruned.items() if n}


def _reaches(wanted: ReplayFilter, hook: Hook) -> bool:
    """Say whether a replay is after deliveries of a webhook as it stands; all belong to an instance here."""
    if wanted.webhook not in {None, hook.number} or wanted.instance not in {None, hook.instance}:
        return False
    held = not hook.enabled or hook.suspended_ms > 0
    return wanted.state not in {"pending", "waiting", "held"} or held == (wanted.state == "held")
