"""The events that the tasks of this process store in a real Redis."""

from __future__ import annotations

import json

import pytest

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import HEADER_BYTES


@pytest.fixture
def stored(redis, redis_url, fresh):
    """Return a function that returns the waiting events of a lane."""
    fresh(MM_TASKS_REDIS_URL=redis_url)

    def read(lane="track"):
        records = redis.lrange(ProjectKeys("default").lane(lane).waiting, 0, -1)
        return [json.loads(record[HEADER_BYTES:]) for record in records]

    return read
