import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from http import HTTPMethod
from pathlib import Path
from typing import Any, cast

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from litestar.routes import HTTPRoute
from schemathesis import Case
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Ok

from app.asgi import create_framework
from app.routes.ingest import Ingest
from app.security import Keys
from outbox.engine import Engine
from tests.harness import API_KEY, INGEST_TOKEN, Receiver, Service, running

EXAMPLES = 8
# Each is asked of every answer; the ones that are not here need a session of requests that build on each other.
CHECKED = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)
ENDLESS = "/log/stream"
PRUNE = "/maintenance/prune"
IN_ORDER = ("PUT", "POST", "GET", "DELETE")
WEBHOOK = "wh_1"
REPLAYS: dict[str, dict[str, Any]] = {
    "/events/replay": {"webhook": WEBHOOK},
    "/deliveries/replay": {"webhook": WEBHOOK},
    "/deliveries/{delivery_id}/replay": {"acknowledged": True},
}
GOOD_EVENT: dict[str, Any] = {"event": "messages.upsert", "instance": "loja01", "data": {}}


# Litestar 3 wants dependencies to be marked; until then it finds them by their names.
pytestmark = pytest.mark.filterwarnings("ignore:.*Inferred dependency")


async def document(service: Service) -> Any:
    """Return the OpenAPI document."""
    reply = await service.request("GET", "/schema")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    return reply.json()


def routes() -> Iterator[tuple[str, str]]:
    """Yield method and path of every route that the framework serves, but for those that only say no."""
    framework = create_framework(cast("Engine", None), Keys("an-api-key", "an-ingest-token"))
    for route in framework.routes:
        if isinstance(route, HTTPRoute):
            for method, (handler, _) in route.route_handler_map.items():
                if method != "OPTIONS" and handler.include_in_schema is not False:
                    yield method.lower(), route.path_format


async def test_every_route_is_in_the_document(tmp_path: Path) -> None:
    """What the framework serves, and what is served in front of it, is described, and nothing else."""
    async with running(tmp_path) as service:
        paths = (await document(service))["paths"]
    described = {(method, path) for path, methods in paths.items() for method in methods}
    in_front = {(method, path) for method, path in described if (method, path) not in set(routes())}
    assert set(routes()) <= described
    assert in_front == {
        ("post", path)
        for path in ("/events", "/events/batch", "/ingest", "/ingest/{token}", "/ingest/{token}/{suffix}")
    }
    for method, path in described:
        scope = {"type": "http", "method": method.upper(), "path": path}
        assert Ingest.serves(scope) == ((method, path) in in_front), path


async def test_the_document_needs_the_key(tmp_path: Path) -> None:
    """Without the API key there is no document; with it, it says how the key is shown and where none is needed."""
    async with running(tmp_path) as service:
        assert (await service.request("GET", "/schema", headers={"apikey": "wrong-key"})).status == 401
        shown = await document(service)
    assert shown["openapi"].startswith("3.1")
    assert shown["components"]["securitySchemes"]["apikey"] == {"type": "apiKey", "in": "header", "name": "apikey"}
    for path, methods in shown["paths"].items():
        for operation in methods.values():
            assert (operation["security"] == [{}]) == path.startswith("/health/"), path
            assert ("401" in operation["responses"]) == ({} not in operation["security"] or "/ingest" in path), path


async def test_routes_that_take_events_say_what_they_may_answer(tmp_path: Path) -> None:
    """Bodies, headers and all statuses of the routes in front of the framework are described."""
    async with running(tmp_path) as service:
        paths = (await document(service))["paths"]
    event, batch, ingest = (paths[path]["post"] for path in ("/events", "/events/batch", "/ingest/{token}"))
    everywhere = {"202", "400", "401", "408", "413", "415", "422", "500", "503", "508"}
    assert set(event["responses"]) == set(batch["responses"]) == everywhere | {"409"}
    assert set(ingest["responses"]) == everywhere
    assert set(batch["requestBody"]["content"]) == {"application/json", "application/x-ndjson"}
    assert {parameter["name"] for parameter in event["parameters"]} == {"Idempotency-Key", "x-outbox-hops"}
    for operation in (event, batch, ingest):
        assert "retry-after" in operation["responses"]["503"]["headers"]
        assert set(operation["responses"]["422"]["content"]) == {"application/problem+json"}


