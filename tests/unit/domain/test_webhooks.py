import json
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from outbox.domain.catalogue import KINDS
from outbox.domain.errors import ConflictError, InvalidError
from outbox.domain.events import ordering_key
from outbox.domain.webhooks import (
    NO_CONVERSION,
    Address,
    Conversion,
    Credentials,
    Settings,
    Webhook,
    canonical_events,
    check_address,
    check_changeable,
    check_headers,
    check_name,
    check_settings,
    check_url,
    join_userinfo,
    queue_of,
    split_userinfo,
)

URLS = json.loads((Path(__file__).parents[2] / "vectors" / "urls.json").read_text())
NAMES = [kind.name for kind in KINDS]
PARTS = st.text(alphabet="ab1.-_~%$&@", max_size=8)


def refusal(url: str) -> InvalidError:
    """The error that refuses the URL."""
    with pytest.raises(InvalidError) as refused:
        check_url(url)
    return refused.value


def webhook(userinfo: str = "", **settings: Any) -> Webhook:
    """A webhook with these settings, or the defaults."""
    chosen = Settings(**({"url": "https://h.test/w"} | settings))
    return Webhook(7, "instance", "shop", "n8n", chosen, Credentials(userinfo=userinfo), "api", 1, 2)


@pytest.mark.parametrize("vector", URLS)
def test_documented_urls_are_taken(vector: dict[str, str]) -> None:
    """Every URL of the vectors may be set, and the URLs made of them too."""
    check_url(vector["url"])
    check_url(vector["by_events_url"])


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://h", "h", None),
        ("HTTPS://H.Test:8443/x?y=/z", "h.test", 8443),
        ("http://h:65535", "h", 65535),
        ("http://u:p%40@caf\u00e9.test/", "caf\u00e9.test", None),
        ("http://[::1]:1/", "::1", 1),
        ("https://h/" + "x" * 2038, "h", None),
    ],
)
def test_the_parts_of_a_url_are_told(url: str, host: str, port: int | None) -> None:
    """Host and port come back, to be judged as an address."""
    parts = check_url(url)
    assert (parts.hostname, parts.port) == (host, port)


@pytest.mark.parametrize(
    "url",
    ["", "h.test", "//h.test", "ftp://h.test", "file:///etc/passwd", "javascript://h/%0a", "ws://h", "http:h", "http:///x",
     "http://", "http://:80", "http://u@", "http://u:p@:80/x", "http://h:0", "http://h:65536", "http://h:-1", "http://h:x",
     "http://[::1", "http://[h]/", "http://[::g]/", "http://h\u2100st/"],
)  # fmt: skip
def test_only_http_urls_with_a_host_are_taken(url: str) -> None:
    """Another scheme, no host or an impossible port is refused."""
    assert refusal(url).where == "$.url"


@pytest.mark.parametrize("character", list(' \t\r\n\x00\x1f\x7f"<>\\^`{|}\ud83d'), ids=ascii)
def test_a_url_holds_no_broken_characters(character: str) -> None:
    """What a parser would strip, quote or take for a slash is refused wherever it stands."""
    for place in ("http://h{}.test/", "http://h.test/a{}b", "http://u{}@h.test/", "{}http://h.test/", "http://h/{}"):
        assert "no space, control character or quote" in refusal(place.replace("{}", character)).detail


def test_a_url_has_an_end() -> None:
    """One character over the limit is one too many."""
    assert "2048" in refusal("https://h/" + "x" * 2039).detail


@pytest.mark.parametrize(
    "url", ["http://u:hush@h\u2100st/", "http://u:hu[sh@h/", "http://u:p@h:hush/", "ftp://u:hush@h/"]
)
def test_a_refused_url_is_not_repeated(url: str) -> None:
    """The message of a refusal goes to answers and logs: no password stands in it."""
    refused = refusal(url)
    assert "hu" not in refused.detail
    assert refused.__cause__ is None
    assert refused.__suppress_context__ is (refused.__context__ is not None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("Authorization", "Bearer x y"), ("x-key", ""), ("!#$%&'*+.^_`|~09Az-", "~!"), ("jwt_key", "s"), ("hostile", "a"),
     ("x-content-type", "a"), ("accept", "*/*"), ("te-st", "a"), ("x", "v" * 4096)],
)  # fmt: skip
def test_custom_headers_are_taken(name: str, value: str) -> None:
    """Any token is a name, and any visible ASCII a value."""
    check_headers({name: value})


