-- What lists dead deliveries, newest first; partial, so that deliveries cost it nothing until they die.
CREATE INDEX delivery_dead ON delivery (event, webhook) WHERE state = 3;
