"""The fence in Redis is mended where it differs from SQL, and seals are opened only for that."""

import logging

import pytest

from mm_tasks.buffer.audit_state import AuditState
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.pauses import Pauses
from mm_tasks.erasure.fence_sync import FenceSync
from mm_tasks.erasure.queries import ErasureQueries
from mm_tasks.erasure.request import ErasureRequest
from mm_tasks.erasure.service import ErasureService
from tests.erasure.stores import VISITOR, Store


class CountedQueries(ErasureQueries):
    """Counts the times that all seals were opened."""

    opened = 0

    def fences(self):
        self.opened += 1
        return super().fences()


class Fenced:
    """A store, its fence in Redis, and a process that keeps both equal."""

    def __init__(self, redis, store):
        self.store = store
        self.queries = CountedQueries(store.session)
        self.fence = Fence(redis, "p")
        state = AuditState(redis, "p")
        self.sync = FenceSync(self.fence, self.queries, store.continuity, state)
        pause = Pauses(redis, "p", None)
        self.service = ErasureService(store.steps, store.commands, self.sync, pause)
        self.sync.load()

    def forget(self, user_id, *visitors):
        return self.service.request(ErasureRequest(user_id, "dpo", anonymous_ids=visitors)).id

    def opened_by_sweep(self):
        """Return how often a sweep opens all seals; then Redis has the tags of SQL."""
        before = self.queries.opened
        self.sync.reconcile()
        opened = self.queries.opened - before
        assert self.fence.tags() == set(self.store.queries.fences())
        return opened


@pytest.fixture
def fenced(redis, url, tmp_path):
    fenced = Fenced(redis, Store(url, tmp_path))
    fenced.forget("person-0")
    assert fenced.opened_by_sweep() == 1
    return fenced


def test_seals_stay_closed_while_both_places_change_alike(fenced):
    """A million seals took six seconds at each change of the log."""
    for n in range(1, 4):
        fenced.forget(f"person-{n}", f"visitor-{n}")
        assert fenced.opened_by_sweep() == 0


def test_a_fence_that_was_not_added_is_added(fenced):
    fenced.store.commands.open_request(ErasureRequest("person-1", "dpo"))
    assert fenced.opened_by_sweep() == 2  # to count, and to load
    assert fenced.opened_by_sweep() == 0


def test_a_fence_that_was_not_lifted_is_lifted(fenced):
    erasure = fenced.forget("person-1")
    fenced.store.commands.cancel(erasure, "dpo")
    assert fenced.opened_by_sweep() == 2
    assert fenced.opened_by_sweep() == 0


def test_a_tag_of_two_erasures_is_counted_again_and_loads_nothing(fenced, caplog):
    fenced.forget("person-1", VISITOR)
    assert fenced.opened_by_sweep() == 0
    caplog.set_level(logging.INFO)
    fenced.forget("person-2", VISITOR)
    assert fenced.opened_by_sweep() == 1
    assert fenced.opened_by_sweep() == 0
    assert "fences_loaded" not in caplog.text
