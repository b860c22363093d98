"""The errors of the engine, grouped by what a caller does about them.

Each class stands for one reaction: mend the request, look elsewhere, come back later, stop the service. The
message says what is wrong and where, in words that may be shown to the caller; it never holds a secret.
"""


class OutboxError(Exception):
    """Something the engine refuses or cannot do."""

    def __init__(self, detail: str) -> None:
        """Keep `detail`, a sentence a person can act on."""
        super().__init__(detail)
        self.detail = detail


class MalformedError(OutboxError):
    """The bytes are not the JSON we take: mend the bytes."""


class InvalidError(OutboxError):
    """The JSON has the wrong shape or a value out of range: mend the member named by `where`."""

    def __init__(self, detail: str, where: str = "$") -> None:
        """Name the place as a JSON path such as `$.instance`."""
        super().__init__(f"{detail} - at `{where}`")
        self.problem = detail
        self.where = where


class TooLargeError(OutboxError):
    """The body is over the limit: send less."""


class NotFoundError(OutboxError):
    """There is no such event, webhook or delivery: look elsewhere."""


class ConflictError(OutboxError):
    """The request contradicts what is already so: decide which one is meant."""


class BusyError(OutboxError):
    """A bound is reached: nothing was stored, come back after `retry_after_s` seconds."""

    def __init__(self, detail: str, retry_after_s: int = 1) -> None:
        """Keep the seconds after which a retry makes sense."""
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class StoreRefusedError(BusyError):
    """The store did not take the commit, and nothing of it is stored: come back later."""


class OutcomeUnknownError(OutboxError):
    """A commit neither succeeded nor failed for certain: the service must stop; the caller may repeat safely."""


class CannotStartError(OutboxError):
    """The service cannot run with this file, these settings or this machine: mend them and start again."""


class CorruptError(OutboxError):
    """What the store holds is not what was written: run `verify`, restore a backup."""


class DamagedFileError(CorruptError):
    """The database's own structure is damaged: the service must stop before it writes more into it."""
