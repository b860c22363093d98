-- Replays: how far each has come. What was asked for stands in the log, in the record whose seq is the number.
CREATE TABLE replay (
    number     INTEGER PRIMARY KEY,
    webhook    INTEGER NOT NULL, -- it has come through this webhook's deliveries
    event      INTEGER NOT NULL, -- up to this event
    replayed   INTEGER NOT NULL,
    skipped    INTEGER NOT NULL,
    next_ms    INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    finished   INTEGER NOT NULL
) STRICT;
-- What a start takes up again.
CREATE INDEX replay_running ON replay (finished) WHERE finished = 0;
