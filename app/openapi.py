"""The document behind `/schema`: OpenAPI 3.1, made of the routes themselves and of what they say of themselves.

JSON Schemas come from the structs that read and write the wire; a route that is not described shows up all the same.
"""

import inspect
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, get_args, get_origin

import msgspec
from litestar import Litestar, Response
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from msgspec import Struct

from app.describing import DESCRIPTION, PUBLIC, Answer, Operation, Parameter, ProblemOut
from app.problems import PROBLEM_JSON
from outbox import __version__

_REF = "#/components/schemas/{name}"
_IN_PATH = re.compile(r"{(\w+)}")
_PATH_PARAMETERS = {
    "instance": "the instance's name",
    "name": "the name of one of several webhooks of a scope",
    "event_id": "`evt_` and 32 hex digits",
    "delivery_id": "`dlv_`, 32 hex digits, `_` and a webhook's number",
    "replay_id": "`rpl_` and a number, or `cpy_` and 16 hex digits",
    "token": "the ingest token; or, where a header shows a key, the route suffix",
    "suffix": "the route suffix, which is ignored: the body's `event` decides",
}
_SECURITY = {
    "apikey": {"type": "apiKey", "in": "header", "name": "apikey"},
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "The API key. On `/ingest` also the ingest token, or an HS256 JWT signed with it.",
    },
}
_RETRY_AFTER = {"retry-after": {"description": "seconds after which a retry makes sense", "schema": {"type": "string"}}}


class Route(Struct, frozen=True):
    """One operation in its place; `text` is a summary and, after an empty line, more."""

    method: str
    path: str
    id: str
    text: str
    operation: Operation


def document(framework: Litestar, front: list[Route]) -> dict[str, Any]:
    """Return the OpenAPI document of the framework's routes and of those served in front of it."""
    routes = sorted([*_routes(framework), *front], key=lambda route: (route.path, route.method))
    schemas = _Schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Evolution Outbox", "version": __version__, "summary": "A persistent webhook relay"},
        "paths": paths,
        "components": {"schemas": schemas.components, "securitySchemes": _SECURITY},
    }


def _routes(framework: Litestar) -> Iterator[Route]:
    """Yield what the framework serves, but for the answers to OPTIONS that it makes by itself."""
    for route in framework.routes:
        if not isinstance(route, HTTPRoute):
            continue
        for method, (handler, _) in route.route_handler_map.items():
            if method != "OPTIONS" and handler.include_in_schema is not False:
                yield _route(method, route.path_format, handler)


def _route(method: str, path: str, handler: HTTPRouteHandler) -> Route:
    said: Operation = handler.opt.get(DESCRIPTION) or Operation()
    if not said.answers:
        usual = _usual_answer(handler)
        said = msgspec.structs.replace(said, answers={handler.status_code: usual})
    name = handler.fn.__name__
    if len(handler.paths) > 1:
        name += "_" + re.sub(r"\W+", "_", path).strip("_")
    return Route(method, path, name, inspect.getdoc(handler.fn) or "", said)


def _usual_answer(handler: HTTPRouteHandler) -> Answer:
    kind = handler.parsed_fn_signature.return_type.annotation
    if get_origin(kind) is Response:
        (kind,) = get_args(kind)
    return Answer(None if handler.status_code == HTTPStatus.NO_CONTENT else kind)


class _Schemas:
    """The JSON Schemas of all types that routes mention."""

    def __init__(self, routes: list[Route]) -> None:
        self._types: list[Any] = [ProblemOut]
        for route in routes:
            said = route.operation
            bodies = [kind for kinds in said.bodies.values() for kind in kinds]
            for kind in [*bodies, *[answer.body for answer in said.answers.values()], said.problem]:
                if kind is not None and kind not in self._types:
                    self._types.append(kind)
        self._schemas, self.components = msgspec.json.schema_components(self._types, ref_template=_REF)

    def of(self, *kinds: Any) -> dict[str, Any]:
        """Return the schema of a type, or of any of several."""
        found = [self._schemas[self._types.index(kind)] for kind in kinds]
        return found[0] if len(found) == 1 else {"anyOf": found}


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    said = route.operation
    summary, _, more = route.text.partition("\n\n")
    in_path = [
        Parameter(name, {"type": "string", "minLength": 1}, _PATH_PARAMETERS.get(name, name), "path", required=True)
        for name in _IN_PATH.findall(route.path)
    ]
    shown = {
        "operationId": route.id,
        "summary": summary.replace("\n", " "),
        "security": [{name: []} if name else {} for name in said.security],
        "parameters": [_parameter(parameter) for parameter in (*in_path, *said.parameters)],
        "responses": _responses(said, schemas),
    }
    if more:
        shown["description"] = more
    if said.bodies:
        content = {media: {"schema": schemas.of(*kinds)} for media, kinds in said.bodies.items()}
        shown["requestBody"] = {"required": not said.body_optional, "content": content}
    return shown


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required,
        "description": parameter.description,
        "schema": parameter.schema,
    }


def _responses(said: Operation, schemas: _Schemas) -> dict[str, Any]:
    shown: dict[int, dict[str, Any]] = {}
    for status, answer in said.answers.items():
        shown[status] = {"description": answer.description}
        if answer.headers:
            shown[status]["headers"] = {
                name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
            }
        if answer.body is not None:
            shown[status]["content"] = {answer.media: {"schema": schemas.of(answer.body)}}
    for status in _problems(said):
        if status not in shown:
            shown[status] = {
                "description": HTTPStatus(status).phrase,
                "content": {PROBLEM_JSON: {"schema": schemas.of(said.problem or ProblemOut)}},
            }
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                shown[status]["headers"] = _RETRY_AFTER
    return {str(status): shown[status] for status in sorted(shown)}


def _problems(said: Operation) -> set[int]:
    """Return the statuses of the problems that an operation may answer with."""
    problems = {*said.problems, 500}
    if said.security != PUBLIC:
        problems.add(503)
    if "" not in said.security:
        problems.add(401)
    if said.bodies:
        problems |= {400, 413, 415, 422}
    if said.parameters:
        problems.add(422)
    return problems
