"""The queues that a commit touches: whose deliveries go one at a time, and who comes next.

A queue has one pending delivery, its head, or none and then nobody waits in it (but while a change of order is being
converted). All others wait, and go in the order of their events.
"""

from collections import deque

from outbox.domain.errors import CorruptError
from outbox.store.protocol import QueueFact, Waiting


class Queues:
    """The queues as they are in the store, with what this commit has done to them so far."""

    def __init__(self, found: dict[tuple[int, int], QueueFact]) -> None:
        """Start with what was found; every queue that is asked for must be there."""
        self._found = found
        self._queues: dict[tuple[int, int], _Queue] = {}

    def enter(self, webhook: int, queue: int, event: int, now_ms: int) -> bool:
        """Put the delivery of an event accepted now at the end of a queue; say whether it must wait."""
        return self._get(webhook, queue).enter(event, now_ms)

    def settle_head(self, webhook: int, queue: int) -> Waiting | None:
        """Let go of a queue's head; return the delivery that takes its place."""
        return self._get(webhook, queue).promote()

    def settle_waiting(self, webhook: int, queue: int, event: int) -> None:
        """Take a delivery that waits out of its queue."""
        self._get(webhook, queue).remove(event)

    def _get(self, webhook: int, queue: int) -> "_Queue":
        known = self._queues.get((webhook, queue))
        if known is None:
            fact = self._found.get((webhook, queue))
            if fact is None:
                msg = f"the queue {queue} of webhook {webhook} was not asked for: a fault of this program"
                raise CorruptError(msg)
            known = self._queues[webhook, queue] = _Queue(fact)
        return known


class _Queue:
    def __init__(self, fact: QueueFact) -> None:
        self.busy = fact.busy
        self._waiting = deque(fact.waiting)
        self._complete = fact.complete

    def enter(self, event: int, now_ms: int) -> bool:
        if not self.busy and not self._waiting:
            self.busy = True
            return False
        if self._complete:
            self._waiting.append(Waiting(event, 0, 0, now_ms))
        return True

    def promote(self) -> Waiting | None:
        # The store was asked for one more than the commit can promote: an incomplete list does not run out.
        following = self._waiting.popleft() if self._waiting else None
        self.busy = following is not None
        return following

    def remove(self, event: int) -> None:
        self._waiting = deque(waiting for waiting in self._waiting if waiting.event != event)
