"""One erasure of one person P, raced against everything else that moves events.

A seed is a small world: a real Redis, a real SQLite audit store, producers, flushes, workers
that die or answer late, an operator, two erasers, restarts of Redis, and a vendor who stores
requests when they *arrive* and deletes late. One `random.Random(seed)` decides which actor takes
the next step and how the step ends; time is virtual. So a seed always has the same history.

An actor is a generator that yields how long it rests. A call that others may overtake midway
(a purge, a load of the fences) runs in a `Strand`.

The clock of Redis is real and decides nothing here: leases are an hour, each 10 s longer than
the one before, so that their order does not depend on it. A lease that expires in virtual time
gets the score of a time long past.

`scripts/race` tries many seeds; `test_race` a few hundred.
"""

# ruff: noqa: SLF001 - for speed it opens the audit database in another way

import heapq
import json
import random
import shutil
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import count

from sqlalchemy import QueuePool, create_engine
from sqlalchemy.event import listen

from mm_tasks.buffer.audit_state import AuditState
from mm_tasks.buffer.batches import BatchLimits, Rejection
from mm_tasks.buffer.dead_letters import DeadLetters
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.pauses import Pauses
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.purge import Purge
from mm_tasks.buffer.records import HEADER_BYTES, tag
from mm_tasks.client.outcome import Ambiguous, Delivered, Response, Unauthorized
from mm_tasks.erasure.audit import verification
from mm_tasks.erasure.audit.database import _begin_sqlite, _prepare_sqlite
from mm_tasks.erasure.fence_sync import FenceSync
from mm_tasks.erasure.request import ErasureRequest
from mm_tasks.erasure.service import ErasureService
from mm_tasks.erasure.workflow import ErasurePolicy, ErasureWorkflow
from mm_tasks.errors import AuditChainBroken
from mm_tasks.events.lanes import LANES
from mm_tasks.monitoring import status
from mm_tasks.timestamps import moment
from tests.buffer.lane_buffer import LaneBuffer
from tests.conftest import held
from tests.erasure.stores import NOW, Store
from tests.system.strands import Killed, Paused, Strand, pause

PROJECT = "race"
KEYS = ProjectKeys(PROJECT)
USER = "user-4f1c-secret"
# Of the first request, and of a second one that may follow.
VISITORS = ("visitor-77aa-secret", "visitor-88bb-secret")
IDS = (USER, *VISITORS)
TAGS = [tag(PROJECT, "user", USER), *(tag(PROJECT, "anonymous", id_) for id_ in VISITORS)]

# Virtual seconds. A request arrives within `SETTLE_S` after its attempt ended, by an outcome
# or by its lease; the last pass is later than that after quiesce, and an attempt may be longer.
PASSES_S = (0.0, 27.0)
SETTLE_S = 25
ATTEMPT_S = 50
LEASE_S = 60
CONNECT_S = 2
LAG_S = 30
ERASURE_LEASE_S = 30
# From here on nothing new goes wrong, so that the world comes to rest.
CALM_S = 90
STEPS_MAX = 20_000
HOUR_MS = 3_600_000
TRACK_EVENTS_MAX = 4
LOG = "I4 log"
KEY = "I5 key"


class Broken(Exception):
    """A promise was broken: which one (`I1` … `I5`, see `test_race`), and how."""

    def __init__(self, promise, how):
        super().__init__(f"{promise}: {how}")
        self.promise = promise


def promise(name, holds, how):
    if not holds:
        raise Broken(name, how)


class SteppingPurge(Purge):
    """A purge that others overtake between any two of its steps."""

    def __init__(self, world):
        super().__init__(world.redis, PROJECT)
        self._world = world

    def scan(self, subjects, keep_alive=lambda: None, **how):
        def step():
            keep_alive()
            pause()

        scans = super().scan(subjects, step, **how)
        self._world.in_order()
        return scans


class TimedPauses(Pauses):
    """A pause that chooses another probe in virtual time, if the process of one died."""

    def __init__(self, world):
        super().__init__(world.redis, PROJECT, None)
        self._world = world

    def choose_probe(self, batch_id, *, lost_ms):
        is_chosen = super().choose_probe(batch_id, lost_ms=lost_ms)
        if is_chosen:
            self._world.later(lost_ms / 1000, self.probe_now)
        return is_chosen


