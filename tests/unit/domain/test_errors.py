import pytest

from outbox.domain.errors import BusyError, InvalidError, NotFoundError, OutboxError, StoreRefusedError


def test_an_error_says_what_is_wrong() -> None:
    """The sentence for the caller is both the message and a field."""
    error = NotFoundError("there is no such event")
    assert (str(error), error.detail) == ("there is no such event", "there is no such event")


@pytest.mark.parametrize("where", ["$", "$.headers.x"])
def test_a_wrong_value_is_named_by_its_path(where: str) -> None:
    """The path stands in the message for people and in a field for programs."""
    error = InvalidError("too long", where)
    assert error.where == where
    assert error.detail == f"too long - at `{where}`"


def test_a_wrong_value_without_a_place_is_the_whole() -> None:
    """The path of the outermost value is `$`."""
    assert InvalidError("wrong").where == "$"


@pytest.mark.parametrize("kind", [BusyError, StoreRefusedError])
def test_a_busy_service_says_when_to_come_back(kind: type[BusyError]) -> None:
    """A refused commit is one way of being busy: both carry the seconds, one by default."""
    assert kind("full").retry_after_s == 1
    assert kind("full", 7).retry_after_s == 7
    assert isinstance(kind("full"), OutboxError)
