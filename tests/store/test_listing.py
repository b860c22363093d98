import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from outbox.domain.deliveries import State
from outbox.inspecting import EventFilter, Inspector, Position, Wanted, open_inspector
from outbox.store.protocol import LOOKED_AT_ONCE
from tests.store.filling import SECOND_MS, START_MS, Planned, fill

KINDS = ("CALL", "MESSAGES_UPSERT", "NEW_TOKEN")
WORDS = ("pending", "waiting", "held", "acknowledged", "dead")
WEBHOOKS = 4


@asynccontextmanager
async def filled(path: Path, events: int, plan: list[Planned], webhooks: int = WEBHOOKS) -> AsyncIterator[Inspector]:
    """Look into a database with these events, the last one of whose webhooks is disabled."""
    fill(path / "outbox.db", events, lambda number: plan[number], webhooks, disabled=1)
    async with open_inspector(path / "outbox.db") as inspector:
        yield inspector


def at_random(events: int, seed: int) -> list[Planned]:
    """Return a history in which everything occurs."""
    chance = random.Random(seed)
    return [
        Planned(
            kind=chance.choice(KINDS),
            instance=chance.choice(("loja01", "loja02")),
            states={webhook: chance.choice(list(State)) for webhook in range(1, WEBHOOKS + 1) if chance.random() < 0.6},
        )
        for _ in range(events)
    ]


def expected_deliveries(plan: list[Planned], wanted: Wanted) -> list[tuple[int, int]]:
    """Return (webhook, event's seq) of the wanted deliveries, newest first, by looking at each of them."""
    found = []
    for number, planned in reversed(list(enumerate(plan))):
        at_ms = START_MS + number * SECOND_MS
        events = wanted.events
        if events.kind not in {None, planned.kind} or events.instance not in {None, planned.instance}:
            continue
        if at_ms < (events.since_ms or 0) or at_ms >= (events.until_ms or 2**62):
            continue
        for webhook, state in sorted(planned.states.items(), reverse=True):
            held = webhook == WEBHOOKS and not state.settled
            if wanted.webhook in {None, webhook} and wanted.state in {None, "held" if held else state.word}:
                found.append((webhook, number + WEBHOOKS + 1))
    return found


async def deliveries(inspector: Inspector, wanted: Wanted, limit: int) -> list[tuple[int, int]]:
    """Return (webhook, event's seq) of all deliveries listed page by page."""
    page = await inspector.deliveries(wanted, limit)
    found = [item.delivery for item in page.items]
    while page.next is not None:
        page = await inspector.deliveries(wanted, limit, page.next)
        assert len(page.items) <= limit
        found += [item.delivery for item in page.items]
    return [(delivery.webhook, delivery.event) for delivery in found]


async def events(inspector: Inspector, wanted: Wanted, limit: int) -> list[int]:
    """Return the seqs of all events listed page by page."""
    page = await inspector.events(wanted, limit)
    found = [item.seq for item in page.items]
    while page.next is not None:
        page = await inspector.events(wanted, limit, page.next)
        assert len(page.items) <= limit
        found += [item.seq for item in page.items]
    return found


@pytest.mark.parametrize("limit", [1, 7, 500])
async def test_lists_are_what_looking_at_everything_gives(tmp_path: Path, limit: int) -> None:
    """Whatever the filters, and however small the pages, both lists hold exactly what is wanted, once, in order."""
    plan = at_random(120, seed=limit)
    half = START_MS + 60 * SECOND_MS
    async with filled(tmp_path, 120, plan) as inspector:
        for state in (None, *WORDS):
            for webhook in (None, 1, WEBHOOKS, 99):
                for filters in (EventFilter(), EventFilter(kind="CALL", instance="loja02"), EventFilter(since_ms=half)):
                    wanted = Wanted(events=filters, webhook=webhook, state=state)
                    expected = expected_deliveries(plan, wanted)
                    assert await deliveries(inspector, wanted, limit) == expected, wanted
                    if state or webhook:
                        seqs = list(dict.fromkeys(seq for _, seq in expected))
                        assert await events(inspector, wanted, limit) == seqs, wanted


async def test_events_without_deliveries_are_listed_unless_a_delivery_is_asked_for(tmp_path: Path) -> None:
    """An event that went to nobody is an event all the same."""
    plan = [Planned(), Planned(states={1: State.PENDING}), Planned(kind="NEW_TOKEN")]
    async with filled(tmp_path, 3, plan) as inspector:
        assert await events(inspector, Wanted(), 2) == [7, 6, 5]
        assert await events(inspector, Wanted(state="pending"), 2) == [6]
        assert await events(inspector, Wanted(events=EventFilter(kind="NEW_TOKEN")), 2) == [7]


