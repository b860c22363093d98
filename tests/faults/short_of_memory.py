"""What is done to large bodies, with more and more memory: it works or it says so, and never ends the process.

Prints how often there was too little.
"""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from outbox.domain.bodies import copy_for
from outbox.domain.events import read_event
from outbox.domain.media import without_media

BODY_BYTES = 40 * 1024 * 1024  # what is larger than 32 MiB is given back to the system at once, and taken anew
STEP_BYTES = 5 * 1024 * 1024
STEPS = 18


def sizes() -> list[int]:
    """Return how much more memory there is to be, from nothing to several times the body."""
    return [step * STEP_BYTES for step in range(STEPS)]


def limit(spare_bytes: int) -> None:
    """Let this process have so much more memory than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft = pages * resource.getpagesize() + spare_bytes
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))


def main() -> None:
    """Do everything with every size."""
    filling = "x" * BODY_BYTES
    plain = json.dumps({"event": "messages.upsert", "instance": "loja01", "data": filling}).encode()
    media = json.dumps({"event": "messages.upsert", "instance": "a", "data": {"base64": filling, "n": 1}}).encode()
    work: list[Callable[[], object]] = [
        lambda: read_event(plain, 0),
        lambda: copy_for(plain, "http://receiver.test/", "2026-11-23T00:00:00.000Z"),
        lambda: without_media(media),
        lambda: without_media(plain),
    ]
    refusals = 0
    for do in work:
        for spare_bytes in sizes():
            limit(spare_bytes)
            try:
                do()
            except MemoryError:
                refusals += 1
    sys.stdout.write(f"{refusals}\n")


if __name__ == "__main__":
    main()
