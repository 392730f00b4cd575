"""Both sides of a lane in one object: a test appends and then claims."""

from __future__ import annotations

from mm_tasks.buffer.batches import Batches
from mm_tasks.buffer.producer import Producer


class LaneBuffer(Batches):
    """The batches of a lane, with the methods of its producer that tests call."""

    def __init__(self, redis, project, lane, limits, **producer_limits):
        super().__init__(redis, project, lane, limits)
        self.producer = Producer(redis, project, lane, limits, **producer_limits)
        self.append = self.producer.append
