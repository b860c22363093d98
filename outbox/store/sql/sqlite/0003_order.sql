-- Order, suspension, breaker and age: a delivery knows its queue and from when its age counts.
CREATE TABLE delivery_next (
    webhook  INTEGER NOT NULL,
    event    INTEGER NOT NULL,
    state    INTEGER NOT NULL, -- 0 pending, 1 waiting, 2 acknowledged, 3 dead
    due_ms   INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    charged  INTEGER NOT NULL,
    queue    INTEGER,          -- the key of those that go one at a time; NULL where there is no order
    since_ms INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (webhook, event)
) STRICT, WITHOUT ROWID;
INSERT INTO delivery_next (webhook, event, state, due_ms, attempts, charged, since_ms)
    SELECT webhook, event, state, due_ms, attempts, charged, coalesce(accepted_ms, 0)
    FROM delivery LEFT JOIN event ON seq = event;
DROP TABLE delivery;
ALTER TABLE delivery_next RENAME TO delivery;
CREATE INDEX delivery_due ON delivery (webhook, due_ms, event) WHERE state = 0;
CREATE INDEX delivery_dead ON delivery (event, webhook) WHERE state = 3;
-- A queue has one head; it guards the order whatever the code does. Both cost nothing where there is no order.
CREATE UNIQUE INDEX delivery_head ON delivery (webhook, queue) WHERE state = 0 AND queue IS NOT NULL;
CREATE INDEX delivery_waiting ON delivery (webhook, queue, event) WHERE state = 1;

ALTER TABLE webhook ADD COLUMN suspended_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE webhook ADD COLUMN held BLOB NOT NULL DEFAULT x'90'; -- msgpack: no interval
ALTER TABLE webhook ADD COLUMN opened_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE webhook ADD COLUMN phase INTEGER NOT NULL DEFAULT 0;
ALTER TABLE webhook ADD COLUMN position INTEGER NOT NULL DEFAULT 0;
ALTER TABLE webhook ADD COLUMN until INTEGER NOT NULL DEFAULT 0;
