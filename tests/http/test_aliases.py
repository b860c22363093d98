"""Every name that documentation, servers and clients have for a kind means that kind, wherever a kind is read."""

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from app.settings import load_settings
from tests.harness import ROOT, Receiver, Service, running
from tests.http.doors import TOKEN_PATH
from tests.http.support import CATALOGUE, lines

NOT_THERE = ROOT / "no-such-file.env"
SERVER_ENUM = """
    APPLICATION_STARTUP QRCODE_UPDATED MESSAGES_SET MESSAGES_UPSERT MESSAGES_EDITED MESSAGES_UPDATE MESSAGES_DELETE
    SEND_MESSAGE SEND_MESSAGE_UPDATE CONTACTS_SET CONTACTS_UPSERT CONTACTS_UPDATE PRESENCE_UPDATE CHATS_SET CHATS_UPSERT
    CHATS_UPDATE CHATS_DELETE GROUPS_UPSERT GROUP_UPDATE GROUP_PARTICIPANTS_UPDATE CONNECTION_UPDATE LABELS_EDIT
    LABELS_ASSOCIATION CALL TYPEBOT_START TYPEBOT_CHANGE_STATUS REMOVE_INSTANCE LOGOUT_INSTANCE INSTANCE_CREATE
    INSTANCE_DELETE STATUS_INSTANCE MESSAGING_HISTORY_SET NEW_JWT_TOKEN CHAMA_AI_ACTION
""".split()  # noqa: SIM905 - it is read more easily
"""What servers of the 1.8 and 2.x lines have in their enumerations, and so what clients send in a list of events."""

MEANT = {
    "message.set": "MESSAGES_SET",
    "message.upsert": "MESSAGES_UPSERT",
    "message.update": "MESSAGES_UPDATE",
    "message.delete": "MESSAGES_DELETE",
    "messages.upsert": "MESSAGES_UPSERT",
    "/send-messages": "SEND_MESSAGE",
    "/send-message": "SEND_MESSAGE",
    "/groups-participants-update": "GROUP_PARTICIPANTS_UPDATE",
    "/group-participants-update": "GROUP_PARTICIPANTS_UPDATE",
    "/new-token": "NEW_TOKEN",
    "/new-jwt": "NEW_TOKEN",
    "new.jwt": "NEW_TOKEN",
    "NEW_TOKEN": "NEW_TOKEN",
    "NEW_JWT_TOKEN": "NEW_TOKEN",
    "GROUPS_UPDATE": "GROUPS_UPDATE",
    "GROUP_UPDATE": "GROUPS_UPDATE",
    "groups.update": "GROUPS_UPDATE",
    "group-participants.update": "GROUP_PARTICIPANTS_UPDATE",
    "typebot.change-status": "TYPEBOT_CHANGE_STATUS",
    "messaging-history.set": "MESSAGING_HISTORY_SET",
    "chama-ai.action": "CHAMA_AI_ACTION",
}
"""Where documentation and servers disagree: both names, and what is meant."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Spelling(NamedTuple):
    """One name of a kind."""

    kind: str
    text: str


def spellings() -> list[Spelling]:
    """Every name that the catalogue has for every kind, in several cases."""
    columns = ("name", "api_event", "suffix", "evolution_event", "evolution_suffix")
    found = set()
    for entry in CATALOGUE:
        for name in [*(entry[column] for column in columns), *entry["aliases"]]:
            found |= {Spelling(entry["name"], text) for text in (name, name.lower(), name.upper(), name.title())}
    return sorted(found)


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service for all tests; each has instances of its own."""
    async with running(tmp_path_factory.mktemp("service")) as service:
        yield service


async def set_as_servers_do(service: Service, instance: str, webhook: dict[str, Any]) -> Any:
    """Set a webhook over Evolution's own route and return the row."""
    reply = await service.request("POST", f"/webhook/set/{instance}", {"webhook": {"enabled": True, **webhook}})
    assert reply.status == 201, reply
    return reply.json()


async def test_the_names_are_many() -> None:
    """The list that the tests here go through holds all kinds, and what is known to be said of them."""
    texts = {spelling.text: spelling.kind for spelling in spellings()}
    assert set(texts.values()) == {entry["name"] for entry in CATALOGUE}
    assert all(texts[name] == kind for name, kind in MEANT.items())
    assert set(SERVER_ENUM) <= set(texts)


async def test_any_name_subscribes(service: Service) -> None:
    """Over our own route and over Evolution's, one name each and all at once, what is shown is canonical."""
    url = "https://93.184.215.14/w"
    for kind, text in spellings():
        reply = await service.request("PUT", "/webhooks/instances/names", {"url": url, "events": [text]})
        assert reply.json()["events"] == [kind], text
        row = await set_as_servers_do(service, "names", {"url": url, "events": [text, kind]})
        assert row["events"] == [kind], text
    everything = [text for _, text in spellings()]
    reply = await service.request("PUT", "/webhooks/instances/names", {"url": url, "events": everything})
    assert reply.json()["events"] == [entry["name"] for entry in CATALOGUE]
    row = await set_as_servers_do(service, "names", {"url": url, "events": SERVER_ENUM})
    assert row["events"] == [entry["name"] for entry in CATALOGUE]
    found = (await service.request("GET", "/webhook/find/names")).json()
    assert found["events"] == row["events"]


