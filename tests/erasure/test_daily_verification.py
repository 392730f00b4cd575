"""The verification that a sweep does once a day, step by step."""

import pytest
from sqlalchemy import text

from mm_tasks.buffer.audit_state import AuditState
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.erasure import daily_verification
from mm_tasks.erasure.daily_verification import DailyVerification
from mm_tasks.erasure.fence_sync import FenceSync

KEYS = ProjectKeys("p")
DAY_S = 86_400


class Daily:
    """The verification of a store, and the passing of time in Redis."""

    def __init__(self, redis, store):
        self.redis, self.store = redis, store
        self.state = AuditState(redis, "p")
        fence = Fence(redis, "p")
        sync = FenceSync(fence, store.queries, store.continuity, self.state)
        parts = (store.session, store.queries, self.state)
        self.step = DailyVerification(*parts, sync.check_store, sync.check_log).step

    @property
    def found(self):
        return self.state.read()

    def time_passes(self, seconds):
        for name, value in self.redis.hgetall(KEYS.audit).items():
            at, _, rest = value.partition(b" ")
            if name != b"reached":
                moved = f"{int(at) - seconds * 1000} {rest.decode()}".rstrip()
                self.redis.hset(KEYS.audit, name, moved)


@pytest.fixture
def daily(redis, store):
    return Daily(redis, store)


def change(store, seq, old="dpo", new="dpx"):
    with store.tampering() as connection:
        query = "UPDATE mm_erasure_audit SET line = replace(line, :old, :new) WHERE seq = :seq"
        connection.execute(text(query), {"old": old, "new": new, "seq": seq})


def test_a_run_a_day_verifies_the_new_entries_once_for_all_workers(daily, redis, store):
    store.completed()
    daily.step()
    size = len(store.entries())
    assert daily.found.verified_size == size
    assert daily.found.reached.size == size
    store.ask("another")
    daily.step()
    Daily(redis, store).step()
    assert daily.found.verified_size == size

    daily.time_passes(DAY_S)
    assert daily.found.verified_age_s >= DAY_S
    daily.step()
    assert daily.found.verified_size == size + 1
    assert daily.found.verified_age_s < 60


def test_a_long_log_takes_several_steps(daily, store, monkeypatch):
    """No sweep is held up: another worker may take the next step."""
    monkeypatch.setattr(daily_verification, "_ENTRIES_MAX", 5)
    store.completed()
    steps = 0
    while daily.found.verified_age_s is None:
        daily.step()
        steps += 1

    assert steps == len(store.entries()) // 5 + 1


@pytest.mark.parametrize("seq", [1, 4])
def test_a_changed_entry_is_found_within_a_week_and_named(daily, store, seq, caplog):
    store.completed()
    daily.step()
    change(store, seq, '"at":"2026', '"at":"2025')
    daily.time_passes(7 * DAY_S)
    daily.step()

    assert daily.found.broken.startswith(f"entry {seq}: its MAC does not hold")
    assert "audit_not_verified" in caplog.text
    # Mended, an hour later all is verified again.
    change(store, seq, '"at":"2025', '"at":"2026')
    daily.step()
    assert daily.found.broken
    daily.time_passes(3600)
    daily.step()
    assert not daily.found.broken
    assert daily.found.verified_size == len(store.entries())


def test_an_entry_that_follows_the_verified_ones_is_looked_at_the_next_day(daily, store):
    store.ask("one")
    daily.step()
    store.ask("another")
    store.ask("a third")
    change(store, 2)
    daily.time_passes(DAY_S)
    daily.step()

    assert daily.found.broken.startswith("entry 2: its MAC does not hold")


def test_an_end_that_was_replaced_is_found_the_next_day(daily, store):
    store.ask("one")
    store.ask("another")
    daily.step()
    change(store, 2)
    daily.time_passes(DAY_S)
    daily.step()

    assert daily.found.broken.startswith("entry 2 is not the one that was verified before")


def test_missing_guards_are_noted_until_they_are_back(daily, store):
    store.ask("one")
    with store.tampering():
        pass
    daily.step()

    assert "mm_erasure_audit_no_update" in daily.found.guards_missing


def test_a_step_of_a_worker_that_died_is_taken_again(daily, store):
    store.ask("one")
    daily.state.claim_step(daily.found)
    daily.step()
    assert daily.found.verified_age_s is None
    daily.time_passes(61)
    daily.step()

    assert daily.found.verified_size == 1


def test_a_process_with_another_store_notes_nothing(redis, daily, store):
    store.ask("one")
    Fence(redis, "p").load("another store", set)
    daily.step()

    assert not redis.exists(KEYS.audit)
