"""A world: one outbox, its receivers, its producers, its disk and its clocks, all on virtual time."""

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup
from msgspec import Struct

from outbox.domain.errors import BusyError, OutcomeUnknownError
from outbox.domain.events import Event, read_event
from outbox.domain.ids import delivery_text
from outbox.domain.replays import ReplayFilter
from outbox.domain.retrying import RETRY_AFTER_MAX_S, Answer
from outbox.domain.webhooks import Address, Credentials, Settings
from outbox.engine import Engine, EngineConfig
from outbox.relay.courier import Parcel
from tests.world.checking import check_post
from tests.world.disk import Disk
from tests.world.history import History
from tests.world.life import DownError, Ground, Life, root_of
from tests.world.loop import virtual_loop, waiting
from tests.world.receivers import UNKNOWN_HOST, Behaviour, Receiver, Up, Visit, read_parcel

EPOCH_MS = 1_790_000_000_000
SLACK_S = 300.0

_T = TypeVar("_T")


class WallClock:
    """The wall clock: it goes as the loop's clock does, but may be set."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return EPOCH_MS + self.ahead_ms + int(virtual_loop().time() * 1000)


class Posted(Struct, eq=False):
    """An event as its producer knows it: `marker` stands in its data; `id` is known once it was acknowledged."""

    marker: int
    instance: str
    kind: str
    chat: str
    event: Event
    id: bytes = b""
    at_s: float = 0.0


class Standing(Struct, eq=False):
    """A webhook as the world has set it."""

    receiver: Receiver
    settings: dict[str, Any] = {}


class Streets:
    """Carries the POSTs of one process to the receivers of its world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.life: Life

    async def post(self, parcel: Parcel) -> Answer:
        """See `Carrier.post`."""
        world = self._world
        self.life.mortality.check()
        sighting = read_parcel(parcel)
        check_post(world, sighting, self.life)
        receiver = world.receivers.get(parcel.url.split("/", 3)[2].removesuffix(".example"))
        if receiver is None:
            await anyio.lowlevel.checkpoint()
            return UNKNOWN_HOST
        what = (receiver.name, sighting.marker, sighting.attempt)
        answer = await receiver.take(
            Visit(receiver, sighting, parcel.timeout_s, lambda: world.note("%s sees e%d #%d", *what))
        )
        sighting.answer = answer.status
        world.note("%s: e%d #%d: %s", *what, answer.status or answer.error)
        return answer