class CountedFence(Fence):
    """A fence whose loads the world counts; a load of a killed process is soon replaced."""

    def __init__(self, world):
        super().__init__(world.redis, PROJECT)
        self._world = world

    def load(self, *args, **options):
        world = self._world
        world.loads += 1
        world.loading += 1
        try:
            return super().load(*args, **options)
        except Killed:
            world.redis.hset(KEYS.fences, "loading_ms", 1)
            raise
        finally:
            world.loading -= 1


@dataclass
class Event:
    """An event that a producer reported, and its state as far as the world knows it."""

    lane: str
    user_id: str | None
    anonymous_id: str | None
    is_poison: bool = False
    doubts: int = 0  # attempts with it that the vendor may have stored
    is_accepted: bool = False
    is_discarded: bool = False

    def is_of(self, ids):
        return self.user_id in ids or self.anonymous_id in ids


@dataclass
class Batch:
    """A batch as far as the world knows it; where the world is wrong, `begin` returns it."""

    id: str
    lane: str
    index: int
    ready_ms: int
    holds: int = 0  # leases so far: only the last one counts
    is_sending: bool = False
    is_lapsed: bool = False
    may_hold_p: bool = False


class Vendor:
    """Stores rows when a request arrives; deletes late, and only rows older than the call."""

    def __init__(self, world):
        self._world = world
        self.rows = []

    def arrive(self, names):
        """Store all or nothing; return whether it is stored."""
        world = self._world
        events = [world.events[name] for name in names]
        if not world.is_calm and any(event.is_poison for event in events):
            return False
        self.rows += names
        return True

    def forget(self, user_id):
        world, rng = self._world, self._world.rng
        of_pause = world.redis.hgetall(KEYS.pause)
        promise(KEY, not of_pause or b"probe" in of_pause, "a call was made that is no probe")
        pause()
        fates = ("ok", "lost", "cut", "key")
        fate = "ok" if world.is_calm else rng.choices(fates, (15, 1, 1, 1))[0]
        if fate in {"ok", "cut"}:
            upto = len(self.rows)
            world.later(rng.uniform(0, LAG_S), lambda: self._delete(user_id, upto))
        pause()
        if fate == "key":
            return Unauthorized(Response(401, "invalid_api_key"))
        return Delivered() if fate == "ok" else Ambiguous("timeout")

    def _delete(self, user_id, upto):
        # In place: another call may have counted the rows.
        for i, name in enumerate(self.rows[:upto]):
            if self._world.events[name or "-"].user_id == user_id:
                self.rows[i] = None


class Ground:
    """The server and the database that all worlds use, one after the other."""

    def __init__(self, redis, folder):
        self.redis = redis
        self.file = folder / "audit.sqlite"
        self.store = Store(f"sqlite:///{self.file}", folder, project=PROJECT)
        self._engine = _keep_connections(self.store.database)
        assert self.store.session.store_id
        # SQLite removes the write-ahead log with the last connection.
        self.close()
        self._template = folder / "template"
        shutil.copyfile(self.file, self._template)
        many, single = BatchLimits(TRACK_EVENTS_MAX, 4000, 1000), BatchLimits(1, 4000, 0)
        limits = {"track": many, "identify": single, "backfill": many}
        self.buffers = {
            lane: LaneBuffer(redis, PROJECT, lane, limits[lane], held_bytes_max=10**7)
            for lane in LANES
        }

    def clear(self):
        self.redis.flushdb()
        self.close()
        for path in self.files():
            path.unlink()
        (self.store.folder / "checkpoints").unlink(missing_ok=True)
        shutil.copyfile(self._template, self.file)

    def close(self):
        self._engine.dispose()

    def files(self):
        return list(self.file.parent.glob(f"{self.file.name}*"))


def _keep_connections(database):
    """Keep connections open: opening one takes longer than a transaction."""
    options = {"poolclass": QueuePool, "connect_args": {"check_same_thread": False}}
    engine = create_engine(database._url, **options, hide_parameters=True)
    listen(engine, "connect", _prepare_sqlite)
    listen(engine, "begin", _begin_sqlite)
    database._engine = engine
    return engine


