"""Clocks that a test can set (`clock.c`): preloads them, and sets them while a process runs."""

import struct
from pathlib import Path

from tests.faults.preloading import library, shared
from tests.harness import Service

_CONTROL = struct.Struct("=qq")


class Clocks:
    """The wall clock, and those that only go forward, of a process that is started with `environment`."""

    def __init__(self, beside: Path) -> None:
        """Put the shared memory into `beside`; the clocks are right at first."""
        control = beside / "clock.control"
        control.write_bytes(bytes(_CONTROL.size))
        self._memory = shared(control)
        self.environment = {"LD_PRELOAD": str(library("clock.c")), "CLOCK_CONTROL": str(control)}

    def govern(self, service: Service) -> None:
        """Have a service that is not running go by these clocks."""
        service.settings |= self.environment

    def jump(self, ahead_s: float) -> None:
        """Set the wall clock ahead, or back, by so many seconds from where it is. No other clock follows."""
        self._move(ahead_s, 0)

    def let_pass(self, seconds: float) -> None:
        """Let so much time have passed, by all clocks. What sleeps finds out when something else wakes it."""
        self._move(0, seconds)

    def _move(self, *seconds: float) -> None:
        before = _CONTROL.unpack(self._memory)
        moved = [was + round(more * 1e9) for was, more in zip(before, seconds, strict=True)]
        self._memory[:] = _CONTROL.pack(*moved)
