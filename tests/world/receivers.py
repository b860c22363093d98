"""Scripted receivers: what they do with a POST, and what they have seen."""

import random
from collections.abc import Callable
from typing import Protocol

import anyio
import msgspec
from msgspec import Struct
from yarl import URL

from outbox.domain.retrying import Answer
from outbox.relay.courier import Parcel
from tests.world.loop import virtual_loop

REFUSED = Answer(error="connection_refused", detail="refused")
RESET = Answer(error="connection_reset", detail="reset")
UNKNOWN_HOST = Answer(error="dns_error", detail="no such host")
TIMEOUT = Answer(error="timeout", detail="no answer in time")
WAY_S = 0.01
"""The most seconds that a POST is on its way, or a refused connection."""


class Sighting(Struct):
    """One POST that a receiver saw: when, the event by its marker and by its id, and the number of the attempt.

    `label` is the first part of the URL's path; `answer` is the status that the service got, None where it got none.
    """

    label: str
    marker: int
    webhook_id: str
    attempt: int
    body: bytes
    at_s: float = -1.0
    answer: int | None = None


def read_parcel(parcel: Parcel) -> Sighting:
    """Return what a receiver would see of a parcel."""
    headers = parcel.headers
    return Sighting(
        label=URL(parcel.url).parts[1],
        marker=marker_of(parcel.body),
        webhook_id=headers["webhook-id"],
        attempt=int(headers["x-outbox-attempt"]),
        body=parcel.body,
    )


class Visit:
    """A POST on its way to a receiver, as a behaviour handles it."""

    def __init__(self, receiver: "Receiver", sighting: Sighting, timeout_s: float, seen: Callable[[], None]) -> None:
        self.receiver = receiver
        self.sighting = sighting
        self.timeout_s = timeout_s
        self._seen = seen
        self._left_s = timeout_s

    @property
    def rng(self) -> random.Random:
        """The receiver's chance."""
        return self.receiver.rng

    async def travel(self, most_s: float) -> None:
        """Let some seconds pass, so many at most. Raises TimeoutError, when the POST's time is over."""
        await self.wait(most_s * self.rng.random())

    async def wait(self, seconds: float) -> None:
        """Let so many seconds pass. Raises TimeoutError, when the POST's time is over."""
        await anyio.sleep(min(seconds, self._left_s))
        self._left_s -= seconds
        if self._left_s <= 0:
            raise TimeoutError

    def arrive(self) -> None:
        """Be seen."""
        self.sighting.at_s = virtual_loop().time()
        self.receiver.sightings.append(self.sighting)
        self._seen()


class Behaviour(Protocol):
    """What a receiver does with POSTs for a while."""

    async def meet(self, visit: Visit) -> Answer:
        """Handle one POST."""


class Up(Struct, frozen=True, repr_omit_defaults=True):
    """Takes every POST, answering `status` after up to `slow_s` seconds; `retry_after_s` is what it asks for."""

    slow_s: float = 0.05
    status: int = 200
    retry_after_s: float | None = None

    async def meet(self, visit: Visit) -> Answer:
        """See `Behaviour.meet`."""
        await visit.travel(WAY_S)
        visit.arrive()
        await visit.travel(self.slow_s)
        return Answer(status=self.status, retry_after_s=self.retry_after_s)


class Refusing(Struct, frozen=True, repr_omit_defaults=True):
    """Is down: connections are refused."""

    async def meet(self, visit: Visit) -> Answer:
        """See `Behaviour.meet`."""
        await visit.travel(WAY_S)
        return REFUSED


class Unreachable(Struct, frozen=True, repr_omit_defaults=True):
    """Swallows every packet: nothing is seen, nothing comes back."""

    async def meet(self, visit: Visit) -> Answer:
        """See `Behaviour.meet`."""
        await visit.wait(visit.timeout_s)
        return REFUSED


