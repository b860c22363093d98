import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as Referee

from outbox.domain.errors import InvalidError
from outbox.domain.rotating import read_secret, rotated, secrets_at, write_secret
from outbox.domain.webhooks import Credentials

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "signatures.json").read_text())
WRITTEN = {secret for vector in VECTORS for secret in vector.get("secrets", [vector.get("secret")])}
OLD, NEW, NEWER = bytes(24), b"n" * 32, b"m" * 64
DAY_S = 86_400
HELD = Credentials(headers={"x-a": "1"}, userinfo="u:p")


def credentials(**members: Any) -> Credentials:
    """Return credentials with other things beside the secret, which must stay."""
    return Credentials(headers=HELD.headers, userinfo=HELD.userinfo, **members)


def key_of(text: str) -> bytes:
    """Return the bytes that the reference implementation signs with."""
    return Referee(text)._whsecret


@pytest.mark.parametrize("text", sorted(WRITTEN))
def test_secrets_of_the_vectors_are_read_and_written(text: str) -> None:
    """Each is what it was when it is written again."""
    assert read_secret(text) == key_of(text)
    assert write_secret(read_secret(text)) == text


@given(st.binary(min_size=24, max_size=64), st.sampled_from(["whsec_", ""]), st.booleans())
def test_a_secret_is_read_as_receivers_read_it(secret: bytes, prefix: str, padded: bool) -> None:  # noqa: FBT001
    """With the prefix and the padding or without, the bytes are those that the reference implementation signs with."""
    encoded = base64.b64encode(secret).decode()
    text = prefix + (encoded if padded else encoded.rstrip("="))
    assert read_secret(text) == key_of(text) == secret
    assert write_secret(secret) == f"whsec_{encoded}"


@pytest.mark.parametrize(
    "text",
    ["", "whsec_", "whsec_hello", "not base64 at all!", "A" * 33, "A" * 37, "A" * 34 + "=", "A" * 35 + "==",
     "A" * 36 + "=", "A" * 40 + "====", "=" * 40, "A" * 32 + "=AAA", "A" * 31 + "-", "A" * 31 + "_",
     "A" * 31 + "\u00e9", "A" * 32 + "\n", "\nwhsec_" + "A" * 32, " " + "A" * 32, "WHSEC_" + "A" * 32,
     "whsec_whsec_" + "A" * 32, "whsk_" + "A" * 64,
     "A" * 31 + "=", "A" * 87 + "=", "whsec_" + "A" * 30 + "==", "A" * 88, "A" * 100_000],
    ids=range(26),
)  # fmt: skip
def test_what_is_no_secret_is_refused_and_not_repeated(text: str) -> None:
    """No base64 (or that for URLs), spaces, another prefix, too few bytes or too many; the message has none of it."""
    with pytest.raises(InvalidError, match="base64 of 24 to 64 bytes") as refused:
        read_secret(text)
    assert refused.value.where == "$.secret"
    assert re.findall(r"A{5}|hello|at all", refused.value.detail) == []


def test_a_replaced_secret_signs_until_its_time_is_over() -> None:
    """To the millisecond: the newest first, then it alone; what else is in the credentials stays."""
    found = rotated(credentials(secret=OLD), NEW, 2, 1000)
    assert found == credentials(secret=NEW, previous_secret=OLD, previous_until_ms=3000)
    assert secrets_at(found, 1000) == secrets_at(found, 2999) == (NEW, OLD)
    assert secrets_at(found, 3000) == (NEW,)


@pytest.mark.parametrize(("old", "overlap_s"), [(b"", DAY_S), (OLD, 0)])
def test_nothing_signs_on_without_overlap_or_predecessor(old: bytes, overlap_s: int) -> None:
    """A first secret signs alone, and so does one that takes over at once."""
    found = rotated(credentials(secret=old), NEW, overlap_s, 1000)
    assert found == credentials(secret=NEW)
    assert secrets_at(found, 1000) == (NEW,)


def test_a_secret_that_is_taken_away_ends_all_signing() -> None:
    """At once, whatever the overlap, and in the middle of a rotation too."""
    for old in (credentials(secret=OLD), rotated(credentials(secret=OLD), NEW, DAY_S, 1000), credentials()):
        found = rotated(old, b"", DAY_S, 2000)
        assert found == credentials()
        assert secrets_at(found, 2000) == ()


def test_the_same_secret_again_goes_on_with_a_rotation() -> None:
    """Whatever its overlap, the end stays as it was; an overlap of 0 ends it, and one that is over leaves nothing."""
    rotating = rotated(credentials(secret=OLD), NEW, 2, 1000)
    assert rotated(rotating, NEW, DAY_S, 2999) == rotated(rotating, NEW, 1, 1500) == rotating
    assert rotated(rotating, NEW, 0, 1500) == rotated(rotating, NEW, DAY_S, 3000) == credentials(secret=NEW)


def test_at_most_two_secrets_sign() -> None:
    """A third one ends the first at once; the way back is a rotation like any other."""
    rotating = rotated(credentials(secret=OLD), NEW, DAY_S, 1000)
    assert secrets_at(rotated(rotating, NEWER, DAY_S, 2000), 2000) == (NEWER, NEW)
    assert secrets_at(rotated(rotating, OLD, DAY_S, 2000), 2000) == (OLD, NEW)


@pytest.mark.parametrize("overlap_s", [-1, 30 * DAY_S + 1, 10**30])
def test_an_overlap_has_bounds(overlap_s: int) -> None:
    """It is refused outside of them even where nothing is replaced; the bounds themselves are fine."""
    for old, secret in ((credentials(secret=OLD), NEW), (credentials(), b"")):
        with pytest.raises(InvalidError, match="0 to 2592000") as refused:
            rotated(old, secret, overlap_s, 1000)
        assert refused.value.where == "$.secret_overlap_s"
    assert rotated(credentials(secret=OLD), NEW, 30 * DAY_S, 0).previous_until_ms == 30 * DAY_S * 1000
