import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from outbox.domain import routing
from outbox.domain.catalogue import RouteStyle
from outbox.domain.events import ordering_key
from outbox.domain.routing import Webhooks, url_for
from outbox.domain.webhooks import Credentials, Scope, Settings, Webhook, join_userinfo, split_userinfo

URLS = json.loads((Path(__file__).parents[2] / "vectors" / "urls.json").read_text())
KINDS = ["CALL", "LABELS_EDIT", "POLL_VOTE"]
INSTANCES = ["", "shop", "caf\u00e9"]


def webhook(number: int = 1, scope: Scope = "global", instance: str = "", name: str = "", **settings: Any) -> Webhook:
    """A webhook with these settings, or the defaults."""
    chosen = Settings(**({"url": "https://h.test/w"} | settings))
    return Webhook(number, scope, instance, name, chosen, Credentials(), "api", 1, 1)


def drawn(homes: list[tuple[bool, str]], kinds: list[list[str]], enabled: list[bool]) -> list[Webhook]:
    """Webhooks of several scopes, numbered from 1."""
    return [
        webhook(
            number,
            "global" if everywhere else "instance",
            "" if everywhere else instance,
            f"w{number}",
            enabled=on,
            events=tuple(events),
        )
        for number, ((everywhere, instance), events, on) in enumerate(zip(homes, kinds, enabled, strict=True), 1)
    ]


WEBHOOKS = st.integers(0, 6).flatmap(
    lambda count: st.builds(
        drawn,
        st.lists(st.tuples(st.booleans(), st.sampled_from(INSTANCES[1:])), min_size=count, max_size=count),
        st.lists(st.lists(st.sampled_from(KINDS[:2]), max_size=2), min_size=count, max_size=count),
        st.lists(st.booleans(), min_size=count, max_size=count),
    )
)


@pytest.mark.parametrize("vector", URLS)
def test_the_suffix_follows_the_path(vector: dict[str, str]) -> None:
    """By-events URLs are those of the vectors; user and password are sent as a header instead."""
    bare, userinfo = split_userinfo(vector["url"])
    style: RouteStyle = "documented" if vector["route_style"] == "documented" else "evolution"
    made = url_for(webhook(url=bare, by_events=True), vector["kind"], style)
    assert join_userinfo(made, userinfo) == vector["by_events_url"]
    assert url_for(webhook(url=bare), vector["kind"], style) == bare


@pytest.mark.parametrize(
    ("url", "plain", "by_events"),
    [
        ("https://h/w#top", "https://h/w", "https://h/w/call"),
        ("https://h/w?x=1#top", "https://h/w?x=1", "https://h/w/call?x=1"),
        ("https://h/w/?x=/", "https://h/w/?x=/", "https://h/w/call?x=/"),
        ("https://h?x=a?b", "https://h?x=a?b", "https://h/call?x=a?b"),
        ("https://h/w?", "https://h/w?", "https://h/w/call?"),
        ("https://h/w/", "https://h/w/", "https://h/w/call"),
        (
            "https://h/\u00e9%2f/?q=\u65e5+%41",
            "https://h/%C3%A9%2f/?q=%E6%97%A5+%41",
            "https://h/%C3%A9%2f/call?q=%E6%97%A5+%41",
        ),
        ("https://\u00e9.test/a", "https://\u00e9.test/a", "https://\u00e9.test/a/call"),
    ],
)
def test_query_and_fragment_stay_out_of_the_path(url: str, plain: str, by_events: str) -> None:
    """A query stays behind the suffix, a fragment is never sent, a slash does not double, paths are ASCII."""
    assert url_for(webhook(url=url), "CALL", "documented") == plain
    assert url_for(webhook(url=url, by_events=True), "CALL", "documented") == by_events


def test_a_webhooks_own_style_wins() -> None:
    """The service's route style holds for the webhooks that have none."""
    own = webhook(by_events=True, route_style="evolution")
    assert url_for(own, "SEND_MESSAGE", "documented") == "https://h.test/w/send-message"
    assert url_for(webhook(by_events=True), "SEND_MESSAGE", "documented") == "https://h.test/w/send-messages"
    assert url_for(webhook(by_events=True), "SEND_MESSAGE", "evolution") == "https://h.test/w/send-message"


def test_an_unknown_kind_has_a_suffix_too() -> None:
    """A newer server's event is posted to its own path."""
    assert url_for(webhook(by_events=True), "POLL_VOTE", "documented") == "https://h.test/w/poll-vote"


