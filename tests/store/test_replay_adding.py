import msgspec
import pytest
from msgspec.structs import replace

from outbox.domain.deliveries import Delivery, Move
from outbox.domain.errors import InvalidError
from outbox.domain.events import read_event
from outbox.domain.replays import ReplayFilter
from outbox.domain.webhooks import Address, Credentials, Settings
from outbox.journal.accepting import AcceptBatch
from outbox.journal.setting import SetWebhook
from tests.store.books import ACKNOWLEDGED, PENDING, WAITING, Books
from tests.store.replays import OTHER, SHOP, Replays, moved, moves, settle


async def accept_kinds(books: Books, *events: tuple[str, str]) -> list[int]:
    """Accept events of these kinds on these instances; return their seqs."""
    bodies = [msgspec.json.encode({"event": kind, "instance": instance, "data": {}}) for kind, instance in events]
    ((first, ids),) = await books.do(AcceptBatch([read_event(body) for body in bodies], books.now_ms))
    return list(range(first, first + len(ids)))


def setting(books: Books, address: Address, *kinds: str) -> SetWebhook:
    """Return the command that sets a webhook which takes those kinds, or all."""
    settings = Settings(url="http://h.test/", events=kinds)
    return SetWebhook(address, "api", books.now_ms, lambda _known: (settings, Credentials()))


async def test_events_are_added_for_a_webhook_that_was_set_too_late(books: Books, replays: Replays) -> None:
    """It gets those of its instance and its kinds that it has not got, each once."""
    first = await books.set(SHOP)
    seqs = await accept_kinds(books, ("message.upsert", OTHER), ("message.upsert", SHOP), ("call", SHOP))
    made = [
        setting(books, Address("instance", SHOP, "late"), "MESSAGES_UPSERT"),
        setting(books, Address("global")),
    ]
    late, everywhere = [webhook.number for webhook, _ in await books.do(*made)]
    seqs += await accept_kinds(books, ("message.upsert", SHOP))
    replay = await replays.done(webhook=late, adds=True)
    assert (replay.request.matched, replay.row.replayed, moved(books)) == (1, 1, [seqs[1]])
    assert {record.move for record in moves(books)} == {Move.ADD}
    assert books.delivery(late, seqs[1]) == Delivery(late, seqs[1], PENDING, books.now_ms, 0, 0, None, books.now_ms)
    replay = await replays.done(webhook=everywhere, adds=True, kind="MESSAGES_UPSERT")
    assert (replay.request.matched, moved(books)[1:]) == (2, seqs[:2])
    again = await replays.done(webhook=everywhere, adds=True)
    assert (again.request.matched, again.row.replayed, moved(books)[3:]) == (1, 1, [seqs[2]])
    assert len(books.states(first)) == 3
    for wanted, place in ((ReplayFilter(instance=OTHER), "instance"), (ReplayFilter(kind="CALL"), "event")):
        with pytest.raises(InvalidError, match=rf"at `\$\.{place}`"):
            await replays.requests.many(replace(wanted, webhook=late, adds=True), None)


async def test_what_a_webhook_takes_when_its_turn_comes_is_added(books: Books) -> None:
    """Set anew since the request, it gets nothing that it does not take any more."""
    await accept_kinds(books, ("call", SHOP), ("message.upsert", SHOP))
    ((webhook, _),) = await books.do(setting(books, Address("global"), "CALL"))
    replays = Replays(books)
    replay = await replays.requests.many(ReplayFilter(webhook=webhook.number, adds=True, kind="CALL"), None)
    await books.do(setting(books, Address("global"), "MESSAGES_UPSERT"))
    advance = await replays.advance(replay)
    assert (advance.found, advance.finished) == ([], True)
    assert replay.request.matched == 1


async def test_added_deliveries_stand_in_their_queues(books: Books, replays: Replays) -> None:
    """For an ordered webhook they go before what came later, but behind the head there is."""
    early = await books.accept(SHOP, "a", "a")
    webhook = await books.set(SHOP, order="instance")
    later = await books.accept(SHOP, "a", "a")
    await replays.done(webhook=webhook, adds=True)
    assert books.states(webhook) == [WAITING, WAITING, PENDING, WAITING]
    await settle(books, webhook, [later[0]], ACKNOWLEDGED)
    assert books.delivery(webhook, early[0]).state == PENDING
