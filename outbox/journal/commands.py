"""What can be asked of the journal. Each command decides inside the commit, from facts, and answers afterwards.

A command that refuses (raises an OutboxError in `decide`) disturbs no other command of its commit.
"""

from typing import ClassVar, Protocol, TypeVar

from msgspec import Struct

from outbox.domain.routing import Webhooks
from outbox.journal.ledger import Ledger
from outbox.store.protocol import Wants

RECORD_BYTES = 512
"""What a record without payload holds in the queue and adds to a commit, roughly."""

T_co = TypeVar("T_co", covariant=True)


class Command(Protocol[T_co]):
    """One thing to be decided and recorded, and what its caller gets back."""

    alone: ClassVar[bool]
    """Whether it must be the only one of its commit: it counts rows, or changes settings, that others go by."""

    @property
    def size(self) -> int:
        """The bytes it holds in the queue and adds to a commit, roughly."""

    def asks(self, webhooks: Webhooks, /) -> bool:
        """Say whether `decide` must know rows, or changes the settings; if not, it may be called before its turn."""

    def want(self, wants: Wants, webhooks: Webhooks, /) -> None:
        """Name the rows that `decide` must know; `webhooks` are the settings that it will find."""

    def decide(self, ledger: Ledger) -> T_co:
        """Append records to `ledger` and return the answer; it is given out only once the commit is on disk."""


class Asking(Struct, frozen=True):
    """What most commands are like: they ask for facts, if only for the settings, and add about one record."""

    alone: ClassVar[bool] = False

    @property
    def size(self) -> int:
        """See `Command.size`."""
        return RECORD_BYTES

    def asks(self, _webhooks: Webhooks) -> bool:
        """See `Command.asks`."""
        return True

    def want(self, wants: Wants, webhooks: Webhooks) -> None:
        """See `Command.want`: nothing but the settings, which are known."""
