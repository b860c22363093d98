import json
import os
import signal
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

SINK = Path(__file__).parents[2] / "scripts" / "sink"
EVENT = b'{"event":"messages.upsert","instance":"shop","data":{}}'
HEADERS = {"webhook-id": "evt_1", "x-outbox-attempt": "3", "content-type": "application/json"}


class RunningSink:
    """The real script, on a port of its own choice."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen([SINK, "--port", "0", *options], stdout=subprocess.PIPE, text=True)
        self.url = self.read_line().removeprefix("listening on ")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdout.close()

    @property
    def stdout(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def read_line(self) -> str:
        """Wait for the next line that it prints."""
        return self.stdout.readline().rstrip("\n")

    def post(self, path: str = "/hook", body: bytes = EVENT, timeout_s: float = 30) -> tuple[int, dict[str, str]]:
        """Send one POST; tell the status and headers of the answer."""
        request = Request(self.url + path, data=body, headers=HEADERS)  # noqa: S310 - a URL of ours
        try:
            with urlopen(request, timeout=timeout_s) as answer:  # noqa: S310 - the same
                return answer.status, dict(answer.headers)
        except HTTPError as error:
            with error:
                return error.code, dict(error.headers)


Start = Callable[..., RunningSink]


@pytest.fixture
def start() -> Generator[Start]:
    """Start a sink with these options; it ends with the test."""
    running: list[RunningSink] = []

    def begin(*options: str) -> RunningSink:
        running.append(RunningSink(*options))
        return running[-1]

    yield begin
    for sink in running:
        sink.close()


def test_prints_a_line_per_request(start: Start) -> None:
    """A POST on any path is answered 200 and shown: path, event, instance, id, attempt, status."""
    sink = start()
    assert sink.url.startswith("http://127.0.0.1:")
    assert sink.post("/a/b?c=d")[0] == 200
    line = sink.read_line()
    for part in ("/a/b?c=d", "event=messages.upsert", "instance=shop", "webhook-id=evt_1", "attempt=3", "-> 200"):
        assert part in line


@pytest.mark.parametrize("body", [b"", b"\xff", b"[1]", b"[" * 100_000], ids=["empty", "binary", "list", "deep"])
def test_takes_any_body(start: Start, body: bytes) -> None:
    """A body that is no envelope is answered and shown like any other."""
    sink = start()
    assert sink.post(body=body)[0] == 200
    assert "event=-  instance=-" in sink.read_line()


def test_an_event_cannot_forge_a_line(start: Start) -> None:
    """Line breaks and control characters of a sender are not printed."""
    sink = start()
    sink.post(body=json.dumps({"event": "x\n2026 forged\x1b[2J"}).encode())
    assert "event=x\ufffd2026 forged\ufffd[2J" in sink.read_line()


def test_prints_json_for_programs(start: Start) -> None:
    """With --json each line is an object that holds path, headers, the body's text and the status."""
    sink = start("--json", "--fail", "500")
    sink.post("/x%2Fy")
    shown = json.loads(sink.read_line())
    assert (shown["path"], shown["body"], shown["status"]) == ("/x%2Fy", EVENT.decode(), 500)
    assert shown["headers"]["webhook-id"] == "evt_1"


def test_fails_when_told_to(start: Start) -> None:
    """--fail answers that status to everything, --retry-after says when to come back."""
    sink = start("--fail", "503", "--retry-after", "7")
    for _ in range(2):
        status, headers = sink.post()
        assert (status, headers["retry-after"]) == (503, "7")
        assert sink.read_line().endswith("-> 503")


def test_recovers_after_the_first_failures(start: Start) -> None:
    """--fail-first N fails N requests and then answers 200, without a Retry-After."""
    sink = start("--fail", "429", "--fail-first", "2", "--retry-after", "1")
    answers = [sink.post() for _ in range(3)]
    assert [status for status, _ in answers] == [429, 429, 200]
    assert "retry-after" not in answers[2][1]


def test_answers_late(start: Start) -> None:
    """--delay shows a request when it comes and answers it that much later."""
    sink = start("--delay", "60")
    with pytest.raises(TimeoutError):
        sink.post(timeout_s=0.2)
    assert sink.read_line().endswith("-> 200")
    quick = start("--delay", "0.05")
    assert quick.post()[0] == 200


def test_hangs(start: Start) -> None:
    """--hang takes a request, shows it, and never answers; stopping it still works."""
    sink = start("--hang")
    with pytest.raises(TimeoutError):
        sink.post(timeout_s=0.2)
    assert sink.read_line().endswith("-> hang")
    sink.process.terminate()
    assert sink.process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_ends_cleanly(start: Start, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end it with 0: the script became the sink, so its process is the one to signal."""
    sink = start()
    os.kill(sink.process.pid, number)
    assert sink.process.wait(10) == 0


def test_says_that_a_port_is_taken(start: Start) -> None:
    """A port in use ends it with a message that names the port, and 1."""
    port = start().url.rpartition(":")[2]
    result = subprocess.run([SINK, "--port", port], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"sink: cannot listen on 127.0.0.1 port {port}: " in result.stderr
    assert "address already in use" in result.stderr


def test_refuses_options_that_mean_nothing(start: Start) -> None:
    """--fail-first without --fail is a usage error: 2."""
    result = subprocess.run([SINK, "--fail-first", "1"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
