"""Builds what a power cut can leave of the files, from a recording of what was done to them.

The disk it imagines keeps its promises and nothing else. What was written before a sync that succeeded is there. What
was written later may be there or not, in any order, torn at any multiple of 512 bytes. A name that was made, changed or
removed is so for certain once its directory was synced; until then the directory may be as it was, or as it was at any
moment in between. What a failed sync should have kept is as good as unwritten, however often it is synced later: that
is what Linux makes of it.
"""

import os
import random
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from msgspec import Struct

from tests.faults.recording import Entry

SECTOR = 512


class Loss(Enum):
    """What becomes of everything that was not synced."""

    ALL = "none of it is there"
    TAIL = "of each file the first so many writes are there"
    TORN = "some sectors are there, in any order"
    NAMES = "some sectors are there, and directories are behind"


class _Write(Struct):
    place: int
    data: bytes


class _Truncation(Struct):
    length: int


_Change = _Write | _Truncation


class _File:
    """One file: what is kept of it for certain, and what was done to it since."""

    def __init__(self) -> None:
        self.kept = bytearray()
        self.since: list[_Change] = []
        self.doubtful: list[_Change] = []
        self._syncing: list[int] = []

    def begin_sync(self) -> None:
        self._syncing.append(len(self.since))

    def end_sync(self, *, good: bool) -> None:
        """Keep, or hold doubtful for ever, what was done before the sync began."""
        if not self._syncing:
            return
        count = self._syncing.pop(0)
        done, self.since = self.since[:count], self.since[count:]
        self._syncing = [max(later - count, 0) for later in self._syncing]
        if not good:
            self.doubtful += done
            return
        for change in done:
            _apply(self.kept, change)
            self.doubtful = [left for old in self.doubtful for left in _left(old, change)]

    def forget_syncs(self) -> None:
        """Let no sync end that its process did not live to see."""
        self._syncing.clear()

    def after(self, loss: Loss, rng: random.Random) -> bytes:
        """Return what it holds after a cut."""
        changes = self.doubtful + self.since
        found = bytearray(self.kept)
        if loss is Loss.TAIL:
            changes = changes[: rng.randint(0, len(changes))]
        elif loss is not Loss.ALL:
            changes = _torn(changes, rng)
        for change in changes if loss is not Loss.ALL else ():
            _apply(found, change)
        return bytes(found)


def _apply(content: bytearray, change: _Change) -> None:
    if isinstance(change, _Truncation):
        del content[change.length :]
        content.extend(bytes(change.length - len(content)))
        return
    content.extend(bytes(max(change.place - len(content), 0)))
    content[change.place : change.place + len(change.data)] = change.data


def _left(old: _Change, new: _Change) -> Iterator[_Change]:
    """Yield what of an old change is not gone with a new one; to forget a truncation is to say that it never was."""
    if isinstance(old, _Truncation):
        return
    begin, end = (new.length, 1 << 62) if isinstance(new, _Truncation) else (new.place, new.place + len(new.data))
    if old.place < begin:
        yield _Write(old.place, old.data[: begin - old.place])
    if old.place + len(old.data) > end:
        yield _Write(max(old.place, end), old.data[max(end - old.place, 0) :])


def _torn(changes: list[_Change], rng: random.Random) -> list[_Change]:
    """Return some sectors of some changes, in any order."""
    part = rng.choice((0.1, 0.5, 0.9))
    torn: list[_Change] = []
    for change in changes:
        if rng.random() < part:
            torn += _sectors(change, rng.choice((0.5, 0.9, 1.0)), rng) if isinstance(change, _Write) else [change]
    rng.shuffle(torn)
    return torn


