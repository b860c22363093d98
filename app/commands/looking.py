"""`stats` and `show`: the numbers, and one event with all that happened to it."""

import time

import rich_click as click
from rich.console import Console

from app.commands.common import age, json_option, look, moment, plain, print_json, print_table, state_words
from app.schemas import AttemptOut, EventDeliveryOut, StatsOut, show_event, show_stats

_NO_PAYLOAD = "(the body is gone or damaged: run verify)"


@click.command()
@json_option
def stats(*, as_json: bool) -> None:
    """Show the numbers: events, deliveries by state, every webhook's share."""
    found = show_stats(look(lambda inspector: inspector.stats()), time.time_ns() // 1_000_000)
    if as_json:
        print_json(found)
    else:
        _print_stats(found)


def _print_stats(found: StatsOut) -> None:
    words = list(found.deliveries)
    rows = [
        [
            entry.id,
            entry.instance or "(global)",
            entry.name,
            state_words(entry.state, entry.breaker),
            *[str(entry.deliveries[word]) for word in words],
            age(entry.oldest_pending_s),
        ]
        for entry in found.webhooks
    ]
    total = ["all", "", "", "", *[str(found.deliveries[word]) for word in words], age(found.oldest_pending_s)]
    headings = ["webhook", "instance", "name", "state", *words, "oldest pending"]
    print_table(headings, [*rows, total], whole={"webhook"}, numbers=words, title=f"{found.events} events")


@click.command()
@click.argument("event_id")
@json_option
def show(event_id: str, *, as_json: bool) -> None:
    """Show one event: its payload, its deliveries, its attempts."""
    found = show_event(look(lambda inspector: inspector.event(event_id)))
    if as_json:
        print_json(found)
        return
    console = Console(soft_wrap=True)
    console.print(f"[bold]{found.id}[/]  seq {found.seq}  {found.event} ", plain(found.instance), found.accepted_at)
    console.print(plain(bytes(found.payload).decode() if found.payload is not None else _NO_PAYLOAD))
    deliveries = [
        [delivery.id, _fate(delivery), str(delivery.attempts), moment(delivery.due_at), delivery.url]
        for delivery in found.deliveries
    ]
    headings = ["delivery", "state", "attempts", "due", "url"]
    print_table(headings, deliveries, whole={"delivery", "state", "url"}, numbers={"attempts"}, title="\nDeliveries")
    attempts = [
        [attempt.webhook, str(attempt.attempt), moment(attempt.at), str(attempt.ms), str(attempt.status or ""),
         _what(attempt)]
        for attempt in found.attempts
    ]  # fmt: skip
    headings = ["webhook", "attempt", "at", "ms", "status", "what"]
    print_table(headings, attempts, whole={"webhook"}, numbers={"attempt", "ms", "status"}, title="\nAttempts")


def _fate(delivery: EventDeliveryOut) -> str:
    return f"{delivery.state}: {delivery.reason}" if delivery.reason else delivery.state


def _what(attempt: AttemptOut) -> str:
    return " ".join(filter(None, (attempt.error, attempt.detail, attempt.reason, attempt.answer)))
