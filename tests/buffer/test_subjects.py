"""The search for a person on a real server: it finds everything of theirs and changes nothing."""

from collections import Counter

import pytest

from mm_tasks.buffer import subjects as subjects_module
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.subjects import Subjects
from mm_tasks.events.lanes import LANES
from tests.buffer.test_purge import ANNA, HOUR_MS, KEYS, STORE, world, worlds
from tests.conftest import held

__all__ = ["world", "worlds"]


@pytest.fixture
def subjects(redis):
    return Subjects(redis, "p")


def found(subjects, tags=ANNA):
    return [event for step in subjects.search(tags) for event in step]


@pytest.mark.parametrize("step", [2, 2000])
def test_each_place_of_each_lane_is_searched_and_nothing_changes(
    redis, world, subjects, monkeypatch, step
):
    monkeypatch.setattr(subjects_module, "STEP", step)
    for lane in LANES:
        world.lanes[lane].schedule([Record(b"later A", "anna", None)], HOUR_MS)
        # A batch of identify holds one record; the last record of all is the oldest.
        world.bury("A", lane)
        world.bury("b", lane)
        world.batch("x" if lane == "identify" else "xb", lane)
        world.append("aBcAdef", lane)
    before = held(redis)

    events = found(subjects)

    assert Counter(event.place for event in events) == Counter(
        {f"{lane}:{place}": 2 if place == "waiting" else 1 for lane in LANES for place in PLACES}
    )
    assert {event.body[-1:] for event in events} == {b"A", b"a", b"x"}
    assert held(redis) == before


PLACES = ("scheduled", "waiting", "batches", "dead")


def test_a_step_looks_at_few_records_and_the_search_at_all(world, subjects):
    """A backlog must not stop Redis; 2 000 records are the bound of a step."""
    world.append("A" + "b" * 4500 + "A")
    steps = list(subjects.search(ANNA))

    assert [len(step) for step in steps[len(LANES) : len(LANES) + 3]] == [1, 0, 1]


def test_large_records_end_a_step_earlier(world, subjects):
    entries = [Record(b"x" * 100_000, "anna", None) for _ in range(60)]
    for n in range(0, 60, 20):
        world.lanes["backfill"].append(entries[n : n + 20])
    world.lanes["backfill"].append([Record(b"y", "bob", None)] * 200)

    assert len(found(subjects)) == 60
    assert max(len(step) for step in subjects.search(ANNA)) < 60 + 100


def test_a_repr_shows_no_event(world, subjects):
    world.append("A")

    assert repr(found(subjects)) == "[<FoundEvent track:waiting>]"


def test_the_cost_counts_all_records(world, subjects):
    world.lanes["track"].schedule([Record(b"later A", "anna", None)], HOUR_MS)
    world.bury("AA")
    world.batch("AA")
    world.append("A")

    assert subjects.cost() == 1 + 2 + 2 + 1 + 100


def test_the_fence_is_known_only_once_it_was_loaded(redis, subjects):
    """Not to know is not a no."""
    assert subjects.are_fenced(ANNA) is None
    fence = Fence(redis, "p")
    fence.add(ANNA[1:], STORE)
    assert subjects.are_fenced(ANNA) is None
    fence.load(STORE, lambda: ANNA[1:])
    assert subjects.are_fenced(ANNA) == [False, True]
    redis.hset(KEYS.fences, "run_id", "of a server before")
    assert subjects.are_fenced(ANNA) is None
