"""A file system in memory whose power can be cut: with `kill -9` of this process all is gone that was not synced.

    python -m tests.faults.lossy MOUNTPOINT DISK SHARE SEED

It has one folder, without folders in it. What programs write is kept here; the folder DISK is what survives. When it is
mounted again, only what is there is found. This disk keeps its promises and nothing else:

- A file's bytes and length are on disk once an fsync or fdatasync of it has returned. A cut in the middle of one leaves
  some of its pages.
- A name that was made, changed or removed is so on disk once its folder was synced, all such changes at once; until
  then a cut leaves the folder as it was. ext4 and XFS keep more: there, who syncs a new file has its name, too.
- Of all else nothing is on disk, but for a random SHARE (0 to 1) of the pages written, which go there at once, as from
  a kernel that writes back when it likes: later ones without earlier ones, and lengths with them.

What is mapped into memory is the kernel's until it writes it back, and is then a write like any other. Syncs do not
fail, pages are not torn within (tests/faults/replaying.py does that), modes, owners and times are not kept.

It needs libfuse (Debian: fuse3), and says `mounted` once it can be used. It ends with the process that started it.
"""

import ctypes
import errno
import json
import os
import random
import signal
import stat
import sys
from pathlib import Path

from mfusepy import FUSE  # type: ignore[import-untyped]

PAGE = 4096
PR_SET_PDEATHSIG = 1


class File:
    """One file: what programs see of it, and `path`, what is on disk of it."""

    def __init__(self, path: Path) -> None:
        """Find what is on disk, be it nothing."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.content = bytearray(path.read_bytes())
        self._dirty: set[int] = set()

    def write(self, data: bytes, offset: int) -> range:
        """Take bytes, and return which pages they are on."""
        self.content.extend(bytes(max(offset - len(self.content), 0)))
        self.content[offset : offset + len(data)] = data
        return self._touch(offset, offset + len(data))

    def truncate(self, length: int) -> None:
        """Cut it off, or fill it up with zeros."""
        before = len(self.content)
        del self.content[length:]
        self.content.extend(bytes(length - len(self.content)))
        # What is cut off may come again as zeros.
        self._touch(min(before, length), max(before, length))

    def _touch(self, begin: int, end: int) -> range:
        pages = range(begin // PAGE, -(-end // PAGE))
        self._dirty.update(pages)
        return pages

    def write_back(self, page: int) -> None:
        """Put one page on disk as it is now."""
        os.pwrite(self._descriptor, self.content[page * PAGE : (page + 1) * PAGE], page * PAGE)
        self._dirty.discard(page)

    def sync(self) -> None:
        """Put on disk all that is not there yet."""
        for page in sorted(self._dirty):
            self.write_back(page)
        os.ftruncate(self._descriptor, len(self.content))


class Lossy:
    """What libfuse asks for, by its names; a file's handle is its number. Raises OSError, which libfuse hands on."""

    use_ns = True

    def __init__(self, disk: Path, share: float, rng: random.Random) -> None:
        """Find on `disk` what was synced."""
        self._disk = disk
        self._share = share
        self._rng = rng
        table = disk / "names"
        self._names: dict[str, int] = json.loads(table.read_bytes()) if table.exists() else {}
        for left in disk.iterdir():
            if left != table and left.name not in map(str, self._names.values()):
                left.unlink()  # no name of it was synced
        self._files = {number: File(disk / str(number)) for number in set(self._names.values())}

    def init(self, _path: str) -> None:
        """Say that the file system is mounted: the kernel asks for its first answer."""
        print("mounted", flush=True)  # noqa: T201 - to the process that started this one

    def _number(self, path: str | None) -> int:
        try:
            return self._names[(path or "/")[1:]]
        except KeyError:
            raise OSError(errno.ENOENT, path) from None

    def getattr(self, path: str | None, handle: int | None) -> dict[str, int]:
        """Return the kind and the size of a file, or of the folder."""
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2, "st_uid": os.getuid()}
        number = handle or self._number(path)
        links = list(self._names.values()).count(number)
        size = len(self._files[number].content)
        return {
            "st_mode": stat.S_IFREG | 0o600, "st_nlink": links, "st_size": size, "st_blocks": -(-size // 512),
            "st_uid": os.getuid(),
        }  # fmt: skip

    def readdir(self, _path: str | None, _handle: int) -> list[str]:
        """Return all names."""
        return [".", "..", *self._names]

    def create(self, path: str, _mode: int) -> int:
        """Make an empty file and return its handle."""
        number = max(self._files, default=1) + 1
        self._files[number] = File(self._disk / str(number))
        self._names[path[1:]] = number
        return number

    def open(self, path: str, flags: int) -> int:
        """Return the handle of a file."""
        number = self._number(path)
        if flags & os.O_TRUNC:
            self._files[number].truncate(0)
        return number

    def read(self, _path: str | None, size: int, offset: int, handle: int) -> bytes:
        """Return what programs have written."""
        return bytes(self._files[handle].content[offset : offset + size])

    def write(self, _path: str | None, data: bytes, offset: int, handle: int) -> int:
        """Take bytes; some of their pages go to the disk at once."""
        file = self._files[handle]
        for page in file.write(data, offset):
            if self._rng.random() < self._share:
                file.write_back(page)
        return len(data)

    def truncate(self, path: str | None, length: int, handle: int | None = None) -> None:
        """Change the length of a file."""
        self._files[handle or self._number(path)].truncate(length)

    def fsync(self, _path: str | None, _datasync: int, handle: int) -> None:
        """Put a file's bytes on disk, but not its name."""
        self._files[handle].sync()

    def fsyncdir(self, _path: str | None, _datasync: int, _handle: int) -> None:
        """Put all names on disk."""
        draft = self._disk / "draft"
        # An open file that lost its name has one of libfuse's.
        names = {name: number for name, number in self._names.items() if not name.startswith(".fuse_hidden")}
        draft.write_text(json.dumps(names))
        draft.replace(self._disk / "names")

    def rename(self, old: str, new: str) -> None:
        """Let another name, which may be taken, stand for a file."""
        number = self._number(old)
        del self._names[old[1:]]
        self._names[new[1:]] = number

    def link(self, new: str, old: str) -> None:
        """Let another name stand for a file, too."""
        self._names[new[1:]] = self._number(old)

    def unlink(self, path: str) -> None:
        """Take a name away; libfuse renames first what is open."""
        self._number(path)
        del self._names[path[1:]]


def main(mountpoint: str, disk: str, share: str, seed: str) -> None:
    """Mount it, and serve until the end."""
    # Nobody would unmount it, were the test gone.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    lossy = Lossy(Path(disk).resolve(), float(share), random.Random(seed))
    # One thread: each request is done with before the next. Nobody else changes files, so the kernel may keep them.
    FUSE(lossy, mountpoint, foreground=True, nothreads=True, kernel_cache=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