async def test_all_routes_keep_what_the_document_promises(tmp_path: Path) -> None:
    """Good and bad requests, made from the document, get the statuses, types, headers and bodies it promises."""
    async with Receiver() as receiver, running(tmp_path) as service:
        known = {"token": INGEST_TOKEN, "instance": "loja01", "name": "second"}
        await service.set_webhook("kept", receiver.url)
        known["event_id"] = await service.accept(instance="kept")
        known["delivery_id"] = f"dlv_{known['event_id'].removeprefix('evt_')}_{WEBHOOK.removeprefix('wh_')}"
        reply = await service.request("POST", f"/deliveries/{known['delivery_id']}/replay", {"acknowledged": True})
        known["replay_id"] = reply.json()["id"]
        answered = await asyncio.to_thread(_ask_everything, service, await document(service), known, receiver.url)
        assert not [line for line in service.log if line["level"] == "error"]
    never_well = [label for label, statuses in answered.items() if not [status for status in statuses if status < 300]]
    assert never_well == []


def _ask_everything(service: Service, described: Any, known: dict[str, str], url: str) -> dict[str, Counter[int]]:
    """Ask every operation; return the statuses each answered with. Raises what a check finds."""
    load_all_checks()
    schema = schemathesis.openapi.from_dict(described)
    schema.validate()
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    # A prune takes away what others ask for.
    operations.sort(key=lambda operation: (operation.path == PRUNE, IN_ORDER.index(operation.method.upper())))
    answered: dict[str, Counter[int]] = {}
    with requests.Session() as session:
        session.trust_env = False
        for operation in operations:
            if operation.path == ENDLESS:
                continue
            statuses = answered[operation.label] = Counter()
            for mode in schemathesis.GenerationMode:
                if mode.is_negative and not (operation.query or operation.headers or operation.body):
                    continue
                ask = _asker(service, session, statuses, known if mode.is_positive else {}, url)
                _examples(operation.as_strategy(generation_mode=mode), ask)
    return answered


def _asker(
    service: Service, session: requests.Session, statuses: Counter[int], known: dict[str, str], url: str
) -> Callable[[Case[Any]], None]:
    """Return what asks one question; where there are `known` values, every second one has them, and a good body."""
    checks: list[Any] = [CHECKS.get_one(name) for name in CHECKED]

    def ask(case: Case[Any]) -> None:
        if known and sum(statuses.values()) % 2 == 0:
            for name in case.path_parameters or {}:
                case.path_parameters[name] = known.get(name, case.path_parameters[name])
            _mend(case, url)
        answer = case.call(base_url=service.address, session=session, headers={"apikey": API_KEY}, timeout=20)
        statuses[answer.status_code] += 1
        assert answer.status_code != 500
        case.validate_response(answer, checks=checks, headers={"apikey": API_KEY})

    return ask


def _mend(case: Case[Any], url: str) -> None:
    """Make a body that has the right shape one that means something: a kind that is known, a URL that answers."""
    if case.path in REPLAYS:
        case.body = dict(REPLAYS[case.path])
    elif case.path.startswith(("/events", "/ingest")) and case.method == HTTPMethod.POST:
        if case.media_type == "application/x-ndjson":
            case.body = '{"event": "call", "instance": "loja01", "data": 1}\n'
        else:
            case.body = [GOOD_EVENT] if case.path == "/events/batch" else dict(GOOD_EVENT)
        case.headers.pop("Idempotency-Key", None)
    elif isinstance(case.body, dict):
        case.body = {"webhook": {"url": url, "enabled": True}} if "webhook" in case.path.split("/") else {"url": url}


def _examples(strategy: Any, ask: Callable[[Case[Any]], None]) -> None:
    """Ask some questions, the same ones every time."""

    @hypothesis_settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=strategy)
    def examples(case: Case[Any]) -> None:
        ask(case)

    examples()


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_health_needs_no_key(tmp_path: Path, path: str) -> None:
    """What the document says of health holds: no key is needed."""
    async with running(tmp_path) as service:
        assert (await service.request("GET", path, headers={"apikey": ""})).status == 200
