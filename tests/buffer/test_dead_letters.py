"""Dead letters on a real server: looked at in pages, revived through the door, bounded.

Sabotages that turn this file red, each tried on a copy:

- revive does not look at the fence, forgets the comma of a record in `waiting_bytes`, the
  bytes of the erased in `held_bytes`, or leaves the id in the hash or the zset;
- revive or discard begins with a command that allocates: refused at maxmemory;
- discard or trim forgets `held_bytes`, counts the line before the record, or counts the
  letters of one lane for the other;
- trim takes the newest, leaves one too many, or ignores the age;
- a script that takes letters out, or buries them, does not count them by reason, or counts those
  that a recount has not reached; a recount leaves letters out, counts some twice, or never ends;
- a page begins after the last time of the one before: letters of the same ms are left out.
"""

import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from mm_tasks.buffer import dead_letters, snapshot
from mm_tasks.buffer.batches import BatchLimits
from mm_tasks.buffer.dead_letters import DeadLetters, Filter, Group, Revived
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.records import HEADER_BYTES, tag
from mm_tasks.errors import BufferFull
from tests.buffer import lane_buffer
from tests.buffer.lane_buffer import assert_adds_up, counts
from tests.conftest import load_fences

KEYS = ProjectKeys("p")
LANES = ("track", "identify")
DAY_MS = 86_400_000
LIMITS = BatchLimits(events_max=1000, bytes_max=1 << 20, linger_ms=0)
REJECTED = {"reason": "rejected", "status": 400, "code": "invalid_payload", "attempts": 3}
PARKED = {"reason": "ambiguous", "status": 0, "code": "-", "attempts": 1, "kind": "timeout"}


@pytest.fixture
def dead(redis):
    yield DeadLetters(redis, "p")
    assert_adds_up(redis)


@contextmanager
def opened(redis, lane="track", project="p"):
    """A buffer on a server whose fences are loaded."""
    load_fences(redis, project)
    with lane_buffer.opened(redis, lane, LIMITS, project) as buffer:
        yield buffer


def entry(n, user_id=None, event="signed_up", anonymous_id=None):
    body = json.dumps({"event": event, "properties": {"n": n}}).encode()
    return Record(body, user_id, anonymous_id)


def bury(redis, entries, why=REJECTED, lane="track"):
    """Append these, claim all that waits in the lane, and bury it. Return the new ids."""
    before = set(redis.hkeys(KEYS.dead))
    with opened(redis, lane) as buffer:
        buffer.append(entries)
        batch_id = buffer.claim()
        if batch_id is None:
            return []
        admitted = buffer.begin(batch_id)
        buffer.bury(batch_id, admitted.token, why=json.dumps(why))
    new = set(redis.hkeys(KEYS.dead)) - before
    return sorted((id_.decode() for id_ in new), key=lambda id_: int(id_.rpartition(":")[2]))


def record_of(redis, id_):
    return redis.hget(KEYS.dead, id_).partition(b"\n")[2]


def waiting(redis, lane="track"):
    return redis.lrange(KEYS.lane(lane).waiting, 0, -1)


def buried_at(redis, ids, at_ms):
    redis.zadd(KEYS.dead_at, dict.fromkeys(ids, at_ms))


def test_a_letter_has_its_reason_its_times_and_the_event_verbatim(redis, dead):
    """Its repr has nothing of the event: it ends up in logs, and logs outlive erasures."""
    (id_,) = bury(redis, [entry(1, "anna", event="anna_signed_up")], PARKED)
    letter = next(dead.letters())

    assert (letter.id, letter.lane, letter.event) == (id_, "track", "anna_signed_up")
    assert (letter.reason, letter.status, letter.code) == ("ambiguous", 0, "-")
    assert (letter.attempts, letter.kind) == (1, "timeout")
    assert letter.body == entry(1, event="anna_signed_up").body
    assert 0 <= letter.buried_at_ms - letter.accepted_at_ms < 60_000
    assert "anna" not in repr(letter)


