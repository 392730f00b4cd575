"""Purge on a real server: nothing of the person stays, nothing of anybody else goes.

`keep_alive` is called between two steps of a scan, so that is where workers do what they do.

Sabotages that turn this file red, each tried on a copy:

- purge_waiting walks from head to tail, begins before the tail, steps over a record, moves more
  records than it removes, fills a place at the head, removes any number in one step, or forgets
  `waiting_bytes`, its commas or `held_bytes`;
- a step counts for another person, counts a record of two people twice or for the visitor, or
  reports an attempt of one person for another;
- purge_batch changes a batch that is being sent, waits for an expired lease, reports the lease of
  a batch without the person, does not adjust `sent`, `suspect` or `held`, counts records that were
  not sent, forgets a count, keeps the hash, slot or lease of an emptied batch, keeps the token, or
  does not raise the generation or free a batch whose sent part is gone;
- purge_dead walks from the oldest, steps over a letter, forgets a count or the time of burial,
  counts the line before the record, or counts for another lane;
- caught is kept after it was reported, or not noted, or noted for the wrong id; revive lets fenced
  records pass; begin lets a late success count for a part that a purge made longer;
- any script checks one of the two tags alone, or is refused at maxmemory;
- `scan` reads dead letters before batches, one lane's batches, or due ones alone, or reports the
  lease of the last lane instead of the longest;
- `rewrite_aof` takes an earlier rewrite for its own, or raises for a refusal.
"""

import time
from bisect import bisect
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis import Redis

from mm_tasks.buffer import purge as purge_module
from mm_tasks.buffer.batches import Admitted, BatchLimits, Rejection
from mm_tasks.buffer.dead_letters import DeadLetters
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.purge import Purge, Scan
from mm_tasks.buffer.records import HEADER_BYTES, tag
from mm_tasks.errors import BufferFull
from mm_tasks.events.lanes import LANES
from tests.buffer.lane_buffer import LaneBuffer, assert_adds_up, counts
from tests.conftest import held

KEYS = ProjectKeys("p")
STORE = "a store"
PLACES = ("scheduled", "waiting", "batches", "dead")
HOUR_MS = 3_600_000
ANNA = (tag("p", "user", "anna"), tag("p", "anonymous", "a_anna"))
NONE = Scan(Counter(), 0)
# The letters of the records about Anna: see `World.append`.
PERSON = "Aax"
# One server for all examples, emptied before each.
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


class World:
    """Both lanes, dead letters, the fence and the purge of one project on one server."""

    def __init__(self, redis, events_max=4):
        self.redis = redis
        limits = BatchLimits(events_max, 1 << 20, linger_ms=0)
        self.lanes = {lane: LaneBuffer(redis, "p", lane, limits) for lane in LANES}
        self.track = self.lanes["track"]
        self.fence = Fence(redis, "p")
        self.purge = Purge(redis, "p")
        self.dead = DeadLetters(redis, "p")
        self.serial = 0
        self.fence.load(STORE, set)

    def close(self):
        for buffer in self.lanes.values():
            buffer.close()

    # What producers and workers do.

    def append(self, whose, lane="track"):
        """Append one event for each letter: A, a (anonymous) and x (both) are Anna's."""
        entries = []
        for who in whose:
            self.serial += 1
            ids = {"A": ("anna", None), "a": ("bob", "a_anna"), "x": ("anna", "a_anna")}
            user, anonymous = ids.get(who, (f"user_{who}", f"a_{who}" if who.isupper() else None))
            entries.append(Record(b"%d %s" % (self.serial, who.encode()), user, anonymous))
        for i in range(0, len(entries), 1000):
            self.lanes[lane].append(entries[i : i + 1000])

    def claim(self, lane="track"):
        return self.lanes[lane].claim(found_again_ms=0)

    def begin(self, batch_id, lane="track", lease_ms=HOUR_MS):
        return self.lanes[lane].begin(batch_id, lease_ms=lease_ms)

    def batch(self, whose, lane="track"):
        """Return the id of a batch of these."""
        self.append(whose, lane)
        batch_id = self.claim(lane)
        assert self.records(batch_id, lane) == whose
        return batch_id

    def bury(self, whose, lane="track"):
        batch_id = self.batch(whose, lane)
        self.lanes[lane].bury(batch_id, self.begin(batch_id, lane).token)

    def narrowed(self, whose, times=1):
        """Return a batch that was refused so often: half of it, a quarter … is sent next."""
        batch_id = self.batch(whose)
        for _ in range(times):
            self.track.bisect(batch_id, self.begin(batch_id).token)
        return batch_id

    def raise_fence(self):
        self.fence.add(ANNA, STORE)

    def scan(self, tags=ANNA, keep_alive=None):
        return self.purge.scan({"one": tags}, keep_alive or self.assert_adds_up)["one"]

    def erase(self):
        """Fence Anna and scan once; return the counts that are not zero."""
        self.raise_fence()
        return removed(self.scan())

    # What is there: one letter for each record.

    def waiting(self, lane="track"):
        return whose(self.redis.lrange(KEYS.lane(lane).waiting, 0, -1))

    def serials(self, lane="track"):
        return [serial(record) for record in self.redis.lrange(KEYS.lane(lane).waiting, 0, -1)]

    def records(self, batch_id, lane="track"):
        return whose(self.redis.lrange(KEYS.lane(lane).records(batch_id), 0, -1))

    def letters(self, lane="track"):
        letters = self.redis.zrange(KEYS.dead_at, 0, -1)
        ids = [id_ for id_ in letters if id_.startswith(lane.encode())]
        return whose(self.redis.hmget(KEYS.dead, ids)) if ids else ""

    def field(self, batch_id, name, lane="track"):
        value = self.redis.hget(KEYS.lane(lane).batch(batch_id), name)
        return None if value is None else value.decode()

    def assert_adds_up(self):
        assert_adds_up(self.redis)


