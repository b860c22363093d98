"""Stripping media: what `base64` false means for a webhook's copy of an event."""

import re
from collections.abc import Iterable, Iterator

from outbox.domain.bodies import Member, members, neutralised

_MEDIA = "base64"
_DISGUISED = re.compile(rb"\\u00(?:6[125]|73|3[46])")  # one of its letters, escaped


def without_media(body: bytes) -> bytes:
    """Return an accepted `body` without the members `data.base64` and `data.message.base64`.

    All other bytes stay as they came; where there is no such member, `body` itself is returned. Only objects are
    looked into: a `data` that is an array or a text is left alone.
    """
    if _MEDIA.encode() not in body and not _DISGUISED.search(body):
        return body
    kept, at = [], 0
    for start, end in sorted(_cuts(neutralised(body))):
        kept.append(body[at:start])
        at = end
    return b"".join(kept) + body[at:] if kept else body


def _cuts(text: bytes) -> Iterator[tuple[int, int]]:
    for data in _objects(text, members(text), "data"):
        inner = list(members(text, data.value, data.end))
        yield from _without_media(inner)
        for message in _objects(text, inner, "message"):
            yield from _without_media(list(members(text, message.value, message.end)))


def _objects(text: bytes, among: Iterable[Member], name: str) -> Iterator[Member]:
    return (member for member in among if member.name == name and text.startswith(b"{", member.value))


def _without_media(among: list[Member]) -> Iterator[tuple[int, int]]:
    """Yield what to cut out of an object, by offsets, each member with the comma and the space on one side of it."""
    kept = False
    for at, member in enumerate(among):
        if member.name != _MEDIA:
            kept = True
        elif kept:
            yield among[at - 1].end, member.end
        else:
            following = among[at + 1 : at + 2]
            yield member.start, following[0].start if following else member.end
