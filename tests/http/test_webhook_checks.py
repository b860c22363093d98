"""What may not be set of a webhook is refused when it is set: addresses, URLs, headers, numbers, unknown members."""

from pathlib import Path
from typing import Any

from tests.harness import Receiver, Reply, Service, running
from tests.http.support import attempted, settled, stats

PUBLIC = "https://93.184.215.14/w"
OWN = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "0177.0.0.1", "0", "0.0.0.0",
    "127.0.0.1.", "127.255.255.254", "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::]",
    "localhost", "LOCALHOST", "10.0.0.1", "10.1", "167772161", "192.168.1.1", "172.16.0.1", "172.31.255.255",
    "100.64.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "[fc00::1]", "[fd12:3456::1]", "[64:ff9b::7f00:1]",
    "[2001:db8::1]", "[2002:7f00:1::]", "[ff02::1]", "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021",
    "\u2460\u2461\u2466.0.0.1", "user:pw@127.0.0.1", "93.184.215.14@127.0.0.1",
]  # fmt: skip
METADATA = [
    "169.254.169.254", "2852039166", "0xa9fea9fe", "0xA9.0xFE.0xA9.0xFE", "0251.0376.0251.0376", "169.254.43518",
    "169.254.169.254.", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]", "[fe80::1]",
    "[fe80::1%25eth0]", "100.100.100.200", "192.0.0.192", "169.254.170.2", "\uff11\uff16\uff19.254.169.254",
]  # fmt: skip
BAD_URLS = [
    "", "/relative", "h.test/w", "ftp://h.test/", "file:///etc/passwd", "javascript:alert(1)", "HTTP//h.test", "http://",
    "http:///w", "http://:80/w", "http://user:pw@/w", "http://h.test:0/", "http://h.test:99999/", "http://h.test:x/",
    "http://[::1", "http://[1.2.3.4]/", "http://h.test/a b", "http://h.test/\n", "http://h.test/\r\nX: y",
    "http://h.test/\u0000", 'http://h.test/"', "http://h.test\\@127.0.0.1/", "http:\\\\h.test", " http://h.test",
    '"http://h.test/"', "http://h.test/" + "x" * 2048, "ws://h.test/", "//h.test/", "http:/h.test",
    "http://h.test ", "http:h.test", "http://127%2e0%2e0%2e1/", "http://%31%32%37.0.0.1/", "http://a b:c@h.test/",
    "http://a:\r\n@h.test/",
]  # fmt: skip
BAD_HEADERS: list[dict[str, str]] = [
    *({name: "x"} for name in (
        "Host", "content-length", "Content-Encoding", "CONTENT-MD5", "transfer-encoding", "Connection", "te", "trailer",
        "upgrade", "expect", "cookie", "proxy-authorization", "Proxy-Connection", "webhook-id", "Webhook-Signature",
        "webhook-anything", "x-outbox-attempt", "X-Outbox-Hops",
        "", " ", "a b", "a:", "a\r\nb", "a\u0000", "\u00e9", "(x)", "a/b", "x@y", '"q"', "a,b",
    )),
    *({"x-a": value} for value in (
        "a\r\nb: c", "a\nb", "\u0000", "\u00e9", "\U0001f511", "\t", " lead", "trail ", "\x7f", "v" * 4097, "a\tb",
        "\ud83d",
    )),
    {"x-a": "1", "X-A": "2"},
    {f"x-{number}": "v" for number in range(51)},
]  # fmt: skip


async def put(service: Service, **settings: Any) -> Reply:
    """Set a webhook over our own face."""
    return await service.request("PUT", "/webhooks/instances/checked", settings)


async def refused(service: Service, place: str, **settings: Any) -> str:
    """Assert that both faces refuse these settings with 422, naming the place; return the detail."""
    names = {"by_events": "byEvents"}
    webhook = {names.get(name, name): value for name, value in {"enabled": True, **settings}.items()}
    reply = await service.request("POST", "/webhook/set/checked", {"webhook": webhook})
    assert reply.status == 422, (settings, reply)
    assert place.replace("$", "$.webhook") in reply.json()["response"]["message"][0][0]
    reply = await put(service, **settings)
    assert reply.status == 422, (settings, reply)
    assert place in reply.json()["detail"], (settings, reply)
    return str(reply.json()["detail"])


async def test_addresses_that_are_not_public(tmp_path: Path) -> None:
    """Private and own addresses, in every spelling, are refused with the setting that allows them; metadata always."""
    async with running(tmp_path, OUTBOX_ALLOWED_NETWORKS="") as service:
        for host in OWN:
            detail = await refused(service, "$.url", url=f"http://{host}/w")
            assert "OUTBOX_ALLOWED_NETWORKS" in detail, (host, detail)
        for host in METADATA:
            detail = await refused(service, "$.url", url=f"http://{host}:8080/w")
            assert "never" in detail, (host, detail)
        assert (await stats(service))["seq"] == 0
        assert (await put(service, url=PUBLIC, enabled=False)).status == 201
        assert (await put(service, url="https://no-such-name.invalid/w", enabled=False)).status == 200


