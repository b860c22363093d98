import hashlib

import msgspec
import pytest

from outbox.domain.projecting import WebhookRow
from outbox.domain.webhooks import Credentials, Settings, Webhook
from outbox.journal.ledger import load_webhooks

NONCE = bytes(range(16))
OLD, NEW = b"p" * 24, b"s" * 24
SECRET = "a6736563726574c418" + NEW.hex()
UNTIL = "b170726576696f75735f756e74696c5f6d73cf0000019a49003630"
# One of each as first written: the database of an earlier release must stay readable. Lines are only added.
WRITTEN = [
    ("81a76865616465727381a3782d61a131", Credentials(headers={"x-a": "1"})),
    ("81a875736572696e666fa3753a70", Credentials(userinfo="u:p")),
    (
        "82a76865616465727381a3782d61a131a875736572696e666fa3753a70",
        Credentials(headers={"x-a": "1"}, userinfo="u:p"),
    ),
    ("81" + SECRET, Credentials(secret=NEW)),
    (
        "83" + SECRET + "af70726576696f75735f736563726574c418" + OLD.hex() + UNTIL,
        Credentials(secret=NEW, previous_secret=OLD, previous_until_ms=1762161342000),
    ),
]


def load(material: bytes, fingerprint: bytes) -> Webhook:
    """Return a webhook with this material in the table of secrets and this fingerprint on record."""
    settings = msgspec.msgpack.encode(Settings(url="https://h.test/"))
    row = WebhookRow(7, "global", "", "", settings, "api", b"id", fingerprint, 1, 1, None)
    (webhook,) = load_webhooks([row], {b"id": material})
    assert webhook.secret_id == b"id"
    return webhook


@pytest.mark.parametrize(("packed", "credentials"), WRITTEN, ids=range(len(WRITTEN)))
def test_credentials_stay_readable(packed: str, credentials: Credentials) -> None:
    """What was ever written is read as it was meant, and written the same again."""
    material = NONCE + bytes.fromhex(packed)
    webhook = load(material, hashlib.sha256(material).digest())
    assert (webhook.credentials, webhook.damaged) == (credentials, False)
    assert msgspec.msgpack.encode(credentials).hex() == packed


def test_credentials_that_were_changed_are_not_used() -> None:
    """A secret of which one byte is another would sign what no receiver takes: the fingerprint shows it."""
    material = NONCE + bytes.fromhex(WRITTEN[3][0])
    webhook = load(material[:-1] + b"?", hashlib.sha256(material).digest())
    assert (webhook.credentials, webhook.damaged, webhook.holds) == (Credentials(), True, True)