def whose(records):
    """Return the last character of each record: for whom `append` wrote it."""
    return "".join(chr(record[-1]) for record in records)


def removed(scan):
    """Return what a scan found, without the zeros."""
    return dict(+scan.removed)


@pytest.fixture
def worlds():
    opened = []

    def open_(redis, **options):
        opened.append(World(redis, **options))
        return opened[-1]

    yield open_
    for world in opened:
        world.close()


@pytest.fixture
def world(redis, worlds):
    world = worlds(redis)
    yield world
    world.assert_adds_up()


@pytest.fixture
def small_steps(monkeypatch):
    """Scans of many steps without many records."""
    monkeypatch.setattr(purge_module, "STEP", 2)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    "before",
    ["", "b", "A", "AA", "bAb", "AbA", "xbaAcXA", "AAAAA", "bbbbb", "Abbbbbbbb", "bbbbbbbbA"],
)
def test_waiting_records_of_the_person_go_and_no_other_moves_without_need(world, lane, before):
    """The last record takes the place of one that is removed, and nothing else moves."""
    world.append(before, lane)
    world.append("bAc", "identify" if lane == "track" else "track")
    world.raise_fence()
    rest = before.translate(str.maketrans("", "", PERSON))
    result = world.scan()

    assert sorted(world.waiting(lane)) == sorted(rest)
    assert out_of_order(world.serials(lane)) <= len(before) - len(rest)
    assert result.removed[f"{lane}:waiting"] == len(before) - len(rest)
    assert (result.removed.total(), result.sending_ms) == (len(before) - len(rest) + 1, 0)
    assert world.scan() == NONE


def test_a_place_where_nothing_was_found_is_counted_as_zero(world):
    """The audit log shows every place that was searched, not only those with records."""
    world.append("b")

    places = [f"{lane}:{place}" for lane in LANES for place in PLACES]
    assert world.scan().removed == dict.fromkeys([*places, "fence"], 0)


@pytest.mark.parametrize(
    "sizes",
    [(0, 3, 1800), (900, 3, 900), (1800, 3, 0), (0, 2, 1800, 1)],
    ids=["head", "middle", "tail", "both ends"],
)
def test_a_long_list_is_purged_wherever_the_records_are(world, sizes):
    """Records leave from the end that is nearer; they must not be counted from the other."""
    others = iter("bcdefghij" * 200)
    before = ["A" * n if i % 2 else "".join(islice(others, n)) for i, n in enumerate(sizes)]
    world.append("".join(before))

    assert world.erase() == {"track:waiting": 3}
    assert Counter(world.waiting()) == Counter("bcdefghij" * 200)
    assert world.waiting()[:400] == ("bcdefghij" * 200)[:400]
    assert out_of_order(world.serials()) <= 3


def test_the_oldest_records_keep_their_places_while_most_of_the_head_is_the_persons(world):
    """The age of the first record is shown, and decides when a part-full batch goes."""
    world.append("A" * 2500 + "bc" + "defghi" * 500)

    assert world.erase() == {"track:waiting": 2500}
    assert world.waiting() == "bc" + "defghi" * 500