def _sectors(write: _Write, part: float, rng: random.Random) -> Iterator[_Write]:
    begin, end = write.place, write.place + len(write.data)
    while begin < end:
        border = min((begin // SECTOR + 1) * SECTOR, end)
        if rng.random() < part:
            yield _Write(begin, write.data[begin - write.place : border - write.place])
        begin = border


class _Directory:
    """A directory; what is in it has it in its name."""


_Thing = _File | _Directory


class _Naming(Struct):
    """A change of the directory that `name` is in: it now stands for `thing` (None: for nothing)."""

    name: str
    thing: _Thing | None
    gone: str = ""


class Cutter:
    """Follows a recording, and says at any point what a cut would leave."""

    def __init__(self) -> None:
        """Begin with an empty folder."""
        self._named: dict[str, _Thing] = {}
        self._kept_names: dict[str, _Thing] = {}
        self._naming: list[_Naming] = []
        self._open: dict[int, _File] = {}
        self._open_directories: dict[int, str] = {}
        self._syncing: dict[int, int] = {}

    def follow(self, entry: Entry) -> None:
        """Take in the next entry."""
        match entry.kind:
            case "X":
                self._begin_process()
            case "O":
                self._opened(entry)
            case "W":
                self._open[entry.fd].since.append(_Write(entry.place, entry.data))
            case "T":
                self._open[entry.fd].since.append(_Truncation(entry.place))
            case "s" | "S":
                self._synced(entry)
            case "U":
                self._name(_Naming(entry.name, None))
            case "M":
                self._name(_Naming(entry.name, _Directory()))
            case "R" | "L":
                old, new = entry.names
                self._name(_Naming(new, self._named[old], old if entry.kind == "R" else ""))

    def _begin_process(self) -> None:
        self._open.clear()
        self._open_directories.clear()
        for thing in self._named.values():
            if isinstance(thing, _File):
                thing.forget_syncs()

    def _opened(self, entry: Entry) -> None:
        if entry.result:
            self._open_directories[entry.fd] = entry.name
            return
        self._open_directories.pop(entry.fd, None)
        file = self._named.get(entry.name)
        if not isinstance(file, _File):
            file = _File()
            self._name(_Naming(entry.name, file))
        if entry.place & os.O_TRUNC:
            file.since.append(_Truncation(0))
        self._open[entry.fd] = file

    def _name(self, naming: _Naming) -> None:
        _rename(self._named, naming)
        self._naming.append(naming)

    def _synced(self, entry: Entry) -> None:
        directory = self._open_directories.get(entry.fd)
        if directory is None:
            if entry.kind == "s":
                self._open[entry.fd].begin_sync()
            else:
                self._open[entry.fd].end_sync(good=entry.result == 0)
        elif entry.kind == "s":
            self._syncing[entry.fd] = len(self._naming)
        elif entry.result == 0:
            self._keep_names(directory, self._syncing[entry.fd])

    def _keep_names(self, directory: str, count: int) -> None:
        done, later = self._naming[:count], self._naming[count:]
        for naming in done:
            if _directory(naming.name) == directory:
                _rename(self._kept_names, naming)
        self._naming = [naming for naming in done if _directory(naming.name) != directory] + later

    def cut(self, loss: Loss, rng: random.Random, folder: Path) -> None:
        """Write what a cut at this point would leave into an empty folder."""
        names = dict(self._named)
        if loss is Loss.NAMES:
            names = dict(self._kept_names)
            for naming in self._naming[: rng.randint(0, len(self._naming))]:
                _rename(names, naming)
        for name, thing in sorted(names.items()):
            if _directory(name) != "." and not (folder / name).parent.exists():
                continue
            if isinstance(thing, _File):
                (folder / name).write_bytes(thing.after(loss, rng))
            else:
                (folder / name).mkdir()


def _directory(name: str) -> str:
    return name.rpartition("/")[0] or "."


def _rename(names: dict[str, _Thing], naming: _Naming) -> None:
    if naming.gone:
        names.pop(naming.gone, None)
    if naming.thing is None:
        names.pop(naming.name, None)
    else:
        names[naming.name] = naming.thing
