"""What must hold in every world: at each POST that a receiver sees, and once all has come to rest.

Expectations are worked out from the log and the receivers alone, in code that shares nothing with the projections.
"""

import sqlite3
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import anyio

from outbox.domain.deliveries import State
from outbox.domain.ids import event_text, parse_event
from outbox.domain.records import WebhookSet, decode
from tests.world.loop import virtual_loop
from tests.world.receivers import Sighting, marker_of
from tests.world.telling import Account, Told

if TYPE_CHECKING:
    from tests.world.life import Life
    from tests.world.world import World

IDLE_S = 3600.0
IDLE_ROUNDS = 50
"""The rounds of the loop that an hour with nothing to do may take."""

_PROJECTIONS = {
    "event": "event",
    "delivery": "delivery",
    "webhook": "webhook",
    "idempotency": "idempotency",
    "counter": "counter WHERE n <> 0",
    "replay": "replay",
}
"""The tables that can be rebuilt, and what of them counts."""


_EVENT = "SELECT seq FROM event WHERE id = ?"
_DELIVERY = (
    "SELECT state, attempts, queue, phase FROM delivery JOIN webhook ON number = webhook WHERE number = ? AND event = ?"
)
# One that was replayed has joined its queue later than its event says: it waits behind the head of that time.
_EARLIER = (
    "SELECT event FROM delivery JOIN event ON seq = event"
    " WHERE webhook = ? AND queue = ? AND event < ? AND state < 2 AND since_ms = accepted_ms"
)


def check_post(world: "World", post: Sighting, life: "Life") -> None:
    """Check a POST as it is begun against what is on disk at this very moment.

    Its event is there, so are all attempts before this one, and none beyond; it is its turn.
    """
    look = life.look
    assert look is not None
    what = f"e{post.marker} #{post.attempt} is posted"
    (event,) = look.execute(_EVENT, (parse_event(post.webhook_id),)).fetchone() or (0,)
    number = _number(world, look, post.label)
    row = look.execute(_DELIVERY, (number, event)).fetchone()
    if row is None:
        world.violate(f"{what} to webhook {number}, and on disk there is no such event, or not for that one")
        return
    state, attempts, queue, phase = row
    if state == State.ACKNOWLEDGED:
        world.violate(f"{what} though it is acknowledged")
    if attempts != post.attempt - 1:
        world.violate(f"{what} with {attempts} attempts recorded")
    if queue is not None and not phase:
        if state == State.WAITING:
            world.violate(f"{what} out of turn")
        if earlier := look.execute(_EARLIER, (number, queue, event)).fetchone():
            world.violate(f"{what}, and overtakes the event {earlier[0]}")
    made = (life.number, number, event, post.attempt)
    if made in world.made:
        world.violate(f"{what} twice, and there was no crash in between")
    world.made.add(made)


def _number(world: "World", look: sqlite3.Connection, label: str) -> int:
    """Return the number of the webhook in whose URL the label stands; who set it may not have got an answer."""
    if label not in world.numbers:
        for seq, data in look.execute("SELECT seq, record FROM log WHERE subject <= 0"):
            record = decode(data)
            if isinstance(record, WebhookSet) and record.settings.url.endswith(f"/{label}"):
                world.numbers[label] = record.webhook or seq
    return world.numbers[label]


async def check_rest(world: "World") -> None:
    """Check everything once every delivery is settled."""
    await _check_idle(world)
    look = world.life.look
    assert look is not None
    told = Told(punctual=not world.set_back_s)
    for seq, record in look.execute("SELECT seq, record FROM log ORDER BY seq"):
        told.follow(seq, decode(record))
    markers = {event: marker_of(body) for event, body in look.execute("SELECT event, body FROM body")}
    for problem in (*told.problems, *_producers(world, told, markers), *_deliveries(world, told, markers)):
        world.violate(problem)
    await _check_stored(world)


def _producers(world: "World", told: Told, markers: dict[int, int]) -> list[str]:
    """Compare the log with what producers know."""
    problems = [
        f"e{marker} is in the log {count} times" for marker, count in Counter(markers.values()).items() if count > 1
    ]
    ids = {markers[seq]: event.id for seq, event in told.events.items()}
    problems += [
        f"e{posted.marker} was taken as {event_text(posted.id)}, and the log does not hold it"
        for posted in world.posted
        if posted.id and ids.get(posted.marker) != posted.id
    ]
    return problems


def _deliveries(world: "World", told: Told, markers: dict[int, int]) -> list[str]:
    """Compare the log with what receivers saw."""
    problems = []
    sightings: dict[tuple[int, int], list[Sighting]] = defaultdict(list)
    for receiver in world.receivers.values():
        for sighting in receiver.sightings:
            sightings[world.numbers[sighting.label], sighting.marker].append(sighting)
    for (webhook, seq), account in told.accounts.items():
        seen = sightings.pop((webhook, markers[seq]), [])
        what = f"e{markers[seq]} to webhook {webhook}"
        problems += [f"{what}: {wrong}" for wrong in _wrong_with(account, seen, event_text(told.events[seq].id))]
    problems += [f"e{marker} was seen at webhook {webhook}, which it is not for" for webhook, marker in sightings]
    return problems


def _wrong_with(account: Account, seen: list[Sighting], event_id: str) -> list[str]:
    """Compare what the log says of a delivery with what its receiver saw of it."""
    answers = {(sighting.attempt, sighting.answer) for sighting in seen}
    wrong = [
        f"attempt {attempt.attempt} has {attempt.status}, which nobody answered"
        for attempt in account.attempts
        if attempt.status is not None and (attempt.attempt, attempt.status) not in answers
    ]
    if any(sighting.webhook_id != event_id for sighting in seen):
        wrong.append("the webhook-id is not always the event's id")
    if not account.state.settled:
        wrong.append("it is not settled")
    if account.state is State.DEAD and not account.reason:
        wrong.append("it is dead, and nobody knows why")
    if account.state is State.ACKNOWLEDGED and not any(200 <= (answer or 0) <= 299 for _, answer in answers):
        wrong.append("it is acknowledged, and no receiver took it")
    return wrong


async def _check_stored(world: "World") -> None:
    """Check what is stored as `verify` does, and that `rebuild` changes nothing."""
    before = _projections(world)
    report = await world.ask(lambda engine: engine.inspector.verify(lambda _done, _all: None))
    for problem in report.problems:
        world.violate(f"verify: {problem}")
    await world.ask(lambda engine: engine.rebuild())
    for table, rows in _projections(world).items():
        if rows != before[table]:
            world.violate(f"rebuild changes the table {table}: {sorted(set(rows) ^ set(before[table]))[:5]}")


def _projections(world: "World") -> dict[str, list[tuple[Any, ...]]]:
    look = world.life.look
    assert look is not None
    return {table: sorted(look.execute(f"SELECT * FROM {rows}")) for table, rows in _PROJECTIONS.items()}  # noqa: S608


async def _check_idle(world: "World") -> None:
    """Check that an outbox with nothing to do does nothing."""
    await anyio.sleep(60)
    before = virtual_loop().rounds
    await anyio.sleep(IDLE_S)
    rounds = virtual_loop().rounds - before
    if rounds > IDLE_ROUNDS:
        world.violate(f"an hour with nothing to do takes {rounds} rounds of the loop")