@pytest.mark.parametrize(
    "name",
    ["host", "content-type", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade",
     "expect", "proxy-authorization", "cookie", "webhook-id", "webhook-signature", "x-outbox-attempt", "x-outbox-hops"],
)  # fmt: skip
def test_headers_of_the_request_itself_are_reserved(name: str) -> None:
    """In any case of letters; the path names the header."""
    for written in (name, name.upper(), name.title()):
        with pytest.raises(InvalidError, match="set by the service itself") as refused:
            check_headers({"x-fine": "1", written: "1"})
        assert refused.value.where == f"$.headers.{written}"


@pytest.mark.parametrize("name", ["", "X A", "X(", "X:Y", "X\r\nY", "n\u00e4me", "X\n", "a/b", '"', "\x00"], ids=ascii)
def test_a_header_name_is_a_token(name: str) -> None:
    """What would break the request's head is no name."""
    with pytest.raises(InvalidError, match="no header name") as refused:
        check_headers({name: "1"})
    assert refused.value.where == "$.headers"


def test_a_header_stands_once() -> None:
    """Names that differ in case only are one header."""
    with pytest.raises(InvalidError, match="stands there twice"):
        check_headers({"X-Key": "1", "x-key": "2"})


@pytest.mark.parametrize(
    "value", [" a", "a ", " ", "a\tb", "a\r\nX: 1", "a\n", "\x00", "\x7f", "caf\u00e9", "v" * 4097], ids=ascii
)  # fmt: skip
def test_a_header_value_is_visible_ascii(value: str) -> None:
    """No control characters, no outer spaces, at most 4096 characters."""
    with pytest.raises(InvalidError, match="visible ASCII") as refused:
        check_headers({"x-key": value})
    assert refused.value.where == "$.headers.x-key"


def test_a_refused_header_value_is_not_repeated() -> None:
    """It may be a key: the message names the header alone."""
    with pytest.raises(InvalidError) as refused:
        check_headers({"authorization": "Bearer hush\n"})
    assert "hush" not in refused.value.detail


def test_headers_have_a_number() -> None:
    """Fifty are allowed, one more is not."""
    headers = {f"x-{number}": "" for number in range(50)}
    check_headers(headers)
    with pytest.raises(InvalidError, match="at most 50"):
        check_headers(headers | {"x-more": ""})


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"url": ""}, "$.url"),
        ({"url": "ftp://h", "enabled": False}, "$.url"),
        ({"concurrency": 0}, "$.concurrency"),
        ({"concurrency": 1001}, "$.concurrency"),
        ({"timeout_ms": 0}, "$.timeout_ms"),
        ({"timeout_ms": 600_001}, "$.timeout_ms"),
        ({"concurrency": 0, "timeout_ms": 0}, "$.concurrency"),
        *[({"rate_limit": rate}, "$.rate_limit") for rate in (0.0, -0.0, -1.0, 10_000.1, inf, -inf, nan)],
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], where: str) -> None:
    """The path of the first wrong member comes with the refusal; headers are looked at before numbers."""
    with pytest.raises(InvalidError) as refused:
        check_settings(webhook(**settings).settings, Credentials())
    assert refused.value.where == where
    if where != "$.url":
        with pytest.raises(InvalidError, match="set by the service itself"):
            check_settings(webhook(**settings).settings, Credentials(headers={"host": "x"}))


