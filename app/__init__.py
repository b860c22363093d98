"""The service: Litestar in front of the engine, its settings and its commands."""
