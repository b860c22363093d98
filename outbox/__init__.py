"""The engine of Evolution Outbox: no web framework, no environment, no printing.

| package | idea |
| --- | --- |
| `outbox.domain` | nouns and rules: frozen structs and pure functions |
| `outbox.store` | where facts are kept; decides nothing |
| `outbox.journal` | what happened: the one writer, reading, folding |
| `outbox.relay` | what we do about it: lanes, attempts, outcomes |
| `outbox.inspecting` | the front door to a database without its engine: `open_inspector(database)` |
| `outbox.engine` | the composition root and front door: `open_engine(config)` |
"""

__version__ = "0.1.0"
