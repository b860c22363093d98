"""The journal: the one writer of the log. Many callers, one transaction, one sync.

No timer delays anybody: a commit takes all that queued up while the last one was being synced.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
from msgspec import Struct

from outbox.domain.errors import BusyError, CorruptError, OutboxError, OutcomeUnknownError
from outbox.domain.routing import Webhooks
from outbox.journal.commands import Command
from outbox.journal.ledger import Ledger
from outbox.store.protocol import Batch, Facts, Head, Store, Wants

COMMIT_BYTES = 8 * 1024 * 1024
PROVE_S = 1.0
DECIDED_AT_ONCE_BYTES = 64 * 1024
"""A larger command, as a batch is, is decided once the commit before it waits for the disk.

Deciding on hundreds of events takes Python's lock for milliseconds, and would keep that commit from being written.
"""

_T = TypeVar("_T")
Listener = Callable[[set[int], set[int]], None]


class _Entry(Struct, eq=False):
    command: Command[Any]
    answer: "asyncio.Future[Any]"
    size: int


class Journal:
    """Takes commands from many callers and commits them together, in the order they came.

    `webhooks` are the settings as of the last commit, `trouble` is why the last one failed if it did.
    """

    def __init__(self, store: Store, webhooks: Webhooks, queue_bytes: int) -> None:
        """Write to `store`, from where `webhooks` were loaded; refuse when `queue_bytes` wait."""
        self.webhooks = webhooks
        self.trouble = ""
        self._store = store
        self._queue: deque[_Entry] = deque()
        self._head: Head | None = None
        self._ahead: _Commit | None = None
        self._queue_bytes = queue_bytes
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._closed = ""
        self._ended = asyncio.Event()
        self._listeners: list[Listener] = []

    @property
    def queued_bytes(self) -> int:
        """The bytes that wait for the next commit."""
        return self._queued_bytes

    def listen(self, listener: Listener) -> None:
        """Call `listener` after every commit with two sets of webhooks' numbers.

        The first have new work or settings, the second are to be tried at once.
        """
        self._listeners.append(listener)

    def submit(self, command: Command[_T]) -> "asyncio.Future[_T]":
        """Queue a command; the future holds its answer once the commit is on disk.

        Raises BusyError when the queue is full or the journal closed. Cancelling the wait does not take it back.
        """
        if self._closed:
            raise BusyError(self._closed, retry_after_s=5)
        size = command.size
        if self._queued_bytes and self._queued_bytes + size > self._queue_bytes:
            msg = "the journal's queue is full"
            raise BusyError(msg)
        entry = _Entry(command, asyncio.get_running_loop().create_future(), size)
        if self._ahead is None or self._queue or not self._ahead.add_blind(entry):
            self._queue.append(entry)
        self._queued_bytes += size
        self._arrived.set()
        return entry.answer

    async def run(self) -> None:
        """Commit what comes until closed and empty.

        Raises OutcomeUnknownError and CorruptError: after these nothing more may be written.
        """
        try:
            while self._waiting or not self._closed:
                if not self._waiting:
                    await self._idle()
                    continue
                with anyio.CancelScope(shield=True):
                    await self._commit(self._next())
        finally:
            self._closed = self._closed or "the journal has stopped"
            self._give_up_ahead()
            self._refuse(self._queue, BusyError(self._closed, retry_after_s=5))
            self._queue.clear()
            self._ended.set()

    async def _idle(self) -> None:
        """Wait for work; after a commit that failed, see now and then whether the store would take one again."""
        self._arrived.clear()
        with anyio.move_on_after(PROVE_S if self.trouble else math.inf):
            await self._arrived.wait()
            return
        with anyio.CancelScope(shield=True):
            try:
                await self._store.prove()
            except BusyError as error:
                self.trouble = error.detail
            else:
                self.trouble = ""

    async def drain(self) -> None:
        """Take nothing more, and return once `run` has committed everything queued and ended."""
        self._closed = self._closed or "the service is stopping"
        self._arrived.set()
        await self._ended.wait()

    @property
    def _waiting(self) -> bool:
        return bool(self._queue) or (self._ahead is not None and bool(self._ahead.entries))

    def _next(self) -> "_Commit":
        """Return what makes up the next commit: in order, at most COMMIT_BYTES, or one entry."""
        commit, self._ahead = self._ahead or _Commit(self.webhooks, self._head), None
        while self._queue and commit.fits(self._queue[0]):
            commit.add(self._queue.popleft())
        self._queued_bytes -= commit.size
        if commit.decide_blind():
            # What comes while this one is written can be decided already: it is known how the log will end.
            self._ahead = _Commit(self.webhooks, commit.ledger.head)
        return commit

    def _give_up_ahead(self) -> None:
        """Take back what was decided for a log that has not come to be: it waits to be decided again."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.blind = False
            self._queue.extendleft(reversed(ahead.entries))

    async def _commit(self, commit: "_Commit") -> None:
        wants = Wants(deliveries=[], alone=[], keys=[], unsettled=[], queues=[], rows=[], headless=[])
        if not commit.blind:
            for entry in commit.entries:
                entry.command.want(wants, self.webhooks)
        try:
            ahead = self._ahead
            self._head = await self._store.commit(wants, commit.decide, ahead.catch_up if ahead else None)
        except OutboxError as error:
            self._head = None
            self._give_up_ahead()
            self.trouble = error.detail
            self._refuse(commit.entries, error)
            if isinstance(error, OutcomeUnknownError | CorruptError):
                raise
            return
        except BaseException as error:
            self._refuse(commit.entries, error)
            raise
        if commit.ledger.batch.log:  # else nothing was written, and nothing proved
            self.trouble = ""
        self.webhooks = commit.ledger.webhooks
        for entry, answer in zip(commit.entries, commit.answers, strict=True):
            _answer(entry.answer, answer)
        for listener in self._listeners:
            listener(commit.ledger.touched, commit.ledger.nudged)

    @staticmethod
    def _refuse(entries: "list[_Entry] | deque[_Entry]", error: BaseException) -> None:
        for entry in entries:
            _answer(entry.answer, error)