def run(ground, seed):
    """Run one seed and return its history; raise `Broken` where a promise does not hold."""
    random.seed(seed)  # the back-off of an erasure has a jitter
    ground.clear()
    world = World(ground, seed, PASSES_S)
    with closing(world):
        world.live()
    world.check_end()
    return world.trace


class World:
    """The actors of one seed, and the promises that each of them relies on."""

    def __init__(self, ground, seed, passes_s):
        self.ground, self.redis, self.store = ground, ground.redis, ground.store
        self.rng = random.Random(seed)
        self.passes_s = passes_s
        self.now_ms = self.loads = self.loading = 0
        self.trace = []
        self._scores = self._later_count = 0
        self._later = []
        self._make_parts()
        self.events = {"-": Event("", None, None)}
        self.batches, self.numbers = {}, {}
        # Ids whose fence holds: `forget` returned, or the workflow recorded it.
        self.fenced, self.open, self.ended, self.due_at = set(), [], [], {}
        self.to_claim, self.has_letters = dict.fromkeys(LANES, False), False
        self.suppressed = self.busy = 0
        self.left_over = None
        # In some worlds a purge is quick and requests are slow, in others the reverse.
        self.pace = self.rng.choice((0.05, 0.3, 1))
        self.does_park = self.rng.random() < 0.4
        self._make_actors()

    def _make_parts(self):
        store, redis = self.store, self.redis
        store.clock = self.clock
        self.buffers = self.ground.buffers
        self.letters = DeadLetters(redis, PROJECT)
        steps = Paused(
            store.steps,
            claim=self._on_claimed,
            mark_fenced=self._on_fenced,
            complete=self._on_complete,
            release=lambda _, claim, wait_s=0: self._on_due(claim.id, wait_s),
            result=lambda erasure, *_: self._on_result(erasure),
        )
        commands = Paused(store.commands, open_request=self._on_opened)
        state = AuditState(redis, PROJECT)
        fence, queries = Paused(CountedFence(self)), Paused(store.queries)
        self.fence_sync = FenceSync(fence, queries, Paused(store.continuity), state)
        pause = TimedPauses(self)
        self.erasure_service = ErasureService(steps, commands, self.fence_sync, pause)
        self.vendor = Vendor(self)
        self.workflow = ErasureWorkflow(
            steps,
            commands,
            self.fence_sync,
            SteppingPurge(self),
            pause,
            self.vendor,
            # Redis's clock is real: a probe is due at once, and only the first that asks makes it.
            ErasurePolicy(passes_s=self.passes_s, lease_s=ERASURE_LEASE_S, probe_interval_s=0),
        )

    def _make_actors(self):
        rng = self.rng
        # Attempts under way whose batch is gone.
        self.orphans = set()
        # A late request meets batches whose lease expired before, and that are sent again.
        is_late = rng.random() < 0.3
        forget_s = rng.uniform(62, 80) if is_late else rng.uniform(1, 25)
        self.stopped = 0.35 if is_late else 0.1
        once = {f"producer {i}": self._produce(rng.randint(2, 6)) for i in range(2)}
        once["forget"] = self._forget(forget_s, VISITORS[:1])
        if rng.random() < 0.2:
            once["forget again"] = self._forget(forget_s + rng.uniform(0, 60), VISITORS)
        if rng.random() < 0.5:
            once["restart"] = self._restart(forget_s)
        self.busy = len(once)
        always = {f"flush {lane}": self._flush(lane) for lane in LANES}
        always |= {f"worker {i}": self._work() for i in range(rng.randint(2, 4))}
        always |= {f"eraser {i}": self._erase((1, 3)[i]) for i in range(2)}
        always["operator"] = self._operate()
        self.actors = {**once, **always}
        self.wakes = dict.fromkeys(self.actors, 0)

    # Time and turns.

    def clock(self):
        return NOW + timedelta(milliseconds=self.now_ms)

    @property
    def is_calm(self):
        return self.now_ms >= CALM_S * 1000

    def later(self, seconds, do):
        """Call `do` at exactly that time."""
        self._later_count += 1
        at_ms = self.now_ms + round(seconds * 1000)
        heapq.heappush(self._later, (at_ms, self._later_count, do))

    def live(self):
        for step in count(1):
            if self._is_at_rest():
                return
            promise("at rest", step < STEPS_MAX, "the world never comes to rest")
            able = [name for name, wake_ms in self.wakes.items() if wake_ms <= self.now_ms]
            if not able:
                self._pass(min([*self.wakes.values(), *(at_ms for at_ms, *_ in self._later[:1])]))
                continue
            self._turn(self.rng.choice(able))
            if self.rng.random() < 0.4:
                self._pass(self.now_ms + round(self.pace * self.rng.choice((20, 200, 1000))))
            if self.rng.random() < 0.002:
                self._check_counts()

    def _turn(self, name):
        self.trace.append((self.now_ms, name))
        try:
            rest_s = next(self.actors[name])
        except StopIteration:
            del self.actors[name], self.wakes[name]
            self.busy -= 1
        else:
            self.wakes[name] = self.now_ms + round(rest_s * 1000)

    def _pass(self, to_ms):
        while self._later and self._later[0][0] <= to_ms:
            self.now_ms, _, do = heapq.heappop(self._later)
            do()
        self.now_ms = to_ms

    def _is_at_rest(self):
        tasks = (self.busy, self.open, self.batches, self._later, self.has_letters)
        return not any((*tasks, *self.to_claim.values()))

    def close(self):
        with ExitStack() as stack:
            for actor in self.actors.values():
                stack.callback(actor.close)

    def note(self, *facts):
        self.trace.append((self.now_ms, *facts))

    def _strand(self, call, deadliness=0.0):
        """Run a call that others may overtake; return None if its process died in it."""
        strand = Strand(call, lambda: self.is_calm)
        try:
            while not strand.step():
                if self.rng.random() < deadliness and not self.is_calm:
                    return None
                yield self._moment_s()
            return strand.value
        finally:
            strand.kill()

    def _moment_s(self):
        """Return a short rest; a long one once in a while."""
        if self.is_calm:
            return 0
        return self.pace * self.rng.choices((0, 0.1, 1, 8), (60, 20, 10, 1))[0]

    # Producers.

    def _produce(self, calls):
        for _ in range(calls):
            yield self.rng.uniform(0, 10)
            lane = self.rng.choices(LANES, (3, 1, 1))[0]
            self._append(lane, [self._event(lane) for _ in range(self.rng.randint(1, 4))])

    def _event(self, lane):
        rng = self.rng
        of_p = [(USER, None), (USER, "other")]
        of_p += [(user_id, visitor) for visitor in VISITORS for user_id in (USER, None)]
        of_others = [("q", None), (None, "v"), ("q", "v"), ("r", None)]
        user_id, anonymous_id = rng.choice(of_p if rng.random() < 0.45 else of_others)
        if lane == "identify":
            user_id, anonymous_id = user_id or "q", anonymous_id or "w"
        name = str(len(self.events))
        self.events[name] = Event(lane, user_id, anonymous_id, rng.random() < 0.05)
        return name

    def _append(self, lane, names):
        entries = []
        for name in names:
            event = self.events[name]
            ids = {"user_id": event.user_id, "anonymous_id": event.anonymous_id}
            body = json.dumps({"event_id": name} | {k: v for k, v in ids.items() if v})
            entries.append(Record(body.encode(), event.user_id, event.anonymous_id))
        appended = self.buffers[lane].append(entries)
        for i, name in enumerate(names):
            event = self.events[name]
            event.is_accepted = i not in appended.suppressed
            is_refused, is_fenced = not event.is_accepted, event.is_of(self.fenced)
            promise("I3", is_refused or not is_fenced, "an event of P was accepted")
            promise("I3", event.is_of(IDS) or not is_refused, "an event of another was refused")
            self.suppressed += is_refused
        self.to_claim[lane] = True
        self.note("append", lane, *names, *sorted(appended.suppressed))

    # Forget.

    def _forget(self, after_s, visitors):
        yield after_s
        request = ErasureRequest(USER, "dpo", anonymous_ids=visitors)
        accepted = None
        while accepted is None:
            accepted = yield from self._strand(partial(self.erasure_service.request, request), 0.04)
        if accepted.is_fenced:
            self.fenced |= {USER, *visitors}
        self.note("forget", accepted.is_fenced)

    def _on_opened(self, opened, *_):
        # The caller holds the claim for so long.
        self.due_at[opened.id] = self.clock() + timedelta(seconds=10)
        if opened.id not in self.open:
            self.open.append(opened.id)

    def _on_claimed(self, claim, id_, *_):
        if claim is not None:
            self.due_at[id_] = self.clock() + timedelta(seconds=ERASURE_LEASE_S)

    def _on_result(self, erasure):
        at = erasure.next_at or self.clock()
        self._on_due(erasure.id, (at - self.clock()).total_seconds())

    def _on_due(self, id_, wait_s):
        self.due_at[id_] = self.clock() + timedelta(seconds=wait_s)
        # An attempt that quiesce waits for ends later than the next look.
        if wait_s > 1:
            self.later(wait_s, self._nudge_eraser)

    def _on_fenced(self, claim, *_):
        if claim is not None:
            ids = claim.erasure.ids
            self.fenced |= {ids.user, *ids.anonymous}

    def _on_complete(self, erasure, claim, *_):
        if erasure is None:
            return
        self.open.remove(claim.id)
        self.ended.append(claim.id)
        self.note("completed")
        if not self.open and self.left_over is None:
            self.left_over = self._key_with_p()

    def _is_p(self, name):
        return self.events[name].is_of(self.fenced)

    # Flushes.

    def _flush(self, lane):
        while True:
            yield self._rest_s(6)
            for batch in list(self.batches.values()):
                if batch.lane == lane and batch.is_lapsed:
                    yield from self._take_over(batch)
            while self.to_claim[lane]:
                yield from self._claim(lane)

    def _rest_s(self, most_s):
        return 2 if self.is_calm else self.rng.uniform(0, most_s)

    def _claim(self, lane):
        buffer = self.buffers[lane]
        id_ = buffer.claim(slot_us=None, found_again_ms=self._score_ms(), linger=False)
        if id_ is None:
            readiness = buffer.readiness(late_ms=HOUR_MS, claimed_max=1000, linger=False)
            self.to_claim[lane] = readiness != "idle"
            if readiness == "unloaded":
                yield from self._load()
            if readiness == "paused":
                yield self._rest_s(6)
            return
        batch = Batch(id_, lane, len(self.numbers), self.now_ms)
        self.batches[id_] = batch
        self.numbers[id_] = batch.index
        names = self._records(batch)
        if lane != "identify" and len(names) < TRACK_EVENTS_MAX:
            self.to_claim[lane] = False  # these were the last
        batch.may_hold_p = any(self.events[name].is_of(IDS) for name in names)
        self.note("claim", lane, *names)
        promise("I1", not any(map(self._is_p, names)), f"batch {batch.index} holds P")

    def _records(self, batch):
        records = self.redis.lrange(KEYS.lane(batch.lane).records(batch.id), 0, -1)
        return [_name(record[HEADER_BYTES:]) for record in records]

    def _load(self):
        before, is_alone = self.loads, not self.loading
        is_loaded = yield from self._strand(self.fence_sync.try_load, 0.05)
        is_alone = is_alone and self.loads == before + 1
        is_well = is_loaded is not False or not is_alone
        promise("I4 fences", is_well, "they are not loaded, though SQL is there")

    def _take_over(self, batch):
        """Settle an attempt whose lease expired, unless its worker or a purge was faster."""
        attempt = self.buffers[batch.lane].take_over(batch.id, lease_ms=self._score_ms())
        batch.is_lapsed = False
        if attempt is None:
            self._free(batch)
            return
        self._hold(batch)
        names = self._records(batch)[: attempt.sent]
        yield self._moment_s()
        if self.is_calm or self.rng.random() < 0.95:
            self._doubt(batch, attempt, names, "lease")

    # Workers.

    def _work(self):
        while True:
            yield self._rest_s(6)
            batch = self._picked()
            if batch is not None:
                yield from self._begin(batch)

    def _picked(self):
        ready = [batch for batch in self.batches.values() if batch.ready_ms <= self.now_ms]
        # Now and then a message comes twice.
        able = [batch for batch in ready if not batch.is_sending or self.rng.random() < 0.02]
        return self.rng.choice(able) if able else None

    def _begin(self, batch):
        begun = self.buffers[batch.lane].begin(
            batch.id, slot="none", slot_valid_ms=HOUR_MS, lease_ms=self._score_ms()
        )
        if isinstance(begun, Rejection):
            self.note("begin", batch.index, begun.reason)
            if begun.reason in {"gone", "empty"}:
                self.batches.pop(batch.id, None)
            elif begun.reason == "unloaded":
                yield from self._load()
            return
        names = [_name(body) for body in begun.bodies]
        self.note("begin", batch.index, *names)
        promise("I2", not any(map(self._is_p, names)), f"batch {batch.index} is sent with P")
        self._hold(batch)
        yield from self._attempt(batch, begun, names)

    def _attempt(self, batch, attempt, names):
        """Send the request and record how it ended, or die at any point between."""
        rng = self.rng
        fate = "answer" if self.is_calm else rng.choices(("answer", "none", "death"), (10, 8, 2))[0]
        connect_s = 0 if self.is_calm else rng.uniform(0, CONNECT_S)
        yield connect_s
        if fate == "death" and rng.random() < 0.2:
            return
        if fate == "answer":
            answer = []
            arrives_s = 0 if self.is_calm else rng.choice((1, 20)) * rng.random()
            self.later(arrives_s, lambda: answer.append(self.vendor.arrive(names)))
            while not answer:
                yield arrives_s
            # Rarely a worker is stopped for so long that its lease expires.
            is_stopped = not self.is_calm and rng.random() < self.stopped
            yield rng.uniform(30, 90) if is_stopped else self._moment_s()
            self._answered(batch, attempt, is_stored=answer[0])
            return
        ends_s = LEASE_S - CONNECT_S if fate == "death" else rng.uniform(5, ATTEMPT_S - CONNECT_S)
        if rng.random() < 0.85:
            arrives_s = ends_s + rng.uniform(-0.5 * ends_s, SETTLE_S)
            self.later(arrives_s, lambda: self.vendor.arrive(names))
        if fate == "none":
            yield ends_s
            self._doubt(batch, attempt, names, "timeout")

    def _answered(self, batch, attempt, *, is_stored):
        buffer = self.buffers[batch.lane]
        self._nudge_eraser(batch)
        if is_stored:
            orphaned_request = KEYS.lane(batch.lane).orphaned_request
            before_ms = self.redis.pttl(orphaned_request)
            n = buffer.ack(batch.id, attempt.generation, token=attempt.token)
            if self.redis.pttl(orphaned_request) > before_ms + 5_000:  # leases grow by 10 s
                self.orphans.add((batch.lane, batch.id, batch.holds))
            self.note("ack", batch.index, n)
            # A late success counts for the records of the newest attempt, which may carry fewer.
            if n and self.redis.exists(KEYS.lane(batch.lane).batch(batch.id)):
                self._free(batch)
            elif n:
                self.batches.pop(batch.id, None)
            return
        why = '{"reason":"rejected","status":400}'
        narrowed = buffer.bisect(batch.id, attempt.token, why=why, isolation_max=0)
        self.note(narrowed, batch.index)
        if narrowed == "buried":
            self._in_order_letters()
        if narrowed != "old":
            self._free(batch)

    def _doubt(self, batch, attempt, names, kind):
        """Record an unknown outcome: park the batch, or let it be sent again."""
        buffer, doubt = self.buffers[batch.lane], {"outcome": "ambiguous", "ambiguous": kind}
        if self.does_park:
            why = f'{{"reason":"ambiguous","kind":"{kind}"}}'
            is_applied = bool(buffer.bury(batch.id, attempt.token, why=why, **doubt))
            self._in_order_letters()
        else:
            is_applied = buffer.release(
                batch.id, attempt.token, wait_ms=0, grace_ms=self._score_ms(), **doubt
            )
        self.note(kind, batch.index, is_applied)
        self._nudge_eraser(batch)
        if is_applied:
            for name in names:
                self.events[name].doubts += 1
            self._free(batch, 0 if self.is_calm else self.rng.uniform(0, 10))

    def _hold(self, batch):
        """Let a lease of the batch begin, and expire unless the attempt ends before."""
        batch.holds += 1
        batch.is_sending = True
        hold = batch.holds

        def expire():
            self.orphans.discard((batch.lane, batch.id, hold))
            if all(lane != batch.lane for lane, *_ in self.orphans):
                self.redis.delete(KEYS.lane(batch.lane).orphaned_request)
            if batch.is_sending and batch.holds == hold and batch.id in self.batches:
                self._scores += 1
                leases = KEYS.lane(batch.lane).leases
                self.redis.zadd(leases, {batch.id: self._scores}, xx=True)
                batch.is_lapsed = True
                self._nudge_eraser(batch)

        self.later(LEASE_S, expire)

    def _nudge_eraser(self, batch=None):
        """Let an eraser often run soon after the end of an attempt that it waits for."""
        if self.open and (batch is None or batch.may_hold_p) and self.rng.random() < 0.9:
            self.wakes["eraser 0"] = min(self.wakes["eraser 0"], self.now_ms + 300)

    def _free(self, batch, rest_s=0.0):
        """Let a flush find the batch again, unless it is gone; no other code gives it a score."""
        batch.is_sending = batch.is_lapsed = False
        batch.ready_ms = self.now_ms + round(rest_s * 1000)
        if not self._adopt(batch):
            self.batches.pop(batch.id, None)

    def _adopt(self, batch):
        places = {"slot_us": None, "found_again_ms": self._score_ms()}
        return self.buffers[batch.lane].assign_slot(batch.id, **places)

    def in_order(self):
        """Give batches that a purge freed scores that do not depend on Redis's clock."""
        for batch in list(self.batches.values()):
            if batch.is_lapsed:
                self._adopt(batch)

    def _score_ms(self):
        self._scores += 1
        return HOUR_MS + 10_000 * self._scores

    # The operator.

    def _operate(self):
        while True:
            yield self._rest_s(25)
            if not self.has_letters:
                continue
            letters = sorted(self.letters.letters(), key=lambda letter: self._order(letter.id))
            self.has_letters = bool(letters)
            if not self.is_calm:
                letters = [letter for letter in letters if self.rng.random() < 0.4]
            yield self._moment_s()
            if self.rng.random() < 0.1:
                self._discard(letters[:1])
                continue
            revived = self.letters.revive([letter.id for letter in letters])
            self.note("revive", *revived)
            for letter in letters if revived.revived else ():
                self.to_claim[letter.lane] = True

    def _discard(self, letters):
        for letter in letters:
            if self.letters.discard([letter.id]):
                self.events[_name(letter.body)].is_discarded = True

    def _order(self, id_):
        _, batch, n = id_.split(":")
        return self.numbers[batch], int(n)

    def _in_order_letters(self):
        """Sort the letters by their burial, not by Redis's clock."""
        self.has_letters = True
        new = self.redis.zrangebyscore(KEYS.dead_at, 10**10, "+inf")
        in_order = sorted(map(bytes.decode, new), key=self._order)
        self._scores += len(new)
        if in_order:
            scores = range(self._scores - len(new), self._scores)
            self.redis.zadd(KEYS.dead_at, dict(zip(in_order, scores, strict=True)), xx=True)

    # Redis, and the erasure.

    def _restart(self, forget_s):
        """Replace the server: the fences were loaded for another one."""
        yield max(0, forget_s + self.rng.uniform(-5, 40))
        self.redis.hdel(KEYS.fences, "run_id")
        self.to_claim = dict.fromkeys(LANES, True)

    def _erase(self, slowness):
        while True:
            yield slowness * self.rng.choice((2, 10, 30)) if self.open else 2
            due = [id_ for id_ in self.open if self.due_at[id_] <= self.clock()]
            # A message may also come early.
            if not due and not (self.open and self.rng.random() < 0.02):
                continue
            is_sweep = self.rng.random() < 0.1
            id_ = self.rng.choice(due or self.open)
            run = self.workflow.sweep if is_sweep else partial(self.workflow.run, id_)
            yield from self._strand(run, 0.01)

    # What must be true.

    def _check_counts(self):
        counts = status.read(self.redis, PROJECT)["counts"]
        places = ("scheduled", "waiting", "leased", "delivered", "dead", "erased", "discarded")
        accepted = sum(event.is_accepted for event in self.events.values())
        promise("I4 counts", counts["accepted"] == accepted, "accepted is another number")
        total = sum(counts[place] for place in places)
        promise("I4 counts", accepted == total, f"{accepted} accepted, {total} in a place")
        suppressed = counts["suppressed"]
        promise("I4 counts", suppressed == self.suppressed, "suppressed is another number")
        return counts

    def check_end(self):
        self._check_rows()
        key = self.left_over or self._key_with_p()
        promise("I4 redis", not key, f"P is still in {key}")
        counts = self._check_counts()
        held = int(self.redis.hget(KEYS.counts, "held_bytes") or 0)
        left = counts["waiting"] + counts["leased"] + counts["dead"]
        promise("I4 counts", not left and not held, f"{left} events and {held} bytes are left")
        self._check_log(counts["erased"])

    def _check_rows(self):
        rows = Counter(name for name in self.vendor.rows if name is not None)
        of_p = [name for name in rows if self.events[name].user_id == USER]
        promise("I4 vendor", not of_p, f"the vendor has rows of P: {of_p}")
        for name, event in self.events.items():
            if event.is_of(IDS) or not event.is_accepted or event.is_discarded:
                continue
            promise("I4 others", rows[name], f"{name} was never stored")
            promise("I4 others", rows[name] <= 1 + event.doubts, f"{name} is stored too often")

    def _key_with_p(self):
        """Return a key that shows P by id or by tag; the fence itself may."""
        traces = [id_.encode() for id_ in IDS if id_ in self.fenced]
        traces += [tag_ for tag_, id_ in zip(TAGS, IDS, strict=True) if id_ in self.fenced]
        for key, value in held(self.redis).items():
            texts = () if key == KEYS.fence.encode() else (key, *_texts(value))
            if any(trace in text for text in texts for trace in traces):
                return key.decode()
        return ""

    def _check_log(self, erased):
        removed = 0
        for id_ in self.ended:
            shown = self.store.queries.show(id_)
            promise(LOG, shown["state"] == "completed", f"it is {shown['state']}")
            last = max(row["round"] for row in shown["passes"])
            passes = [row for row in shown["passes"] if row["round"] == last]
            promise(LOG, len(passes) == len(self.passes_s), f"{len(passes)} passes")
            for row in passes:
                is_sound = row["outcome"] == "acknowledged" and row["sent_at"] >= row["due_at"]
                promise(LOG, is_sound, f"pass {row['n']}: {row}")
            for before, row, wait_s in zip(passes, passes[1:], self.passes_s[1:], strict=False):
                apart = moment(row["sent_at"]) - moment(before["answered_at"])
                promise(LOG, apart >= timedelta(seconds=wait_s), f"passes are {apart} apart")
            removed += sum(shown["removed"].values())
        promise(LOG, self.ended, "no erasure ended")
        promise(LOG, removed <= erased, f"{erased} erased, the log says {removed}")
        try:
            verification.verify(self.store.log)
        except AuditChainBroken as broken:
            raise Broken(LOG, str(broken)) from broken
        for path in self.ground.files():
            shows = any(id_.encode() in path.read_bytes() for id_ in IDS)
            promise(LOG, not shows, f"an id of P is in {path.name}")


def _name(body):
    return json.loads(body)["event_id"]


def _texts(value):
    """Yield all texts that one key holds."""
    if isinstance(value, bytes):
        yield value
        return
    for member in value or ():
        # A member of a sorted set comes with its score.
        yield member if isinstance(member, bytes) else member[0]
    if isinstance(value, dict):
        yield from value.values()