def test_a_step_deep_in_a_long_list_removes_few_records(redis, worlds):
    """Redis walks to the place of each; 3 000 records of 8 KB have as many nodes to walk over."""
    world, sizes = worlds(redis), []
    body = b"x" * 9000
    for user_id in ("bob", "anna", "bob"):
        for _ in range(10):
            world.track.append([Record(body + b" b", user_id, None)] * 100)
    world.raise_fence()

    def note():
        sizes.append(redis.llen(KEYS.lane("track").waiting))

    assert world.scan(keep_alive=note).removed["track:waiting"] == 1000
    at_once = [before - after for before, after in pairwise(sizes)]
    assert max(at_once) <= 100


@pytest.mark.parametrize("state", ["claimed", "released", "released after an attempt"])
@pytest.mark.parametrize("lane", LANES)
def test_a_batch_that_is_not_being_sent_loses_the_persons_records(world, lane, state):
    batch_id = world.batch("bAac", lane)
    token = ""
    if state == "released after an attempt":
        token = world.begin(batch_id, lane).token
    if state != "claimed":
        world.lanes[lane].release(batch_id, token, wait_ms=HOUR_MS, grace_ms=0)
    before = world.redis.hgetall(KEYS.lane(lane).batch(batch_id))
    slot = world.redis.zscore(KEYS.lane(lane).claimed, batch_id)

    assert world.erase() == {f"{lane}:batches": 2}
    assert world.records(batch_id, lane) == "bc"
    after = world.redis.hgetall(KEYS.lane(lane).batch(batch_id))
    changed = {name for name in before.keys() | after if before.get(name) != after.get(name)}
    assert changed <= {b"held", b"suspect", b"sent"}
    assert world.redis.zscore(KEYS.lane(lane).claimed, batch_id) == slot
    assert world.scan() == NONE


@pytest.mark.parametrize("state", ["claimed", "released", "lapsed"])
def test_a_batch_of_the_person_alone_is_gone_without_a_trace(world, state):
    """Its lease too: a flush would look for its records for ever."""
    batch_id = world.batch("AaxA")
    if state == "lapsed":
        attempt = world.begin(batch_id, lease_ms=0)
    elif state == "released":
        world.track.release(batch_id, "")

    assert world.erase() == {"track:batches": 4}
    assert world.track.due(9, everything=True) == []
    assert world.begin(batch_id) == Rejection("gone")
    if state == "lapsed":
        assert world.track.ack(batch_id, attempt.generation, token=attempt.token) == 0


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("lane", LANES)
def test_dead_letters_of_the_person_go_whenever_they_were_buried(world, lane):
    other = "identify" if lane == "track" else "track"
    for some in ("bA", "a", "cd", "xAe", "A"):
        world.bury(some, lane)
    world.bury("fA", other)

    assert world.erase() == {f"{lane}:dead": 5, f"{other}:dead": 1}
    assert "".join(sorted(world.letters(lane))) == "bcde"
    assert world.letters(other) == "f"
    assert world.scan() == NONE


def test_everything_everywhere_is_found_in_one_scan(world):
    for lane in LANES:
        world.bury("Ab", lane)
        world.batch("xbb", lane)
        world.append("aAb", lane)

    assert world.erase() == {
        f"{lane}:{place}": n
        for lane in LANES
        for place, n in {"dead": 1, "batches": 1, "waiting": 2}.items()
    }


@pytest.mark.parametrize(
    ("kind", "id_", "rest"), [("user", "anna", "abn"), ("anonymous", "a_anna", "Abn")]
)
def test_a_subject_known_by_one_id_is_found_by_that_one_alone(world, kind, id_, rest):
    """The ids of others in the same event are not theirs, and no id is nobody's."""
    world.append("Aaxb")
    world.track.append([Record(b"1 n", None, None)])
    own = tag("p", kind, id_)
    world.fence.add([own], STORE)

    assert world.scan([own]).removed.total() == 2
    assert world.waiting() == rest


def test_a_person_of_two_hundred_ids_is_found_by_each(redis, worlds):
    world = worlds(redis, events_max=500)
    numbers = range(200)
    tags = [tag("p", "anonymous", f"device_{n}") for n in numbers]
    entries = [Record(b"%d A" % n, None, f"device_{n}") for n in numbers]
    entries.append(Record(b"other b", None, "device_200"))
    world.track.append(entries)
    letters = world.claim()
    world.track.bury(letters, world.begin(letters).token)
    world.track.append(entries)
    batch_id = world.claim()
    world.track.append(entries)
    world.fence.add(tags, STORE)
    expected = {"track:waiting": 200, "track:batches": 200, "track:dead": 200}

    assert removed(world.scan(tags)) == expected
    assert (world.waiting(), world.records(batch_id), world.letters()) == ("b", "b", "b")