def test_a_record_that_is_no_event_is_still_a_letter(redis, dead):
    """Every refused record must be readable."""
    bury(redis, [Record(b'{"event":7}', None, None), Record(b"[1", None, None)])

    assert [letter.event for letter in dead.letters()] == [None, None]
    assert [letter.fields for letter in dead.letters()] == [{"event": 7}, None]


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("per_ms", [1, 7, 5000])
def test_each_of_5000_letters_is_read_once_from_either_end(redis, dead, per_ms, newest_first):
    """Also when more were buried in one millisecond than a page holds."""
    ids = [id_ for _ in range(5) for id_ in bury(redis, [entry(n) for n in range(1000)])]
    redis.zadd(KEYS.dead_at, {id_: i // per_ms for i, id_ in enumerate(ids)})
    letters = list(dead.letters(newest_first=newest_first))
    times = [letter.buried_at_ms for letter in letters]

    assert len(letters) == 5000
    assert {letter.id for letter in letters} == set(ids)
    assert times == sorted(times, reverse=newest_first)


@pytest.mark.parametrize("newest_first", [False, True])
def test_changes_between_pages_disturb_no_other_letter(redis, dead, newest_first):
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
def test_a_filter_selects_the_letters_that_meet_its_conditions(redis, dead, chosen, expected):
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


def test_ids_of_a_filter_are_read_in_their_order_without_unknown_ones(redis, dead):
    first, _, third = bury(redis, [entry(n) for n in range(3)])
    chosen = Filter(ids=(third, "track:none:1", first, "", third))

    assert [letter.id for letter in dead.letters(chosen)] == [third, first]


def test_counts_are_of_all_that_died_alike(redis, dead):
    bury(redis, [entry(1), entry(2)])
    bury(redis, [entry(3)], PARKED)
    rejected = Group("track", "rejected", 400, "invalid_payload")

    assert dead.counts() == {rejected: 2, Group("track", "ambiguous", 0, "-"): 1}
    assert dead.counts(Filter(reason="rejected")) == {rejected: 2}


def test_a_revived_record_waits_again_byte_for_byte_and_only_once(redis, dead):
    """The same header, the same event_id, and behind the records that wait already.
    A reply may be lost; then the same command is given again.
    """
    ids = bury(redis, [entry(1, "u1"), entry(2)])
    records = [record_of(redis, id_) for id_ in ids]
    with opened(redis) as buffer:
        buffer.append([entry(3)])

    assert dead.revive([*ids, *ids]) == Revived(2, 0, 0)
    assert dead.revive(ids) == Revived(0, 0, 2)
    assert waiting(redis)[1:] == records
    assert buffer.begin(buffer.claim()).bodies == [entry(n).body for n in (3, 1, 2)]


@pytest.mark.parametrize("kind", ["user", "anonymous"])
def test_a_letter_of_a_fenced_subject_is_erased_and_not_revived(redis, dead, kind):
    """P6: from the fence on, no way leads back to the vendor."""
    ids = bury(redis, [entry(1), entry(2, "gone", anonymous_id="gone"), entry(3)])
    redis.sadd(KEYS.fence, tag("p", kind, "gone"))

    assert dead.revive(ids) == Revived(2, 1, 0)
    assert [record[HEADER_BYTES:] for record in waiting(redis)] == [entry(1).body, entry(3).body]
    assert counts(redis)["track:erased"] == 1


def test_letters_of_both_lanes_go_back_to_their_own(redis, dead):
    tracked = bury(redis, [entry(n) for n in range(450)])
    identified = bury(redis, [entry(n) for n in range(3)], lane="identify")
    ids = [*identified, "nonsense", "other:a:1", "track:none:1", *tracked]

    assert dead.revive(ids) == Revived(453, 0, 3)
    assert len(waiting(redis)) == 450
    assert len(waiting(redis, "identify")) == 3


def test_a_discarded_letter_is_gone_and_counted(redis, dead):
    ids = bury(redis, [entry(n) for n in range(3)])

    assert dead.discard([ids[0], ids[0], "nonsense", "track:none:1", ids[2]]) == 2
    assert dead.discard([ids[0]]) == 0
    assert [letter.id for letter in dead.letters()] == [ids[1]]
    assert counts(redis)["track:discarded"] == 2


def test_the_oldest_above_the_number_are_discarded(redis, dead):
    tracked = bury(redis, [entry(n) for n in range(700)])
    identified = bury(redis, [entry(n) for n in range(2)], lane="identify")
    redis.zadd(KEYS.dead_at, {id_: DAY_MS + i for i, id_ in enumerate(tracked)})
    buried_at(redis, identified, DAY_MS)

    assert dead.trim(10, 10**15) == 692
    assert [letter.id for letter in dead.letters()] == tracked[-10:]
    assert counts(redis)["identify:discarded"] == 2
    assert counts(redis)["track:discarded"] == 690
    assert dead.trim(10, 10**15) == 0


def test_the_letters_above_the_age_are_discarded(redis, dead):
    ids = bury(redis, [entry(n) for n in range(4)])
    bound_ms = redis.time()[0] * 1000 - 90 * DAY_MS
    buried_at(redis, ids[:2], bound_ms - 1000)
    buried_at(redis, ids[2:3], bound_ms + 60_000)

    assert dead.trim(100, 90 * DAY_MS) == 2
    assert [letter.id for letter in dead.letters()] == ids[2:]


REASON = st.sampled_from([REJECTED, PARKED, {"status": 1}])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(st.tuples(REASON, st.integers(1, 5), st.booleans()), min_size=1, max_size=6),
    steps=st.lists(st.sampled_from(["recount", "recount", "bury", "revive", "discard"])),
    lane=st.sampled_from(LANES),
)
def test_letters_of_an_earlier_release_are_counted_by_reason_in_the_end(
    redis, monkeypatch, before, steps, lane
):
    """It buried and removed letters without these counts; meanwhile workers go on."""
    monkeypatch.setattr(dead_letters, "_PAGE", 2)
    redis.flushdb()
    dead = DeadLetters(redis, "p")
    for reason, n, is_counted in before:
        uncounted = redis.hgetall(KEYS.counts)
        ids = bury(redis, [entry(i) for i in range(n)], reason, lane)
        buried_at(redis, ids, redis.zcard(KEYS.dead_at))
        if not is_counted:
            restore_reasons(redis, uncounted)
    for step in steps:
        letters = [letter.id for letter in dead.letters()]
        if step == "recount":
            dead.trim(1000, 10**15)
        elif step == "bury":
            bury(redis, [entry(1)], PARKED, lane)
        else:
            getattr(dead, step)(letters[::3])
    for _ in range(len(list(dead.letters())) + 2):
        dead.trim(1000, 10**15)

    assert_adds_up(redis)
    assert not redis.hexists(KEYS.counts, "dead_recount_ms")


def restore_reasons(redis, before):
    """Put the counts by reason back, as a release does that does not know them."""
    for name in redis.hkeys(KEYS.counts):
        if b":dead:" in name and name not in before:
            redis.hdel(KEYS.counts, name)
        elif b":dead:" in name:
            redis.hset(KEYS.counts, name, before[name])


def test_letters_of_an_earlier_release_are_unknown_until_they_were_counted(redis, dead):
    bury(redis, [entry(n) for n in range(450)])
    redis.hdel(KEYS.counts, "track:dead:rejected")
    assert snapshot.read(redis, "p").dead_reasons == {"unknown": 450}
    buried_at(redis, [letter.id for letter in dead.letters()][:200], 5)
    dead.trim(1000, 10**15)
    assert snapshot.read(redis, "p").dead_reasons == {"rejected": 200, "unknown": 250}
    dead.trim(1000, 10**15)

    assert snapshot.read(redis, "p").dead_reasons == {"rejected": 450}


def test_one_trim_does_a_bounded_part_of_a_large_excess(redis, dead):
    """The flush that calls it has other things to do."""
    for _ in range(5):
        bury(redis, [entry(n) for n in range(1000)])

    assert [dead.trim(1, DAY_MS) for _ in range(3)] == [4000, 999, 0]


@pytest.fixture
def full(servers):
    """A server at its maxmemory, with letters in it."""
    server = servers()
    bury(server.client, [entry(n, "gone" if n % 100 == 0 else None) for n in range(400)])
    server.client.sadd(KEYS.fence, tag("p", "user", "gone"))
    server.fill()
    return server.client


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (DeadLetters.revive, Revived(396, 4, 0)),
        (DeadLetters.discard, 400),
        (lambda dead, _: dead.trim(1, DAY_MS), 399),
    ],
    ids=["revive", "discard", "trim"],
)
def test_at_maxmemory_letters_can_still_be_taken_out(full, change, expected):
    """The way out of a full Redis must not be the first thing that it refuses."""
    dead = DeadLetters(full, "p")
    with opened(full) as buffer, pytest.raises(BufferFull):
        buffer.append([entry(1)])

    assert change(dead, [letter.id for letter in dead.letters()]) == expected
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
        entries = [entry(n, person) for n, person in enumerate(people, self.n)]
        self.n += len(entries)
        waited = self.wait[lane]
        ids = bury(self.redis, entries, lane=lane)
        self.wait[lane] = []
        records = [record_of(self.redis, id_) for id_ in ids]
        new = [record.body for record in entries if record.user_id not in self.fenced]

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
        letters = {letter.id: letter.body for letter in self.dead.letters()}
        assert letters == {id_: record[HEADER_BYTES:] for id_, record in self.letters.items()}
        for lane in LANES:
            assert waiting(self.redis, lane) == self.wait[lane]
        seen = counts(self.redis)
        kinds = ("accepted", "suppressed", "erased", "discarded")
        names = [f"{lane}:{kind}" for lane in LANES for kind in kinds]
        assert {name: seen[name] for name in names} == {name: self.expected[name] for name in names}


def test_no_sequence_of_changes_loses_repeats_or_miscounts_a_letter(redis):
    """P1 for all changes to dead letters by people, bounds and erasures."""
    examples = settings(max_examples=60, stateful_step_count=20)
    run_state_machine_as_test(lambda: Letters(redis), settings=examples)


def test_a_filter_has_no_condition_that_was_forgotten_here():
    names = {field.name for field in fields(Filter)}
    filters = [chosen for chosen, _ in FILTERS.values()]
    tried = {name for name in names for chosen in filters if getattr(chosen, name) is not None}

    assert tried | {"ids"} == names
