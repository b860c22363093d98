"""Every record as JSON: whatever the log can hold is shown by name, and nothing of it is unsafe to read."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.log_schemas import show_entry
from app.schemas import encode
from outbox.domain.deliveries import Effect, Move, State
from outbox.domain.ids import delivery_text, event_text
from outbox.domain.records import (
    AttemptRecorded,
    BreakerMoved,
    DeliveriesMoved,
    EventAccepted,
    MovedDelivery,
    OrderConverted,
    Record,
    WebhookSet,
    WebhookSuspended,
    decode,
)
from outbox.domain.webhooks import PROMOTING, QUEUEING, Conversion, Settings
from outbox.inspecting import MOVED_SHOWN, Entry

AT_MS = 1_762_161_342_118
AT = "2025-11-03T09:15:42.118Z"
IDS = {seq: bytes([seq % 256]) * 16 for seq in range(1, 200)}
SAFE_INTEGER = 2**53
RECORDS = [
    json.loads(line) for line in (Path(__file__).parents[1] / "domain" / "records.jsonl").read_text().splitlines()
]


def shown(record: Record) -> dict[str, Any]:
    """Return a record as it comes out of the JSON that it is written as."""
    found: dict[str, Any] = json.loads(encode(show_entry(Entry(1, bytes(32), record, IDS))))
    return found


def numbers_in(value: Any) -> list[int]:
    """Return all integers in a decoded document."""
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers_in(inner)]
    if isinstance(value, list):
        return [number for inner in value for number in numbers_in(inner)]
    return [value] if isinstance(value, int) else []


@pytest.mark.parametrize("row", RECORDS, ids=[f"{row['type']}-{at}" for at, row in enumerate(RECORDS)])
def test_any_record_is_shown(row: dict[str, Any]) -> None:
    """Every record that was ever written has a JSON form, with its type, its time, and integers that are safe."""
    found = shown(decode(bytes.fromhex(row["hex"])))
    assert found["type"] == row["type"]
    assert found["at"].endswith("Z")
    assert max(map(abs, numbers_in(found))) < SAFE_INTEGER


def test_a_suspension_names_the_event() -> None:
    """It shows the event that was answered 410, and since when it is held."""
    found = shown(WebhookSuspended(9, AT_MS, 3, ((AT_MS - 1000, AT_MS - 500), (AT_MS, 0))))
    assert found == {
        "seq": 1, "type": "WebhookSuspended", "digest": "00" * 32, "webhook": "wh_9", "at": AT,
        "event": event_text(IDS[3]),
        "held": [
            {"from": "2025-11-03T09:15:41.118Z", "until": "2025-11-03T09:15:41.618Z"}, {"from": AT, "until": None}
        ],
    }  # fmt: skip
    assert shown(WebhookSuspended(9, AT_MS, 999, ()))["event"] is None


@pytest.mark.parametrize(("opened", "word"), [(True, "open"), (False, "closed")])
def test_a_breaker_is_open_or_closed(*, opened: bool, word: str) -> None:
    """The word is that of the API, with the reason."""
    found = shown(BreakerMoved(9, AT_MS, opened, "timeout"))
    assert (found["breaker"], found["reason"], found["webhook"]) == (word, "timeout", "wh_9")


def test_an_attempt_names_the_next_of_its_queue() -> None:
    """What it let go is shown as a delivery."""
    record = AttemptRecorded(3, 9, 1, AT_MS, 5, 200, "", "", b"", Effect.ACKNOWLEDGE, 1, AT_MS, "", promoted=(4, 0, 0))
    assert shown(record)["promoted"] == delivery_text(IDS[4], 9)


def test_an_event_shows_its_queues() -> None:
    """A queue's key is written as hex digits, as it does not fit into everybody's numbers."""
    record = EventAccepted(
        id=IDS[1], at_ms=AT_MS, kind="CALL", instance="loja01", digest=bytes(32), size=2, ordering_key=-1, targets=(9,),
        dated=False, hops=0, idempotency=b"", queued=((9, -1, True),),
    )  # fmt: skip
    assert shown(record)["queued"] == [{"webhook": "wh_9", "queue": "f" * 16, "waits": True}]
    assert shown(record)["ordering_key"] == "f" * 16


def test_a_change_of_order_says_how_far_it_is() -> None:
    """By its phase, and where it has come to; at its end there is nothing to say."""
    assert shown(OrderConverted(9, AT_MS, Conversion(QUEUEING, 1000, 4242)))["conversion"] == {
        "phase": "queueing", "up_to": 1000, "until": 4242
    }  # fmt: skip
    assert shown(OrderConverted(9, AT_MS, Conversion(PROMOTING, -(2**63), 4242)))["conversion"] == {
        "phase": "promoting", "up_to": "8000000000000000", "until": 4242
    }  # fmt: skip
    assert shown(OrderConverted(9, AT_MS, Conversion(0, 0, 0)))["conversion"] is None


def test_a_webhook_shows_how_it_stands() -> None:
    """Since when its breaker is open, and the times when it was held, beside its settings."""
    record = WebhookSet(
        9, AT_MS, "instance", "loja01", "", Settings(url="https://h.test/", order="chat", rate_limit=0.5), "api", b"",
        b"", ((AT_MS, 0),), AT_MS,
    )  # fmt: skip
    found = shown(record)
    assert (found["breaker_since"], found["conversion"]) == (AT, None)
    assert found["held"] == [{"from": AT, "until": None}]
    assert (found["settings"]["order"], found["settings"]["rate_limit"]) == ("chat", 0.5)


def test_many_moves_are_counted_and_the_first_shown() -> None:
    """A chunk of a thousand deliveries is told in numbers, and its first deliveries one by one."""
    rows = [MovedDelivery(seq, State.PENDING, State.DEAD, AT_MS, 2, 1, None, AT_MS) for seq in range(1, 100)]
    rows += [MovedDelivery(seq, State.WAITING, State.PENDING, AT_MS, 0, 0, -2, AT_MS) for seq in range(100, 150)]
    rows += [MovedDelivery(150, None, State.PENDING, AT_MS, 0, 0, None, AT_MS)]
    found = shown(DeliveriesMoved(9, AT_MS, Move.EXPIRE, tuple(rows), "expired"))
    assert (found["move"], found["reason"], found["cause"], found["count"]) == ("expire", "expired", None, 150)
    assert found["changes"] == [
        {"from": "pending", "to": "dead", "count": 99},
        {"from": "waiting", "to": "pending", "count": 50},
        {"from": None, "to": "pending", "count": 1},
    ]
    assert len(found["deliveries"]) == MOVED_SHOWN
    assert found["deliveries"][0] == {
        "delivery": delivery_text(IDS[1], 9), "from": "pending", "to": "dead", "due_at": AT, "attempts": 2,
        "charged": 1, "queue": None, "since": AT,
    }  # fmt: skip
    one = shown(DeliveriesMoved(9, AT_MS, Move.PROMOTE, (rows[100],), "", 77))
    assert one["deliveries"][0]["queue"] == "fffffffffffffffe"
    assert (one["cause"], one["reason"]) == ("rpl_77", "")