@pytest.mark.parametrize("is_renewed", [False, True])
@pytest.mark.parametrize("lane", LANES)
def test_a_batch_that_is_being_sent_is_left_alone_and_its_lease_reported(world, lane, is_renewed):
    """Quiesce waits for it: without the records, a success could not be told from a loss."""
    batch_id = world.batch("bAc", lane)
    attempt = world.begin(batch_id, lane, 0 if is_renewed else HOUR_MS)
    if is_renewed:
        attempt = world.lanes[lane].take_over(batch_id, lease_ms=HOUR_MS)
    world.raise_fence()
    before = held(world.redis)
    scan = world.scan()

    assert removed(scan) == {}
    assert HOUR_MS - 60_000 < scan.sending_ms <= HOUR_MS
    assert world.records(batch_id, lane) == "bAc"
    assert held(world.redis) == before
    assert world.lanes[lane].ack(batch_id, attempt.generation, token=attempt.token) == 3
    assert world.scan() == NONE


def test_a_later_scan_finds_what_was_being_sent_and_reads_nothing_that_waits(world):
    """700 000 waiting events were read twice before a first call."""
    released, buried = world.batch("bA"), world.batch("A")
    of_released, of_buried = world.begin(released), world.begin(buried)
    world.append("bb")
    world.raise_fence()
    assert world.scan().sending_ms > 0
    world.track.release(released, of_released.token, wait_ms=0, outcome="transient")
    world.track.bury(buried, of_buried.token)
    scan = world.purge.scan({"one": ANNA}, is_again=True)["one"]

    assert removed(scan) == {"track:batches": 1, "track:dead": 1}
    assert scan.sending_ms == 0
    assert "track:waiting" not in scan.removed
    assert world.scan() == NONE


def test_an_attempt_without_the_person_is_not_waited_for(world):
    world.begin(world.batch("bcd"))

    assert world.erase() == {}
    assert world.scan() == NONE


def test_the_longest_lease_of_both_lanes_is_reported(world):
    for lane, lease_ms in (("track", 2 * HOUR_MS), ("identify", HOUR_MS), ("track", HOUR_MS)):
        world.begin(world.batch("A", lane), lane, lease_ms)
    world.raise_fence()

    assert 2 * HOUR_MS - 60_000 < world.scan().sending_ms <= 2 * HOUR_MS


def test_a_person_in_the_part_that_is_not_sent_is_waited_for_too(world):
    """The batch is of one attempt, whichever part that carries; what is left comes next."""
    batch_id = world.narrowed("bcdA")
    attempt = world.begin(batch_id)
    world.raise_fence()

    assert world.scan().sending_ms > 0
    assert world.track.ack(batch_id, attempt.generation, token=attempt.token) == 2
    assert removed(world.scan()) == {"track:batches": 1}
    assert world.records(batch_id) == "d"


@pytest.mark.parametrize(
    ("records", "times", "done", "rest"),
    [
        ("bAcA", 0, "bc", ""),
        ("Abcd", 0, "bcd", ""),
        ("bAcd", 1, "b", "cd"),
        ("bcAd", 1, "bc", "d"),
        ("AbAc", 1, "b", "c"),
        ("bAAA", 2, "b", ""),
    ],
)
def test_a_late_success_counts_for_the_others_that_were_sent(world, records, times, done, rest):
    """A record that was not sent is sent next, and one that was sent is not sent twice."""
    batch_id = world.narrowed(records, times)
    attempt = world.begin(batch_id, lease_ms=0)
    assert world.erase() == {"track:batches": records.count("A")}

    assert world.track.ack(batch_id, attempt.generation, token=attempt.token) == len(done)
    assert world.records(batch_id) == rest
    world.assert_adds_up()
    assert world.track.ack(batch_id, attempt.generation, token=attempt.token) == 0


@pytest.mark.parametrize("state", ["lapsed", "released"])
def test_a_late_success_of_the_persons_records_counts_for_nobody_elses(world, state):
    """All that was sent is gone: what is left was never sent."""
    batch_id = world.narrowed("Aabc")
    attempt = world.begin(batch_id, lease_ms=0)
    if state == "released":
        world.track.release(batch_id, attempt.token)
    assert world.erase() == {"track:batches": 2}

    assert world.track.ack(batch_id, attempt.generation, token=attempt.token) == 0
    assert world.records(batch_id) == "bc"
    assert world.field(batch_id, "state") == "released"
    assert world.track.due(9) == [batch_id]
    assert whose(world.begin(batch_id).bodies) == "b"


