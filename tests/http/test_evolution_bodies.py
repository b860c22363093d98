"""The bodies that three generations of Evolution API set a webhook with: told by their shape, answered in one form."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.harness import Reply, Service, running
from tests.http.support import CATALOGUE, Shown, stats

URL = "https://93.184.215.14/w"
ROW = [
    "id", "url", "headers", "enabled", "events", "webhookByEvents", "webhookBase64",
    "createdAt", "updatedAt", "instanceId",
]  # fmt: skip
SPELLINGS = {
    "GROUP_UPDATE": "GROUPS_UPDATE", "GROUPS_UPDATE": "GROUPS_UPDATE", "NEW_JWT_TOKEN": "NEW_TOKEN",
    "NEW_TOKEN": "NEW_TOKEN", "new.jwt": "NEW_TOKEN", "SEND_MESSAGES": "SEND_MESSAGE", "SEND_MESSAGE": "SEND_MESSAGE",
    "messages-upsert": "MESSAGES_UPSERT", "messages.upsert": "MESSAGES_UPSERT", "message.upsert": "MESSAGES_UPSERT",
    "/messages-upsert": "MESSAGES_UPSERT", "group-participants.update": "GROUP_PARTICIPANTS_UPDATE",
    "GROUPS_PARTICIPANTS_UPDATE": "GROUP_PARTICIPANTS_UPDATE", "CHAMA_AI_ACTION": "CHAMA_AI_ACTION",
    "typebot.change-status": "TYPEBOT_CHANGE_STATUS", "Qrcode.Updated": "QRCODE_UPDATED",
}  # fmt: skip

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service for all tests here: each has an instance of its own."""
    async with running(tmp_path_factory.mktemp("service")) as service:
        yield service


def nested(**members: Any) -> Shown:
    """The body of v2, 2.1 and later."""
    names = {"by_events": "byEvents"}
    return {"webhook": {names.get(name, name): value for name, value in members.items()}}


def camel(**members: Any) -> Shown:
    """The body of 2.0."""
    names = {"by_events": "webhookByEvents", "base64": "webhookBase64"}
    return {names.get(name, name): value for name, value in members.items()}


def snake(**members: Any) -> Shown:
    """The body of v1."""
    names = {"by_events": "webhook_by_events", "base64": "webhook_base64"}
    return {names.get(name, name): value for name, value in members.items()}


BODIES = pytest.mark.parametrize("body", [nested, camel, snake])


async def post(service: Service, instance: str, body: Shown) -> Reply:
    """Set the webhook of an instance."""
    return await service.request("POST", f"/webhook/set/{instance}", body)


async def row(service: Service, instance: str, body: Shown) -> Shown:
    """Set the webhook of an instance, and return the row, which `find` shows too."""
    reply = await post(service, instance, body)
    assert reply.status == 201, reply
    assert (await service.request("GET", f"/webhook/find/{instance}")).json() == reply.json()
    shown: Shown = reply.json()
    assert list(shown) == ROW
    return shown


async def refusal(service: Service, body: Shown) -> str:
    """Assert that a body is refused in the form of Evolution API, and return the detail."""
    before = await stats(service)
    reply = await post(service, "refused", body)
    shown = reply.json()
    assert (reply.status, shown["status"], shown["error"]) == (422, 422, "Unprocessable Entity"), (body, reply)
    assert shown["response"] == {"message": [[shown["detail"]]]}
    assert (await service.request("GET", "/webhook/find/refused")).body == b"null"
    assert await stats(service) == before
    return str(shown["detail"])


@BODIES
async def test_every_body_sets_everything_and_gets_the_v2_row(service: Service, body: Any) -> None:
    """All three set url, enabled, events and both switches; what comes back is v2's row, status 201."""
    name = f"all-{body.__name__}"
    events = ["CALL", "messages.upsert"]
    shown = await row(service, name, body(url=URL, enabled=False, events=events, by_events=True, base64=True))
    assert (shown["url"], shown["enabled"], shown["events"]) == (URL, False, ["MESSAGES_UPSERT", "CALL"])
    assert (shown["webhookByEvents"], shown["webhookBase64"], shown["headers"]) == (True, True, None)
    assert shown["instanceId"] == name
    again = await row(service, name, body(url=f"{URL}2", enabled=True, by_events=False, base64=False, events=[]))
    assert (again["url"], again["enabled"], again["events"]) == (f"{URL}2", True, [])
    assert (again["webhookByEvents"], again["webhookBase64"], again["id"]) == (False, False, shown["id"])


