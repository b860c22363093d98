"""The commands of `scripts/outbox`, by what they are for: looking, listing, following the log, keeping it in order."""
