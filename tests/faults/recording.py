"""Reads what `disk.c` has logged: what was done to the files, and what was said to whom, in one order."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import msgspec

_ENTRY = Struct("=c3xiqqq")
_ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r]*\r\n(.*?)\r\n\r\n", re.DOTALL)
_POST = re.compile(rb"POST (\S+) HTTP/1\.1\r\n(.*?)\r\n\r\n", re.DOTALL)
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Entry(NamedTuple):
    """One entry, as `disk.c` makes it; `at` is its place in the order."""

    at: int
    kind: str
    fd: int
    place: int
    result: int
    data: bytes

    @property
    def name(self) -> str:
        """The file that it names."""
        return os.fsdecode(self.data)

    @property
    def names(self) -> tuple[str, str]:
        """The two files that it names."""
        old, _, new = self.name.partition("\0")
        return old, new


class Accepted(msgspec.Struct):
    """A 202 with its events' ids and the deliveries that it promises: None where it does not say."""

    at: int
    first_seq: int
    ids: list[str]
    deliveries: int | None


class Settled(msgspec.Struct):
    """A webhook was set, and its sender was told so."""

    at: int
    webhook: int


class Replayed(msgspec.Struct):
    """A replay got a 202 with its number."""

    at: int
    replay: int


class Posted(msgspec.Struct):
    """An attempt left for a receiver."""

    at: int
    path: str
    event_id: str
    attempt: int


Said = Accepted | Settled | Replayed | Posted


class Recording(NamedTuple):
    """All entries, and what was said by them."""

    entries: list[Entry]
    said: list[Said]


def read_recording(log: Path) -> Recording:
    """Return what is in a log."""
    entries = list(_entries(log.read_bytes()))
    said = [one for at, text in _streams(entries) for one in _said(at, text)]
    return Recording(entries, sorted(said, key=lambda one: one.at))


def _entries(log: bytes) -> Iterator[Entry]:
    start = 0
    at = 0
    while start < len(log):
        kind, fd, place, result, length = _ENTRY.unpack_from(log, start)
        start += _ENTRY.size
        yield Entry(at, kind.decode(), fd, place, result, log[start : start + length])
        start += length
        at += 1


class _Stream:
    """What was sent over one connection, and which entry sent each byte."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.sent: list[tuple[int, int]] = []

    def add(self, entry: Entry) -> None:
        self.sent.append((len(self.text), entry.at))
        self.text += entry.data

    def take_back(self, entry: Entry) -> None:
        begun, _ = self.sent[-1]
        del self.text[begun + entry.result :]

    def at(self, byte: int) -> int:
        """Return the entry that sent a byte."""
        return max(at for begun, at in self.sent if begun <= byte)


def _streams(entries: list[Entry]) -> Iterator[tuple["_Stream", bytes]]:
    """Yield every connection with all that was sent over it."""
    open_now: dict[int, _Stream] = {}
    done: list[_Stream] = []
    for entry in entries:
        if entry.kind == "Q":
            open_now.setdefault(entry.fd, _Stream()).add(entry)
        elif entry.kind == "q":
            open_now[entry.fd].take_back(entry)
        elif entry.kind == "C" and entry.fd in open_now:
            done.append(open_now.pop(entry.fd))
        elif entry.kind == "X":
            done += open_now.values()
            open_now = {}
    for stream in [*done, *open_now.values()]:
        yield stream, bytes(stream.text)


def _said(stream: _Stream, text: bytes) -> Iterator[Said]:
    """Read the answers, or the requests, of one connection.

    The first byte counts: an answer is given when its status can be read, even if its body comes later or never.
    """
    start = 0
    while found := _ANSWER.match(text, start) or _POST.match(text, start):
        length = _LENGTH.search(found[2])
        start = found.end() + (int(length[1]) if length else 0)
        at = stream.at(found.start())
        if found.re is _POST:
            yield _posted(at, found[1], found[2])
        elif said := _answered(at, int(found[1]), text[found.end() : start]):
            yield said


def _posted(at: int, path: bytes, head: bytes) -> Posted:
    headers = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n"))
    return Posted(at, path.decode(), headers["webhook-id"], int(headers["x-outbox-attempt"]))


def _answered(at: int, status: int, body: bytes) -> Said | None:
    """Return what an answer promises; nothing, if that is nothing. A body that was cut off is not to be believed in."""
    try:
        said = json.loads(body)
    except ValueError:
        return None
    if status == 202 and "ids" in said:
        return Accepted(at, said["first_seq"], said["ids"], None)
    if status == 202 and "seq" in said:
        return Accepted(at, said["seq"], [said["id"]], said["deliveries"])
    if status == 202 and str(said.get("id", "")).startswith("rpl_"):
        return Replayed(at, int(said["id"].removeprefix("rpl_")))
    if status in {200, 201} and str(said.get("id", "")).startswith("wh_"):
        return Settled(at, int(said["id"].removeprefix("wh_")))
    return None