@BODIES
async def test_what_a_body_omits_stays(service: Service, body: Any) -> None:
    """Omitted headers and switches keep their value, and are null, false and false in a new webhook; events are all."""
    name = f"omits-{body.__name__}"
    new = await row(service, name, body(url=URL, enabled=True))
    assert (new["headers"], new["webhookByEvents"], new["webhookBase64"], new["events"]) == (None, False, False, [])
    full = body(url=URL, enabled=True, by_events=True, base64=True, headers={"x-a": "1"}, events=["CALL"])
    await row(service, name, full)
    kept = await row(service, name, body(url=URL, enabled=True))
    assert (kept["headers"], kept["webhookByEvents"], kept["webhookBase64"]) == ({"x-a": "***"}, True, True)
    assert kept["events"] == []
    one = await row(service, name, body(url=URL, enabled=True, base64=False))
    assert (one["webhookByEvents"], one["webhookBase64"]) == (True, False)


async def test_what_only_our_own_face_sets_stays_too(service: Service) -> None:
    """Settings that Evolution API has no words for outlive its way of setting the rest."""
    own = {"route_style": "evolution", "concurrency": 3, "timeout_ms": 900}
    await service.set_webhook("own", URL, **own)
    await row(service, "own", nested(url=URL, enabled=True))
    shown = (await service.request("GET", "/webhooks/instances/own")).json()
    assert {name: shown[name] for name in own} == own


async def test_a_row_sent_back_changes_nothing(service: Service) -> None:
    """The row that `find` shows is itself a body of 2.0: sent back, it leaves everything as it was."""
    body = nested(url=URL, enabled=False, by_events=True, base64=True, headers={"X-Key": "k"}, events=["CALL"])
    shown = await row(service, "back", body)
    again = await row(service, "back", shown)
    assert again == shown | {"updatedAt": again["updatedAt"]}


async def test_enabled_may_be_left_out_in_v1_only(service: Service) -> None:
    """v1 takes an absent `enabled` for true; the others name it, in Evolution's own words."""
    assert (await row(service, "v1", {"url": URL, "webhook_by_events": True}))["enabled"] is True
    assert (await row(service, "v1", {"url": URL}))["enabled"] is True
    detail = await refusal(service, {"webhook": {"url": URL}})
    assert 'webhook requires property "enabled"' in detail
    assert "`$.webhook.enabled`" in detail
    assert "`$.enabled`" in await refusal(service, {"url": URL, "webhookByEvents": True})


@BODIES
async def test_a_disabled_webhook_keeps_its_url_or_has_none(service: Service, body: Any) -> None:
    """`enabled: false` stores the url that came, which may be empty; a url itself is required."""
    name = f"off-{body.__name__}"
    switches = {"by_events": False}
    assert (await row(service, name, body(url=URL, enabled=False, **switches)))["url"] == URL
    assert (await row(service, name, body(url="", enabled=False, **switches)))["url"] == ""
    at = "$.webhook.url" if body is nested else "$.url"
    assert f"`{at}`" in await refusal(service, body(url="", enabled=True, **switches))
    assert f"`{at}`" in await refusal(service, body(enabled=True, **switches))


@BODIES
async def test_unknown_members_are_ignored(service: Service, body: Any) -> None:
    """Whatever their type; a switch in another generation's words is an unknown member."""
    name = f"odd-{body.__name__}"
    sent = body(url=URL, enabled=True, by_events=True, local=False, webhookUrl=7, nothing=None)
    shown = await row(service, name, sent | {"instance": ["x"], "webhook-": 1})
    assert shown["webhookByEvents"] is True
    inner = nested(url=URL, enabled=True, webhookBase64=True, webhook_by_events=True)
    shown = await row(service, f"{name}2", inner | {"webhookByEvents": True, "enabled": "x"})
    assert (shown["webhookByEvents"], shown["webhookBase64"]) == (False, False)