def test_a_lapsed_attempt_is_taken_over_after_a_purge_as_before(world):
    """The request may have been stored: it is still counted as ambiguous, and sent again."""
    batch_id = world.batch("bAc")
    first = world.begin(batch_id, lease_ms=0)
    world.erase()
    lapsed = world.track.take_over(batch_id, lease_ms=HOUR_MS)

    assert (lapsed.attempt, lapsed.generation, lapsed.sent) == (first.attempt, first.generation, 2)
    assert world.scan() == NONE
    assert world.track.release(batch_id, lapsed.token)
    assert whose(world.begin(batch_id).bodies) == "bc"


def test_a_late_refusal_buries_no_record_that_was_not_refused_alone(world):
    """Two were refused together, and the one that is left may be the innocent one."""
    batch_id = world.batch("Ab")
    attempt = world.begin(batch_id, lease_ms=0)
    world.erase()

    assert world.track.bisect(batch_id, attempt.token) == "old"
    assert (world.records(batch_id), world.letters()) == ("b", "")
    assert world.track.take_over(batch_id, lease_ms=0) is not None


@pytest.mark.parametrize(
    ("suspects", "carried", "second"), [("bAcdefgh", "bAcd", "bcde"), ("bAACdefg", "bAAC", "bCd")]
)
def test_a_late_success_does_not_count_for_a_later_attempt(
    redis, worlds, suspects, carried, second
):
    """A purge can make the part that is sent next longer than what is left of the last one."""
    world = worlds(redis, events_max=8)
    batch_id = world.narrowed(suspects)
    first = world.begin(batch_id, lease_ms=0)
    assert whose(first.bodies) == carried
    world.track.release(batch_id, first.token)
    world.erase()
    later = world.begin(batch_id)
    assert whose(later.bodies) == second

    assert world.track.ack(batch_id, first.generation, token=first.token) == 0
    assert set(second) <= set(world.records(batch_id))
    assert world.track.ack(batch_id, later.generation, token=later.token) == len(second)
    world.assert_adds_up()


def test_the_search_for_a_refused_event_goes_on_without_the_person(world):
    """P5: it is found among those that are left, and its neighbours are delivered."""
    batch_id = world.narrowed("bAcd")
    world.track.release(batch_id, "")
    world.erase()
    buffer = world.track
    delivered = ""
    while isinstance(begun := world.begin(batch_id), Admitted):
        if "c" in whose(begun.bodies):
            buffer.bisect(batch_id, begun.token)
        else:
            delivered += whose(begun.bodies)
            buffer.ack(batch_id, begun.generation, token=begun.token)

    assert ("".join(sorted(delivered)), world.letters()) == ("bd", "c")


def test_records_removed_by_claim_begin_and_revive_are_reported_once(world):
    """The receipt says how many events of theirs were dropped, however that came about."""
    world.bury("Ab")
    batch_id = world.batch("bxa")
    world.append("Ab")
    world.raise_fence()
    world.claim()
    world.begin(batch_id)
    world.dead.revive([letter.id for letter in world.dead.letters()])

    assert removed(world.scan()) == {"fence": 4}
    assert world.redis.exists(KEYS.caught) == 0
    assert world.scan() == NONE


def test_records_removed_for_others_are_not_reported_nor_forgotten(world):
    world.append("bA")
    world.fence.add([*ANNA, tag("p", "user", "user_b")], STORE)
    world.claim()

    assert removed(world.scan()) == {"fence": 1}
    assert world.redis.hgetall(KEYS.caught) == {tag("p", "user", "user_b"): b"1"}


def test_one_event_of_two_erased_people_is_reported_to_one_of_them(world):
    """The sum of what erasures say must not exceed what there was."""
    world.append("a")
    bob = [tag("p", "user", "bob")]
    world.fence.add([*ANNA, *bob], STORE)
    world.claim()

    told = world.scan(bob).removed["fence"], world.scan().removed["fence"]
    assert sorted(told) == [0, 1]


BOB = (tag("p", "user", "bob"), tag("p", "anonymous", "a_B"))


def scan_of_both(world):
    """Return the scans of Anna and Bob, both of one pass."""
    world.fence.add([*ANNA, *BOB], STORE)
    scans = world.purge.scan({"anna": ANNA, "bob": BOB}, world.assert_adds_up)
    return scans["anna"], scans["bob"]


@pytest.mark.usefixtures("small_steps")
def test_one_pass_counts_the_records_of_each_person_by_place(world):
    """Each erasure tells its own numbers, as if it had been alone."""
    for lane in ("track", "backfill"):
        world.bury("AcB", lane)
        world.batch("BxB", lane)
        world.append("cABcBAcd", lane)
    anna, bob = scan_of_both(world)

    per_lane = {"waiting": (2, 2), "batches": (1, 2), "dead": (1, 1)}
    for scan, column in ((anna, 0), (bob, 1)):
        assert removed(scan) == {
            f"{lane}:{place}": n[column]
            for lane in ("track", "backfill")
            for place, n in per_lane.items()
        }
    assert anna.removed.keys() == bob.removed.keys()


