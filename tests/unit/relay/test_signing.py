import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as Referee
from standardwebhooks import WebhookVerificationError

from outbox.domain.rotating import read_secret, write_secret
from outbox.domain.webhooks import Credentials
from outbox.relay.signing import identity

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "signatures.json").read_text())
SECRETS = st.binary(min_size=24, max_size=64)
BODIES = st.text().map(str.encode) | st.dictionaries(st.text(), st.text()).map(
    lambda members: json.dumps(members).encode()
)
# To HMAC, zeros at a key's end are nothing.
THREE_SECRETS = st.lists(SECRETS, min_size=3, max_size=3, unique_by=lambda secret: secret.rstrip(b"\0"))
MINUTE_MS = 60_000


def credentials(*secrets: bytes, until_ms: int = 2**62) -> Credentials:
    """Return credentials with a secret, and perhaps the one before it."""
    newest, previous = (*secrets, b"")[:2]
    return Credentials(secret=newest, previous_secret=previous, previous_until_ms=until_ms if previous else 0)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["webhook-id"])
def test_signatures_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    """One signature for one secret, and two, the newest first, for two."""
    held = credentials(*map(read_secret, vector.get("secrets") or [vector["secret"]]))
    headers = identity(
        held, vector["webhook-id"], vector["body"].encode(), int(vector["webhook-timestamp"]) * 1000 + 999
    )
    assert headers == {name: vector[name] for name in headers}
    assert set(headers) == {"webhook-id", "webhook-timestamp", "webhook-signature"}


@given(THREE_SECRETS, st.booleans(), BODIES, st.integers(-4 * MINUTE_MS, 4 * MINUTE_MS))
def test_the_reference_implementation_verifies_what_we_sign(
    secrets: list[bytes],
    rotating: bool,  # noqa: FBT001
    body: bytes,
    shift_ms: int,
) -> None:
    """With each active secret; not with another one, nor another body, time or id."""
    now_ms = time.time_ns() // 1_000_000 + shift_ms
    *active, other = secrets if rotating else secrets[1:]
    headers = identity(credentials(*active), "evt_1", body, now_ms)
    for secret in active:
        referee = Referee(write_secret(secret))
        referee.verify(body, headers, json_parse=False)
        other_time = str(int(headers["webhook-timestamp"]) + 1)
        for changed in ({"webhook-id": "evt_2"}, {"webhook-timestamp": other_time}):
            with pytest.raises(WebhookVerificationError, match="No matching"):
                referee.verify(body, headers | changed, json_parse=False)
        with pytest.raises(WebhookVerificationError, match="No matching"):
            referee.verify(body + b" ", headers, json_parse=False)
    with pytest.raises(WebhookVerificationError, match="No matching"):
        Referee(write_secret(other)).verify(body, headers, json_parse=False)


def test_a_previous_secret_signs_up_to_its_time() -> None:
    """The attempt's time decides, not the time of the event or of the setting."""
    held = credentials(b"n" * 32, b"o" * 32, until_ms=5000)
    both, one = (identity(held, "evt_1", b"{}", now_ms)["webhook-signature"].split(" ") for now_ms in (4999, 5000))
    assert (len(both), len(one)) == (2, 1)
    assert one[0] == identity(credentials(b"n" * 32), "evt_1", b"{}", 5000)["webhook-signature"]


def test_without_a_secret_nothing_is_signed() -> None:
    """Id and time are there all the same."""
    assert identity(Credentials(), "evt_1", b"{}", 1999) == {"webhook-id": "evt_1", "webhook-timestamp": "1"}