class World:
    """One outbox and everything around it. `play` makes one."""

    def __init__(self, folder: Path, seed: int, config: dict[str, Any]) -> None:
        self.seed = seed
        self.config = EngineConfig(database=folder / "outbox.db", **config)
        self.rng = self.chance("story")
        self.clock = WallClock()
        self.disk = Disk(self.config.database, self.chance("disk"))
        self.receivers: dict[str, Receiver] = {}
        self.posted: list[Posted] = []
        self.lives: list[Life] = []
        self.history = History()
        self.lasted_s = 0.0
        self.set_back_s = 0.0
        """By how many seconds the wall clock was set back in all."""
        self.violations: list[str] = []
        self.webhooks: dict[Address, Standing] = {}
        self.labels = 0
        self.numbers: dict[str, int] = {}
        """The numbers of webhooks by the labels in the URLs that they have had, as far as they are known."""
        self.made: set[tuple[int, int, int, int]] = set()
        """The POSTs that were made, by life, webhook, event and attempt."""
        self.tasks: TaskGroup
        self.story: anyio.CancelScope
        self._ground = Ground(self.config, self.clock, self.chance("relay").random, self.disk, self.note)

    # ------------------------------------------------------------------------------------------------ chance and time

    def chance(self, name: str) -> random.Random:
        """Return a source of chance of its own, so that one who draws more does not disturb the others."""
        return random.Random(f"{self.seed}/{name}")

    @property
    def now_s(self) -> float:
        """The virtual seconds since the beginning."""
        return virtual_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        await anyio.sleep(seconds)

    async def until(self, at_s: float) -> None:
        """Let time pass up to a moment, if that is still to come."""
        await anyio.sleep(max(at_s - self.now_s, 0))

    def set_clock(self, ahead_s: float) -> None:
        """Set the wall clock ahead (or back) by so many seconds from where it is."""
        self.clock.ahead_ms += round(ahead_s * 1000)
        self.set_back_s += max(-ahead_s, 0)
        self.note("the wall clock is set by %+.3f s", ahead_s)

    def note(self, text: str, *values: object) -> None:
        """Write a line into the history."""
        self.history.note(self.now_s, text, *values)

    def violate(self, text: str) -> None:
        """Say that something happened that must not happen; the story ends here."""
        self.violations.append(text)
        self.note("VIOLATION: " + text.replace("%", "%%"))
        self.story.cancel()

    # ------------------------------------------------------------------------------------------------------ processes

    @property
    def life(self) -> Life:
        """The process as it is, or was last."""
        return self.lives[-1]

    async def start(self) -> None:
        """Start the service, and return when it is open."""
        streets = Streets(self)
        streets.life = life = Life(len(self.lives) + 1, self._ground, streets)
        self.lives.append(life)
        started = anyio.Event()
        self.note("life %d begins", life.number)
        self.tasks.start_soon(life.run, started)
        await started.wait()

    async def crash(self, why: str = "by SIGKILL") -> None:
        """Kill the service, and return when nothing is left of it."""
        self.life.kill(why)
        await self.life.ended.wait()

    async def stop(self) -> None:
        """Stop the service in order, and return when it has ended."""
        self.life.stop()
        await self.life.ended.wait()

    async def ensure_up(self) -> None:
        """Start the service again if it is not there, as a supervisor would."""
        if self.lives and not self.life.ended.is_set() and not self.life.up:
            await self.life.ended.wait()
        if not self.lives or self.life.ended.is_set():
            self.judge_failure()
            await self.start()

    def judge_failure(self) -> None:
        """See that a service which ended by itself had a reason to."""
        failure = self.lives[-1].failure if self.lives else None
        if failure is not None and not isinstance(root_of(failure), OutcomeUnknownError):
            self.violate(f"the service broke: {root_of(failure)!r}")

    async def ask(self, question: Callable[[Engine], Awaitable[_T]]) -> _T:
        """Ask the engine. Raises DownError, and whatever it refuses with."""
        return await self.life.ask(question)

    # ------------------------------------------------------------------------------------- receivers and their webhooks

    def receiver(self, name: str, behaviour: Behaviour | None = None) -> Receiver:
        """Make a receiver, which is up unless told otherwise."""
        made = self.receivers[name] = Receiver(name, behaviour or Up(), self.chance(f"receiver {name}"))
        return made

    def turn(self, receiver: Receiver, behaviour: Behaviour) -> None:
        """Have a receiver behave in another way from now on."""
        receiver.behaviour = behaviour
        self.note("%s: is now %s", receiver.name, behaviour)

    async def set_webhook(self, receiver: Receiver, instance: str = "", name: str = "", **settings: Any) -> None:
        """Set a webhook to a receiver: of an instance, or the global one. Raises DownError and BusyError."""
        address = Address("instance" if instance else "global", instance, name)
        label = f"w{self.labels}"
        self.labels += 1
        self.webhooks[address] = Standing(receiver, settings)
        self.note("webhook %s is set to %s: %s", "/".join(address), receiver.name, settings)
        made, _ = await self.ask(
            lambda engine: engine.set_webhook(
                address,
                f"http://{receiver.host}/{label}",
                lambda bare, _userinfo, _known: (Settings(url=bare, **settings), Credentials()),
            )
        )
        self.numbers[label] = made.number

    async def delete_webhook(self, instance: str = "", name: str = "") -> None:
        """Delete a webhook. Raises DownError, BusyError and NotFoundError."""
        address = Address("instance" if instance else "global", instance, name)
        self.note("webhook %s is deleted", "/".join(address))
        await self.ask(lambda engine: engine.delete_webhook(address))
        self.webhooks.pop(address, None)

    # ---------------------------------------------------------------------------------------------------------- replays

    async def replay(self, rate: float | None = None, **wanted: Any) -> int:
        """Replay what matches, and return the replay's number; `wanted` are fields of a ReplayFilter.

        Raises DownError, BusyError, ConflictError and InvalidError.
        """
        self.note("a replay, %s a second, is asked for: %s", rate or "any number", wanted)
        replay = await self.ask(lambda engine: engine.replay(ReplayFilter(**wanted), rate))
        return replay.row.number

    async def replay_one(self, seq: int, webhook: int, *, acknowledged: bool = False) -> int:
        """Replay the delivery of an event, by its seq, to a webhook; errors as of `replay`, and NotFoundError."""
        self.note("a replay of event %d to webhook %d is asked for", seq, webhook)
        found = self.fetch("SELECT id FROM event WHERE seq = ?", seq)
        if not found:
            raise DownError("the service is down", unasked=True)
        name = delivery_text(found[0][0], webhook)
        replay = await self.ask(lambda engine: engine.replay_delivery(name, acknowledged=acknowledged))
        return replay.row.number

    async def cancel_replay(self, number: int) -> None:
        """End a replay where it is. Raises DownError and NotFoundError."""
        self.note("replay %d is cancelled", number)
        await self.ask(lambda engine: engine.cancel_replay(number))

    # -------------------------------------------------------------------------------------------------------- producers

    def event(self, instance: str = "loja01", kind: str = "messages.upsert", chat: str = "c1", size: int = 0) -> Posted:
        """Make an event to be posted, with a marker of its own."""
        marker = len(self.posted)
        body = {
            "event": kind,
            "instance": instance,
            "data": {"n": marker, "key": {"remoteJid": chat}, "filling": "x" * size},
        }
        posted = Posted(marker, instance, kind, chat, read_event(msgspec.json.encode(body)))
        self.posted.append(posted)
        return posted

    async def accept(self, posted: Posted, key: str = "") -> Posted:
        """Post an event. Raises DownError, BusyError and OutcomeUnknownError: it may or may not be taken then."""
        accepted = await self.ask(lambda engine: engine.accept(posted.event, key.encode()))
        self._taken(posted, accepted.id)
        return posted

    async def accept_batch(self, events: list[Posted], key: str = "") -> list[Posted]:
        """Post events as one batch; errors as of `accept`."""
        body = b"".join(posted.event.body for posted in events)
        batch = await self.ask(lambda engine: engine.accept_batch([one.event for one in events], body, key.encode()))
        for posted, event_id in zip(events, batch.ids, strict=True):
            self._taken(posted, event_id)
        return events

    async def post(self, count: int = 1, **event: Any) -> list[Posted]:
        """Post so many like events, in batches."""
        events = [self.event(**event) for _ in range(count)]
        for start in range(0, count, 1000):
            await self.accept_batch(events[start : start + 1000])
        return events

    def _taken(self, posted: Posted, event_id: bytes) -> None:
        if posted.id not in {b"", event_id}:
            self.violate(f"e{posted.marker} was repeated with its key, and is another event now")
        posted.id, posted.at_s = event_id, self.now_s
        self.note("e%d of %s/%s is taken", posted.marker, posted.instance, posted.chat)

    # ------------------------------------------------------------------------------------------------------------ truth

    def unsettled(self) -> int:
        """Return the number of deliveries that have not come to their end, as of the last commit."""
        return self._count("SELECT coalesce(sum(n), 0) FROM counter WHERE state IN (0, 1) AND webhook > 0")

    def unfinished(self) -> int:
        """Return the number of replays that are under way, as of the last commit."""
        return self._count("SELECT count(*) FROM replay WHERE finished = 0")

    def _count(self, query: str) -> int:
        found = self.fetch(query)
        return int(found[0][0]) if found else -1

    def fetch(self, query: str, *values: object) -> list[Any]:
        """Return what a query finds in the tables, as of the last commit; nothing while the service is down."""
        look = self.life.look
        return [] if look is None else look.execute(query, values).fetchall()

    @property
    def longest_s(self) -> float:
        """The longest that a delivery may have to wait for its next attempt."""
        return max(self.config.retry.max_s, RETRY_AFTER_MAX_S)

    async def heal(self) -> None:
        """Mend everything: receivers, disk, service; and set every webhook again that is disabled or suspended."""
        self.note("all is mended")
        self.disk.refuses, self.disk.failing_syncs, self.disk.hop_s = False, 0, 0.0002
        for receiver in self.receivers.values():
            receiver.behaviour = Up()
        await self.ensure_up()
        self.life.mortality.hops_left = None
        suspended = self.fetch(
            "SELECT scope, instance, name FROM webhook WHERE suspended_ms > 0 AND deleted_ms IS NULL"
        )
        for address, standing in list(self.webhooks.items()):
            if not standing.settings.get("enabled", True) or tuple(address) in suspended:
                await self._enable(address, standing)

    async def _enable(self, address: Address, standing: Standing) -> None:
        while True:
            try:
                settings = {**standing.settings, "enabled": True}
                await self.set_webhook(standing.receiver, address.instance, address.name, **settings)
            except BusyError as error:
                await self.sleep(error.retry_after_s)
            else:
                return

    async def settle(self, within_s: float | None = None) -> None:
        """Wait until every delivery is settled and every replay done; longer than `within_s` is too long."""
        started_s = self.now_s
        if within_s is None:
            within_s = self.longest_s + self.config.timeout_ms / 1000 + SLACK_S
        with anyio.move_on_after(within_s):
            while self.unsettled() or self.unfinished():
                await self.ask(lambda engine: engine.followers.next_commit().wait())
            self.note("all is settled after %.3f s", self.now_s - started_s)
            return
        left = f"{self.unsettled()} deliveries are still unsettled, {self.unfinished()} replays unfinished"
        self.violate(f"{left}, after {within_s:.0f} s in which all was well")
        self.note("these wait:\n%s", "\n".join(waiting()))
        await anyio.lowlevel.checkpoint()