@pytest.mark.parametrize("place", ["waiting", "batches", "dead"])
def test_a_record_of_two_people_counts_once_for_its_user(world, place):
    """Record a is of the user bob and the visitor a_anna."""
    if place == "waiting":
        world.append("aa")
    elif place == "batches":
        world.batch("aa")
    else:
        world.bury("aa")
    anna, bob = scan_of_both(world)

    assert (removed(anna), removed(bob)) == ({}, {f"track:{place}": 2})


def test_an_attempt_of_one_person_does_not_hold_up_another(world):
    world.begin(world.batch("bAc"))
    anna, bob = scan_of_both(world)

    assert anna.sending_ms > 0
    assert bob.sending_ms == 0


def test_an_attempt_with_a_record_of_two_people_holds_up_both(world):
    world.begin(world.batch("abc"))
    anna, bob = scan_of_both(world)

    assert anna.sending_ms > 0
    assert bob.sending_ms > 0


def test_two_people_with_the_same_visitor_are_both_found(world):
    """Two accounts on one device: the record counts for the first, and neither is kept waiting."""
    world.begin(world.batch("ab"))
    world.append("aa")
    world.raise_fence()
    device = [tag("p", "anonymous", "a_anna")]
    scans = world.purge.scan({"one": device, "two": device})

    assert (scans["one"].removed.total(), scans["two"].removed.total()) == (2, 0)
    assert all(scan.sending_ms > 0 for scan in scans.values())


# Meanwhile, others do what they do. Each step of a scan is followed by one of these.

ENDS = ("ack", "bury", "release", "narrow", "lapse")
STEPS = st.sampled_from(["append", "claim", "begin", "revive", "discard", *ENDS])
RECORDS = st.text("AaxbcdefgB", max_size=14)


class Meanwhile:
    """Workers on all lanes; remembers the fate of everybody else's records."""

    def __init__(self, world, steps):
        self.world, self.steps, self.turn = world, steps, 0
        self.ended = Counter()
        self.sending = {lane: {} for lane in LANES}
        self.revived = set()

    def act(self):
        self.world.assert_adds_up()
        if self.turn >= len(self.steps):
            return
        step, lane, n = self.steps[self.turn]
        self.turn += 1
        batch_id = self.chosen(lane, n, sending=step in ENDS)
        if step not in ENDS:
            getattr(self, step)(lane, n)
        elif batch_id is not None:
            getattr(self, step)(lane, batch_id, self.sending[lane].pop(batch_id))
        self.world.assert_adds_up()

    def append(self, lane, n):
        self.world.append("hiA"[: n + 1], lane)

    def claim(self, lane, _):
        self.world.claim(lane)

    def chosen(self, lane, n, *, sending):
        """Return one of the batches that are, or are not, being sent."""
        ids = self.world.lanes[lane].due(99, everything=True)
        ids = [id_ for id_ in ids if (id_ in self.sending[lane]) == sending]
        return ids[n % len(ids)] if ids else None

    def begin(self, lane, n):
        batch_id = self.chosen(lane, n, sending=False)
        if batch_id is None:
            return
        begun = self.world.begin(batch_id, lane, HOUR_MS if n % 2 else 0)
        if isinstance(begun, Admitted):
            # P6: from the instant that the fence is up.
            assert not set(PERSON) & set(whose(begun.bodies))
            self.sending[lane][batch_id] = begun

    def ack(self, lane, batch_id, attempt):
        before = self.world.records(batch_id, lane)
        done = self.world.lanes[lane].ack(batch_id, attempt.generation, token=attempt.token)
        assert set(before[:done]) <= set(whose(attempt.bodies))
        self.ended.update(before[:done])

    def bury(self, lane, batch_id, attempt):
        self.world.lanes[lane].bury(batch_id, attempt.token)
        self.free(lane, batch_id)

    def release(self, lane, batch_id, attempt):
        self.world.lanes[lane].release(batch_id, attempt.token)
        self.free(lane, batch_id)

    def narrow(self, lane, batch_id, attempt):
        bisected = self.world.lanes[lane].bisect(batch_id, attempt.token)
        assert bisected != "buried" or len(attempt.bodies) == 1
        self.free(lane, batch_id)

    def free(self, lane, batch_id):
        """An old token changed nothing: then a flush takes the batch over, and frees it."""
        buffer = self.world.lanes[lane]
        lapsed = buffer.take_over(batch_id, lease_ms=0)
        if lapsed is not None:
            buffer.release(batch_id, lapsed.token)

    def lapse(self, lane, batch_id, _):
        if self.world.field(batch_id, "state", lane) == "sending":
            self.world.redis.zadd(KEYS.lane(lane).leases, {batch_id: 0})
            self.free(lane, batch_id)

    def some_letters(self, lane, n):
        return [letter.id for letter in self.world.dead.letters() if letter.lane == lane][: n + 1]

    def revive(self, lane, n):
        ids = self.some_letters(lane, n)
        letters = self.world.redis.hmget(KEYS.dead, ids) if ids else []
        self.revived |= {serial(letter.partition(b"\n")[2]) for letter in letters}
        self.world.dead.revive(ids)

    def discard(self, lane, n):
        ids = self.some_letters(lane, n)
        gone = whose(self.world.redis.hmget(KEYS.dead, ids)) if ids else ""
        self.world.dead.discard(ids)
        self.ended.update(gone)


