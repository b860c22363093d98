"""A process that has imported the service and waits: each request becomes a process of its own, forked off it.

Starting Python and importing the service takes longer than most tests do. What is forked is the real program in a real
process; it has only skipped that. `tests.forking` is the other side.
"""

import gc
import importlib
import os
import runpy
import selectors
import signal
import socket
import sys
from typing import NamedTuple

import msgspec

IMPORTED = ("app.service", "app.commands.following", "app.commands.keeping", "app.commands.listing")
"""All but the modules that are programs: those are run anew in each process."""

REQUEST_BYTES = 1 << 17


class Request(msgspec.Struct):
    """A program to run: the arguments of `python -m`, the folder to run it in, its environment."""

    arguments: list[str]
    folder: str
    environment: dict[str, str]


class Child(NamedTuple):
    """A process that was asked for, and the pipe for saying what became of it."""

    pid: int
    report: int


def serve(requests: socket.socket) -> Request | None:
    """Fork on request until nobody can ask any more. Returns in each child too, with what it is to become."""
    children: dict[int, Child] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    selector.unregister(key.fd)
                    _bury(key.fd, children.pop(key.fd))
                    continue
                message, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 3)
                if not message:
                    _kill(children)
                    return None
                report, *streams = descriptors
                pid = os.fork()
                if not pid:
                    _inherit(children, report, streams)
                    return msgspec.json.decode(message, type=Request)
                for stream in streams:
                    os.close(stream)
                pidfd = os.pidfd_open(pid)
                children[pidfd] = Child(pid, report)
                selector.register(pidfd, selectors.EVENT_READ)
                _say(report, pid)


def _inherit(children: dict[int, Child], report: int, streams: list[int]) -> None:
    """Take over the streams as standard output and error, and let go of all that is the forker's affair."""
    for pidfd, child in children.items():
        os.close(pidfd)
        os.close(child.report)
    os.close(report)
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)


def _bury(pidfd: int, child: Child) -> None:
    """Say how a process ended: its exit status, or the number of the signal, negative."""
    _, status = os.waitpid(child.pid, 0)
    _say(child.report, os.waitstatus_to_exitcode(status))
    os.close(child.report)
    os.close(pidfd)


def _kill(children: dict[int, Child]) -> None:
    for pidfd, child in children.items():
        os.kill(child.pid, signal.SIGKILL)
        _bury(pidfd, child)


def _say(report: int, number: int) -> None:
    try:
        os.write(report, b"%d\n" % number)
    except BrokenPipeError:
        return  # whoever asked for the process does not ask what became of it


def become(request: Request) -> None:
    """Be the program that was asked for."""
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    _, module, *arguments = request.arguments
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for _name in IMPORTED:
        importlib.import_module(_name)
    # What is shared with the children stays shared: no collector writes into it.
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as _requests:
        _request = serve(_requests)
    if _request is not None:
        become(_request)
