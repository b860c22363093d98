"""The service as a process: opens the engine, serves HTTP, stops in order.

The engine is opened around the server rather than by ASGI's lifespan events: what breaks in it then ends the server,
instead of leaving one that answers with nothing behind it.
"""

import gc
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import anyio
import structlog
import uvicorn

from app.asgi import create_app
from app.protocol import PatientProtocol
from app.settings import Settings, with_keys
from outbox import __version__
from outbox.domain.errors import CannotStartError
from outbox.engine import Engine, open_engine

GRACE_S = 8

_log = structlog.get_logger("service")


class _Server(uvicorn.Server):
    """Leaves signals to `serve`: uvicorn would raise them again after a clean stop, and so exit with 143."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises CannotStartError, and whatever ended the engine."""
    settings = with_keys(settings)
    for warning in settings.warnings:
        _log.warning("settings.ignored", reason=warning)
    spare_the_collector()
    async with open_engine(settings.engine_config()) as engine:
        listener = _listen(settings["OUTBOX_HOST"], settings["OUTBOX_PORT"])
        server = _Server(
            uvicorn.Config(
                create_app(engine, settings),
                http=PatientProtocol,
                loop="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        # Whoever reads that it has started may stop it at once, and in order.
        with _signals() as signals:
            _announce(settings, listener)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_stop_on_signal, signals, server, engine)
                await server.serve(sockets=[listener])
                tasks.cancel_scope.cancel()
    _log.info("service.stopped")


def spare_the_collector() -> None:
    """Make the garbage collector look seldom, and never at what was there at the start.

    Nearly all that is made for an event dies by reference counting; the collector's default pace costs ingest about a
    tenth (`scripts/bench`).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        # Python refuses what cannot be a host's name before any resolver is asked.
        why = error.strerror if isinstance(error, OSError) else "that is no name of a host"
        msg = f"cannot listen on {host}:{port} (OUTBOX_HOST, OUTBOX_PORT): {why}"
        raise CannotStartError(msg) from error


def _announce(settings: Settings, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    kept = {
        name: value.source
        for name in ("OUTBOX_API_KEY", "OUTBOX_INGEST_TOKEN")
        if (value := settings.values[name]).source.startswith("/")
    }
    _log.info("service.started", address=address, version=__version__, database=str(settings.database), **kept)


@contextmanager
def _signals() -> Iterator[AsyncIterator[signal.Signals]]:
    """Receive SIGTERM and SIGINT. After that the service is ending, and another SIGTERM must not cut it short."""
    try:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            yield signals
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


async def _stop_on_signal(signals: AsyncIterator[signal.Signals], server: uvicorn.Server, engine: Engine) -> None:
    async for received in signals:
        _log.info("service.stopping", signal=received.name)
        engine.stop_relay()
        server.should_exit = True