@given(WEBHOOKS, st.sampled_from(KINDS), st.sampled_from(INSTANCES))
def test_an_event_goes_to_all_who_take_it(webhooks: list[Webhook], kind: str, instance: str) -> None:
    """Globals first, then those of the instance: enabled, and taking the kind; asked twice, the same."""
    expected = [
        one.number
        for scope in ("global", "instance")
        for one in webhooks
        if one.scope == scope
        and (scope == "global" or one.instance == instance)
        and one.settings.enabled
        and (not one.settings.events or kind in one.settings.events)
    ]
    snapshot = Webhooks(webhooks)
    assert snapshot.targets(kind, instance) == tuple(expected)
    assert snapshot.targets(kind, instance) == tuple(expected)


def test_what_was_worked_out_is_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up instance names cannot fill the memory, and their events are routed all the same."""
    monkeypatch.setattr(routing, "_TARGETS_CACHED", 2)
    snapshot = Webhooks([webhook(3)])
    assert [snapshot.targets("CALL", str(number)) for number in range(5)] == [(3,)] * 5
    assert len(snapshot._targets) == 2


@given(WEBHOOKS)
def test_webhooks_are_found_by_number_and_address(webhooks: list[Webhook]) -> None:
    """Each by its own, and none by another's."""
    snapshot = Webhooks(webhooks)
    assert list(snapshot) == webhooks
    for one in webhooks:
        assert snapshot.get(one.number) is one
        assert snapshot.find(one.scope, one.instance, one.name) is one
    assert snapshot.get(99) is None
    assert snapshot.find("global", "", "other") is None


def test_the_unnamed_global_webhook_is_the_default() -> None:
    """A scope alone names its unnamed webhook."""
    snapshot = Webhooks([webhook(1, name="other"), webhook(2)])
    assert snapshot.find("global") is snapshot.get(2)


def test_a_changed_webhook_takes_its_place() -> None:
    """Setting a webhook makes a new snapshot, in order; the old one stays as it was."""
    before = Webhooks([webhook(1, name="a"), webhook(2, name="b")])
    assert before.targets("CALL", "shop") == (1, 2)
    after = before.replaced(webhook(1, name="a", enabled=False)).replaced(webhook(9, "instance", "shop"))
    assert [one.number for one in after] == [1, 2, 9]
    assert after.targets("CALL", "shop") == (2, 9)
    assert before.targets("CALL", "shop") == (1, 2)


def test_a_deleted_webhook_is_gone() -> None:
    """From number, address and targets; the old snapshot stays as it was."""
    before = Webhooks([webhook(1, name="a"), webhook(2, name="b"), webhook(3, name="c")])
    after = before.without(2)
    assert (after.get(2), after.find("global", "", "b"), after.targets("CALL", "shop")) == (None, None, (1, 3))
    assert before.targets("CALL", "shop") == (1, 2, 3)


def test_ordered_webhooks_have_queues() -> None:
    """Of an event's targets, those that ask for order, each with the queue it asks for."""
    free, chat, instance = webhook(1), webhook(2, name="b", order="chat"), webhook(3, name="c", order="instance")
    assert Webhooks([free]).queues((1,), "shop", 77) == []
    assert not Webhooks([free]).ordered
    snapshot = Webhooks([free, chat, instance])
    assert snapshot.ordered
    assert snapshot.queues((1, 2, 3), "shop", 77) == [(chat, 77), (instance, ordering_key("shop", None))]
    assert snapshot.queues((1,), "shop", 77) == []
    assert not snapshot.replaced(webhook(2, name="b")).without(3).ordered


@given(WEBHOOKS, st.data())
def test_a_webhook_whose_state_has_changed_takes_its_place(webhooks: list[Webhook], data: st.DataObject) -> None:
    """Found by number and address, in its place; routing is as before, and so is the old snapshot."""
    before = Webhooks(webhooks)
    changed = webhooks.copy()
    after = before
    for at in data.draw(st.lists(st.integers(0, len(webhooks) - 1))) if webhooks else []:
        changed[at] = structs.replace(changed[at], suspended_ms=changed[at].suspended_ms + 1)
        after = after.replaced(changed[at])
    assert list(after) == changed
    assert list(before) == webhooks
    assert all(after.get(one.number) is one and after.find(*one.address) is one for one in changed)
    for kind in KINDS:
        for instance in INSTANCES:
            assert after.targets(kind, instance) == before.targets(kind, instance)


def test_a_webhook_that_was_set_anew_is_routed_anew() -> None:
    """Settings that say the same may be shared, others never are."""
    one = webhook(1, events=("CALL",))
    snapshot = Webhooks([one])
    assert snapshot.targets("CALL", "shop") == (1,)
    suspended = structs.replace(one, suspended_ms=5)
    changed = structs.replace(suspended, settings=structs.replace(one.settings, events=("POLL_VOTE",)))
    assert snapshot.replaced(suspended).replaced(changed).targets("CALL", "shop") == ()
