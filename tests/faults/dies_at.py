"""The service with a death planted: it kills itself with SIGKILL at a named step, the Nth time it gets there.

FAULT_STEP names the step, FAULT_TIMES the N. Random kills seldom meet the instants between two steps; these always do.
"""

import os
import signal
import sqlite3
from itertools import count

from app.__main__ import main
from outbox.domain.retrying import Answer
from outbox.journal.writer import Journal, _Commit
from outbox.relay.courier import Courier, Parcel
from outbox.store.protocol import Batch, Facts
from outbox.store.sqlite.writing import SqliteStore

_passed = count(1)


def reach(step: str) -> None:
    """Die if this is the step and the time for it."""
    if os.environ["FAULT_STEP"] == step and next(_passed) == int(os.environ["FAULT_TIMES"]):
        os.kill(os.getpid(), signal.SIGKILL)


def decide(self: _Commit, facts: Facts) -> Batch:
    """Die with everything decided and nothing written."""
    batch = _decide(self, facts)
    reach("decided")
    return batch


def end(self: SqliteStore, connection: sqlite3.Connection) -> None:
    """Die with everything written and nothing committed, or with all of it committed and nobody told."""
    reach("written")
    _end(self, connection)
    reach("committed")


async def commit(self: Journal, commit: _Commit) -> None:
    """Die with the answers given and not yet sent."""
    await _commit(self, commit)
    reach("answered")


async def post(self: Courier, parcel: Parcel) -> Answer:
    """Die with the receiver's answer in hand and not recorded."""
    answer = await _post(self, parcel)
    reach("posted")
    return answer


if __name__ == "__main__":
    _decide, _Commit.decide = _Commit.decide, decide  # type: ignore[method-assign]
    _end, SqliteStore._end = SqliteStore._end, end  # type: ignore[method-assign]
    _commit, Journal._commit = Journal._commit, commit  # type: ignore[method-assign]
    _post, Courier.post = Courier.post, post  # type: ignore[method-assign]
    main()
