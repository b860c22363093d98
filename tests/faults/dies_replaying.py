"""The service with a death planted into a replay: its first chunk is kept, its second is not."""

import os
import signal
from itertools import count

from app.__main__ import main
from outbox.journal.ledger import Ledger
from outbox.journal.replaying import AdvanceReplay, Replay

_passed = count(1)


def decide(self: AdvanceReplay, ledger: Ledger) -> Replay | None:
    """Die with the second chunk decided and not written."""
    answer = _decide(self, ledger)
    if next(_passed) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer


if __name__ == "__main__":
    _decide, AdvanceReplay.decide = AdvanceReplay.decide, decide  # type: ignore[method-assign]
    main()
