"""What the machine of the model's test stands on: a file and its model, compared all the time; restarts, crashes."""

import asyncio
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from outbox.journal.commands import Command
from outbox.journal.pruning import Prune, Pruned, Shears
from tests.store.books import START_MS, Books
from tests.store.comparing import check_bodies, check_causes, compare
from tests.store.entries import Hook
from tests.store.model import Model

CHUNK = 2


class Machine(RuleBasedStateMachine):
    """Each rule does the same to a real file and to the model; after each the two are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="outbox-model-"))
        self.runner = asyncio.Runner()
        self.crashes = 0
        self.books = Books(self.folder / "0.db")
        self.model = Model(CHUNK, now_ms=START_MS)
        self.runner.run(self.books.open())

    def teardown(self) -> None:
        """Check that all of it follows from the log."""
        try:
            self.runner.run(self.books.check())
            check_causes(self.books, self.model)
            check_bodies(self.books, self.model)
        finally:
            # Whatever is wrong: the threads of the file would never end.
            self.runner.run(self.books.close())
            self.runner.close()
            shutil.rmtree(self.folder)

    def do(self, *commands: Command[Any]) -> list[Any]:
        """Submit commands in one go; return their answers, refusals as such."""

        async def answers() -> list[Any]:
            submitted = [self.books.journal.submit(command) for command in commands]
            return await asyncio.gather(*submitted, return_exceptions=True)

        return self.runner.run(answers())

    def hook(self, data: st.DataObject, *, deleted: bool = False) -> Hook:
        """Draw a webhook, live or deleted."""
        numbers = [number for number, hook in self.model.hooks.items() if (hook.deleted_ms is not None) == deleted]
        return self.model.hooks[data.draw(st.sampled_from(numbers), label="webhook")]

    @rule(step_ms=st.sampled_from([1, 500, 2000, 10_000, -700]))
    def wait(self, step_ms: int) -> None:
        """Let time pass; sometimes a clock goes back."""
        self.books.now_ms += step_ms
        self.model.now_ms += step_ms

    @rule(crash=st.booleans())
    def reopen(self, crash: bool) -> None:  # noqa: FBT001 - hypothesis gives it by its name
        """Start anew on the same file, after a stop in order or on what a killed process leaves behind."""
        if crash:
            self.crashes += 1
            left = self.books
            self.books = Books(self.folder / f"{self.crashes}.db")
            self.books.now_ms = left.now_ms
            for suffix in ("", "-wal"):
                shutil.copyfile(f"{left.path}{suffix}", f"{self.books.path}{suffix}")
            self.runner.run(left.close())
            self.runner.run(self.books.open())
        else:
            self.runner.run(self.books.reopen())
        self.model.forget()

    @invariant()
    def all_is_as_in_the_model(self) -> None:
        """Compare what is stored with what should be."""
        compare(self.books, self.model)


class Pruning:
    """A run of prunes that stops before each chunk it has looked at, until that has been cut."""

    def __init__(self, books: Books, loop: asyncio.AbstractEventLoop, age_ms: int, window_ms: int) -> None:
        """Prune what is older than that; idempotency keys count for `window_ms`."""
        self._books = books
        self._looked: asyncio.Queue[Prune | None] = asyncio.Queue()
        self._gone: asyncio.Queue[Pruned] = asyncio.Queue()
        self._running = loop.create_task(self._run(age_ms, window_ms))

    async def chunk(self) -> Prune | None:
        """Return the command that cuts the next chunk; None if nothing is left."""
        command = await self._looked.get()
        if command is None:
            await self._running
        return command

    def go_on(self, gone: Pruned) -> None:
        """Say what is gone: the next chunk can be looked at."""
        self._gone.put_nowait(gone)

    async def stop(self) -> None:
        """Stop, wherever it is."""
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running

    async def _run(self, age_ms: int, window_ms: int) -> None:
        shears = Shears(self._books.reader, window_ms)
        try:
            await shears.cut(self._cut, lambda: self._books.now_ms, age_ms, lambda _place, _end, _gone: None)
        finally:
            self._looked.put_nowait(None)

    async def _cut(self, command: Prune) -> Pruned:
        self._looked.put_nowait(command)
        return await self._gone.get()
