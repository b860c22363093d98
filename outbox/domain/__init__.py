"""Nouns and rules: frozen structs and pure functions. No await, no clock, no I/O."""