class Silent(Struct, frozen=True, repr_omit_defaults=True):
    """Sees every POST and never answers."""

    async def meet(self, visit: Visit) -> Answer:
        """See `Behaviour.meet`."""
        await visit.travel(WAY_S)
        visit.arrive()
        await visit.wait(visit.timeout_s)
        return REFUSED


class Losing(Struct, frozen=True, repr_omit_defaults=True):
    """Takes every POST, but its answer is lost on the way: the true case of at least once."""

    async def meet(self, visit: Visit) -> Answer:
        """See `Behaviour.meet`."""
        await visit.travel(WAY_S)
        visit.arrive()
        await visit.travel(WAY_S)
        return RESET


class Mixed(Struct, frozen=True, repr_omit_defaults=True):
    """Does one thing or another with each POST, each as often as its weight says."""

    behaviours: tuple[Behaviour, ...]
    weights: tuple[int, ...]

    async def meet(self, visit: Visit) -> Answer:
        """See `Behaviour.meet`."""
        (behaviour,) = visit.rng.choices(self.behaviours, self.weights)
        return await behaviour.meet(visit)


class Flapping(Struct, frozen=True, repr_omit_defaults=True):
    """Behaves one way and another by turns, each for so many seconds."""

    behaviours: tuple[Behaviour, ...]
    each_s: float

    async def meet(self, visit: Visit) -> Answer:
        """See `Behaviour.meet`."""
        turn = int(virtual_loop().time() / self.each_s) % len(self.behaviours)
        return await self.behaviours[turn].meet(visit)


class Limited(Struct, frozen=True, repr_omit_defaults=True):
    """Takes so many POSTs at once, and so many a second; what is more gets `refusal`."""

    inner: Behaviour = Up()
    parallel: int = 1_000_000
    per_s: float = 1_000_000.0
    refusal: Up = Up(status=429)

    async def meet(self, visit: Visit) -> Answer:
        """See `Behaviour.meet`."""
        receiver = visit.receiver
        fits = receiver.inside <= self.parallel and receiver.gate.admits(virtual_loop().time(), self.per_s)
        return await (self.inner if fits else self.refusal).meet(visit)


class _Gate:
    """A bucket that holds the admissions of one second."""

    def __init__(self) -> None:
        self._free = 0.0
        self._at_s = -1.0

    def admits(self, now_s: float, per_s: float) -> bool:
        self._free = min(self._free + (now_s - self._at_s) * per_s, max(per_s, 1.0))
        self._at_s = now_s
        if self._free < 1:
            return False
        self._free -= 1
        return True


class Receiver:
    """A receiver with a host of its own. `behaviour` may be changed at any time.

    `sightings` are the POSTs that it has seen, `calls` the moments at which one was begun, seen or not; `inside` is
    how many it has to do with now, `most_inside` how many it ever had.
    """

    def __init__(self, name: str, behaviour: Behaviour, rng: random.Random) -> None:
        self.name = name
        self.behaviour = behaviour
        self.rng = rng
        self.sightings: list[Sighting] = []
        self.calls: list[float] = []
        self.inside = self.most_inside = 0
        self.gate = _Gate()

    @property
    def host(self) -> str:
        """The host that URLs name."""
        return f"{self.name}.example"

    def markers(self) -> list[int]:
        """Return the markers of the events seen, each once, in the order they were first seen."""
        return list(dict.fromkeys(sighting.marker for sighting in self.sightings))

    async def take(self, visit: Visit) -> Answer:
        """Handle a POST as the script says."""
        self.calls.append(virtual_loop().time())
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            return await self.behaviour.meet(visit)
        except TimeoutError:
            return TIMEOUT
        finally:
            self.inside -= 1


class _Marked(Struct):
    n: int


class _Envelope(Struct):
    data: _Marked


_ENVELOPE = msgspec.json.Decoder(_Envelope)


def marker_of(body: bytes) -> int:
    """Return the marker of the event in a body."""
    return _ENVELOPE.decode(body).data.n
