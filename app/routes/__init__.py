"""The HTTP face: each route parses, calls the engine, and shapes the answer."""
