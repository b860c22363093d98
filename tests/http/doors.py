"""What tests of the doors for Evolution API servers share: the ways in, and a client that shows what it is told to."""

import json

import aiohttp

from tests.harness import API_KEY, INGEST_TOKEN, Reply, Service

TOKEN_PATH = f"/ingest/{INGEST_TOKEN}"
ROUTES: list[tuple[str, dict[str, str]]] = [
    (TOKEN_PATH, {}),
    (f"{TOKEN_PATH}/messages-upsert", {}),
    (f"{TOKEN_PATH}/", {}),
    ("/ingest", {"apikey": INGEST_TOKEN}),
    ("/ingest/messages-upsert", {"apikey": API_KEY}),
    ("/ingest/", {"authorization": f"Bearer {INGEST_TOKEN}"}),
    ("/ingest/send-message", {"authorization": f"bearer {API_KEY}"}),
]


def event(data: object, **members: object) -> bytes:
    """An envelope as a server sends it."""
    return json.dumps({"event": "messages.upsert", "instance": "loja01", "data": data, **members}).encode()


async def post(service: Service, path: str, body: bytes, headers: dict[str, str] | None = None) -> Reply:
    """Post with exactly these headers, no API key among them."""
    sent = {"content-type": "application/json", **(headers or {})}
    async with (
        aiohttp.ClientSession() as session,
        session.post(service.address + path, data=body, headers=sent) as answer,
    ):
        named = {name.lower(): value for name, value in answer.headers.items()}
        return Reply(answer.status, named, await answer.read())
