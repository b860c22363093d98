"""The engine, killed as it begins its first call on the disk, then its second, and so on through a whole life.

    python -m tests.faults.dying

Run with the disk preloaded. Each life begins on what the one before has left: it starts, takes two events in, delivers
them and stops. Between two of them an engine that is left alone must find everything. Prints its findings as JSON.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

from msgspec import to_builtins

from app.logs import configure_logs
from outbox.engine import Engine, open_engine
from tests.faults.disk import Calls, Lever, Trouble
from tests.faults.spoiled import Spoiled, hurry
from tests.receiver import Receiver

CHANGING = Calls.WRITE | Calls.SYNC | Calls.TRUNCATE | Calls.OPEN | Calls.NAME


class Dying(Spoiled):
    """An engine that tells what it has taken through a pipe, before it may die."""

    pipe: int

    async def offer(self, engine: Engine, name: str) -> bool:
        """Offer an event, and tell at once if it was taken."""
        taken = await super().offer(engine, name)
        if taken:
            os.write(self.pipe, f"{name} {self.accepted[name].hex()}\n".encode())
        return taken


def free_port() -> int:
    """Return a port for the receivers, all of which have the same one: the URL is a setting."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


async def live(spoiled: Spoiled, port: int, number: int) -> None:
    """Live one life: start, take the events of that number in, deliver them, stop."""
    receiver = Receiver()
    receiver.port = port
    async with receiver, open_engine(spoiled.config) as engine:
        await spoiled.settle(engine, number)


def die(dying: Dying, port: int, number: int, lever: Lever) -> int:
    """Live until the call of that number, in a process of its own; note what it tells, return its wait status."""
    reading, dying.pipe = os.pipe()
    process = os.fork()
    if not process:
        lever.spoil(Trouble(CHANGING, after=number - 1, times=1, deadly=True))
        asyncio.run(live(dying, port, number))
        os._exit(0)
    os.close(dying.pipe)
    with os.fdopen(reading) as told:
        for line in told:
            name, event_id = line.split()
            dying.accepted[name] = bytes.fromhex(event_id)
    _, status = os.waitpid(process, 0)
    lever.heal()
    return status


def main() -> None:
    """Die once at every call."""
    folder, lever, port = Path(os.environ["DISK_FOLDER"]), Lever(Path(os.environ["DISK_CONTROL"])), free_port()
    dying = Dying(folder / "data" / "outbox.db", f"http://127.0.0.1:{port}", lever)
    number, status = 0, signal.SIGKILL.value
    while os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        number += 1
        status = die(dying, port, number, lever)
        dying.pipe = os.open(os.devnull, os.O_WRONLY)
        asyncio.run(live(dying, port, number))
        os.close(dying.pipe)
        dying.findings.rounds += 1
    asyncio.run(dying.compare())
    if status:
        dying.findings.faults.append(f"it has ended with the status {status}")
    sys.stdout.write(json.dumps(to_builtins(dying.findings)))


if __name__ == "__main__":
    hurry()
    with Path(os.devnull).open("w") as nowhere:
        configure_logs("error", "json", nowhere)
        main()