async def test_allowed_networks_open_their_addresses_only(tmp_path: Path) -> None:
    """An allowed network may be called, by address or name; others may not, and metadata never, whatever is allowed."""
    everything = "private,0.0.0.0/0,::/0,169.254.0.0/16,fd00:ec2::/32"
    async with Receiver() as receiver:
        (tmp_path / "one").mkdir()
        async with running(tmp_path, OUTBOX_ALLOWED_NETWORKS=everything) as service:
            for host in METADATA:
                assert "never" in await refused(service, "$.url", url=f"http://{host}/w")
            spellings = ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[::FFFF:7f00:1]")
            for at, host in enumerate(spellings):
                url = f"http://{host}:{receiver.port}/{at}"
                assert (await put(service, url=url)).status in {200, 201}, host
                shown = await settled(service, await service.accept(instance="checked"))
                assert shown["deliveries"][0]["state"] == "acknowledged", (host, shown)
            assert [arrival.path for arrival in receiver.arrivals] == [f"/{at}" for at in range(len(spellings))]
        async with running(tmp_path / "one", OUTBOX_ALLOWED_NETWORKS="10.1.0.0/16") as service:
            assert (await put(service, url="http://10.1.2.3/w", enabled=False)).status == 201
            for host in ("10.2.0.1", "127.0.0.1", "192.168.0.1"):
                assert "OUTBOX_ALLOWED_NETWORKS" in await refused(service, "$.url", url=f"http://{host}/w")


async def test_addresses_are_judged_again_when_called(tmp_path: Path) -> None:
    """A webhook that was set while its network was allowed is not called once it is not: the attempt says why."""
    async with Receiver() as receiver:
        async with running(tmp_path) as service:
            for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
                await service.set_webhook(host.strip("[]"), f"http://{host}:{receiver.port}/w")
        async with running(tmp_path, OUTBOX_ALLOWED_NETWORKS="") as service:
            for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
                shown = await attempted(service, await service.accept(instance=host.strip("[]")))
                assert shown["attempts"][0]["error"] == "address_refused", shown
                assert "OUTBOX_ALLOWED_NETWORKS" in shown["attempts"][0]["detail"]
        assert receiver.arrivals == []


async def test_the_operators_own_url_is_trusted_itself_alone(tmp_path: Path) -> None:
    """The global URL of the environment may be a loopback address with nothing allowed; a local one may not."""
    async with Receiver() as receiver:
        settings = {"WEBHOOK_GLOBAL_ENABLED": "true", "WEBHOOK_GLOBAL_URL": f"{receiver.url}/global"}
        async with running(tmp_path, OUTBOX_ALLOWED_NETWORKS="", **settings) as service:
            await refused(service, "$.url", url=f"{receiver.url}/global")
            await service.accept()
            (arrival,) = await receiver.wait_for_count(1)
            assert arrival.path == "/global"


async def test_addresses_are_written_plainly(tmp_path: Path) -> None:
    """An address that is allowed but spelled as no HTTP client calls it is refused with the plain spelling."""
    async with running(tmp_path) as service:
        for host in ("127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.1.", "\uff11\uff12\uff17.0.0.1"):
            assert "127.0.0.1" in await refused(service, "$.url", url=f"http://{host}:8080/w")
        assert (await stats(service))["seq"] == 0


async def test_url_that_is_not_ascii_is_called_escaped(tmp_path: Path) -> None:
    """A path and query beyond ASCII are posted to as HTTP has them; what is escaped already stays as it is."""
    async with Receiver() as receiver, running(tmp_path) as service:
        url = f"{receiver.url}/caf\u00e9/a%2Fb%c3?q=\u00e9&\U0001f6d2=[1]'#f\u00e9"
        await service.set_webhook("shop", url, by_events=True)
        await service.accept(instance="shop")
        (arrival,) = await receiver.wait_for_count(1)
        assert arrival.path == "/caf%C3%A9/a%2Fb%c3/messages-upsert?q=%C3%A9&%F0%9F%9B%92=[1]'"
        assert arrival.json()["destination"] == receiver.url + arrival.path
        assert (await service.request("GET", "/webhooks/instances/shop")).json()["url"] == url


async def test_urls_headers_and_numbers(tmp_path: Path) -> None:
    """URLs that cannot be called, headers that HTTP or we reserve, and numbers out of range are 422 at their place."""
    async with running(tmp_path) as service:
        for url in BAD_URLS:
            await refused(service, "$.url", url=url)
        for headers in BAD_HEADERS:
            detail = await refused(service, "$.headers", url=PUBLIC, headers=headers)
            assert "v" * 99 not in detail
        for name in ("authorization", "Authorization", "jwt_key"):
            detail = await refused(
                service, "$.headers", url="https://ana:pw@93.184.215.14/", headers={name: "Bearer x"}
            )
            assert "pw" not in detail
        wrong: dict[str, tuple[Any, ...]] = {
            "concurrency": (0, -1, 1001, 1.5, "4", None), "timeout_ms": (0, -1, 600_001, "1"), "route_style": ("v2", 1),
            "by_events": ("true", 1, None), "enabled": (None, 1), "events": ([1], None, {}), "url": (None, 1, []),
        }  # fmt: skip
        for name, values in wrong.items():
            for value in values:
                reply = await put(service, **{"url": PUBLIC, name: value})
                assert (reply.status, f"$.{name}" in reply.json()["detail"]) == (422, True), (name, value, reply)
        for unknown in ("byEvents", "webhookByEvents", "URL", "", "webhook", "id", "secret_"):
            reply = await put(service, url=PUBLIC, **{unknown: True})
            assert (reply.status, f"`{unknown}`" in reply.json()["detail"]) == (422, True), reply
        assert (await stats(service))["seq"] == 0
        assert (await service.request("GET", "/webhook/find/checked")).body == b"null"


async def test_urls_that_are_fine(tmp_path: Path) -> None:
    """Any scheme's case, port, path, query and public address is taken, and shown as it was set."""
    async with running(tmp_path) as service:
        for url in ("http://93.184.215.14", "HTTPS://h.test:65535/a%2Fb?c=%20&d#e", "http://[2606:4700::1]/"):
            reply = await put(service, url=url, enabled=False)
            assert (reply.status // 100, reply.json()["url"]) == (2, url)
