"""The service with a death planted into a chore: it kills itself with one chunk decided and not written.

FAULT_COMMAND names the command, FAULT_TIMES says which of its chunks that is.
"""

import os
import signal
from itertools import count
from typing import Any

from app.__main__ import main
from outbox.journal import sweeping
from outbox.journal.ledger import Ledger

_passed = count(1)


def decide(self: Any, ledger: Ledger) -> Any:
    """Die if it is the time for it."""
    answer = _decide(self, ledger)
    if next(_passed) == int(os.environ["FAULT_TIMES"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return answer


if __name__ == "__main__":
    _command = getattr(sweeping, os.environ["FAULT_COMMAND"])
    _decide, _command.decide = _command.decide, decide
    main()