@pytest.mark.parametrize("userinfo", ["a b", "a\r\nx: y", "\x00", 'a"b', "\\", "\ud800", "u:<p>"], ids=ascii)
def test_a_broken_user_or_password_is_refused(userinfo: str) -> None:
    """What may not stand in a URL may not stand before its @ either, and is not repeated."""
    with pytest.raises(InvalidError, match="no space, control character or quote") as refused:
        check_settings(webhook().settings, Credentials(userinfo=userinfo))
    assert refused.value.where == "$.url"
    assert userinfo not in refused.value.detail


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "", "enabled": False},
        {"concurrency": 1, "timeout_ms": 1},
        {"concurrency": 1000, "timeout_ms": 600_000},
        {"rate_limit": 1e-9},
        {"rate_limit": 10_000.0},
        {"rate_limit": 1},
        {"order": "chat"},
        {"order": "instance"},
    ],
)
def test_settings_within_range_are_taken(settings: dict[str, Any]) -> None:
    """Bounds belong to the range, and a webhook that is off needs no URL."""
    check_settings(webhook(**settings).settings, Credentials(userinfo="u", headers={"x": "y"}))


@pytest.mark.parametrize("name", ["authorization", "Authorization", "jwt_key", "JWT_KEY"])
def test_a_webhook_logs_in_one_way(name: str) -> None:
    """User and password in the URL contradict an authorization header and a key for tokens; each alone is fine."""
    check_settings(webhook().settings, Credentials(headers={name: "x"}))
    with pytest.raises(InvalidError, match="contradict each other") as refused:
        check_settings(webhook().settings, Credentials(headers={name: "x"}, userinfo="u:p"))
    assert refused.value.where == "$.headers"


@pytest.mark.parametrize("name", ["jwt_key", "JWT_KEY"])
def test_a_key_for_tokens_is_one_way_to_log_in(name: str) -> None:
    """An authorization header contradicts it in any case of letters, and an empty key signs nothing."""
    assert Credentials(headers={"x": "y", name: "k"}).jwt_key == "k"
    assert Credentials(headers={"x": "y"}).jwt_key is None
    for other in ("authorization", "Authorization"):
        with pytest.raises(InvalidError, match="contradict each other") as refused:
            check_settings(webhook().settings, Credentials(headers={name: "k", other: "x"}))
        assert refused.value.where == "$.headers"
    with pytest.raises(InvalidError, match="empty") as refused:
        check_settings(webhook().settings, Credentials(headers={name: ""}))
    assert refused.value.where == f"$.headers.{name}"


def test_what_the_environment_sets_is_not_changed_by_others() -> None:
    """The refusal names the variable; a webhook that the API set, or none, may be changed."""
    check_changeable(webhook())
    check_changeable(None)
    with pytest.raises(ConflictError, match="WEBHOOK_GLOBAL_URL"):
        check_changeable(structs.replace(webhook(), source="environment"))


@pytest.mark.parametrize(
    "address",
    [Address("global"), Address("global", "", "x"), Address("instance", "a b"), Address("instance", "a", "x")],
)
def test_addresses_are_taken(address: Address) -> None:
    """A global webhook has no instance; a name is a choice."""
    check_address(address)


@pytest.mark.parametrize(
    ("address", "where"),
    [
        (Address("instance"), "instance"), (Address("instance", "a/b"), "instance"),
        (Address("instance", "a", "b/c"), "name"), (Address("global", "", "test"), "name"),
        (Address("instance", "a", "test"), "name"),
    ],
)  # fmt: skip
def test_what_no_path_can_name_is_no_address(address: Address, where: str) -> None:
    """The part that is wrong is named; `test` is where test events are sent."""
    with pytest.raises(InvalidError) as refused:
        check_address(address)
    assert refused.value.where == where


@pytest.mark.parametrize("name", ["n8n", "A_b-9", "x" * 64])
def test_a_webhooks_name_fits_into_a_path(name: str) -> None:
    """One to 64 letters, digits, dashes and underscores are taken."""
    check_name(name)


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a/b", "a.b", "a\n", "\u00e9"], ids=ascii)
def test_what_does_not_fit_into_a_path_is_no_name(name: str) -> None:
    """Anything else would have to be escaped somewhere."""
    with pytest.raises(InvalidError, match="1 to 64 letters"):
        check_name(name)


