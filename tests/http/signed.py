"""What tests of signatures share: secrets, and a look at arrivals through the reference implementation's eyes."""

import base64
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from tests.harness import Arrival, Reply, Service


def written(name: str) -> str:
    """Return a secret made of a name."""
    return "whsec_" + base64.b64encode(name.encode().ljust(32, b"-")).decode()


def verifies(arrival: Arrival, secret: str) -> bool:
    """Say whether a receiver that knows `secret` takes the POST, by the reference implementation."""
    try:
        Webhook(secret).verify(arrival.body, arrival.headers, json_parse=False)
    except WebhookVerificationError as refused:
        if str(refused) != "No matching signature found":
            raise
        return False
    return True


def signatures(arrival: Arrival) -> list[str]:
    """Return the signatures that stand in its header, in their order."""
    return arrival.headers["webhook-signature"].split(" ")


async def put(service: Service, path: str, **settings: Any) -> Reply:
    """Set a webhook over our own face."""
    return await service.request("PUT", f"/webhooks/{path}", settings)


def alone(arrival: Arrival, signature: str) -> Arrival:
    """Return an arrival with one of its signatures and no other."""
    return Arrival(arrival.path, arrival.headers | {"webhook-signature": signature}, arrival.body)