@BODIES
async def test_a_content_type_header_is_ignored(service: Service, body: Any) -> None:
    """Clients send it by habit: it is taken and not kept, in any case of letters; other reserved ones are refused."""
    name = f"typed-{body.__name__}"
    headers = {"content-type": "application/json", "x-a": "1"}
    assert (await row(service, name, body(url=URL, enabled=True, headers=headers)))["headers"] == {"x-a": "***"}
    titled = body(url=URL, enabled=True, headers={"Content-Type": "x"})
    assert (await row(service, name, titled))["headers"] is None
    at = "$.webhook.headers.content-length" if body is nested else "$.headers.content-length"
    sent = body(url=URL, enabled=True, by_events=False, headers={"content-length": "1"})
    assert f"`{at}`" in await refusal(service, sent)


@BODIES
async def test_events_in_any_spelling(service: Service, body: Any) -> None:
    """Names of all generations and of clients in use are kinds; unknown ones are refused with their place."""
    name = f"spelled-{body.__name__}"
    for spelling, kind in SPELLINGS.items():
        assert (await row(service, name, body(url=URL, enabled=True, events=[spelling])))["events"] == [kind], spelling
    everything = [entry["name"] for entry in CATALOGUE]
    shown = await row(service, name, body(url=URL, enabled=True, events=everything))
    assert sorted(shown["events"]) == sorted(everything)
    at = "$.webhook.events[1]" if body is nested else "$.events[1]"
    detail = await refusal(service, body(url=URL, enabled=True, by_events=False, events=["CALL", "MESSAGES_UPZERT"]))
    assert (f"`{at}`" in detail, "MESSAGES_UPSERT" in detail) == (True, True)


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({}, "$.url"), ({"webhook": {}}, "$.webhook.enabled"), ({"webhook": URL}, "$.webhook"),
        ({"webhook": None}, "$.webhook"), ({"webhook": [], "url": URL}, "$.webhook"), ({"url": 7}, "$.url"),
        ({"url": URL, "webhook_by_events": "true"}, "$.webhook_by_events"),
        ({"url": URL, "enabled": True, "webhookBase64": None}, "$.webhookBase64"),
        ({"url": URL, "enabled": 1}, "$.enabled"), ({"url": URL, "events": None}, "$.events"),
        ({"url": "http://10.0.0.1"}, "$.url"), (nested(url="http://10.0.0.1", enabled=True), "$.webhook.url"),
        (nested(url="nope", enabled=True), "$.webhook.url"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named_where_it_stands(service: Service, body: Shown, at: str) -> None:
    """The path leads into the very body that was sent, whichever of the three it is."""
    assert f"- at `{at}`" in await refusal(service, body)


async def test_an_instance_without_a_webhook_has_null(service: Service) -> None:
    """`find` answers 200 and null; no instance is unknown."""
    reply = await service.request("GET", "/webhook/find/never-seen")
    assert (reply.status, reply.body) == (200, b"null")
    assert reply.headers["content-type"].startswith("application/json")


async def test_a_mask_with_nothing_behind_it_is_refused(service: Service) -> None:
    """`***` keeps what is there, in any case of letters; where there is nothing it would be sent as it stands."""
    await row(service, "mask", nested(url=URL, enabled=True, headers={"X-Key": "k"}))
    shown = await row(service, "mask", nested(url=URL, enabled=True, headers={"x-key": "***"}))
    assert shown["headers"] == {"x-key": "***"}
    reply = await post(service, "mask", nested(url=URL, enabled=True, headers={"x-other": "***"}))
    assert (reply.status, "`$.webhook.headers.x-other`" in reply.json()["detail"]) == (422, True)
    reply = await post(service, "mask", nested(url="http://ana:***@93.184.215.14/", enabled=True))
    assert (reply.status, "`$.webhook.url`" in reply.json()["detail"]) == (422, True)
