"""The store for one machine: one SQLite file in WAL mode, owned by one process, synced at every commit."""

from outbox.store.sqlite.reading import SqliteReader, open_reader
from outbox.store.sqlite.writing import SqliteStore, open_store

__all__ = ["SqliteReader", "SqliteStore", "open_reader", "open_store"]
