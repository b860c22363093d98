"""The front door and the composition root: `open_engine(config)` puts store, journal and relay together."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import structlog
from msgspec import Struct, structs

from outbox import __version__
from outbox.config import EngineConfig
from outbox.domain.addresses import AddressPolicy
from outbox.domain.deliveries import Effect
from outbox.domain.errors import NotFoundError
from outbox.domain.events import Event
from outbox.domain.ids import body_digest, key_digest
from outbox.domain.replays import ReplayFilter
from outbox.domain.retrying import Answer
from outbox.domain.routing import Webhooks
from outbox.domain.webhooks import (
    Address,
    Credentials,
    Settings,
    Source,
    Webhook,
    check_address,
    check_changeable,
    split_userinfo,
)
from outbox.journal.accepting import Accept, AcceptBatch, Accepted, AcceptedBatch, Key
from outbox.journal.checkup import FILE_CHECKS, Checkup, FileCheck, compare_head, hold_damaged
from outbox.journal.claims import Claims
from outbox.journal.damage import Damage, Part
from outbox.journal.following import Followers
from outbox.journal.inspecting import Inspector
from outbox.journal.ledger import load_webhooks
from outbox.journal.pruning import Shears
from outbox.journal.reaching import Ways
from outbox.journal.replaying import Replay
from outbox.journal.requesting import Requests
from outbox.journal.setting import DeleteWebhook, SetWebhook
from outbox.journal.writer import Journal
from outbox.relay.addresses import judge_url
from outbox.relay.budget import ByteBudget
from outbox.relay.clock import Clock, SystemClock
from outbox.relay.copying import Copier, Copies, Target
from outbox.relay.courier import Courier
from outbox.relay.flight import Carrier, Tower
from outbox.relay.lane import Surroundings
from outbox.relay.loop import Relay
from outbox.relay.pruning import Pruner, Pruning
from outbox.relay.recorder import Recorder
from outbox.relay.replaying import Replayer
from outbox.relay.trial import Trial, try_out
from outbox.store.protocol import Reader, Store
from outbox.store.sqlite import open_store
from outbox.store.sqlite.files import HeadFile

__all__ = ["FILE_CHECKS", "Copies", "Engine", "EngineConfig", "Outside", "Pruning", "Trial", "Vitals", "open_engine"]

_log = structlog.get_logger("engine")


class Outside(Struct, frozen=True, kw_only=True):
    """What is outside of the engine: time, chance, the disk, the network. A simulation brings its own.

    Waiting is done on the event loop's clock, which a simulation replaces too. `random` gives numbers from 0 to 1,
    `courier` makes the POSTs from the addresses that may be called and the clock.
    """

    clock: Clock = SystemClock()
    random: Callable[[], float] = random.random
    open_store: Callable[[Path], Awaitable[Store]] = open_store
    courier: Callable[[AddressPolicy, Clock], AbstractAsyncContextManager[Carrier]] = Courier


class Vitals(Struct, frozen=True):
    """What only the running engine knows: the journal's queue, and what happened since the start.

    `unmoved_bytes` are about how much of the write-ahead log is not in the database file yet. `damage` is how often
    something was found damaged, by what it is. `attempts` are counted by webhook's number and effect, deliveries that
    became too old by webhook's number. `file_check` is what came of the check of the file.
    """

    queue_bytes: int
    queue_limit_bytes: int
    unmoved_bytes: int
    damage: Mapping[Part, int]
    file_check: FileCheck
    attempts: Mapping[tuple[int, Effect], int]
    expired: Mapping[int, int]


class Parts(Struct, frozen=True):
    """What an engine is made of."""

    clock: Clock
    store: Store
    journal: Journal
    damage: Damage
    checkup: Checkup
    tower: Tower
    relay: Relay
    replayer: Replayer
    copier: Copier
    requests: Requests
    pruner: Pruner


class Engine:
    """The engine at work: takes events and settings in, answers questions, and relays in the background."""

    def __init__(self, config: EngineConfig, parts: Parts, inspector: Inspector) -> None:
        """Put the parts together; `open_engine` is the way to make one."""
        self.inspector = inspector
        self._config = config
        self._clock = parts.clock
        self._journal = parts.journal
        self._damage = parts.damage
        self._checkup = parts.checkup
        self._tower = parts.tower
        self._relay = parts.relay
        self._store = parts.store
        self._replayer = parts.replayer
        self._copier = parts.copier
        self._requests = parts.requests
        self.pruner = parts.pruner
        self.followers = Followers()
        self._journal.listen(self.followers.notice)

    @property
    def webhooks(self) -> Webhooks:
        """The live webhooks as of the last commit."""
        return self._journal.webhooks

    @property
    def troubles(self) -> list[str]:
        """Why the engine cannot do all of its work right now; nothing when it can."""
        return [trouble for trouble in (self._journal.trouble,) if trouble]

    @property
    def warnings(self) -> list[str]:
        """What will be trouble if nobody does anything about it; nothing when all is well."""
        return [warning for warning in (self._store.warning, *self._damage.warnings(self.webhooks)) if warning]

    @property
    def vitals(self) -> Vitals:
        """How the engine is at this moment."""
        return Vitals(
            queue_bytes=self._journal.queued_bytes,
            queue_limit_bytes=self._config.queue_bytes,
            unmoved_bytes=self._store.unmoved_bytes,
            damage=self._damage.counts,
            file_check=self._checkup.state,
            attempts=self._relay.effects,
            expired=self._relay.expired,
        )

    @property
    def sweeping(self) -> bool:
        """Whether a chore goes through the deliveries of some webhook."""
        return self._relay.sweeping

    def stop_relay(self) -> None:
        """Make no new attempt, and let go who follows the log; what is in flight has eight seconds to land."""
        self.followers.stop()
        self._relay.stop()
        self._replayer.stop()
        self._copier.stop()
        self._checkup.stop()
        self.pruner.stop()

    def now_ms(self) -> int:
        """Return the time that the engine goes by, in milliseconds since the epoch."""
        return self._clock.now_ms()

    async def accept(self, event: Event, idempotency_key: bytes = b"") -> Accepted:
        """Return once the event and its deliveries are on disk.

        Raises ConflictError, BusyError and OutcomeUnknownError.
        """
        key = self._key("events", idempotency_key, event.digest) if idempotency_key else None
        return await self._journal.submit(Accept(event, self._clock.now_ms(), key))

    async def accept_repeatable(self, event: Event) -> Accepted:
        """Accept an event whose sender repeats it byte for byte when in doubt: its body is its key."""
        key = self._key("ingest", event.digest, event.digest)
        return await self._journal.submit(Accept(event, self._clock.now_ms(), key))

    async def accept_batch(self, events: list[Event], body: bytes, idempotency_key: bytes = b"") -> AcceptedBatch:
        """Return once all `events`, which came as one `body`, are on disk; on an error none of them is.

        Raises ConflictError, BusyError and OutcomeUnknownError.
        """
        key = self._key("batch", idempotency_key, body_digest(body)) if idempotency_key else None
        first, ids = await self._journal.submit(AcceptBatch(events, self._clock.now_ms(), key))
        if ids:
            return AcceptedBatch(first, ids)
        return AcceptedBatch(first, await self.inspector.event_ids(first, len(events)), replayed=True)

    def _key(self, scope: str, key: bytes, request: bytes) -> Key:
        return Key(key_digest(scope, key), request, self._config.idempotency_window_s * 1000)

    async def set_webhook(
        self,
        address: Address,
        url: str,
        settings_for: Callable[[str, str, Webhook | None], tuple[Settings, Credentials]],
    ) -> tuple[Webhook, bool]:
        """Set a webhook; return it and whether it is new. Raises InvalidError and ConflictError.

        `settings_for` gets the URL without its user and password, these, and the webhook that is there now.
        """
        check_address(address)
        check_changeable(self.webhooks.find(*address))
        bare, userinfo = split_userinfo(url)
        if bare:
            await judge_url(bare, self._config.addresses)

        def settings(known: Webhook | None) -> tuple[Settings, Credentials]:
            check_changeable(known)
            return settings_for(bare, userinfo, known)

        return await self._journal.submit(SetWebhook(address, "api", self._clock.now_ms(), settings))

    async def delete_webhook(self, address: Address) -> Webhook:
        """Delete a webhook; its unsettled deliveries are settled as dead soon after.

        Raises NotFoundError and ConflictError.
        """
        return await self._journal.submit(DeleteWebhook(address, self._clock.now_ms()))

    async def try_webhook(self, address: Address) -> Trial:
        """Post a test event to a webhook now, enabled or not; nothing of it is recorded.

        Raises NotFoundError and ConflictError.
        """
        webhook = self.webhooks.find(*address)
        if webhook is None:
            raise NotFoundError(address.missing)
        self._relay.nudge(webhook.number)
        return await try_out(self._tower, webhook)

    async def replay_delivery(self, delivery_id: str, *, acknowledged: bool) -> Replay:
        """Replay one delivery; one that was acknowledged only if told. Raises NotFoundError and ConflictError."""
        return self._begun(await self._requests.one(delivery_id, acknowledged=acknowledged))

    async def replay(self, wanted: ReplayFilter, rate: float | None = None) -> Replay:
        """Replay what matches, so many a second. Raises InvalidError and ConflictError."""
        return self._begun(await self._requests.many(wanted, rate))

    def _begun(self, replay: Replay) -> Replay:
        self._replayer.begin(replay)
        return replay

    async def cancel_replay(self, number: int) -> None:
        """End a replay where it is: what it has done stays. Raises NotFoundError."""
        await self.inspector.replay(number)
        await self._replayer.cancel(number)

    async def copy_delivery(self, delivery_id: str, url: str) -> Answer:
        """Post a copy of a delivery to another URL, and return what came of it; nothing of it is recorded.

        Raises NotFoundError, ConflictError and InvalidError.
        """
        target = await self._target(url)
        return await self._copier.copy_one(await self._requests.find(delivery_id, acknowledged=True), target)

    async def copy(self, wanted: ReplayFilter, url: str, rate: float | None = None) -> Copies:
        """Post copies of what matches to another URL, in the background; nothing of it is recorded.

        Raises InvalidError, ConflictError and BusyError.
        """
        target = await self._target(url)
        return await self._copier.begin(wanted, target, rate, await self._requests.count(wanted))

    def copies(self, name: str) -> Copies:
        """Return how far a run of copies has come. Raises NotFoundError."""
        return self._copier.find(name)

    def cancel_copies(self, name: str) -> None:
        """End a run of copies. Raises NotFoundError."""
        self._copier.cancel(name)

    async def _target(self, url: str) -> Target:
        bare, userinfo = split_userinfo(url)
        await judge_url(bare, self._config.addresses, "$.to")
        return Target(bare, userinfo)

    async def rebuild(self) -> int:
        """Fold the projections again from the log while everything else waits; return the records folded."""
        return await self._store.rebuild()

    async def set_global(self) -> None:
        """Record what the environment says of the global webhook, if that has changed since the last start.

        One that a 410 suspended is set again: the API may not do it, so a start is how its operator ends that.
        """
        wanted, known = self._config.global_webhook, self.webhooks.find("global")
        suspended = known is not None and known.suspended_ms > 0
        if wanted is None:
            if known is None or known.source != "environment":
                return
            settings, credentials = structs.replace(known.settings, enabled=False), known.credentials
        else:
            bare, userinfo = split_userinfo(wanted.url)
            settings = Settings(url=bare, enabled=wanted.enabled, by_events=wanted.by_events, events=wanted.events)
            credentials = Credentials(userinfo=userinfo)
            as_it_is = known and (known.settings, known.credentials, known.source, known.damaged)
            if as_it_is == (settings, credentials, "environment", False) and not suspended:
                return
        # Once the environment is silent, the webhook is the API's to change.
        source: Source = "api" if wanted is None else "environment"
        await self._journal.submit(
            SetWebhook(Address("global"), source, self._clock.now_ms(), lambda _now: (settings, credentials))
        )
        _log.info("webhook.set", scope="global", source="environment", enabled=settings.enabled, resumed=suspended)


@asynccontextmanager
async def open_engine(config: EngineConfig, outside: Outside | None = None) -> AsyncIterator[Engine]:
    """Open the database, start journal and relay, and stop them in order on leaving.

    Raises CannotStartError; what breaks later is raised out of the block, which is cancelled.
    """
    clock = (outside := outside or Outside()).clock
    async with AsyncExitStack() as stack:
        store = await outside.open_store(config.database)
        stack.push_async_callback(store.aclose)
        reader, claims = await _reader(store, stack), Claims(await _reader(store, stack))
        head, damage = HeadFile(config.database), Damage()
        await compare_head(reader, head.read(), head.set_aside, damage)
        journal = Journal(store, load_webhooks(*await reader.webhooks()), config.queue_bytes)
        tower = _tower(config, outside, await stack.enter_async_context(outside.courier(config.addresses, clock)))
        relay = Relay(
            Surroundings(
                journal=journal,
                claims=claims,
                recorder=Recorder(journal),
                budget=ByteBudget(config.delivery_bytes),
                tower=tower,
                damage=damage,
                expired=Counter(),
            )
        )
        checkup = Checkup(damage, await _reader(store, stack) if store.unchecked else None, store.settle)
        ways = Ways(walker := await _reader(store, stack))
        parts = Parts(
            clock=clock,
            store=store,
            journal=journal,
            damage=damage,
            checkup=checkup,
            tower=tower,
            relay=relay,
            replayer=Replayer(journal, ways, clock, damage),
            copier=Copier(tower, ways, lambda: journal.webhooks),
            requests=Requests(journal, walker, clock.now_ms),
            pruner=Pruner(journal, Shears(walker, config.idempotency_window_s * 1000), store.shrink, clock),
        )
        engine = Engine(config, parts, Inspector(reader, head.read))
        async with anyio.create_task_group() as writing:
            writing.start_soon(store.run)
            writing.start_soon(journal.run)
            await engine.set_global()
            await hold_damaged(journal, damage, clock.now_ms())
            async with anyio.create_task_group() as relaying:
                relaying.start_soon(relay.run)
                relaying.start_soon(parts.replayer.run)
                relaying.start_soon(parts.copier.run)
                relaying.start_soon(checkup.run)
                relaying.start_soon(parts.pruner.run)
                try:
                    yield engine
                finally:
                    engine.stop_relay()
            await journal.drain()
            writing.cancel_scope.cancel()


def _tower(config: EngineConfig, outside: Outside, courier: Carrier) -> Tower:
    return Tower(
        courier=courier,
        clock=outside.clock,
        random=outside.random,
        policy=config.retry,
        timeout_ms=config.timeout_ms,
        route_style=config.route_style,
        user_agent=f"evolution-outbox/{__version__}",
    )


async def _reader(store: Store, stack: AsyncExitStack) -> Reader:
    reader = await store.reader()
    stack.push_async_callback(reader.aclose)
    return reader
