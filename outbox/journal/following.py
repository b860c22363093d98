"""Following the log: whoever waits for the next commit is woken by it, and let go when the service stops."""

import anyio


class Followers:
    """Those who wait for commits. Nobody waiting costs nothing."""

    def __init__(self) -> None:
        """Start with nobody."""
        self.stopping = False
        self._commit: anyio.Event | None = None

    def notice(self, _touched: set[int], _nudged: set[int]) -> None:
        """Wake all who wait: there was a commit."""
        if self._commit is not None:
            self._commit.set()
            self._commit = None

    def stop(self) -> None:
        """Wake all who wait, and let nobody wait from here on."""
        self.stopping = True
        self.notice(set(), set())

    def next_commit(self) -> anyio.Event:
        """Return what the next commit will set. Ask for it before looking: what is committed then is not missed."""
        if self._commit is None:
            self._commit = anyio.Event()
            if self.stopping:
                self._commit.set()
        return self._commit
