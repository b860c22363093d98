-- The log: every fact, in commit order. `subject` is the event's seq, or minus the webhook's number, that a record is
-- about; an event's own record and a webhook's first are found by their seq and have 0.
CREATE TABLE log (
    seq     INTEGER PRIMARY KEY,
    subject INTEGER NOT NULL,
    record  BLOB NOT NULL,
    digest  BLOB NOT NULL
) STRICT;
CREATE INDEX log_subject ON log (subject) WHERE subject <> 0;

-- Bodies, once, as received; the record holds their digest.
CREATE TABLE body (
    event INTEGER PRIMARY KEY,
    body  BLOB NOT NULL
) STRICT;

-- Material that must not stand in the log; records hold its id and its fingerprint.
CREATE TABLE secret (
    id       BLOB PRIMARY KEY,
    material BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Projections: each can be rebuilt from the log alone.
CREATE TABLE event (
    seq         INTEGER PRIMARY KEY,
    id          BLOB NOT NULL UNIQUE,
    kind        TEXT NOT NULL,
    instance    TEXT NOT NULL,
    accepted_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE delivery (
    webhook  INTEGER NOT NULL,
    event    INTEGER NOT NULL,
    state    INTEGER NOT NULL, -- 0 pending, 1 waiting, 2 acknowledged, 3 dead
    due_ms   INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    charged  INTEGER NOT NULL,
    PRIMARY KEY (webhook, event)
) STRICT, WITHOUT ROWID;
-- What a lane claims by; partial, so that settled deliveries cost it nothing.
CREATE INDEX delivery_due ON delivery (webhook, due_ms, event) WHERE state = 0;

CREATE TABLE webhook (
    number      INTEGER PRIMARY KEY,
    scope       TEXT NOT NULL,
    instance    TEXT NOT NULL,
    name        TEXT NOT NULL,
    settings    BLOB NOT NULL,
    source      TEXT NOT NULL,
    secret      BLOB NOT NULL,
    fingerprint BLOB NOT NULL,
    created_ms  INTEGER NOT NULL,
    updated_ms  INTEGER NOT NULL,
    deleted_ms  INTEGER
) STRICT;

CREATE TABLE idempotency (
    key   BLOB PRIMARY KEY,
    event INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Kept up to date with every commit, because counting a million rows takes too long. (0, -1) counts events.
CREATE TABLE counter (
    webhook INTEGER NOT NULL,
    state   INTEGER NOT NULL,
    n       INTEGER NOT NULL,
    PRIMARY KEY (webhook, state)
) STRICT, WITHOUT ROWID;