@given(st.lists(st.sampled_from([(kind.name, text) for kind in KINDS for text in (kind.name, kind.api_event.upper())])))
def test_events_are_stored_by_their_canonical_names(chosen: list[tuple[str, str]]) -> None:
    """In the catalogue's order and once each, however they were spelled and repeated."""
    wanted = {name for name, _ in chosen}
    assert canonical_events([spelling for _, spelling in chosen]) == tuple(name for name in NAMES if name in wanted)


def test_an_unknown_event_is_named_with_the_nearest() -> None:
    """The path counts to the wrong one."""
    with pytest.raises(InvalidError, match=r"no kind 'QRCODE'; the nearest is QRCODE_UPDATED") as refused:
        canonical_events(["CALL", "QRCODE"])
    assert refused.value.where == "$.events[1]"


@given(PARTS, PARTS | st.none(), st.sampled_from(["", "/", "/a@b", "?x=@", "/?u=http://q@r/", "#@", ":80/@"]))
def test_user_and_password_leave_a_url_and_come_back(user: str, password: str | None, rest: str) -> None:
    """They are told from an @ that stands behind the authority, and kept in their own encoding."""
    userinfo = user if password is None else f"{user}:{password}"
    bare = f"https://h.test{rest}"
    assert split_userinfo(f"https://{userinfo}@h.test{rest}") == (bare, userinfo)
    assert split_userinfo(bare) == (bare, "")
    assert split_userinfo(join_userinfo(bare, userinfo)) == (bare, userinfo)


def test_a_webhook_shows_its_url_as_it_was_set() -> None:
    """User and password are put back where they stood."""
    assert webhook("u:p%40", url="https://h.test/?r=http://x").url == "https://u:p%40@h.test/?r=http://x"
    assert webhook().url == "https://h.test/w"
    assert webhook().address == ("instance", "shop", "n8n")


@pytest.mark.parametrize(
    ("settings", "takes"),
    [
        ({}, True),
        ({"events": ("CALL",)}, True),
        ({"events": ("LABELS_EDIT",)}, False),
        ({"enabled": False}, False),
        ({"enabled": False, "events": ("CALL",)}, False),
    ],
)
def test_a_webhook_takes_what_it_is_set_to(settings: dict[str, Any], takes: bool) -> None:  # noqa: FBT001
    """No events listed means all of them; a disabled webhook takes none."""
    assert webhook(**settings).takes("CALL") is takes


def test_a_missing_webhook_is_named() -> None:
    """The sentence says whose webhook, and which one, is not there."""
    assert Address("global").missing == "there is no global webhook"
    assert Address("instance", "loja01", "crm").missing == "the instance 'loja01' has no webhook named 'crm'"


def test_a_queue_is_a_chat_an_instance_or_none() -> None:
    """The key of a chat is its event's; that of an instance is the one of events that belong to no chat."""
    chat = ordering_key("shop", b'{"id": "a"}')
    assert queue_of("none", "shop", chat) is None
    assert queue_of("chat", "shop", chat) == chat
    assert queue_of("instance", "shop", chat) == queue_of("instance", "shop", 0) == ordering_key("shop", None)
    assert queue_of("instance", "mall", chat) != queue_of("instance", "shop", chat)


@pytest.mark.parametrize(
    ("enabled", "suspended_ms", "state"),
    [(True, 0, "enabled"), (False, 0, "disabled"), (True, 5, "suspended"), (False, 5, "disabled")],
)
def test_a_webhook_holds_while_it_is_disabled_or_suspended(enabled: bool, suspended_ms: int, state: str) -> None:  # noqa: FBT001
    """Its deliveries read as held then; one that is suspended takes events all the same."""
    held = structs.replace(webhook(enabled=enabled), suspended_ms=suspended_ms)
    assert held.state == state
    assert held.holds is (state != "enabled")
    assert held.takes("CALL") is enabled


@pytest.mark.parametrize(("phase", "queueing"), [(0, False), (1, True), (2, False)])
def test_a_conversion_first_queues_then_promotes(phase: int, queueing: bool) -> None:  # noqa: FBT001
    """Only in its first part nobody can tell who comes first."""
    assert Conversion(phase, 0, 0).queueing is queueing
    assert NO_CONVERSION == (0, 0, 0)
