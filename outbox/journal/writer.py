"""The journal: the one writer of the log. Many callers, one transaction, one sync.

No timer delays anybody: a commit takes all that queued up while the last one was being synced.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
from msgspec import Struct

from outbox.domain.errors import BusyError, CorruptError, OutboxError, OutcomeUnknownError
from outbox.domain.routing import Webhooks
from outbox.journal.commands import Command
from outbox.journal.ledger import Ledger
from outbox.store.protocol import Batch, Facts, Store, Wants

COMMIT_BYTES = 8 * 1024 * 1024

_T = TypeVar("_T")
Listener = Callable[[set[int], set[int]], None]


class _Entry(Struct, eq=False):
    command: Command[Any]
    answer: "asyncio.Future[Any]"
    size: int


class Journal:
    """Takes commands from many callers and commits them together, in the order they came.

    `webhooks` are the settings as of the last commit, `trouble` is why that commit failed if it did.
    """

    def __init__(self, store: Store, webhooks: Webhooks, queue_bytes: int) -> None:
        """Write to `store`, from where `webhooks` were loaded; refuse when `queue_bytes` wait."""
        self.webhooks = webhooks
        self.trouble = ""
        self._store = store
        self._queue: deque[_Entry] = deque()
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
        self._queue.append(entry)
        self._queued_bytes += size
        self._arrived.set()
        return entry.answer

    async def run(self) -> None:
        """Commit what comes until closed and empty.

        Raises OutcomeUnknownError and CorruptError: after these nothing more may be written.
        """
        try:
            while self._queue or not self._closed:
                if not self._queue:
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                with anyio.CancelScope(shield=True):
                    await self._commit(self._take())
        finally:
            self._closed = self._closed or "the journal has stopped"
            self._refuse(self._queue, BusyError(self._closed, retry_after_s=5))
            self._queue.clear()
            self._ended.set()

    async def drain(self) -> None:
        """Take nothing more, and return once `run` has committed everything queued and ended."""
        self._closed = self._closed or "the service is stopping"
        self._arrived.set()
        await self._ended.wait()

    def _take(self) -> list[_Entry]:
        """Take what makes up the next commit: in order, at most COMMIT_BYTES, or one entry."""
        taken: list[_Entry] = []
        size = 0
        while self._queue:
            entry = self._queue[0]
            if taken and (size + entry.size > COMMIT_BYTES or entry.command.alone or taken[0].command.alone):
                break
            size += entry.size
            taken.append(self._queue.popleft())
        self._queued_bytes -= size
        return taken

    async def _commit(self, entries: list[_Entry]) -> None:
        wants = Wants(deliveries=[], keys=[], unsettled=[], queues=[], rows=[], headless=[])
        for entry in entries:
            entry.command.want(wants, self.webhooks)
        commit = _Commit([entry.command for entry in entries], self.webhooks)
        try:
            await self._store.commit(wants, commit.decide)
        except OutboxError as error:
            self.trouble = error.detail
            self._refuse(entries, error)
            if isinstance(error, OutcomeUnknownError | CorruptError):
                raise
            return
        except BaseException as error:
            self._refuse(entries, error)
            raise
        self.trouble = ""
        self.webhooks = commit.ledger.webhooks
        for entry, answer in zip(entries, commit.answers, strict=True):
            _answer(entry.answer, answer)
        for listener in self._listeners:
            listener(commit.ledger.touched, commit.ledger.nudged)

    @staticmethod
    def _refuse(entries: "list[_Entry] | deque[_Entry]", error: BaseException) -> None:
        for entry in entries:
            _answer(entry.answer, error)


class _Commit:
    """One attempt at a transaction: runs in the store's thread, and leaves its ledger and answers behind."""

    ledger: Ledger

    def __init__(self, commands: list[Command[Any]], webhooks: Webhooks) -> None:
        self._commands = commands
        self._webhooks = webhooks
        self.answers: list[Any] = []

    def decide(self, facts: Facts) -> Batch:
        self.answers = []
        self.ledger = ledger = Ledger(facts, self._webhooks)
        for command in self._commands:
            before = ledger.next_seq
            try:
                self.answers.append(command.decide(ledger))
            except Exception as error:
                # What refused without writing concerns its own caller only.
                if ledger.next_seq != before:
                    raise
                self.answers.append(error)
        return ledger.batch


def _answer(future: "asyncio.Future[Any]", answer: object) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
