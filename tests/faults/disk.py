"""The watched and spoiled disk (`disk.c`): preloads it, and steers it while a process runs."""

import errno
import struct
from enum import IntFlag
from pathlib import Path
from typing import NamedTuple

from tests.faults.preloading import library, shared
from tests.harness import Service

FOREVER = 1 << 60

_CONTROL = struct.Struct("=iiqqqiii20sxxxx")


class Calls(IntFlag):
    """The kinds of calls that can be spoiled, as `disk.c` numbers them."""

    WRITE = 1
    SYNC = 2
    TRUNCATE = 4
    OPEN = 8
    NAME = 16
    READ = 32


class Disk:
    """What a process finds below `folder` when it is started with `environment`.

    With `recorded`, everything it does there, and all that it sends, is written into `log`.
    """

    def __init__(self, folder: Path, beside: Path, *, recorded: bool = False) -> None:
        """Put the log and the shared memory into `beside`, which is another folder."""
        self.log = beside / "disk.log"
        control = beside / "disk.control"
        control.write_bytes(bytes(_CONTROL.size))
        self.lever = Lever(control)
        self.environment = {
            "LD_PRELOAD": str(library("disk.c")),
            "DISK_FOLDER": str(folder),
            "DISK_CONTROL": str(control),
            **({"DISK_LOG": str(self.log)} if recorded else {}),
        }

    def spoils(self, service: Service) -> None:
        """Put a service that is not running on this disk."""
        service.settings |= self.environment


class Trouble(NamedTuple):
    """What is wrong with the disk: `after` of these calls pass, and then `times` of them fail with `error`.

    With `half`, writes that fail do half of their work. With `deadly`, the process ends in the first of the calls. Each
    of them takes `delay_s` longer. Only files whose names have that `ending` are meant.
    """

    what: Calls
    error: int = errno.EIO
    after: int = 0
    times: int = FOREVER
    half: bool = False
    deadly: bool = False
    delay_s: float = 0.0
    ending: str = ""


class Lever:
    """The memory shared with the process, by which its disk is spoiled and healed."""

    def __init__(self, control: Path) -> None:
        """Share the file."""
        self._memory = shared(control)

    def spoil(self, trouble: Trouble) -> None:
        """Let calls fail from now on."""
        self.heal()
        delay_us = round(trouble.delay_s * 1_000_000)
        flags = (trouble.half, trouble.deadly, delay_us, trouble.ending.encode())
        self._memory[:] = _CONTROL.pack(0, trouble.error, trouble.after, trouble.times, 0, *flags)
        # Last, since the process reads along.
        self._memory[:4] = struct.pack("=i", trouble.what)

    def heal(self) -> None:
        """Let everything pass."""
        self._memory[:4] = bytes(4)

    @property
    def seen(self) -> int:
        """How many of the calls that are meant there were since `spoil`."""
        seen: int = _CONTROL.unpack(self._memory)[4]
        return seen
