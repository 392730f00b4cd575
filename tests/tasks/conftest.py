"""The events that the tasks of this process store in a real Redis."""

from functools import partial

import pytest

from tests.conftest import waiting_events


@pytest.fixture
def stored(redis, redis_url, fresh):
    """Return a function that returns the waiting events of a lane."""
    fresh(MM_TASKS_REDIS_URL=redis_url)
    return partial(waiting_events, redis, "default")