async def test_a_cursor_holds_whatever_way_the_next_page_goes(tmp_path: Path) -> None:
    """A page that ended amid an event's deliveries goes on with the rest of them, also on the way of one webhook."""
    plan = [Planned(states=dict.fromkeys(range(1, WEBHOOKS + 1), State.DEAD))] * 3
    async with filled(tmp_path, 3, plan) as inspector:
        for wanted in (Wanted(webhook=2), Wanted(webhook=2, state="dead")):
            for after, seqs in ((Position(6, 3), [6, 5]), (Position(6, 2), [5]), (Position(6, 0), [5])):
                page = await inspector.deliveries(wanted, 50, after)
                assert [item.delivery.event for item in page.items] == seqs, (wanted, after)


LONG = 3 * LOOKED_AT_ONCE - 5
NEEDLE = {0: Planned(kind="NEW_TOKEN", states={1: State.DEAD, 2: State.PENDING, 3: State.ACKNOWLEDGED})}
STRAW = Planned(states={1: State.ACKNOWLEDGED, 2: State.ACKNOWLEDGED, 3: State.ACKNOWLEDGED})


@pytest.fixture(scope="module")
def long_history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with a long history, all acknowledged but for one delivery of the oldest event."""
    path = tmp_path_factory.mktemp("long") / "outbox.db"
    fill(path, LONG, lambda number: NEEDLE.get(number, STRAW), webhooks=3)
    return path


async def test_a_page_looks_at_a_bounded_number_of_rows(long_history: Path) -> None:
    """What is rare is found at last, by pages that may be empty but always go on."""
    async with open_inspector(long_history) as inspector:
        for wanted in (
            Wanted(events=EventFilter(kind="NEW_TOKEN")),
            Wanted(events=EventFilter(kind="NEW_TOKEN"), webhook=1),
            Wanted(events=EventFilter(kind="NEW_TOKEN"), state="acknowledged"),
            Wanted(events=EventFilter(until_ms=START_MS + 1)),
        ):
            page = await inspector.events(wanted, 50)
            pages = 1
            while page.next is not None:
                assert page.items == [], wanted
                before, page = page.next, await inspector.events(wanted, 50, page.next)
                assert page.next is None or page.next < before
                pages += 1
            assert [item.seq for item in page.items] == [4], wanted
            assert pages == 3, wanted


async def test_what_has_a_way_of_its_own_is_found_at_once(long_history: Path) -> None:
    """Dead deliveries have an index; where counters say that there are none, nobody looks for them."""
    async with open_inspector(long_history) as inspector:
        dead = await inspector.deliveries(Wanted(state="dead"), 50)
        assert ([item.delivery.event for item in dead.items], dead.next) == ([4], None)
        for state in ("waiting", "held"):
            assert await inspector.deliveries(Wanted(state=state), 50) == type(dead)([], None)
        assert (await inspector.events(Wanted(webhook=99), 50)).next is None


async def test_a_recent_since_ends_the_list(long_history: Path) -> None:
    """With `since`, nobody is sent through the history below it for nothing."""
    since_ms = START_MS + (LONG - 10) * SECOND_MS
    async with open_inspector(long_history) as inspector:
        for wanted in (
            Wanted(events=EventFilter(since_ms=since_ms)),
            Wanted(events=EventFilter(since_ms=since_ms), state="acknowledged"),
            Wanted(events=EventFilter(since_ms=since_ms), webhook=2),
        ):
            page = await inspector.events(wanted, 50)
            assert (len(page.items), page.next) == (10, None), wanted


async def test_since_goes_by_time_even_if_a_clock_went_back(tmp_path: Path) -> None:
    """An event that was accepted while the clock was ahead is listed, however long ago by the log it was."""
    late = START_MS + 10 * LONG * SECOND_MS
    plan = {0: Planned(at_ms=late)}
    fill(tmp_path / "outbox.db", LOOKED_AT_ONCE + 50, lambda number: plan.get(number, Planned()), webhooks=1)
    async with open_inspector(tmp_path / "outbox.db") as inspector:
        assert await events(inspector, Wanted(events=EventFilter(since_ms=late)), 10) == [2]
