from collections.abc import AsyncIterator

import pytest

from tests.harness import kill_leftovers


@pytest.fixture(autouse=True)
async def no_leftovers() -> AsyncIterator[None]:
    """No service outlives the test that started it."""
    yield
    await kill_leftovers()
