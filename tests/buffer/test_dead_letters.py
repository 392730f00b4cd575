"""Dead letters on a real server: looked at in pages, revived through the door, bounded.

Sabotages that turn this file red, each tried on a copy:

- revive does not look at the fence, forgets the comma of a record in `waiting_bytes`, the
  bytes of the erased in `held_bytes`, or leaves the id in the hash or the zset;
- revive or discard begins with a command that allocates: refused at maxmemory;
- discard or trim forgets `held_bytes`, counts the line before the record, or counts the
  letters of one lane for the other;
- trim takes the newest, leaves one too many, or ignores the age;
- a page begins after the last time of the one before: letters of the same ms are left out.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import fields

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from mm_tasks.buffer.batches import BatchLimits
from mm_tasks.buffer.dead_letters import DeadLetters, Filter, Group, Revived
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.records import HEADER_BYTES, tag
from mm_tasks.errors import BufferFull
from tests.buffer.lane_buffer import LaneBuffer
from tests.conftest import embedded, load_fences

KEYS = ProjectKeys("p")
LANES = ("track", "identify")
PLACES = ("leased", "delivered", "dead", "erased", "discarded")
DAY_MS = 86_400_000
LIMITS = BatchLimits(events_max=1000, bytes_max=1 << 20, linger_ms=0)
REJECTED = {"reason": "rejected", "status": 400, "code": "invalid_payload", "attempts": 3}
PARKED = {"reason": "ambiguous", "status": 0, "code": "-", "attempts": 1, "kind": "timeout"}


@pytest.fixture
def dead(redis):
    return DeadLetters(redis, "p")


@contextmanager
def opened(redis, lane="track", project="p"):
    """A buffer, and at the end no connection of it left to the garbage collector."""
    load_fences(redis, project)
    buffer = LaneBuffer(redis, project, lane, LIMITS, held_bytes_max=1 << 30)
    try:
        yield buffer
    finally:
        for connection in buffer.producer._connection._idle:  # noqa: SLF001 - a producer's are never closed
            connection.disconnect()


def entry(n, user_id=None, event="signed_up", anonymous_id=None):
    body = json.dumps({"event": event, "properties": {"n": n}}).encode()
    return Record(body, user_id, anonymous_id)


def bury(redis, entries, why=REJECTED, lane="track"):
    """Append these, claim all that waits in the lane, and bury it. Return the new ids."""
    before = set(redis.hkeys(KEYS.dead))
    with opened(redis, lane) as buffer:
        buffer.append(entries)
        batch_id = buffer.claim(slot_us=None, found_again_ms=5000)
        if batch_id is None:
            return []
        admitted = buffer.begin(batch_id, slot="none", slot_valid_ms=2000, lease_ms=60_000)
        buffer.bury(batch_id, admitted.token, why=json.dumps(why), outcome="rejected")
    new = set(redis.hkeys(KEYS.dead)) - before
    return sorted((id_.decode() for id_ in new), key=lambda id_: int(id_.rpartition(":")[2]))


def record_of(redis, id_):
    return redis.hget(KEYS.dead, id_).partition(b"\n")[2]


def counts(redis):
    return Counter({name.decode(): int(n) for name, n in redis.hgetall(KEYS.counts).items()})


def waiting(redis, lane="track"):
    return redis.lrange(KEYS.lane(lane).waiting, 0, -1)


def assert_adds_up(redis):
    found, held = counts(redis), []
    letters = {id_.decode(): text for id_, text in redis.hgetall(KEYS.dead).items()}
    assert set(letters) == {id_.decode() for id_ in redis.zrange(KEYS.dead_at, 0, -1)}
    for lane in LANES:
        records = waiting(redis, lane)
        dead = [t.partition(b"\n")[2] for id_, t in letters.items() if id_.startswith(lane)]
        held += records + dead
        places = sum(found[f"{lane}:{place}"] for place in PLACES)
        assert found[f"{lane}:accepted"] == len(records) + places
        assert found[f"{lane}:dead"] == len(dead)
        assert found[f"{lane}:waiting_bytes"] == sum(len(r) - HEADER_BYTES + 1 for r in records)
    assert found["held_bytes"] == sum(map(len, held))


def fence(redis, user_id):
    redis.sadd(KEYS.fence, tag("p", "user", user_id))


def buried_at(redis, ids, at_ms):
    redis.zadd(KEYS.dead_at, dict.fromkeys(ids, at_ms))


def test_a_letter_says_why_and_since_when_and_has_the_event_verbatim(redis, dead):
    ids = bury(redis, [entry(1)], PARKED)
    letter = next(dead.letters())

    assert letter.id == ids[0]
    assert letter.lane == "track"
    assert (letter.reason, letter.status, letter.code) == ("ambiguous", 0, "-")
    assert (letter.attempts, letter.kind) == (1, "timeout")
    assert letter.body == entry(1).body
    assert letter.event == "signed_up"
    assert 0 <= letter.buried_at_ms - letter.accepted_at_ms < 60_000


def test_the_repr_of_a_letter_holds_nothing_of_the_event(redis, dead):
    """A repr ends up in logs, and logs outlive erasures."""
    bury(redis, [entry(1, "anna", event="anna_signed_up")])

    assert "anna" not in repr(next(dead.letters()))


def test_a_record_that_is_no_event_is_still_a_letter(redis, dead):
    """Whatever is refused must be possible to look at."""
    bury(redis, [Record(b'{"event":7}', None, None), Record(b"[1", None, None)])

    assert [letter.event for letter in dead.letters()] == [None, None]
    assert [letter.fields for letter in dead.letters()] == [{"event": 7}, None]


def test_letters_come_by_burial_from_either_end(redis, dead):
    first, second = bury(redis, [entry(1)]), bury(redis, [entry(2)])
    buried_at(redis, first, 1000)

    assert [letter.id for letter in dead.letters()] == [*first, *second]
    assert [letter.id for letter in dead.letters(newest_first=True)] == [*second, *first]


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("per_ms", [1, 7, 5000])
def test_each_of_5000_letters_is_read_exactly_once(redis, dead, per_ms, newest_first):
    """Also where more were buried in one millisecond than a page holds."""
    ids = [id_ for _ in range(5) for id_ in bury(redis, [entry(n) for n in range(1000)])]
    redis.zadd(KEYS.dead_at, {id_: i // per_ms for i, id_ in enumerate(ids)})
    found = [letter.id for letter in dead.letters(newest_first=newest_first)]

    assert len(found) == 5000
    assert set(found) == set(ids)


@pytest.mark.parametrize("newest_first", [False, True])
def test_what_is_removed_or_buried_between_pages_disturbs_no_other_letter(
    redis, dead, newest_first
):
    ids = bury(redis, [entry(n) for n in range(900)])
    redis.zadd(KEYS.dead_at, {id_: 1000 + i // 300 for i, id_ in enumerate(ids)})
    reading = dead.letters(newest_first=newest_first)
    found = [next(reading).id for _ in range(250)]
    gone = [*found[:150], *[id_ for id_ in ids if id_ not in found][::3]]
    dead.discard(gone)
    new = bury(redis, [entry(n) for n in range(100)])
    found += [letter.id for letter in reading]

    assert len(found) == len(set(found))
    assert set(ids) - set(gone) <= set(found)
    assert set(found) <= {*ids, *new}


FILTERS = {
    "no condition": (Filter(), {"rejected", "other", "parked", "identify"}),
    "by reason": (Filter(reason="rejected"), {"rejected", "other", "identify"}),
    "by the vendor's code": (Filter(code="too_large"), {"other"}),
    "by status": (Filter(status=0), {"parked"}),
    "by lane": (Filter(lane="identify"), {"identify"}),
    "by event": (Filter(event="bought"), {"other", "parked"}),
    "since includes its instant": (Filter(since_ms=3000), {"parked", "identify"}),
    "until excludes its instant": (Filter(until_ms=3000), {"rejected", "other"}),
    "between": (Filter(since_ms=2000, until_ms=4000), {"other", "parked"}),
    "all conditions must hold": (Filter(reason="rejected", event="bought"), {"other"}),
    "at most so many": (Filter(limit=1), {"rejected"}),
    "nothing alike": (Filter(reason=""), set()),
}


@pytest.mark.parametrize(("chosen", "expected"), FILTERS.values(), ids=FILTERS.keys())
def test_a_filter_means_what_its_conditions_say(redis, dead, chosen, expected):
    too_large = {**REJECTED, "status": 413, "code": "too_large"}
    named = {
        "rejected": bury(redis, [entry(1)]),
        "other": bury(redis, [entry(2, event="bought")], too_large),
        "parked": bury(redis, [entry(3, event="bought")], PARKED),
        "identify": bury(redis, [Record(b'{"user_id":"u"}', "u", None)], lane="identify"),
    }
    for at, ids in enumerate(named.values(), 1):
        buried_at(redis, ids, at * 1000)
    wanted = {named[name][0] for name in expected}

    assert {letter.id for letter in dead.letters(chosen)} == wanted


def test_given_ids_are_read_in_their_order_and_unknown_ones_left_out(redis, dead):
    first, second, third = bury(redis, [entry(n) for n in range(3)])
    chosen = Filter(ids=(third, "track:none:1", first, "", third))

    assert [letter.id for letter in dead.letters(chosen)] == [third, first]
    assert second not in {letter.id for letter in dead.letters(chosen)}


def test_counts_are_of_all_that_died_alike(redis, dead):
    bury(redis, [entry(1), entry(2)])
    bury(redis, [entry(3)], PARKED)
    rejected = Group("track", "rejected", 400, "invalid_payload")

    assert dead.counts() == {rejected: 2, Group("track", "ambiguous", 0, "-"): 1}
    assert dead.counts(Filter(reason="rejected")) == {rejected: 2}


def test_a_revived_record_waits_again_byte_for_byte(redis, dead):
    """The same header, the same event_id, and behind what waits already."""
    ids = bury(redis, [entry(1, "u1"), entry(2)])
    records = [record_of(redis, id_) for id_ in ids]
    with opened(redis) as buffer:
        buffer.append([entry(3)])

    assert dead.revive(ids) == Revived(2, 0, 0)
    assert waiting(redis)[1:] == records
    assert_adds_up(redis)
    batch_id = buffer.claim(slot_us=None, found_again_ms=5000)
    admitted = buffer.begin(batch_id, slot="none", slot_valid_ms=1, lease_ms=1)
    assert admitted.bodies == [entry(n).body for n in (3, 1, 2)]


def test_a_repeated_revive_changes_nothing(redis, dead):
    """A reply may be lost; the same command is simply given again."""
    ids = bury(redis, [entry(1), entry(2)])
    dead.revive([*ids, *ids])

    assert dead.revive(ids) == Revived(0, 0, 2)
    assert len(waiting(redis)) == 2
    assert_adds_up(redis)


@pytest.mark.parametrize("kind", ["user", "anonymous"])
def test_a_letter_of_a_fenced_subject_is_erased_and_not_revived(redis, dead, kind):
    """P6: from the fence on, no way leads back to the vendor."""
    ids = bury(redis, [entry(1), entry(2, "gone", anonymous_id="gone"), entry(3)])
    redis.sadd(KEYS.fence, tag("p", kind, "gone"))

    assert dead.revive(ids) == Revived(2, 1, 0)
    assert [record[HEADER_BYTES:] for record in waiting(redis)] == [entry(1).body, entry(3).body]
    assert counts(redis)["track:erased"] == 1
    assert_adds_up(redis)


def test_letters_of_both_lanes_go_back_to_their_own(redis, dead):
    tracked = bury(redis, [entry(n) for n in range(450)])
    identified = bury(redis, [entry(n) for n in range(3)], lane="identify")
    ids = [*identified, "nonsense", "other:a:1", "track:none:1", *tracked]

    assert dead.revive(ids) == Revived(453, 0, 3)
    assert len(waiting(redis)) == 450
    assert len(waiting(redis, "identify")) == 3
    assert_adds_up(redis)


def test_what_is_discarded_is_gone_and_counted(redis, dead):
    ids = bury(redis, [entry(n) for n in range(3)])

    assert dead.discard([ids[0], ids[0], "nonsense", "track:none:1", ids[2]]) == 2
    assert dead.discard([ids[0]]) == 0
    assert [letter.id for letter in dead.letters()] == [ids[1]]
    assert counts(redis)["track:discarded"] == 2
    assert_adds_up(redis)


def test_the_oldest_above_the_number_are_discarded(redis, dead):
    tracked = bury(redis, [entry(n) for n in range(700)])
    identified = bury(redis, [entry(n) for n in range(2)], lane="identify")
    redis.zadd(KEYS.dead_at, {id_: DAY_MS + i for i, id_ in enumerate(tracked)})
    buried_at(redis, identified, DAY_MS)

    assert dead.trim(10, 10**15) == 692
    assert [letter.id for letter in dead.letters()] == tracked[-10:]
    assert counts(redis)["identify:discarded"] == 2
    assert counts(redis)["track:discarded"] == 690
    assert_adds_up(redis)
    assert dead.trim(10, 10**15) == 0


def test_the_letters_above_the_age_are_discarded(redis, dead):
    ids = bury(redis, [entry(n) for n in range(4)])
    now_ms = redis.time()[0] * 1000
    buried_at(redis, ids[:2], now_ms - 90 * DAY_MS - 1000)
    buried_at(redis, ids[2:3], now_ms - 90 * DAY_MS + 60_000)

    assert dead.trim(100, 90 * DAY_MS) == 2
    assert [letter.id for letter in dead.letters()] == ids[2:]
    assert_adds_up(redis)


def test_one_trim_does_a_bounded_part_of_a_large_excess(redis, dead):
    """The flush that calls it has other things to do."""
    for _ in range(5):
        bury(redis, [entry(n) for n in range(1000)])

    assert dead.trim(1, DAY_MS) == 4000
    assert dead.trim(1, DAY_MS) == 999
    assert dead.trim(1, DAY_MS) == 0
    assert_adds_up(redis)


@pytest.fixture
def full():
    """A server of its own that is at its maxmemory, with letters in it."""
    server = embedded(config={"maxmemory-policy": "noeviction"})
    server.start()
    client = Redis(port=server.port)
    bury(client, [entry(n, "gone" if n % 100 == 0 else None) for n in range(400)])
    fence(client, "gone")
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    yield client
    client.close()
    server.stop()


@pytest.mark.parametrize("change", ["revive", "discard", "trim"])
def test_at_maxmemory_letters_can_still_be_taken_out(full, change):
    """The way out of a full Redis must not be the first thing that it refuses."""
    dead = DeadLetters(full, "p")
    with opened(full) as buffer, pytest.raises(BufferFull):
        buffer.append([entry(1)])
    ids = [letter.id for letter in dead.letters()]
    if change == "trim":
        assert dead.trim(1, DAY_MS) == 399
    elif change == "discard":
        assert dead.discard(ids) == 400
    else:
        assert dead.revive(ids) == Revived(396, 4, 0)

    assert_adds_up(full)


PEOPLE = ("u1", "u2")
SOME = st.lists(st.integers(0, 30), max_size=8)


class Letters(RuleBasedStateMachine):
    """Both lanes against plain dicts and lists."""

    def __init__(self, redis):
        super().__init__()
        self.redis = redis
        self.dead = DeadLetters(redis, "p")

    @initialize()
    def empty(self):
        self.redis.flushdb()
        self.letters = {}
        self.wait = {lane: [] for lane in LANES}
        self.expected = Counter()
        self.fenced = set()
        self.n = 0

    def is_fenced(self, record):
        tags = record[14:30], record[30:46]
        return any(tag("p", "user", person) in tags for person in self.fenced)

    @rule(
        lane=st.sampled_from(LANES), people=st.lists(st.sampled_from([None, *PEOPLE]), max_size=6)
    )
    def bury(self, lane, people):
        entries = []
        for person in people:
            self.n += 1
            entries.append(entry(self.n, person))
        waited = self.wait[lane]
        ids = bury(self.redis, entries, lane=lane)
        self.wait[lane] = []
        records = [record_of(self.redis, id_) for id_ in ids]
        new = [one.body for one in entries if one.user_id not in self.fenced]

        still = [record for record in waited if not self.is_fenced(record)]
        assert records[: len(still)] == still
        assert [record[HEADER_BYTES:] for record in records[len(still) :]] == new
        self.letters.update(zip(ids, records, strict=True))
        self.expected[f"{lane}:accepted"] += len(new)
        self.expected[f"{lane}:suppressed"] += len(entries) - len(new)
        self.expected[f"{lane}:erased"] += len(waited) - len(still)

    def some(self, which):
        known = list(self.letters)
        return [known[i] if i < len(known) else f"track:none:{i}" for i in which]

    @rule(which=SOME)
    def revive(self, which):
        ids, done = self.some(which), Counter()
        revived = self.dead.revive(ids)
        for id_ in dict.fromkeys(ids):
            record, lane = self.letters.pop(id_, None), id_.partition(":")[0]
            if record is None:
                done["unknown"] += 1
            elif self.is_fenced(record):
                done["erased"] += 1
                self.expected[f"{lane}:erased"] += 1
            else:
                done["revived"] += 1
                self.wait[lane].append(record)

        assert revived._asdict() == {name: done[name] for name in Revived._fields}

    def discarded(self, ids):
        for id_ in ids:
            del self.letters[id_]
            self.expected[f"{id_.partition(':')[0]}:discarded"] += 1

    @rule(which=SOME)
    def discard(self, which):
        ids = self.some(which)
        known = [id_ for id_ in dict.fromkeys(ids) if id_ in self.letters]

        assert self.dead.discard(ids) == len(known)
        self.discarded(known)

    @rule(which=SOME, events_max=st.integers(1, 12))
    def trim(self, which, events_max):
        """Some letters are made older than the bound; the rest are bounded by number."""
        old = [id_ for id_ in self.some(which) if id_ in self.letters]
        if old:
            buried_at(self.redis, old, 1)
        by_age = [id_.decode() for id_ in self.redis.zrange(KEYS.dead_at, 0, -1)]
        gone = by_age[: max(len(set(old)), len(by_age) - events_max)]

        assert self.dead.trim(events_max, DAY_MS) == len(gone)
        self.discarded(gone)

    @rule(person=st.sampled_from(PEOPLE))
    def raise_or_lift_fence(self, person):
        self.fenced ^= {person}
        member = tag("p", "user", person)
        (self.redis.sadd if person in self.fenced else self.redis.srem)(KEYS.fence, member)

    @invariant()
    def agrees(self):
        assert_adds_up(self.redis)
        found = {letter.id: letter.body for letter in self.dead.letters()}
        assert found == {id_: record[HEADER_BYTES:] for id_, record in self.letters.items()}
        for lane in LANES:
            assert waiting(self.redis, lane) == self.wait[lane]
        seen = counts(self.redis)
        kinds = ("accepted", "suppressed", "erased", "discarded")
        names = [f"{lane}:{kind}" for lane in LANES for kind in kinds]
        assert {name: seen[name] for name in names} == {name: self.expected[name] for name in names}


def test_no_sequence_of_changes_loses_repeats_or_miscounts_a_letter(redis):
    """P1 for whatever people, bounds and erasures do to dead letters."""
    examples = settings(max_examples=60, stateful_step_count=20)
    run_state_machine_as_test(lambda: Letters(redis), settings=examples)


def test_a_filter_has_no_condition_that_was_forgotten_here():
    tried = {name for chosen, _ in FILTERS.values() for name in vars_of(chosen)} | {"ids"}

    assert tried == {one.name for one in fields(Filter)}


def vars_of(chosen):
    return [one.name for one in fields(Filter) if getattr(chosen, one.name) is not None]