async def test_any_name_switches_the_global_webhook() -> None:
    """WEBHOOK_EVENTS_<KIND> may have any name too; of two names for one kind, the one that is true counts."""
    for kind, text in spellings():
        settings = load_settings({f"WEBHOOK_EVENTS_{text.removeprefix('/')}": "true"}, NOT_THERE)
        assert [name for name, value in settings.kinds.items() if value.meaning] == [kind], text
        assert not settings.warnings
    for one, other in (("GROUP_UPDATE", "GROUPS_UPDATE"), ("NEW_TOKEN", "NEW_JWT_TOKEN")):
        for values in (("true", "false"), ("false", "true")):
            switches = dict(zip((f"WEBHOOK_EVENTS_{one}", f"WEBHOOK_EVENTS_{other}"), values, strict=True))
            assert [value.meaning for value in load_settings(switches, NOT_THERE).kinds.values()] == [True]
    for name in ("ERRORS", "ERRORS_WEBHOOK"):
        settings = load_settings({f"WEBHOOK_EVENTS_{name}": "https://e.test"}, NOT_THERE)
        assert not settings.kinds
        assert name in settings.warnings[0]


async def test_subscribed_under_any_name_an_event_of_any_name_arrives(service: Service) -> None:
    """A webhook set with one name of a kind gets the events that servers send under another, and no others."""
    async with Receiver() as receiver:
        names: dict[str, list[str]] = {}
        for kind, text in spellings():
            names.setdefault(kind, []).append(text)
        expected = {}
        for kind, texts in names.items():
            instance = f"only-{kind}"
            (other,) = [entry["evolution_event"] for entry in CATALOGUE[:2] if entry["name"] != kind][:1]
            for number, text in enumerate(texts):
                await service.set_webhook(instance, receiver.url, events=[texts[number - 1]])
                await service.accept(other, instance)
                expected[await service.accept(text, instance)] = text
        await service.wait_until_settled()
        assert {arrival.webhook_id: arrival.json()["event"] for arrival in receiver.arrivals} == expected
        assert len(receiver.arrivals) == len(expected)


@pytest.mark.parametrize("subscribed", ["GROUP_UPDATE", "GROUPS_UPDATE", "group.update", "groups-update"])
@pytest.mark.parametrize("style", ["documented", "evolution"])
async def test_group_updates_are_delivered(service: Service, subscribed: str, style: str) -> None:
    """What no Evolution server ever delivers, since its two names for it differ, arrives here under either."""
    (body,) = [line for line in lines("events.jsonl") if json.loads(line)["event"] == "groups.update"]
    instance = f"groups-{subscribed.replace('.', '-')}-{style}"
    async with Receiver() as receiver:
        await set_as_servers_do(service, instance, {"url": receiver.url, "byEvents": True, "events": [subscribed]})
        if style == "evolution":
            settings = {"url": receiver.url, "by_events": True, "events": [subscribed], "route_style": style}
            assert (await service.request("PUT", f"/webhooks/instances/{instance}", settings)).status == 200
        sent = body.replace(b"loja01", instance.encode())
        reply = await service.request("POST", f"{TOKEN_PATH}/groups-update", sent)
        assert (reply.status, reply.json()["deliveries"]) == (202, 1)
        (arrival,) = await receiver.wait_for_count(1)
        assert arrival.path == "/groups-update"
        assert arrival.json()["event"] == "groups.update"


async def test_the_documented_example_of_a_trailing_slash(service: Service) -> None:
    """`https://sub.domain.com/webhook/` leads to `/webhook/qrcode-updated`, as documented, and to no double slash."""
    async with Receiver() as receiver:
        await set_as_servers_do(service, "slash", {"url": f"{receiver.url}/webhook/", "byEvents": True, "events": []})
        await service.accept("qrcode.updated", "slash")
        (arrival,) = await receiver.wait_for_count(1)
        assert arrival.path == "/webhook/qrcode-updated"


async def test_what_an_sdk_sends_by_mistake(service: Service) -> None:
    """A flat body with the names of the documentation, which v2 servers refuse, sets the webhook that was meant."""
    body = {
        "enabled": True, "url": "https://93.184.215.14/w", "webhookByEvents": False, "webhookBase64": False,
        "events": ["NEW_TOKEN", "GROUPS_UPDATE", "APPLICATION_STARTUP", "CONTACTS_SET", "SEND_MESSAGES"],
    }  # fmt: skip
    reply = await service.request("POST", "/webhook/set/sdk", body)
    assert reply.status == 201, reply
    assert set(reply.json()["events"]) == {
        "APPLICATION_STARTUP", "SEND_MESSAGE", "CONTACTS_SET", "GROUPS_UPDATE", "NEW_TOKEN",
    }  # fmt: skip


async def test_what_is_no_name_of_a_kind_names_the_nearest(service: Service) -> None:
    """A typing error is refused on our own routes, with the name that was probably meant, and the old list stays."""
    webhook = {"url": "https://93.184.215.14/w", "events": ["MESSAGES_UPSERT"]}
    await set_as_servers_do(service, "typo", webhook)
    for text, nearest in (
        ("MESSAGE_UPSET", "MESSAGES_UPSERT"),
        ("group.updates", "GROUPS_UPDATE"),
        ("qr.code", "QRCODE"),
    ):
        for method, path, body in (
            ("PUT", "/webhooks/instances/typo", webhook | {"events": ["CALL", text]}),
            ("POST", "/webhook/set/typo", {"webhook": {"enabled": True, **webhook, "events": ["CALL", text]}}),
            ("POST", "/events", {"event": text, "instance": "typo", "data": {}}),
        ):
            reply = await service.request(method, path, body)
            assert reply.status == 422
            assert nearest in reply.json()["detail"]
    assert (await service.request("GET", "/webhook/find/typo")).json()["events"] == ["MESSAGES_UPSERT"]
