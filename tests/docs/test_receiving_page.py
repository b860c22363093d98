import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import WebhookVerificationError

from outbox.domain.rotating import write_secret
from outbox.domain.webhooks import Credentials
from outbox.relay.signing import identity
from tests.docs.pages import ROOT, section, steps

PAGE = ROOT / "docs" / "receiving.md"
CODE = {
    kind: [step.text for step in steps(section(PAGE, "## Who sent it")) if step.what == kind]
    for kind in ("python", "js")
}
SECRET, OTHER, THIRD = b"s" * 32, b"o" * 24, b"t" * 64
BODY = '{"data":"ol\u00e1 \\ud83d"}'.encode()

Case = tuple[dict[str, str], bytes]


def posts() -> tuple[list[Case], list[Case]]:
    """Return POSTs that are genuine to a receiver that knows SECRET, and some that are not."""
    now_ms = time.time_ns() // 1_000_000

    def signed(*secrets: bytes, late_ms: int = 0) -> dict[str, str]:
        newest, previous = (*secrets, b"")[:2]
        held = Credentials(secret=newest, previous_secret=previous, previous_until_ms=2**62 if previous else 0)
        return identity(held, "evt_1", BODY, now_ms - late_ms)

    good = [signed(SECRET), signed(SECRET, OTHER), signed(OTHER, SECRET), signed(SECRET, late_ms=200_000)]
    now = signed(SECRET)
    bad = [
        signed(OTHER), signed(OTHER, THIRD), signed(SECRET, late_ms=400_000), signed(SECRET, late_ms=-400_000),
        now | {"webhook-id": "evt_2"}, now | {"webhook-timestamp": str(now_ms // 1000 - 9)},
        now | {"webhook-timestamp": "soon"}, now | {"webhook-signature": now["webhook-signature"][:-1]},
        now | {"webhook-signature": "v1,\u00e9"}, now | {"webhook-signature": ""},
        *({name: value for name, value in now.items() if name != missing} for missing in now),
    ]  # fmt: skip
    return [(headers, BODY) for headers in good], [*((headers, BODY) for headers in bad), (now, BODY + b" ")]


def with_secret(code: str) -> str:
    """Put the receiver's secret into code of the page."""
    assert "whsec_\u2026" in code
    return code.replace("whsec_\u2026", write_secret(SECRET))


def by_package(code: str, cases: list[Case], _folder: Path) -> list[bool]:
    """Return what the code that uses the package says of POSTs."""

    def genuine(headers: dict[str, str], body: bytes) -> bool:
        try:
            exec(code, {"headers": headers, "body": body})  # noqa: S102 - it stands on our own page
        except (WebhookVerificationError, ValueError):
            return False
        return True

    return [genuine(*case) for case in cases]


def by_hand(code: str, cases: list[Case], _folder: Path) -> list[bool]:
    """Return what the code that needs no package says of POSTs."""
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - it stands on our own page
    return [names["genuine"](*case) for case in cases]


def by_node(code: str, cases: list[Case], folder: Path) -> list[bool]:
    """Return what the code for Node says of POSTs."""
    (folder / "genuine.mjs").write_text(code)
    (folder / "ask.mjs").write_text(
        'import { genuine } from "./genuine.mjs"; import { readFileSync } from "node:fs";\n'
        'const answer = ([headers, body]) => genuine(headers, Buffer.from(body, "base64"));\n'
        "process.stdout.write(JSON.stringify(JSON.parse(readFileSync(0)).map(answer)));\n"
    )
    asked = json.dumps([(headers, base64.b64encode(body).decode()) for headers, body in cases]).encode()
    command = ["node", str(folder / "ask.mjs")]
    return list(json.loads(subprocess.run(command, input=asked, capture_output=True, check=True, timeout=60).stdout))


# Node is no requirement of ours: its code is tried where there is one.
WAYS = {"python 0": by_package, "python 1": by_hand} | ({"js 0": by_node} if shutil.which("node") else {})


@pytest.mark.parametrize("way", WAYS)
def test_the_code_tells_what_is_genuine(way: str, tmp_path: Path) -> None:
    """Each way takes what the outbox signs, by either secret of a rotation, and nothing else."""
    kind, _, number = way.partition(" ")
    good, bad = posts()
    found = WAYS[way](with_secret(CODE[kind][int(number)]), [*good, *bad], tmp_path)
    assert found == [True] * len(good) + [False] * len(bad)


def test_no_code_is_left_out() -> None:
    """There is no more code on the page than what is tried."""
    assert {kind: len(blocks) for kind, blocks in CODE.items()} == {"python": 2, "js": 1}
