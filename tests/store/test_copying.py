import asyncio
from pathlib import Path

import pytest

from outbox.domain.webhooks import Address, Credentials, Settings
from outbox.inspecting import open_inspector
from outbox.journal.setting import SetWebhook
from outbox.store.sqlite import copying
from outbox.upkeep import back_up
from tests.store.books import Books

ROUNDS = 12


@pytest.mark.parametrize("piece", [1, 3, 1000])
async def test_what_changes_meanwhile_is_in_the_copy_whole_or_not_at_all(
    books: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Between any two looks of the copy, events come and credentials are replaced: it is of one instant."""
    monkeypatch.setattr(copying, "_RECORDS", piece)
    monkeypatch.setattr(copying, "_BODIES", 2)
    monkeypatch.setattr(copying, "_BODIES_BYTES", 100)
    loop = asyncio.get_running_loop()
    looks: list[str] = []

    async def change() -> None:
        credentials = Credentials(headers={"x-round": str(len(looks))})
        settings = Settings(url="http://shop.test/", enabled=True)
        command = SetWebhook(Address("instance", "shop"), "api", books.now_ms, lambda _known: (settings, credentials))
        await books.do(command)
        await books.accept("shop", "a")

    def progress(what: str, _done: int, _all: int) -> None:
        if what == "copying" and len(looks) < ROUNDS:
            looks.append(what)
            asyncio.run_coroutine_threadsafe(change(), loop).result()

    await change()
    await books.accept("shop", *"abc")
    report = await back_up(books.path, tmp_path / "copy.db", progress)
    assert report.problems == []
    assert report.bodies == report.events >= 4 + (len(looks) if piece == 1 else 1)
    async with open_inspector(tmp_path / "copy.db") as inspector:
        (webhook,) = await inspector.webhooks()
        assert webhook.credentials.headers