def everybody(world):
    """Return how many records of each there are, wherever they are; the person's left out."""
    found = Counter()
    for lane in LANES:
        found.update(world.waiting(lane) + world.letters(lane))
        for batch_id in world.lanes[lane].due(999, everything=True):
            found.update(world.records(batch_id, lane))
    return found


@SHARED
@given(
    waiting=st.tuples(*[RECORDS] * len(LANES)),
    batches=st.lists(
        st.tuples(
            st.sampled_from(LANES),
            st.text("AaxbcdefgB", min_size=1, max_size=4),
            st.sampled_from(["claimed", "narrowed", "sending", "lapsed", "dead", "dead"]),
        ),
        max_size=8,
    ),
    steps=st.lists(st.tuples(STEPS, st.sampled_from(LANES), st.integers(0, 3)), max_size=40),
)
@example(("AbAbAbA" * 2, "", ""), [], [("claim", "track", 0)] * 3)
@example(("", "", ""), [("track", "Ab", "dead")] * 6, [("discard", "track", 0)] * 9)
@example(("", "", ""), [("track", "bA", "lapsed")], [("append", "track", 0)] * 4)
def test_nothing_of_the_person_stays_and_nothing_of_others_goes_whatever_happens(
    redis, monkeypatch, waiting, batches, steps
):
    """Scans until they find nothing, as the workflow does, while all others go on."""
    monkeypatch.setattr(purge_module, "STEP", 2)
    redis.flushdb()
    world = World(redis)
    meanwhile = Meanwhile(world, steps)
    try:
        for lane, records, state in batches:
            batch_id = world.batch(records, lane)
            prepare(world, meanwhile, lane, batch_id, state)
        for lane, records in zip(LANES, waiting, strict=True):
            world.append(records, lane)
        before = everybody(world)
        erased = sum(counts(world.redis)[f"{lane}:erased"] for lane in LANES)
        world.raise_fence()
        told = 0
        while True:
            scan = world.scan(ANNA, meanwhile.act)
            told += scan.removed.total()
            if not scan.sending_ms:
                assert not set(PERSON) & set(everybody(world))
                if not scan.removed.total():
                    break
            end_attempts(world, meanwhile)

        assert told == sum(counts(world.redis)[f"{lane}:erased"] for lane in LANES) - erased
        after = everybody(world) + meanwhile.ended
        # Without the person, and without the events that were appended meanwhile.
        for who in f"{PERSON}hi":
            before.pop(who, None)
            after.pop(who, None)
        assert after == before
        for lane in LANES:
            serials = [n for n in world.serials(lane) if n not in meanwhile.revived]
            assert out_of_order(serials) <= told
    finally:
        world.close()


def prepare(world, meanwhile, lane, batch_id, state):
    """Bring a batch into its state before the fence is raised."""
    buffer = world.lanes[lane]
    if state == "claimed":
        return
    begun = world.begin(batch_id, lane, 0 if state == "lapsed" else HOUR_MS)
    if state == "narrowed":
        buffer.bisect(batch_id, begun.token)
    elif state == "dead":
        buffer.bury(batch_id, begun.token)
    else:
        meanwhile.sending[lane][batch_id] = begun


def end_attempts(world, meanwhile):
    """Whatever was being sent comes to an end: here it is buried, with the person in it."""
    for lane in LANES:
        for batch_id in world.lanes[lane].due(99, everything=True):
            attempt = meanwhile.sending[lane].pop(batch_id, None)
            if attempt is not None:
                world.lanes[lane].bury(batch_id, attempt.token)


def out_of_order(serials):
    """Return how many of the numbers must go, so that the others ascend."""
    ends = []
    for number in serials:
        place = bisect(ends, number)
        ends[place : place + 1] = [number]
    return len(serials) - len(ends)


