"""The service with a bug planted: a 202 goes out before its commit, which comes later. Harnesses must notice."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from app.__main__ import main
from outbox.journal import writer
from outbox.journal.writer import Journal
from outbox.store.protocol import Batch, Decide, Facts, Head, Store, Wants

COMMIT_DELAY_S = 0.3


class _Hasty:
    """A store that tells the journal's callers what was decided, and only then writes it down."""

    def __init__(self, store: Store, entries: list[Any]) -> None:
        self._store = store
        self._entries = entries

    async def commit(self, wants: Wants, decide: Decide, written: Callable[[], None] | None = None) -> Head:
        loop = asyncio.get_running_loop()

        def answer(answers: list[Any]) -> None:
            for entry, given in zip(self._entries, answers, strict=True):
                writer._answer(entry.answer, given)

        def decide_and_answer(facts: Facts) -> Batch:
            batch = decide(facts)
            loop.call_soon_threadsafe(answer, decide.__self__.answers)  # type: ignore[attr-defined]
            time.sleep(COMMIT_DELAY_S)
            return batch

        return await self._store.commit(wants, decide_and_answer, written)


def plant() -> None:
    """Answer from now on before the commit."""
    genuine = Journal._commit

    async def hasty(self: Journal, commit: Any) -> None:
        store = self._store
        self._store = _Hasty(store, commit.entries)  # type: ignore[assignment]
        try:
            await genuine(self, commit)
        finally:
            self._store = store

    Journal._commit = hasty  # type: ignore[method-assign]


if __name__ == "__main__":
    plant()
    main()
