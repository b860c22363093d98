"""One process of a world: an engine that is opened, used, and stopped or killed."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from typing import TypeVar
from urllib.parse import quote

import anyio
from msgspec import Struct

from outbox.domain.errors import OutboxError
from outbox.engine import Engine, EngineConfig, Outside, open_engine
from outbox.relay.clock import Clock
from outbox.relay.flight import Carrier
from outbox.store.sqlite import open_store
from tests.world.disk import Disk, KilledError, Mortality, open_inline

_T = TypeVar("_T")


class DownError(Exception):
    """There is no service, or it went before it answered: then nobody knows what became of the request."""

    def __init__(self, detail: str, *, unasked: bool = False) -> None:
        """Say by `unasked` that the request has reached nobody."""
        super().__init__(detail)
        self.unasked = unasked


class Ground(Struct, frozen=True):
    """What the processes of a world stand on. `note` writes into its history."""

    config: EngineConfig
    clock: Clock
    random: Callable[[], float]
    disk: Disk
    note: Callable[..., None]


class Life:
    """Runs one engine. `kill` ends it as SIGKILL would: what is on disk at that instant is all that is left of it."""

    def __init__(self, number: int, ground: Ground, carrier: Carrier) -> None:
        self.number = number
        self.mortality = Mortality(self.kill)
        self.ended = anyio.Event()
        self.failure: BaseException | None = None
        self.look: sqlite3.Connection | None = None
        """A connection of the world's own, for looking at what is committed."""
        self._engine: Engine | None = None
        self._ground = ground
        self._carrier = carrier
        self._over = anyio.Event()
        self._scope = anyio.CancelScope()
        self._callers: dict[anyio.CancelScope, None] = {}  # in order: a set goes by addresses
        self._thaw: Callable[[], None] = lambda: None

    @property
    def up(self) -> bool:
        """Whether it answers."""
        return self._engine is not None and not self.mortality.dead

    async def run(self, started: anyio.Event) -> None:
        """Live; set `started` when it is open, or never will be."""
        try:
            with self._scope:
                await self._serve(started)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - it is kept for the world to judge
            # Whatever the dead met on their way out has happened to nobody.
            self.failure = None if self.mortality.dead else error
        finally:
            for caller in self._callers:
                caller.cancel()
            self._thaw()
            started.set()
            self.ended.set()

    async def _serve(self, started: anyio.Event) -> None:
        ground = self._ground
        opener = partial(open_inline, disk=ground.disk, mortality=self.mortality)
        outside = Outside(
            clock=ground.clock,
            random=ground.random,
            open_store=partial(open_store, opener=opener),
            courier=lambda *_: self._courier(),
        )
        async with open_engine(ground.config, outside) as engine:
            self._engine = engine
            started.set()
            try:
                await self._over.wait()
            finally:
                self._engine = None

    def _courier(self) -> AbstractAsyncContextManager[Carrier]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Carrier]:
            # The world looks for as long as there may be a POST, and is gone before the store is closed.
            uri = f"file:{quote(str(self._ground.disk.path))}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as look:
                self.look = look
                try:
                    yield self._carrier
                finally:
                    self.look = None

        return opened()

    async def ask(self, question: Callable[[Engine], Awaitable[_T]]) -> _T:
        """Ask the engine. Raises DownError, and whatever it refuses with."""
        if self._engine is None or self.mortality.dead:
            raise DownError("the service is down", unasked=True)
        with anyio.CancelScope() as scope:
            self._callers[scope] = None
            try:
                return await question(self._engine)
            except KilledError as error:
                raise DownError("the service was killed meanwhile") from error
            finally:
                del self._callers[scope]
        raise DownError("the service ended meanwhile")

    def kill(self, why: str) -> None:
        """Die right here."""
        if self.mortality.dead or self.ended.is_set():
            return
        self._ground.note("life %d is killed %s", self.number, why)
        self.mortality.dead = True
        self._thaw = self._ground.disk.freeze()
        self._scope.cancel()
        for caller in self._callers:
            caller.cancel()

    def stop(self) -> None:
        """End in order, as by SIGTERM."""
        self._ground.note("life %d is stopped", self.number)
        self._over.set()


def root_of(error: BaseException) -> BaseException:
    """Return the one error that a group of errors is about."""
    while isinstance(error, BaseExceptionGroup):
        error = next((inner for inner in error.exceptions if _holds_ours(inner)), error.exceptions[0])
    return error


def _holds_ours(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_holds_ours(inner) for inner in error.exceptions)
    return isinstance(error, OutboxError)