def serial(record):
    return int(record[HEADER_BYTES:].split()[0])


def test_at_maxmemory_a_person_can_still_be_purged(servers, worlds):
    """It is a way to make room, and no reason to keep anybody's data."""
    server = servers()
    world = worlds(server.client, events_max=400)
    world.bury("Ab" * 100)
    batch_id = world.batch("bx" * 100)
    lapsed = world.batch("aab" * 50)
    world.begin(lapsed, lease_ms=0)
    going = world.batch("Ab" * 20)
    world.append("bA" * 500)
    world.raise_fence()
    # Scripts too are memory: what is to run was loaded before, as on any server in use.
    world.scan([tag("p", "user", "nobody")])
    server.fill()
    with pytest.raises(BufferFull):
        world.append("b")
    world.begin(going)

    expected = {"track:waiting": 500, "track:batches": 200, "track:dead": 100, "fence": 20}
    assert removed(world.scan()) == expected
    assert (world.waiting(), world.letters()) == ("b" * 500, "b" * 100)
    assert (world.records(batch_id), world.records(lapsed)) == ("b" * 100, "b" * 50)


def files_with(directory, text):
    found = [path for path in Path(directory).rglob("*") if path.is_file()]
    assert found
    return [path.name for path in found if text in path.read_bytes()]


def test_after_the_aof_was_rewritten_nothing_of_the_person_is_on_disk(persistent, worlds):
    """Until then a deleted event can still be read there; the receipt says which it is."""
    world = worlds(persistent.client)
    secret = Record(b'{"email":"anna@example.org"} A', "anna", None)
    entries = [secret, Record(b'{"email":"bob@example.org"} b', "bob", None)]
    for place in ("dead", "claimed", "lapsed"):
        world.track.append(entries)
        batch_id = world.claim()
        if place == "dead":
            world.track.bury(batch_id, world.begin(batch_id).token)
        elif place == "lapsed":
            world.begin(batch_id, lease_ms=0)
    world.track.append(entries)
    world.raise_fence()
    assert world.scan().removed.total() == 4
    assert files_with(persistent.data_dir, b"anna@example.org")

    assert world.purge.rewrite_aof() == "started"
    assert rewritten(world.purge)
    assert files_with(persistent.data_dir, b"anna@example.org") == []
    assert files_with(persistent.data_dir, b"bob@example.org")


def rewritten(purge):
    """Wait until the rewrite of this server ended; return whether it was written."""
    ends_s = time.monotonic() + 30
    while purge.aof().is_running:
        assert time.monotonic() < ends_s
    return purge.aof().is_rewritten


def test_without_an_aof_there_is_nothing_to_rewrite(servers):
    assert not Purge(servers().client, "p").aof().is_on


def test_a_provider_that_does_not_allow_the_command_is_no_error(persistent):
    """The erasure is complete all the same; the receipt says that the AOF was not rewritten."""
    client = persistent.client
    commands = ["+@all", "-bgrewriteaof"]
    client.acl_setuser("tenant", enabled=True, nopass=True, keys=["*"], commands=commands)
    with Redis(port=persistent.port, username="tenant", password="any") as tenant:
        assert Purge(tenant, "p").rewrite_aof() == "refused"


def delay_rewrite(client, key_us):
    """Let a rewrite take this time for each of twenty keys."""
    client.config_set("rdb-key-save-delay", key_us)
    client.mset({f"key-{n}": n for n in range(20)})


def test_while_redis_rewrites_its_aof_no_other_rewrite_begins(persistent):
    """It may write down what was removed since: one that begins later must follow."""
    client, purge = persistent.client, Purge(persistent.client, "p")
    client.set("secret", "anna@example.org")
    delay_rewrite(client, 20_000)
    client.bgrewriteaof()
    client.delete("secret")

    assert purge.rewrite_aof() == "running"
    assert rewritten(purge)
    assert purge.rewrite_aof() == "started"
    assert rewritten(purge)
    assert files_with(persistent.data_dir, b"anna@example.org") == []


def test_an_attempt_whose_batch_a_late_success_took_away_is_still_waited_for(world):
    """It was admitted before the fence, and its records are not known any more."""
    batch_id = world.batch("A")
    first = world.begin(batch_id, lease_ms=0)
    lapsed = world.track.take_over(batch_id)
    world.track.release(batch_id, lapsed.token)
    world.begin(batch_id, lease_ms=60_000)

    assert world.track.ack(batch_id, first.generation, token=first.token) == 1
    assert 59_000 < world.scan().sending_ms <= 60_000
