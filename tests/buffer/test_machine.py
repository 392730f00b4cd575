"""One lane of the buffer against plain lists and sets, whatever the workers do.

The model is written from the headers of `lua/` and the design. Workers die
here (they just do nothing more), acknowledge late, come back with old tokens
and take each other's batches; people are fenced and purged between any two steps,
and the server turns into one whose fences were not loaded. After every step all
of Redis is read and compared.

Sabotages of the scripts that turn this machine red, each tried on a copy:

- append, claim or begin ignores the fence or one of the two tags; append stores above the cap,
  does not count headers, or counts refused records as accepted;
- claim checks the size after it took the record, ignores brackets or commas, takes one event too
  many, does not linger, returns lingering records in reverse order, or stops at its bound with
  the others lost;
- a scheduled record is moved before its time, twice, or although not all fences are loaded; its
  move ignores the fence or does not count what that removed; its bytes are not counted;
- claim or begin keeps the bytes of erased records, does not count the records that the fence
  removed, or counts them for the wrong id; begin keeps their list or lease;
- claim, begin or readiness ignores is_loaded; begin admits while another holds the batch, during
  a pause or a 429's wait, before the retry is due, or with a slot that is over or still ahead;
- begin does not raise the generation after a purge made the next part longer (in most runs);
- ack keeps the lease, the slot, the records or their bytes, ignores a batch that another holds,
  takes another part than was sent, or forgets the ages or puts one into the wrong bucket;
- release, bisect or bury ignores the token; release forgets its wait or creates a batch that is
  gone; a script that ends a request forgets its time, or counts it for an old token;
- bisect buries an event that was not refused alone, forgets the others, or never finds that the
  vendor refuses everything; bisect_filtered buries an event although nothing passed, or none
  although another batch did, repeats the same event, or counts an earlier success for the next;
- take_over ignores the time of the lease, keeps the old token, or does not renew the lease;
  assign_slot takes a batch that is being sent, or keeps its old wait;
- a purge script has a fault that `test_purge` lists, or checks one tag alone;
- a pause is overwritten or lifted by a batch that is not its probe; two probes run at a time; the
  wait does not double or has no limit; a shorter throttle shortens a longer one.

Time is an argument: every wait is over at once or far off.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

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

from mm_tasks.buffer import batches, clock, histograms, purge
from mm_tasks.buffer.batches import Admitted, BatchLimits, Rejection
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.histograms import RequestStats
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.pauses import Pauses
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.purge import Purge
from mm_tasks.buffer.records import HEADER_BYTES, STAMP_BYTES, tag
from mm_tasks.errors import BufferFull
from mm_tasks.events.lanes import LANES
from tests.buffer.lane_buffer import (
    LaneBuffer,
    assert_snapshot_adds_up,
    claim_in_parts,
    records_of,
    scheduled_records,
    snapshot,
)

EVENTS_MAX = 4
BYTES_MAX = 300
HELD_BYTES_MAX = 3000
HOUR_MS = 3_600_000
# Of each request whose outcome is told.
EXCHANGE = RequestStats(0.3, 3, 150)
DAY_US = 86_400_000_000
STORE = "a store"
KEYS = ProjectKeys("p")
LANE = KEYS.lane("track")

# One to four events of 287, 143, 95 and 71 bytes fill a body to the last byte.
SIZES = st.sampled_from([8, 20, 70, 71, 72, 94, 95, 96, 142, 143, 144, 286, 287])
PEOPLE = [("user", "u1"), ("user", "u2"), ("anonymous", "a1"), ("anonymous", "a2")]
CROWDS = [*([one] for one in PEOPLE), PEOPLE]
PAIRS = [(PEOPLE[0], PEOPLE[2]), (PEOPLE[1], PEOPLE[2])]
SUBJECTS = st.sampled_from([(), *((one,) for one in PEOPLE), *PAIRS])
FEW = st.lists(st.tuples(SIZES, SUBJECTS), min_size=1, max_size=3)
MANY = st.lists(st.tuples(SIZES, SUBJECTS), min_size=4, max_size=20)
ALIKE = st.builds(lambda one, n: [one] * n, st.tuples(SIZES, SUBJECTS), st.integers(2, 9))
WAITS_MS = st.sampled_from([0, HOUR_MS])
WHICH = st.integers(0, 19)
PROBE = st.none()
WHOSE = st.sampled_from(["last", "last", "first", "other"])
SLOTS = st.sampled_from(["now", "future", "past"])

# About 20 s, in each profile. Hypothesis leaves some rules out of each example, so many of
# middling length find more than a few long ones.
EXAMPLES = settings(max_examples=110, stateful_step_count=50)


class KilledError(Exception):
    """The worker died."""


class OneCall:
    """The connection of a worker that dies before its second script."""

    def __init__(self, redis):
        self.redis = redis
        self.script_load = redis.script_load
        self.is_used = False

    def evalsha(self, *args):
        if self.is_used:
            raise KilledError
        reply = self.redis.evalsha(*args)
        self.is_used = True
        return reply


class StoredRecord(NamedTuple):
    """A stored record, byte for byte, and whom it is about."""

    stored: bytes
    subjects: tuple[tuple[str, str], ...]

    @property
    def body(self):
        return self.stored[HEADER_BYTES:]

    @property
    def people(self):
        """The user first: it is for whom the record counts where both are fenced."""
        return sorted(self.subjects, reverse=True)


@dataclass
class Batch:
    """A batch in the model; `slot_us` is set while it waits for its slot."""

    records: list[StoredRecord]
    found_ms: float
    slot_us: float | None = None
    state: str = "claimed"
    token: str | None = None
    attempt: int = 0
    due_ms: float | None = None
    generation: int = 0
    sent: int = 0
    suspect: int = 0
    doubt: int = 0
    sole: int = 0
    refused: int = 0
    accepted: int = 0
    buried: int = 0
    passed: int | None = None


@dataclass
class Pause:
    """A pause or an outage in the model."""

    kind: str
    refused: str
    wait_ms: int
    probe_at_ms: float
    probe: str | None = None


@dataclass
class Model:
    """Every record in one place; the counts of what happened."""

    waiting: list[StoredRecord] = field(default_factory=list)
    # With the time at which each is due (ms).
    scheduled: list[tuple[float, StoredRecord]] = field(default_factory=list)
    batches: dict[str, Batch] = field(default_factory=dict)
    dead: dict[str, StoredRecord] = field(default_factory=dict)
    fence: set[tuple[str, str]] = field(default_factory=set)
    is_loaded: bool = True
    caught: Counter[tuple[str, str]] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    # By key: the pause of the project, the outage of the endpoint.
    stops: dict[str, Pause] = field(default_factory=dict)
    failures: int = 0
    refusals: int = 0
    throttled_until_ms: float = 0

    @property
    def stop(self):
        """The pause or outage that keeps this lane from sending."""
        return self.stops.get(KEYS.pause) or self.stops.get(LANE.outage)

    def unfenced(self, records):
        return [record for record in records if not self.fence.intersection(record.subjects)]

    def catch(self, records, kept):
        """The fence took the others of these out on their way."""
        gone = [record for record in records if record not in kept]
        self.counts["erased"] += len(gone)
        for record in gone:
            self.caught[next(one for one in record.people if one in self.fence)] += 1


def body_bytes(bodies):
    return len(b'{"events":[%b]}' % b",".join(bodies))


def fits(records):
    return len(records) <= EVENTS_MAX and body_bytes([r.body for r in records]) <= BYTES_MAX


def fullest(records):
    """Return the longest head of the records that one request may carry."""
    n = 0
    while n < len(records) and fits(records[: n + 1]):
        n += 1
    return records[:n]


class Lane(RuleBasedStateMachine):
    """Workers of all kinds on one lane. Any may name a batch that is gone, or an old token."""

    def __init__(self, redis):
        super().__init__()
        self.redis = redis
        self.redis.flushdb()
        self.fences = Fence(redis, "p")
        self.fences.load(STORE, set)
        self.purges = Purge(redis, "p")
        limits = BatchLimits(EVENTS_MAX, BYTES_MAX, linger_ms=HOUR_MS)
        self.buffer = LaneBuffer(redis, "p", "track", limits, held_bytes_max=HELD_BYTES_MAX)
        self.pauses = Pauses(redis, "p", "track")
        self.model = Model()
        self.serial = 0
        self.seen = {}
        self.tokens = {}
        self.cuts = defaultdict(list)
        self.carried = defaultdict(list)
        self.focus = None

    def teardown(self):
        self.buffer.close()

    def is_refused(self, holds, result, expected):
        """Return whether a step must be refused; then it returns this and changes nothing."""
        if holds:
            assert result == expected
            self.assert_unchanged()
        return holds

    # What every step may ask.

    def named(self, which, *states):
        """Return the id of a batch: mostly one in these states, sometimes one that is gone."""
        if self.focus is not None:
            return self.focus
        live = list(self.model.batches)
        fit = [id_ for id_ in live if self.model.batches[id_].state in states]
        gone = ["never there", *(id_ for id_ in self.tokens if id_ not in live)][-2:]
        ids = gone if which > 17 or not live else fit if which < 15 and fit else live
        return ids[which % len(ids)]

    def token(self, batch_id, whose):
        """Return the token of this batch's last or first attempt, or of another batch."""
        if whose in {"last", "first"} and self.tokens.get(batch_id):
            return self.tokens[batch_id][0 if whose == "first" else -1]
        others = [token for id_, known in self.tokens.items() if id_ != batch_id for token in known]
        return others[-1] if others else "no token"

    def made(self, batch_id, batch):
        self.model.batches[batch_id] = batch
        self.tokens[batch_id] = []

    def now_ms(self):
        return clock.read(self.redis, "p").now_us / 1000

    def is_lingering(self, records):
        """Has the first record waited for as long as a part-full batch may wait?"""
        age_ms = self.now_ms() - int(records[0].stored[1:STAMP_BYTES])
        return not 0 <= age_ms < HOUR_MS

    def slot_us(self, slot):
        now_us = round(self.now_ms() * 1000)
        far_us = {"now": 0, "future": DAY_US, "past": -DAY_US}
        return None if slot is None else now_us + far_us[slot]

    def assert_unchanged(self, *but):
        """Nothing but the counts differs from what the last step left."""
        now = snapshot(self.redis)
        changed = {key for key in now.keys() | self.seen if now.get(key) != self.seen.get(key)}

        assert changed <= {KEYS.counts, KEYS.clock, *but}

    def then(self, step, *args, **named):
        """Do a step inside of a rule and compare."""
        step(*args, **named)
        self.agrees()

    def entry(self, size, subjects):
        self.serial += 1
        filler = b'\r\n\x00\xff"}'
        body = b"%08d" % self.serial + (filler * size)[: size - 8]
        ids = dict(subjects)
        return Record(body, ids.get("user"), ids.get("anonymous"))

    # Producers and people.

    @initialize()
    def some_batches(self):
        """Most rules want batches that are there: two being sent and one that is not."""
        self.then(self.append, [(20, ()), (20, PEOPLE[:1]), (20, ()), (20, PEOPLE[1:3])])
        self.fence(PEOPLE[0], is_fenced=True)
        self.then(self.claim, "now", HOUR_MS, linger=True)
        self.fence(PEOPLE[0], is_fenced=False)
        self.append([(71, ()), (71, PEOPLE[:1]), (71, ()), (71, PEOPLE[1:3]), (8, ())])
        for lease_ms in (0, HOUR_MS):
            self.claim("now", HOUR_MS, linger=False)
            self.begin(0, "none", lease_ms)
        self.claim("now", HOUR_MS, linger=False)

    @rule(given=FEW | MANY | ALIKE)
    def append(self, given):
        taken, whom, appended = self.stored(given, self.buffer.append)
        if appended is None:
            return
        stored = self.redis.lrange(LANE.waiting, -len(taken), -1) if taken else []
        assert [record[HEADER_BYTES:] for record in stored] == [entry.body for entry in taken]
        self.model.waiting += map(StoredRecord, stored, whom)
        wants_nudge = bool(taken) and KEYS.nudges not in self.seen and self.is_full_waiting()
        assert appended.nudge == wants_nudge

    def stored(self, given, store):
        """Store entries; return those that were taken, of whom they are, and the reply or None."""
        entries = [self.entry(*one) for one in given]
        refused = {i for i, (_, who) in enumerate(given) if self.model.fence.intersection(who)}
        taken = [entry for i, entry in enumerate(entries) if i not in refused]
        whom = [who for i, (_, who) in enumerate(given) if i not in refused]
        held = sum(HEADER_BYTES + len(entry.body) for entry in taken)
        if taken and self.held_bytes() + held > HELD_BYTES_MAX:
            with pytest.raises(BufferFull):
                store(entries)
            self.assert_unchanged()
            return [], [], None
        appended = store(entries)

        assert appended.suppressed == refused
        self.model.counts.update(accepted=len(taken), suppressed=len(refused))
        return taken, whom, appended

    @rule(given=FEW | MANY | ALIKE, delay_ms=st.sampled_from([1, 1, HOUR_MS]))
    def schedule(self, given, delay_ms):
        before_ms = self.now_ms()
        taken, whom, appended = self.stored(given, lambda e: self.buffer.schedule(e, delay_ms))
        if appended is None:
            return
        zset = snapshot(self.redis).get(LANE.scheduled, {})
        members = sorted(zset.keys() - self.seen.get(LANE.scheduled, {}).keys())
        stored = scheduled_records(members)
        assert [record[HEADER_BYTES:] for record in stored] == [entry.body for entry in taken]
        due_ms = [zset[member] for member in members]
        assert due_ms == [int(record[1:STAMP_BYTES]) for record in stored]
        assert all(-1 < at - before_ms - delay_ms < HOUR_MS / 2 for at in due_ms)
        self.model.scheduled += zip(due_ms, map(StoredRecord, stored, whom), strict=True)
        assert not appended.nudge

    @rule(
        given=FEW,
        step=st.integers(1, 9),
        fenced=st.none() | st.sampled_from(PEOPLE),
        is_loaded=st.sampled_from([True, True, False]),
    )
    def become_due(self, given, step, fenced, is_loaded):
        """Somebody may have been fenced, or the server have become another, since the store."""
        self.then(self.schedule, given, HOUR_MS)
        self.then(self.schedule, given, 1)
        if fenced is not None:
            self.then(self.fence, fenced, is_fenced=True)
        if not is_loaded:
            self.redis.hdel(KEYS.fences, "run_id")
            self.model.is_loaded = False
            self.agrees()
            self.then(self.move_due, step)
            self.then(self.load)
        self.move_due(step)

    @rule(step=st.integers(1, 9))
    def move_due(self, step):
        soon = [at for at, _ in self.model.scheduled if at < self.now_ms() + HOUR_MS / 2]
        while self.now_ms() < max(soon, default=0):
            pass
        self.buffer.scheduled.move_due(step=step)
        if not self.model.is_loaded or not soon:
            self.assert_unchanged()
            return
        due = [one for one in self.model.scheduled if one[0] in soon]
        self.model.scheduled = [one for one in self.model.scheduled if one[0] not in soon]
        moved = [record for _, record in sorted(due, key=lambda one: one[0])]
        kept = self.model.unfenced(moved)
        self.model.catch(moved, kept)
        self.model.waiting += kept

    def held_bytes(self):
        model = self.model
        records = [*model.waiting, *model.dead.values(), *(one for _, one in model.scheduled)]
        records += [record for batch in model.batches.values() for record in batch.records]
        return sum(len(record.stored) for record in records)

    def is_full_waiting(self):
        return len(self.model.waiting) >= EVENTS_MAX or not fits(self.model.waiting)

    @rule(person=st.sampled_from(PEOPLE), is_fenced=st.booleans())
    def fence(self, person, is_fenced):
        """To lower one is to load all the others."""
        if is_fenced:
            self.model.fence.add(person)
            self.fences.add([tag("p", *person)], STORE)
        else:
            self.model.fence.discard(person)
            self.load()

    @rule()
    def load(self):
        self.fences.load(STORE, lambda: {tag("p", *person) for person in self.model.fence})
        self.model.is_loaded = True

    @rule(which=WHICH, is_loaded_again=st.sampled_from([True, True, True, False]))
    def become_another_server(self, which, is_loaded_again):
        """Nothing is claimed or sent, whatever else holds, until the fences were loaded."""
        self.redis.hdel(KEYS.fences, "run_id")
        self.model.is_loaded = False
        self.agrees()
        self.claim(None, 0, linger=False)
        self.readiness(HOUR_MS, 9, linger=False)
        self.then(self.begin, which, "none", HOUR_MS)
        if is_loaded_again:
            self.load()

    @rule(by_ms=st.sampled_from([-DAY_US // 1000, -600_000, -3000, 3000, 600_000]))
    def clock_steps(self, by_ms):
        """Redis's clock does, exactly as if: the project's clock is a sum, and was just stored."""
        before_ms = self.now_ms()
        self.redis.hset(KEYS.clock, "seen_us", round(before_ms * 1000))
        self.redis.hincrby(KEYS.clock, "ahead_us", by_ms * 1000)
        if by_ms > 0:
            # A flush that was asked for before may count as lost.
            self.redis.delete(KEYS.nudges)
        self.buffer.readiness()

        assert -1 <= self.now_ms() - before_ms - max(0, by_ms) < HOUR_MS / 2

    # Erasures.

    @rule(people=st.sampled_from(CROWDS), is_once=st.booleans(), claims=st.booleans())
    def purge(self, people, is_once, claims):
        """Of those that are fenced. What is being sent stays, and is reported."""
        model, before = self.model, set(self.model.fence)
        for person in people:
            self.fence(person, is_fenced=True)
        self.agrees()
        now_ms, early, later, steps = self.now_ms(), [], [], []

        def went_on():
            """A flush comes after the first step over the waiting records."""
            steps.append(1)
            if claims and len(steps) == len(LANES) + 1:
                later.append(self.purged_scheduled(people))
                early.append(self.purged_already(people))
                self.agrees()
                self.then(self.claim, None, HOUR_MS, linger=False)

        tags = [tag("p", *person) for person in people]
        scan = self.purges.scan({"people": tags}, went_on)["people"]
        expected = Counter({"track:waiting": self.purged(model.waiting, people) + sum(early)})
        self.moved()
        sending_ms = max(0, int(self.redis.get(LANE.orphaned_request) or 0) - now_ms)
        expected["track:scheduled"] = sum(later) + self.purged_scheduled(people)
        for batch_id in list(model.batches):
            n, left_ms = self.purged_batch(batch_id, people, now_ms)
            expected["track:batches"] += n
            sending_ms = max(sending_ms, left_ms)
        letters = list(model.dead.values())
        expected["track:dead"] = self.purged(letters, people)
        model.dead = {id_: letter for id_, letter in model.dead.items() if letter in letters}
        expected["fence"] = sum(model.caught.pop(person, 0) for person in people)

        assert +scan.removed == +expected
        assert (scan.sending_ms > 0) == (sending_ms > 0)
        assert abs(scan.sending_ms - sending_ms) < HOUR_MS / 2
        if is_once:
            self.agrees()
            model.fence = before
            self.load()

    def purged_scheduled(self, people):
        """Take the scheduled records of these people out; return how many."""
        left = [record for _, record in self.model.scheduled]
        n = self.purged(left, people)
        self.model.scheduled = [one for one in self.model.scheduled if one[1] in left]
        return n

    def purged_already(self, people):
        """Take out the records that one step removed, all of these people; return how many."""
        left = set(self.redis.lrange(LANE.waiting, 0, -1))
        gone = [record for record in self.model.waiting if record.stored not in left]
        self.model.waiting = [record for record in self.model.waiting if record not in gone]
        n = self.purged(gone, people)
        assert not gone
        self.moved()
        return n

    def moved(self):
        """A purge may put records into the places of those that it removes: see `test_purge`."""
        records = {record.stored: record for record in self.model.waiting}
        waiting = self.redis.lrange(LANE.waiting, 0, -1)
        assert sorted(records) == sorted(waiting)
        self.model.waiting = [records[stored] for stored in waiting]

    def purged(self, records, people):
        """Take the records of these people out; return how many."""
        kept = [record for record in records if not set(people) & set(record.subjects)]
        n = len(records) - len(kept)
        records[:] = kept
        self.model.counts["erased"] += n
        return n

    def purged_batch(self, batch_id, people, now_ms):
        """Return how many of its records went, or for how long it is being sent."""
        batch = self.model.batches[batch_id]
        sent, suspects = batch.records[: batch.sent], batch.records[: batch.suspect]
        is_theirs = any(set(people) & set(record.subjects) for record in batch.records)
        if is_theirs and batch.state == "sending" and batch.found_ms > now_ms:
            return 0, batch.found_ms - now_ms
        n = self.purged(batch.records, people)
        if not batch.records:
            del self.model.batches[batch_id]
        elif n:
            batch.suspect = len([record for record in suspects if record in batch.records])
            batch.token = None
            left = len([record for record in sent if record in batch.records])
            if left:
                batch.sent = left
            elif sent:
                batch.generation += 1
                if batch.state == "sending":
                    self.freed(batch)
        return n, 0

    def clear_the_way(self):
        """Nobody is fenced, and nothing waits for anything but its own time."""
        model = self.model
        model.fence.clear()
        self.load()
        self.redis.delete(KEYS.pause, LANE.outage, LANE.throttle)
        model.stops.clear()
        model.throttled_until_ms = 0
        self.agrees()

    @rule(
        person=st.sampled_from(PEOPLE),
        theirs=st.lists(st.booleans(), min_size=9, max_size=16)
        | st.lists(st.just(True), min_size=8, max_size=8),
        batches=st.integers(0, 4),
    )
    def purge_of_most(self, person, theirs, batches):
        """Of batches that are theirs alone, and of a long stretch of those that wait."""
        self.clear_the_way()
        self.then(self.append, [(8, (person,) if is_theirs else ()) for is_theirs in theirs])
        for _ in range(batches):
            self.then(self.claim, None, HOUR_MS, linger=False)
        self.purge([person], is_once=True, claims=True)

    @rule(
        which=WHICH,
        crowd=st.sampled_from([*CROWDS, *[None] * 6]),
        times=st.sampled_from([0, 1, 2, 2]),
        then=st.sampled_from(["ack", "bisect", "take_over", "begin"]),
        is_first=st.booleans(),
    )
    def answer_comes_after_a_purge(self, which, crowd, times, then, is_first):
        """A batch, narrowed or not, is purged of its first subject or others after its lease."""
        self.clear_the_way()
        self.focus = self.named(which, "claimed", "released")
        batch = self.model.batches.get(self.focus)
        people = crowd or (batch and batch.records[0].subjects) or PEOPLE
        self.then(self.assign_slot, which, None, 0)
        for turn in range(times + 1):
            self.then(self.begin, which, "none", 0)
            if turn < times:
                self.then(self.bisect, which, "last", 0)
        if then == "begin":
            self.then(self.release, which, "last", 0, 0, "cut")
        self.then(self.purge, people, is_once=False, claims=False)
        if then == "begin":
            self.then(self.begin, which, "none", HOUR_MS)
        if then == "take_over":
            self.take_over(which, HOUR_MS)
        elif then == "bisect":
            self.bisect(which, "last", 0)
        else:
            self.ack(which, is_first, differs=False)
        self.focus = None

    # Flushes.

    @rule(fenced=st.none() | st.sampled_from(PEOPLE), again_ms=WAITS_MS, linger=st.booleans())
    def flush(self, fenced, again_ms, linger):
        """Somebody may have been fenced a moment ago."""
        if fenced is not None:
            self.then(self.fence, fenced, is_fenced=True)
        self.claim(None, again_ms, linger)

    @rule(slot=st.none() | SLOTS, again_ms=WAITS_MS, linger=st.booleans())
    def claim(self, slot, again_ms, linger):
        model = self.model
        slot_us = self.slot_us(slot)
        batch_id = self.buffer.claim(slot_us=slot_us, found_again_ms=again_ms, linger=linger)
        if not self.is_refused(not model.is_loaded, batch_id, None):
            self.claimed(batch_id, slot_us, again_ms, linger=linger)

    def claimed(self, batch_id, slot_us, again_ms, *, linger):
        model = self.model
        unfenced = model.unfenced(model.waiting)
        kept = fullest(unfenced)
        is_full = len(kept) == EVENTS_MAX or len(kept) < len(unfenced)
        if not kept or (linger and not is_full and not self.is_lingering(kept)):
            assert batch_id is None
            model.catch(model.waiting, unfenced)
            model.waiting = unfenced
            return

        assert batch_id is not None
        passed = model.waiting.index(kept[-1]) + 1
        # Fenced records behind the last one kept may leave now or with the next claim.
        also = len(model.waiting) - passed - self.redis.llen(LANE.waiting)
        assert not model.unfenced(model.waiting[passed : passed + also])
        model.catch(model.waiting[: passed + also], kept)
        del model.waiting[: passed + also]
        start_us = self.slot_us("now") if slot_us is None else slot_us
        self.made(batch_id, Batch(kept, start_us / 1000 + again_ms, start_us))

    @rule(person=st.sampled_from(PEOPLE), theirs=st.integers(3, 14), others=st.integers(0, 6))
    def claim_dies_after_one_call(self, person, theirs, others):
        """Among many records of an erased person a claim is several calls."""
        self.clear_the_way()
        self.then(self.append, [(8, (person,))] * theirs + [(8, ())] * others)
        self.then(self.fence, person, is_fenced=True)
        self.buffer._redis = OneCall(self.redis)  # noqa: SLF001 - the worker's connection
        try:
            batch_id = self.buffer.claim(found_again_ms=HOUR_MS)
        except KilledError:
            left = self.redis.lrange(LANE.waiting, 0, -1)
            gone = [record for record in self.model.waiting if record.stored not in left]
            assert gone
            assert not self.model.unfenced(gone)
            self.model.catch(gone, [])
            self.model.waiting = [r for r in self.model.waiting if r.stored in left]
        else:
            self.claimed(batch_id, None, HOUR_MS, linger=True)
        finally:
            self.buffer._redis = self.redis  # noqa: SLF001 - as above

    @rule(which=WHICH, slot=st.none() | SLOTS, again_ms=WAITS_MS)
    def assign_slot(self, which, slot, again_ms):
        batch_id = self.named(which, "claimed", "released")
        slot_us = self.slot_us(slot)
        adopted = self.buffer.assign_slot(batch_id, slot_us=slot_us, found_again_ms=again_ms)
        batch = self.model.batches.get(batch_id)

        assert adopted == (batch is not None and batch.state != "sending")
        if not adopted:
            self.assert_unchanged()
            return
        start_us = self.slot_us("now") if slot_us is None else slot_us
        batch.state, batch.due_ms = "claimed", None
        batch.slot_us, batch.found_ms = start_us, start_us / 1000 + again_ms

    @rule(limit=st.integers(1, 5))
    def due(self, limit):
        now_ms = self.now_ms()
        expected = {id_ for id_, batch in self.model.batches.items() if batch.found_ms <= now_ms}
        everything = self.buffer.due(100, everything=True)
        found = self.buffer.due(100)

        assert set(everything) == set(self.model.batches)
        assert found == everything[: len(expected)]
        assert set(found) == expected
        assert self.buffer.due(limit) == found[:limit]
        leases = self.seen.get(LANE.leases, {})
        assert everything == sorted(everything, key=leases.get)
        self.assert_unchanged()

    @rule(late_ms=st.just(HOUR_MS), claimed_max=st.integers(1, 9), linger=st.booleans())
    def readiness(self, late_ms, claimed_max, linger):
        model, now_ms = self.model, self.now_ms()
        slots_ms = [b.slot_us / 1000 for b in model.batches.values() if b.slot_us is not None]
        is_late = len(slots_ms) >= claimed_max or min(slots_ms, default=now_ms) < now_ms - late_ms
        is_ready = model.waiting and (
            not linger or self.is_full_waiting() or self.is_lingering(model.waiting)
        )
        cases = [
            ("unloaded", not model.is_loaded),
            ("paused", model.stop is not None),
            ("throttled", model.throttled_until_ms > now_ms),
            ("late", is_late),
            ("ready", is_ready),
            ("idle", True),
        ]

        result = self.buffer.readiness(late_ms=late_ms, claimed_max=claimed_max, linger=linger)
        assert result == next(word for word, holds in cases if holds)
        self.assert_unchanged()

    # Senders.

    def obstacles(self, batch_id, slot):
        """Return the reasons for which `begin` may refuse; empty when it must not."""
        model, now_ms = self.model, self.now_ms()
        batch = model.batches.get(batch_id)
        if batch is None or batch.state == "sending":
            return {"gone" if batch is None else "held"}
        if not model.is_loaded:
            return {"unloaded"}
        start_us = batch.slot_us if slot == "" else None if slot == "none" else int(slot)
        far_ms = 0 if start_us is None else start_us / 1000 - now_ms
        is_over = far_ms < -HOUR_MS or (slot == "" and start_us is None)
        found = {
            "paused": model.stop is not None and model.stop.probe != batch_id,
            "wait": max(model.throttled_until_ms, batch.due_ms or 0) > now_ms or far_ms > 0,
            "slot": is_over,
        }
        return {reason for reason, holds in found.items() if holds}

    @rule(which=WHICH, slot=st.sampled_from(["none", ""]) | SLOTS, lease_ms=WAITS_MS)
    def begin(self, which, slot, lease_ms):
        batch_id = self.named(which, "claimed", "released")
        slot = slot if slot in {"none", ""} else str(self.slot_us(slot))
        begun = self.buffer.begin(batch_id, slot=slot, slot_valid_ms=HOUR_MS, lease_ms=lease_ms)
        obstacles, model = self.obstacles(batch_id, slot), self.model
        if obstacles:
            assert isinstance(begun, Rejection)
            assert begun.reason in obstacles
            assert (begun.wait_s > 0) == (begun.reason == "wait")
            self.assert_unchanged()
            return

        batch = model.batches[batch_id]
        kept = model.unfenced(batch.records)
        model.catch(batch.records, kept)
        if len(kept) < len(batch.records):
            batch.suspect = len(model.unfenced(batch.records[: batch.suspect]))
            batch.generation += 1
        if not kept:
            assert begun == Rejection("empty")
            del model.batches[batch_id]
            return
        assert isinstance(begun, Admitted)
        is_single = model.stop is not None or model.failures > 0
        part = (batch.suspect + 1) // 2 or len(kept)
        part = 1 if is_single else math.ceil(part / 2 ** max(0, batch.doubt - 1))
        sent, batch.sent = batch.sent, part
        # A success of the attempt before must not count for what only this one carries.
        batch.generation += 0 < sent < batch.sent
        assert begun.bodies == [record.body for record in kept[: batch.sent]]
        assert (begun.sent, begun.left) == (batch.sent, len(kept) - batch.sent)
        assert begun.generation == batch.generation
        assert len(begun.bodies) <= EVENTS_MAX
        assert body_bytes(begun.bodies) <= BYTES_MAX
        assert begun.attempt == batch.attempt + 1
        assert begun.paused == (model.stop.kind if model.stop else "")
        batch.records, batch.attempt, batch.state = kept, begun.attempt, "sending"
        batch.token, batch.slot_us, batch.found_ms = begun.token, None, self.now_ms() + lease_ms
        self.tokens[batch_id].append(begun.token)
        self.cuts[batch_id].append(begun.generation)
        self.carried[batch_id].append((begun.generation, begun.token, set(begun.bodies)))

    @rule(which=WHICH, lease_ms=WAITS_MS)
    def take_over(self, which, lease_ms):
        batch_id = self.named(which, "sending")
        lapsed = self.buffer.take_over(batch_id, lease_ms=lease_ms)
        batch, now_ms = self.model.batches.get(batch_id), self.now_ms()
        is_held = batch is None or batch.state != "sending" or batch.found_ms > now_ms
        if self.is_refused(is_held, lapsed, None):
            return
        assert lapsed is not None
        for name in ("attempt", "generation", "sent"):
            assert getattr(lapsed, name) == getattr(batch, name), name
        assert lapsed.token != batch.token
        batch.token, batch.found_ms = lapsed.token, now_ms + lease_ms
        self.tokens[batch_id].append(lapsed.token)

    def taken(self, batch_id, n):
        """Return the first records of a batch and take them off; what is left is free."""
        batch = self.model.batches[batch_id]
        head, batch.records = batch.records[:n], batch.records[n:]
        if not batch.records:
            del self.model.batches[batch_id]
            return head
        batch.suspect, batch.generation = max(0, batch.suspect - n), batch.generation + 1
        self.freed(batch)
        return head

    def freed(self, batch):
        batch.state, batch.token, batch.slot_us, batch.due_ms = "released", None, None, None
        batch.found_ms = self.now_ms()

    @rule(which=WHICH, is_first=st.booleans(), differs=st.booleans())
    def ack(self, which, is_first, differs):
        """A success counts whoever holds the batch, only once, and for what it carried."""
        batch_id = self.named(which, "sending")
        batch, cuts = self.model.batches.get(batch_id), self.cuts.get(batch_id) or [0]
        generation = cuts[0 if is_first else -1]
        is_there = batch is not None and batch.generation == generation and batch.sent > 0
        n = len(batch.records[: batch.sent]) if is_there else 0

        token = (self.tokens.get(batch_id) or [""])[0 if is_first else -1]
        is_stray = is_there and batch.state == "sending" and batch.token != token
        told = {"token": token, "count_differs": differs, "exchange": EXCHANGE}
        assert self.buffer.ack(batch_id, generation, **told) == n
        if is_stray and batch.found_ms > self.now_ms():
            assert int(self.redis.get(LANE.orphaned_request)) > self.now_ms()
        self.model.failures = self.model.refusals = 0
        if not is_there:
            self.assert_unchanged(LANE.failures, LANE.refusals)
            return
        delivered = {record.body for record in self.taken(batch_id, n)}
        # Whichever attempt it was that succeeded.
        assert all(delivered <= all_ for at, _, all_ in self.carried[batch_id] if at == generation)
        batch.accepted += n
        self.note("delivered")
        self.model.counts.update({"delivered": n, "count_differs": int(differs)})

    @rule(which=WHICH, fenced=st.sampled_from([[], *CROWDS]), lease_ms=WAITS_MS)
    def find_again(self, which, fenced, lease_ms):
        """A flush finds a free batch and a worker begins it; somebody may be fenced between."""
        self.then(self.assign_slot, which, None, 0)
        for person in fenced:
            self.fence(person, is_fenced=True)
        self.agrees()
        self.begin(which, "", lease_ms)

    @rule(which=WHICH, wait_ms=WAITS_MS, lease_ms=WAITS_MS)
    def give_back(self, which, wait_ms, lease_ms):
        """A worker that may not begin yet gives the batch back; its message comes too early."""
        self.then(self.release, which, "nobody", wait_ms, 0, "")
        self.begin(which, "none", lease_ms)

    @rule(which=WHICH, slot=SLOTS, lease_ms=WAITS_MS)
    def slot_comes(self, which, slot, lease_ms):
        """A worker begins a batch at the slot it was given, too early, or too late."""
        self.then(self.assign_slot, which, slot, HOUR_MS)
        self.readiness(HOUR_MS, 9, linger=False)
        self.begin(which, "", lease_ms)

    def holder(self, batch_id, token):
        """Return the batch if this token holds it now."""
        batch = self.model.batches.get(batch_id)
        return batch if batch and batch.state == "sending" and batch.token == token else None

    def attempt(self, which, whose):
        """Return the id of a batch, a token, and the batch if this token holds it now."""
        batch_id = self.named(which, "sending")
        token = self.token(batch_id, whose)
        return batch_id, token, self.holder(batch_id, token)

    def note(self, outcome, ambiguous=""):
        if outcome:
            self.model.counts[f"outcome:{outcome}"] += 1
        if ambiguous:
            self.model.counts.update(["ambiguous", f"ambiguous:{ambiguous}"])

    @rule(
        which=WHICH,
        whose=WHOSE | st.just("nobody"),
        wait_ms=WAITS_MS,
        grace_ms=WAITS_MS,
        ambiguous=st.sampled_from(["", "cut", "lease"]),
    )
    def release(self, which, whose, wait_ms, grace_ms, ambiguous):
        """With an empty token: a batch that nobody is sending, or it is refused."""
        if whose == "nobody":
            batch_id, token, outcome = self.named(which, "claimed", "released"), "", ""
            batch = self.model.batches.get(batch_id)
            batch = batch if batch and batch.state != "sending" else None
        else:
            batch_id, token, batch = self.attempt(which, whose)
            outcome = "unavailable"
        exchange = EXCHANGE if outcome else None
        words = {"outcome": outcome, "ambiguous": ambiguous, "exchange": exchange}
        released = self.buffer.release(batch_id, token, wait_ms=wait_ms, grace_ms=grace_ms, **words)

        assert released == (batch is not None)
        if batch is None:
            self.assert_unchanged()
            return
        self.note(outcome, ambiguous)
        if ambiguous and (batch.sent != 1 or batch.suspect or len(batch.records) == 1):
            batch.doubt += 1
        elif ambiguous == "cut":
            self.rotated(batch)
            batch.sole += 1
            batch.doubt = batch.doubt or int(batch.sole >= len(batch.records))
        batch.state, batch.token, batch.slot_us = "released", None, None
        batch.due_ms = self.now_ms() + wait_ms
        batch.found_ms = batch.due_ms + grace_ms

    def rotated(self, batch):
        batch.records.append(batch.records.pop(0))
        batch.generation += 1
        batch.is_rotated = True

    @rule(which=WHICH, whose=WHOSE, isolation_max=st.sampled_from([0, 0, 2]))
    def bisect(self, which, whose, isolation_max):
        batch_id, token, batch = self.attempt(which, whose)
        model = self.model
        result = self.buffer.bisect(batch_id, token, isolation_max=isolation_max, exchange=EXCHANGE)
        if self.is_refused(batch is None, result, "old"):
            return
        self.note("rejected")
        model.failures = 0
        if batch.sent > 1:
            assert result == "narrowed"
            batch.suspect = batch.sent
            self.freed(batch)
            return
        model.refusals += 1
        batch.refused += 1
        refusals = max(model.refusals, 0 if batch.accepted else batch.refused)
        if isolation_max and refusals >= isolation_max:
            assert result == "systematic"
            model.refusals, batch.refused, batch.suspect = 0, 0, 1
            self.freed(batch)
            return
        assert result == "buried"
        assert all(len(all_) == 1 for _, by, all_ in self.carried[batch_id] if by == token)
        self.laid_aside(batch_id, batch, 1)
        batch.suspect = 0 if batch.accepted else 1

    @rule(which=WHICH, whose=WHOSE, is_probe=st.booleans())
    def bisect_filtered(self, which, whose, is_probe):
        """Where nothing passed since the first refusal, another event is sent alone."""
        batch_id, token, batch = self.attempt(which, whose)
        delivered = self.model.counts["delivered"]
        words = {"why": '{"a":1}', "is_probe": is_probe, "exchange": EXCHANGE}
        result = self.buffer.bisect_filtered(batch_id, token, **words)
        if self.is_refused(batch is None, result, "old"):
            return
        self.note("filtered")
        others_pass = not is_probe and batch.passed is not None and delivered > batch.passed
        if others_pass and batch.sent > 1:
            assert result == "narrowed"
            batch.suspect = batch.sent
            self.freed(batch)
        elif others_pass:
            assert result == "buried"
            assert all(len(all_) == 1 for _, by, all_ in self.carried[batch_id] if by == token)
            self.laid_aside(batch_id, batch, 1)
            batch.suspect, batch.passed = 0, delivered
        else:
            is_lone = len(batch.records) == 1
            is_known = is_lone and batch.passed is not None and delivered and not is_probe
            assert result == ("again" if is_known else "refused")
            batch.suspect, batch.passed = 1, delivered if batch.passed is None else batch.passed
            if batch.sent == 1 and not is_lone:
                self.rotated(batch)
            self.freed(batch)

    @rule(times=st.integers(2, 5), which=WHICH, other=WHICH)
    def filter_down(self, times, which, other):
        """The honest way: a filter refuses one part after another, and another batch passes."""
        self.clear_the_way()
        for turn in range(times):
            self.then(self.begin, which, "none", HOUR_MS)
            self.then(self.bisect_filtered, which, "last", is_probe=False)
            if turn == 0:
                self.then(self.begin, other, "none", HOUR_MS)
                self.then(self.ack, other, is_first=False, differs=False)

    @rule(times=st.integers(1, 4), which=WHICH)
    def narrow_down(self, times, which):
        """The honest way: the part that is sent is refused, or accepted, again and again."""
        for turn in range(times):
            self.then(self.begin, which, "none", HOUR_MS)
            if turn == times - 1:
                self.ack(which, is_first=False, differs=False)
            else:
                self.bisect(which, "last", 0)
            self.agrees()

    def laid_aside(self, batch_id, batch, n):
        head = self.taken(batch_id, n)
        for i, record in enumerate(head, batch.buried + 1):
            self.model.dead[f"track:{batch_id}:{i}"] = record
        batch.buried += len(head)

    @rule(which=WHICH, whose=WHOSE, ambiguous=st.sampled_from(["", "lease"]))
    def bury(self, which, whose, ambiguous):
        batch_id, token, batch = self.attempt(which, whose)
        n = self.buffer.bury(batch_id, token, ambiguous=ambiguous, exchange=EXCHANGE)
        if self.is_refused(batch is None, n, 0):
            return
        self.note("rejected", ambiguous)
        assert n == batch.sent
        self.laid_aside(batch_id, batch, n)

    # Pauses and the wait of a 429.

    def probe_or(self, which):
        pause = self.model.stop
        return pause.probe if which is None and pause and pause.probe else self.named(which or 0)

    @rule(
        which=WHICH | PROBE,
        kind=st.sampled_from(["unauthorized", "unavailable", "rejected", "filtered"]),
        first_ms=st.sampled_from([0, 0, HOUR_MS]),
        failures_max=st.sampled_from([0, 2, 2]),
    )
    def pause(self, which, kind, first_ms, failures_max):
        batch_id = self.probe_or(which)
        waits = {"first_ms": first_ms, "probe_ms": 3 * HOUR_MS, "failures_max": failures_max}
        paused = self.pauses.pause(batch_id, kind, status="401", code="-", **waits)
        model, is_for_all = self.model, kind == "unauthorized"
        for place in (KEYS.pause, LANE.outage):
            old = model.stops.get(place)
            if old is None or old.probe != batch_id:
                continue
            if place == LANE.outage and is_for_all:
                del model.stops[place]
                continue
            assert paused
            is_other = is_for_all or place == LANE.outage
            is_other = is_other and kind not in {old.kind, "unavailable"}
            wait_ms = first_ms if is_other else max(first_ms, 2 * old.wait_ms)
            kind, refused = kind if is_other else old.kind, batch_id
            if kind == "filtered":
                is_known = batch_id in old.refused
                refused = old.refused if is_known else f"{old.refused} {batch_id}"[-50 * 37 + 1 :]
            self.stopped(place, kind, refused, wait_ms)
            return
        place = KEYS.pause if is_for_all else LANE.outage
        if place in model.stops or KEYS.pause in model.stops:
            assert paused
            return
        model.failures += 1 if failures_max else 0
        assert paused == (model.failures >= failures_max)
        if paused:
            model.failures = 0
            self.stopped(place, kind, batch_id, first_ms)

    def stopped(self, place, kind, refused, wait_ms):
        wait_ms = min(wait_ms, 3 * HOUR_MS)
        self.model.stops[place] = Pause(kind, refused, wait_ms, self.now_ms() + wait_ms)

    @rule(which=WHICH, lost_ms=WAITS_MS, is_time=st.booleans())
    def choose_probe(self, which, lost_ms, is_time):
        if is_time and self.model.stop is not None:
            place = KEYS.pause if KEYS.pause in self.model.stops else LANE.outage
            self.redis.hset(place, "probe_at_ms", 0)
            self.model.stop.probe_at_ms = 0
            self.agrees()
        batch_id = self.named(which, "claimed", "released")
        pause, now_ms = self.model.stop, self.now_ms()
        is_due = pause is not None and pause.probe_at_ms <= now_ms

        assert self.pauses.probe_due() == (pause.refused.split() if is_due else None)
        assert self.pauses.choose_probe(batch_id, lost_ms=lost_ms) == is_due
        if is_due:
            pause.probe, pause.probe_at_ms = batch_id, self.now_ms() + lost_ms
        else:
            self.assert_unchanged()

    @rule(which=WHICH | PROBE)
    def lift(self, which):
        batch_id, stops = self.probe_or(which), self.model.stops
        probed = [key for key in (KEYS.pause, LANE.outage) if key in stops]
        probed = [key for key in probed if stops[key].probe == batch_id]

        assert self.pauses.lift(batch_id) == bool(probed)
        if probed:
            del stops[probed[0]]
        else:
            self.assert_unchanged()

    @rule(which=WHICH, lease_ms=WAITS_MS, failures=st.integers(0, 3))
    def probe_is_answered(self, which, lease_ms, failures):
        """The honest way out of a pause, after some probes that failed as the first did."""
        kind = self.model.stop.kind if self.model.stop else "unavailable"
        for _ in range(failures):
            self.then(self.choose_probe, which, HOUR_MS, is_time=True)
            self.then(self.pause, None, kind, HOUR_MS, 0)
        self.then(self.choose_probe, which, HOUR_MS, is_time=True)
        self.then(self.begin, which, "none", lease_ms)
        self.lift(None)

    @rule(wait_ms=st.sampled_from([1, 1, HOUR_MS]), is_over=st.booleans())
    def throttle(self, wait_ms, is_over):
        """When it is over its key expires, or stays for the limiter alone."""
        if is_over:
            self.redis.delete(LANE.throttle)
            self.model.throttled_until_ms = 0
        left_s = self.pauses.throttle(wait_ms, keep_ms=HOUR_MS)
        now_ms = self.now_ms()
        until_ms = max(self.model.throttled_until_ms, now_ms + wait_ms)

        assert abs(left_s - (until_ms - now_ms) / 1000) < 60
        self.model.throttled_until_ms = until_ms
        self.model.failures = 0
        while until_ms == now_ms + 1 and self.now_ms() < until_ms:
            pass

    # What holds after every step, read from Redis.

    @invariant()
    def agrees(self):
        self.seen = seen = snapshot(self.redis)
        assert_snapshot_adds_up(seen)
        self.assert_every_record_is_in_its_place(seen)
        self.assert_counts_add_up(seen)
        self.assert_histograms_add_up(seen)
        self.assert_batches_are_whole(seen)
        self.assert_pause_is_known(seen)
        self.assert_fences_are_known(seen)
        self.assert_no_key_is_a_stranger(seen)

    def assert_every_record_is_in_its_place(self, seen):
        model = self.model
        assert seen.get(LANE.waiting, []) == [record.stored for record in model.waiting]
        later = scheduled_records(sorted(seen.get(LANE.scheduled, {})))
        assert later == [record.stored for _, record in model.scheduled]
        for batch_id, batch in model.batches.items():
            assert seen[LANE.records(batch_id)] == [record.stored for record in batch.records]
        dead = {id_.encode(): record.stored for id_, record in model.dead.items()}
        letters = seen.get(KEYS.dead, {})
        assert dict(zip(letters, records_of(letters.values()), strict=True)) == dead

    def assert_counts_add_up(self, seen):
        raw = {name.decode(): int(n) for name, n in seen.get(KEYS.counts, {}).items()}
        counts = Counter({name.removeprefix("track:"): n for name, n in raw.items()})
        records = [r for key, value in seen.items() if ":records:" in key for r in value]
        records += seen.get(LANE.waiting, []) + records_of(seen.get(KEYS.dead, {}).values())
        records += scheduled_records(seen.get(LANE.scheduled, {}))
        assert len(set(records)) == len(records)
        assert all(r[:1] == b"1" and r[1:STAMP_BYTES].isdigit() for r in records)
        derived = {"scheduled", "leased", "dead", "waiting_bytes", "held_bytes"}
        derived |= {name for name in counts if name.startswith("dead:")}
        assert {n: c for n, c in counts.items() if c and n not in derived} == +self.model.counts

    def assert_histograms_add_up(self, seen):
        """An age for each event delivered, a time for each request that ended, and no more."""
        stored = seen.get(KEYS.histogram_counters, {})
        histogram_counters = {name.decode(): int(n) for name, n in stored.items()}
        counts = self.model.counts
        ended = sum(n for name, n in counts.items() if name.startswith("outcome:"))
        expected = dict.fromkeys((histograms.EVENTS, histograms.FILL), counts["outcome:delivered"])
        expected |= {histograms.AGE: counts["delivered"], histograms.SECONDS: ended}
        for name, times in expected.items():
            assert histograms.read(histogram_counters, "track", name)[0][-1][1] == times, name
        assert histogram_counters.get("track:request_s:sum", 0) == 300_000 * ended
        fill = histogram_counters.get("track:batch_fill:sum", 0)
        assert fill == 750_000 * counts["outcome:delivered"]

    def assert_batches_are_whole(self, seen):
        """A batch has a hash, its records and its lease, or nothing of the three."""
        batches, now_ms = self.model.batches, self.now_ms()
        assert set(seen.get(LANE.leases, {})) == set(batches)
        slots = {id_: b.slot_us for id_, b in batches.items() if b.slot_us is not None}
        claimed = seen.get(LANE.claimed, {})
        assert set(claimed) == set(slots)
        assert all(abs(claimed[id_] - slot_us) < DAY_US / 2 for id_, slot_us in slots.items())
        for batch_id, batch in batches.items():
            stored = seen[LANE.batch(batch_id)]
            token = stored.get(b"token", b"").decode() or None
            due_ms = float(stored.get(b"due_ms", 0))

            assert stored[b"state"].decode() == batch.state
            assert token == batch.token
            assert int(stored[b"attempt"]) == batch.attempt
            assert int(stored.get(b"cut", 0)) == batch.generation
            for name in ("sent", "suspect", "doubt", "sole", "refused", "accepted", "buried"):
                assert int(stored.get(name.encode(), 0)) == getattr(batch, name), name
            assert stored.get(b"passed") == (None if batch.passed is None else b"%d" % batch.passed)
            assert (due_ms > now_ms) == ((batch.due_ms or 0) > now_ms)
            assert (seen[LANE.leases][batch_id] > now_ms) == (batch.found_ms > now_ms)

    def assert_pause_is_known(self, seen):
        assert seen.keys() & {KEYS.pause, LANE.outage} == self.model.stops.keys()
        for key, pause in self.model.stops.items():
            stored = seen[key]
            assert stored[b"kind"].decode() == pause.kind
            assert stored[b"refused"].decode() == pause.refused
            assert stored.get(b"probe", b"").decode() == (pause.probe or "")
            assert int(stored[b"wait_ms"]) == pause.wait_ms
            assert abs(int(stored[b"probe_at_ms"]) - pause.probe_at_ms) < HOUR_MS / 2

    def assert_fences_are_known(self, seen):
        model = self.model
        # The end of the log stays when the server changes.
        names = set(seen[KEYS.fences]) - {b"log_size", b"log_head"}
        assert names == {b"store", *([b"run_id"] if model.is_loaded else [])}
        assert seen.get(KEYS.fence, set()) == {tag("p", *person) for person in model.fence}
        caught = {tag("p", *person): b"%d" % n for person, n in model.caught.items()}
        assert seen.get(KEYS.caught, {}) == caught

    def assert_no_key_is_a_stranger(self, seen):
        model = self.model
        expected = {
            LANE.waiting: model.waiting,
            LANE.scheduled: model.scheduled,
            LANE.claimed: any(b.slot_us is not None for b in model.batches.values()),
            LANE.leases: model.batches,
            KEYS.dead: model.dead,
            KEYS.dead_at: model.dead,
            KEYS.fence: model.fence,
            KEYS.fences: True,
            KEYS.caught: model.caught,
            LANE.failures: model.failures,
            LANE.refusals: model.refusals,
        }
        known = {key for key, is_there in expected.items() if is_there} | model.stops.keys()
        known |= {key(id_) for key in (LANE.batch, LANE.records) for id_ in model.batches}

        assert known <= set(seen)
        also = {KEYS.nudges, LANE.orphaned_request, LANE.throttle, KEYS.clock}
        assert set(seen) - known <= {KEYS.counts, KEYS.histogram_counters, *also}


def test_no_sequence_of_steps_loses_repeats_or_misplaces_a_record(redis, monkeypatch):
    """P1 and P6 for any interleaving of producers, flushes, senders and erasures."""
    monkeypatch.setattr(purge, "STEP", 2)
    monkeypatch.setattr(batches, "_CLAIM", claim_in_parts(6))
    run_state_machine_as_test(lambda: Lane(redis), settings=EXAMPLES)
