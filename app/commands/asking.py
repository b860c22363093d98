"""Working on the database here, or, while the running service has it, asking the service over HTTP."""

import json
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import msgspec

from app.commands.common import fail
from app.settings import Settings, with_keys
from outbox.domain.errors import CannotStartError, OutboxError

_T = TypeVar("_T")
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to reach a service that listens everywhere
_IN_USE = "the database is in use, and its service"


def is_in_use(error: CannotStartError) -> bool:
    """Say whether a database could not be opened because a service has it."""
    return "already works" in error.detail


def work_here(work: Callable[[], Awaitable[_T]]) -> _T | None:
    """Return what comes of work on the database; None if a service has it. Ends the program if it is impossible."""
    try:
        return anyio.run(work)
    except CannotStartError as error:
        if is_in_use(error):
            return None
        fail(error.detail)
    except OutboxError as error:
        fail(str(error))


def ask_service(settings: Settings, method: str, path: str, body: object = None, *, who: str = _IN_USE) -> Any:
    """Return what the running service answers. Ends the program if it refuses, or if `who` cannot be reached."""
    settings = with_keys(settings)
    host = _EVERYWHERE.get(settings["OUTBOX_HOST"], settings["OUTBOX_HOST"])
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings['OUTBOX_PORT']}{path}"
    headers = {"apikey": settings.api_key, "content-type": "application/json"}
    data = None if body is None else msgspec.json.encode(body)
    request = urllib.request.Request(url, data, method=method, headers=headers)
    try:
        # No proxy stands between us and our own service, whatever the environment says.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        fail(f"the service at {url} answered {error.code}: {_detail(error.read())}")
    except OSError as error:
        fail(f"{who} cannot be reached at {url}: {error}")


def _detail(body: bytes) -> str:
    """Return what a problem says to people, or whatever else was answered."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, TypeError, KeyError):
        return body.decode(errors="replace")[:500]
