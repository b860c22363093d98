"""Time, given to whoever needs it, so that a test can bring its own."""

import time
from typing import Protocol


class Clock(Protocol):
    """The wall clock. Waiting is done with anyio, on the event loop's own clock."""

    def now_ms(self) -> int:
        """Return the milliseconds since the epoch, UTC."""


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return time.time_ns() // 1_000_000