class _Commit:
    """One transaction: its entries, and what is decided on them.

    Where the end of the log is known and no entry asks for facts (`blind`), entries are decided on the loop, while the
    commit before is written; the transaction then only makes sure that the log ends there. Otherwise all are decided
    inside the transaction, in the store's thread.
    """

    def __init__(self, webhooks: Webhooks, head: Head | None) -> None:
        self.entries: list[_Entry] = []
        self.answers: list[Any] = []
        self.size = 0
        self.blind = head is not None
        self.ledger = Ledger(Facts(head=head or Head()), webhooks)
        self._webhooks = webhooks
        self._head = head
        self._loop = asyncio.get_running_loop()

    def fits(self, entry: _Entry) -> bool:
        entries = self.entries
        if not entries:
            return True
        alone = entry.command.alone or entries[0].command.alone
        return not alone and self.size + entry.size <= COMMIT_BYTES

    def add(self, entry: _Entry) -> None:
        self.entries.append(entry)
        self.size += entry.size
        self.blind = self.blind and not entry.command.asks(self._webhooks)

    def add_blind(self, entry: _Entry) -> bool:
        """Add the entry if it can be decided without facts, and decide on it, or do that later; say whether it can."""
        if not self.blind or not self.fits(entry) or entry.command.asks(self._webhooks):
            return False
        self.add(entry)
        return entry.size > DECIDED_AT_ONCE_BYTES or self.decide_blind()

    def catch_up(self) -> None:
        """Have the loop decide on what it was spared until now; called off the loop, while the disk is waited for."""
        if len(self.answers) < len(self.entries):
            # The commit's own end is told after this, so that it is not yet under way when the loop gets to this.
            self._loop.call_soon_threadsafe(self.decide_blind)

    def decide_blind(self) -> bool:
        """Decide on what is not decided yet, if no facts are needed; say whether that was so."""
        if self.blind:
            for entry in self.entries[len(self.answers) :]:
                self._decide(entry.command)
        return self.blind

    def decide(self, facts: Facts) -> Batch:
        """Return what to write, in the transaction that found `facts`."""
        if not self.blind or facts.head != self._head:
            self.answers = []
            self.ledger = Ledger(facts, self._webhooks)
            for entry in self.entries:
                self._decide(entry.command)
        return self.ledger.batch

    def _decide(self, command: Command[Any]) -> None:
        before = self.ledger.next_seq
        try:
            self.answers.append(command.decide(self.ledger))
        except Exception as error:
            # What refused without writing concerns its own caller only.
            if self.ledger.next_seq != before:
                raise
            self.answers.append(error)


def _answer(future: "asyncio.Future[Any]", answer: object) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
