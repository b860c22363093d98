"""The rate limit: so many POSTs a second, however many wait and however fast the receiver answers."""

import json
from pathlib import Path
from typing import Any

from tests.harness import Receiver, Service, running

URL = "https://93.184.215.14/w"
RATE = 20
COUNT = 60
BURST_S = 1.0


async def post(service: Service, count: int) -> None:
    """Post so many events in one batch."""
    one = json.dumps({"event": "call", "instance": "loja01", "data": {}})
    reply = await service.request("POST", "/events/batch", f"[{','.join([one] * count)}]")
    assert reply.status == 202, reply


async def test_a_rate_limit_is_kept_and_can_be_lifted(tmp_path: Path) -> None:
    """No second sees more POSTs than the limit and what an idle second saved up; without it the rest goes at once."""
    async with Receiver() as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url, rate_limit=RATE)
        await post(service, COUNT)
        arrivals = list(await receiver.wait_for_count(COUNT))
        at = [arrival.at for arrival in arrivals]
        # Loosely: what arrives late on a busy machine makes the seconds before and after it look different.
        assert max(sum(start <= other < start + 1 for other in at) for start in at) <= RATE * (1 + BURST_S) * 1.25
        assert at[-1] - at[0] >= (COUNT - RATE * BURST_S) / RATE * 0.75
        await post(service, 1000)
        await receiver.wait_for_count(COUNT + 1)
        await service.set_webhook("loja01", receiver.url, rate_limit=None)
        # At the limit these would take most of a minute.
        await receiver.wait_for_count(COUNT + 1000, timeout_s=20)


async def test_a_limit_below_one_a_second(tmp_path: Path) -> None:
    """A fraction is a limit as well: the second POST waits for more than a second."""
    async with Receiver() as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url, rate_limit=0.8)
        await post(service, 2)
        first, second = await receiver.wait_for_count(2)
        assert 1.0 <= second.at - first.at < 10


async def test_what_a_rate_limit_takes(tmp_path: Path) -> None:
    """A number above 0 and up to 10000, or null; all else is 422 at its place. It is shown as it was set."""
    async with running(tmp_path) as service:
        wrong = ("0", "-1", "-0.0", "10000.1", "1e400", "-1e400", "9" * 400, "true", '"5"', "[]", "{}", "1e-400")
        for text in wrong:
            body = f'{{"url": "{URL}", "rate_limit": {text}}}'
            reply = await service.request("PUT", "/webhooks/instances/loja01", body)
            assert (reply.status, "$.rate_limit" in reply.json()["detail"]) == (422, True), (text, reply)
        reply = await service.request("PUT", "/webhooks/instances/loja01", f'{{"url": "{URL}", "rate_limit": NaN}}')
        assert reply.status == 400
        right: tuple[Any, ...] = (1, 0.001, 20, 2.5, 10000, None)
        for value in right:
            await service.set_webhook("loja01", URL, rate_limit=value)
            shown = (await service.request("GET", "/webhooks/instances/loja01")).json()
            listed = (await service.request("GET", "/webhooks")).json()["items"]
            assert shown["rate_limit"] == listed[0]["rate_limit"] == value
