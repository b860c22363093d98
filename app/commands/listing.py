"""`events`, `deliveries`, `webhooks`: lists, narrowed by the same filters as over HTTP."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import rich_click as click

from app.commands.common import json_option, look, moment, print_json, print_table, state_words
from app.filters import Asked, read_listing
from app.listing_schemas import EventItem, show_deliveries, show_events
from app.webhook_schemas import WebhooksOut, show_webhook
from outbox.domain.errors import InvalidError
from outbox.inspecting import STATES, DeliveryPage, EventPage, Position

_OPTIONS = (
    click.option("--instance", help="Only of this instance."),
    click.option("--event", help="Only of this kind, in any spelling."),
    click.option("--webhook", help="Only with a delivery to this webhook: wh_N."),
    click.option("--state", help=f"Only with a delivery in this state: {', '.join(STATES)}."),
    click.option("--since", help="Only accepted from this moment on: RFC 3339, or seconds since the epoch."),
    click.option("--until", help="Only accepted before this moment."),
    click.option("--limit", help="At most so many: 50, if not given, and 500 at most."),
    click.option("--cursor", help="Go on where a list ended: its `next`."),
)

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Page = TypeVar("_Page", EventPage, DeliveryPage)


def _filters(function: _Function) -> _Function:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command()
@_filters
@json_option
def events(*, as_json: bool, **given: str | None) -> None:
    """List events, newest first, with the states of their deliveries."""
    asked = _asked(given)
    found = show_events(look(lambda inspector: _whole_page(asked, EventPage, inspector.events)))
    if as_json:
        print_json(found)
        return
    headings = ["accepted", "id", "event", "instance", "deliveries"]
    rows = [[moment(item.accepted_at), item.id, item.event, item.instance or "", _states(item)] for item in found.items]
    print_table(headings, rows, whole={"id"})
    _say_next(found.next)


@click.command()
@_filters
@json_option
def deliveries(*, as_json: bool, **given: str | None) -> None:
    """List deliveries, those of the newest events first."""
    asked = _asked(given)
    found = show_deliveries(look(lambda inspector: _whole_page(asked, DeliveryPage, inspector.deliveries)))
    if as_json:
        print_json(found)
        return
    headings = ["accepted", "id", "state", "attempts", "event", "instance", "url"]
    rows = [
        [moment(item.accepted_at), item.id, item.state, str(item.attempts), item.event, item.instance or "",
         item.url]
        for item in found.items
    ]  # fmt: skip
    print_table(headings, rows, whole={"id", "state", "url"}, numbers={"attempts"})
    _say_next(found.next)


@click.command()
@json_option
def webhooks(*, as_json: bool) -> None:
    """List the webhooks, oldest first; secrets are masked."""
    live = sorted(look(lambda inspector: inspector.webhooks()), key=lambda entry: entry.number)
    now_ms = time.time_ns() // 1_000_000
    found = WebhooksOut([show_webhook(webhook, now_ms) for webhook in live], None)
    if as_json:
        print_json(found)
        return
    rows = [
        [item.id, item.instance or "(global)", item.name, state_words(item.state, item.breaker), item.order,
         " ".join(item.events) or "all", item.url]
        for item in found.items
    ]  # fmt: skip
    print_table(["id", "instance", "name", "state", "order", "events", "url"], rows, whole={"id", "url"})


def _asked(given: dict[str, str | None]) -> Asked:
    """Read the options as HTTP reads its parameters. Ends the program as wrong usage if one is wrong."""
    try:
        return read_listing({name: value for name, value in given.items() if value is not None})
    except InvalidError as error:
        raise click.UsageError(str(error)) from error


async def _whole_page(asked: Asked, page: type[_Page], ask: Callable[..., Awaitable[_Page]]) -> _Page:
    """Ask on until as many are found as were asked for, or there are no more: people follow no cursors."""
    items: list[Any] = []
    after: Position | None = asked.after
    while after is not None and len(items) < asked.limit:
        found = await ask(asked.wanted, asked.limit - len(items), after)
        items += found.items
        after = found.next
    return page(items, after)


def _states(item: EventItem) -> str:
    counts = Counter(delivery.state for delivery in item.deliveries)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def _say_next(cursor: str | None) -> None:
    if cursor is not None:
        click.echo(f"there are more: --cursor {cursor}")
