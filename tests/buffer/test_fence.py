"""The fence on a real server: raised, loaded, overtaken, lost, and never half there.

A dictionary stands for SQL: what it holds is committed before a fence is raised, as
`forget` does it. The hostile moments are inside of a load, so `read` and the tags that
it returns do things while they are read.

Sabotages that turn this file red, each tried on a copy:

- fence_add adds nothing to the draft; it, or a load by another audit store, stops the load of the
  right store, or does not check the store;
- fence_load_begin keeps the draft or `loading` of another load, replaces a load that it must leave
  alone, or leaves the server to a dead one; fence_load_add does not renew the lease;
- fence_load_add or fence_load_commit ignores the token; fence_load_commit ignores the run_id, adds
  to the fence instead of replacing it, keeps `why`, or keeps the old fence if SQL has none;
- fence_load_add, fence_load_begin or fence_add begins with a command that allocates: refused at
  maxmemory;
- fence_load_failed replaces `since_ms`, or writes although the fences are loaded;
- batch_claim, batch_begin or batch_readiness ignores the run_id, or append the fence;
- `Fence.load` reads once for all of its attempts, or has no end.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mm_tasks.buffer.batches import BatchLimits, Rejection
from mm_tasks.buffer.fence import Fence, FenceState, LogEnd
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.records import tag
from mm_tasks.buffer.scripts import Script
from mm_tasks.errors import AuditChainBroken, AuditUnavailable, BufferFull, ConfigurationError
from tests.buffer import lane_buffer
from tests.conftest import held

KEYS = ProjectKeys("p")
STORE, OTHER_STORE = "store-1", "store-2"
LIMITS = BatchLimits(events_max=10, bytes_max=1 << 20, linger_ms=0)
EVERYTHING = {"late_ms": 5000, "claimed_max": 9}


def tags(*numbers):
    return {tag("p", "user", f"u{n}") for n in numbers}


class Sql:
    """The tags in the audit store, and the number of reads."""

    def __init__(self, *numbers):
        self.tags = tags(*numbers)
        self.reads = 0

    def read(self):
        self.reads += 1
        return set(self.tags)


def midway(first, happens, rest=()):
    """Yield tags; between two of them something happens."""
    yield from first
    happens()
    yield from rest


@pytest.fixture
def fence(redis):
    return Fence(redis, "p")


def opened(redis):
    return lane_buffer.opened(redis, "track", LIMITS)


@pytest.fixture
def buffer(redis):
    with opened(redis) as buffer:
        yield buffer


def event(user_id=None, anonymous_id=None):
    return Record(b'{"event":"seen"}', user_id, anonymous_id)


def claimed(buffer, *user_ids):
    """Append an event of each user; return the id of the batch that is claimed of them."""
    buffer.append(list(map(event, user_ids)))
    return buffer.claim()


def is_loaded(redis):
    """Return whether a flush may claim."""
    with opened(redis) as buffer:
        return buffer.readiness(**EVERYTHING) != "unloaded"


def fenced(redis):
    return redis.smembers(KEYS.fence)


def assert_loaded(redis, sql, *, reads):
    assert sql.reads == reads
    assert fenced(redis) == sql.tags
    assert is_loaded(redis)


def about(redis):
    return {name.decode(): value.decode() for name, value in redis.hgetall(KEYS.fences).items()}


@pytest.mark.parametrize("number", [2, 1000, 1001, 5000])
def test_all_tags_are_fenced_once_add_returns_and_adding_again_changes_nothing(
    redis, fence, number
):
    """Also more tags than one script takes. An added fence says nothing about the others."""
    everybody = tags(*range(number))
    fence.add(everybody, STORE)
    before = about(redis)
    fence.add(sorted(everybody), STORE)

    assert fenced(redis) == everybody
    assert fence.state() == FenceState(number, STORE)
    assert about(redis) == before
    assert not is_loaded(redis)


def test_a_raise_between_loads_leaves_the_server_loaded(redis, fence):
    """An erasure must not stop the delivery of everybody else."""
    fence.load(STORE, lambda: tags(1))
    fence.add(tags(2), STORE)

    assert is_loaded(redis)
    assert fenced(redis) == tags(1, 2)


@pytest.mark.parametrize("before", [0, 4])
@pytest.mark.parametrize("number", [0, 1, 3, 1000, 1001, 5000])
def test_a_load_makes_the_fence_equal_to_sql(redis, fence, number, before):
    """The fence of a lifted erasure falls, even if it was the last one."""
    fence.add(tags(*range(before)), STORE)
    fence.load(STORE, Sql(*range(number)).read)

    assert fenced(redis) == tags(*range(number))
    assert fence.state() == FenceState(number, STORE)
    assert is_loaded(redis)
    assert redis.exists(KEYS.fence_draft) == 0


def test_a_load_that_died_midway_leaves_nothing_to_the_next(redis, fence):
    """The dead load may have read a fence that was lowered since."""
    interrupt(fence, *range(1000))
    assert redis.scard(KEYS.fence_draft) == 1000
    assert not is_loaded(redis)

    fence.load(STORE, lambda: tags(7))
    assert fenced(redis) == tags(7)


def with_other_store(fence, step):
    if step == "raise":
        fence.add(tags(7777), OTHER_STORE)
    elif step == "load":
        fence.load(OTHER_STORE, lambda: tags(7777))
    else:
        fence.check_store(OTHER_STORE)


def interrupt(fence, *numbers):
    """Let a load die once it has read these tags."""

    def read():
        yield from tags(*numbers)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fence.load(STORE, read)


# While a load goes on. Its first page is sent when 1 000 tags were read. A moment is the number
# of tags in SQL, and of those that are read before something happens.

MOMENTS = {
    "before the first page": (10, 0),
    "between two pages": (1500, 1001),
    "before its end": (1000, 1000),
}


def read_with_interruption(sql, number, happens):
    """Return a `read` whose first result calls `happens` after that many tags."""

    def read():
        some = sorted(sql.read())
        return midway(some[:number], happens, some[number:]) if sql.reads == 1 else some

    return read


@pytest.fixture(params=MOMENTS.values(), ids=MOMENTS)
def load_while(request, fence):
    """Load the tags of `load.sql`; at one of the moments of the first attempt something happens."""
    size, moment = request.param
    sql = Sql(*range(size))

    def load(happens):
        fence.load(STORE, read_with_interruption(sql, moment, happens))

    load.sql = sql
    return load


def test_a_fence_added_during_a_load_holds_from_then_on(redis, fence, buffer, load_while):
    """P6: it read SQL before the commit. Starting over, it would never end among erasures."""
    sql, seen = load_while.sql, []

    def forget():
        sql.tags |= tags(9999)
        fence.add(tags(9999), STORE)
        seen.append(buffer.append([event("u9999")]).suppressed)

    load_while(forget)

    assert_loaded(redis, sql, reads=1)
    assert tags(9999) <= fenced(redis)
    assert [*seen, buffer.append([event("u9999")]).suppressed] == [{0}, {0}]


def test_another_load_meanwhile_wins_and_is_not_ended_by_the_first(redis, load_while):
    """It read later. The first would commit a lowered fence, or the other's unfinished draft."""
    sql, seen = load_while.sql, []

    def read():
        seen.append(fenced(redis))
        return set(sql.tags)

    def lift_and_load():
        sql.tags -= tags(0)
        Fence(redis, "p").load(STORE, read)
        seen.append(fenced(redis))

    load_while(lift_and_load)

    assert seen == [set(), sql.tags]
    assert_loaded(redis, sql, reads=2)


def test_an_overtaken_load_adds_nothing_to_the_one_that_goes_on(redis):
    """Its tags may have been lowered since. Step by step, as no one process would do it."""
    begin_, add, end = map(Script, ("fence_load_begin", "fence_load_add", "fence_load_commit"))
    places = (KEYS.fences, KEYS.fence_draft)
    run_id, *_ = begin_(redis, places, (STORE, "first", 0, ""))
    begin_(redis, places, (STORE, "second", 0, ""))
    added = [add(redis, places, (token, *tags(token))) for token in ("first", "second")]

    assert added == [0, 1]
    whole = (*places, KEYS.fence)
    assert [end(redis, whole, (one, run_id, 0, "", 0, "")) for one in ("first", "second")] == [0, 1]
    assert fenced(redis) == tags("second")


def test_all_lost_during_a_load_is_loaded_again(redis, load_while):
    """FLUSHALL takes the draft along: half of it must not become the fence."""
    load_while(redis.flushall)

    assert_loaded(redis, load_while.sql, reads=2)
    assert about(redis).keys() == {"store", "run_id", "log_size", "log_head"}


@pytest.mark.parametrize("another", ["raise", "load"])
def test_the_refusal_of_another_store_does_not_disturb_a_load(redis, fence, load_while, another):
    """A host with a wrong setting must not keep the others from loading."""
    fence.add(tags(1), STORE)

    def intrude():
        with pytest.raises(ConfigurationError):
            with_other_store(fence, another)

    load_while(intrude)
    assert_loaded(redis, load_while.sql, reads=1)


def test_a_load_that_always_loses_all_ends_and_does_no_harm(redis, fence):
    """It is called by every flush; one that never came back would be worse."""
    reads = []

    def read():
        reads.append(1)
        redis.flushall()
        return tags(7)

    assert not fence.load(STORE, read)

    assert len(reads) < 100
    assert fenced(redis) == set()
    assert not is_loaded(redis)
    fence.load(STORE, lambda: tags(1))
    assert fenced(redis) == tags(1)


def never():
    pytest.fail("SQL was read")


@pytest.mark.parametrize("when", ["unless loading", "unless loaded"])
def test_a_caller_that_misses_fences_leaves_them_to_a_running_load(redis, load_while, when):
    """Otherwise all workers would replace each other's loads after a restart, without an end."""
    results = []
    load_while(lambda: results.append(Fence(redis, "p").load(STORE, never, when=when)))

    assert results == [False]
    assert_loaded(redis, load_while.sql, reads=1)


def test_of_all_callers_that_miss_fences_one_reads_sql(redis):
    """As after a restart, each with a connection of its own, and a fence that takes its time."""
    reads = []

    def read():
        reads.append(1)
        time.sleep(0.2)
        return tags(*range(5000))

    with ThreadPoolExecutor(8) as pool:
        loads = [
            pool.submit(Fence(redis, "p").load, STORE, read, when="unless loaded") for _ in range(8)
        ]
        result = [load.result() for load in loads]

    assert len(reads) == 1
    assert True in result
    assert redis.scard(KEYS.fence) == 5000
    assert is_loaded(redis)


def test_a_caller_after_the_load_has_nothing_to_do(redis, fence):
    fence.load(STORE, lambda: tags(1))

    assert fence.load(STORE, never, when="unless loaded")
    assert fence.load(STORE, lambda: tags(2), when="unless loading")
    assert fenced(redis) == tags(2)


def test_a_load_whose_process_died_is_taken_over_after_its_lease(redis, fence):
    interrupt(fence)
    assert fence.state().is_loading
    assert not fence.load(STORE, never, when="unless loaded")
    # A clock that went back, by a failover, keeps nobody out either.
    for sign_ms in (-11_000, 11_000):
        at_ms = redis.time()[0] * 1000 + sign_ms
        redis.hset(KEYS.fences, mapping={"loading": "of the dead", "loading_ms": at_ms})
        assert fence.load(STORE, lambda: tags(1), when="unless loading")

    assert fenced(redis) == tags(1)
    assert is_loaded(redis)


def test_each_page_renews_the_lease_of_a_load(redis, fence):
    """A running load is not taken over, however long it takes."""
    long_ago, left = redis.time()[0] * 1000 - 60_000, []

    def read():
        redis.hset(KEYS.fences, "loading_ms", long_ago)
        yield from tags(*range(1001))
        left.append(Fence(redis, "p").load(STORE, never, when="unless loaded"))

    assert fence.load(STORE, read)
    assert left == [False]


def test_a_load_whose_sql_failed_does_not_stop_the_next(redis, fence):
    def away():
        yield from tags(*range(1001))
        raise AuditUnavailable

    with pytest.raises(AuditUnavailable):
        fence.load(STORE, away)

    assert not redis.exists(KEYS.fence_draft)
    assert fence.load(STORE, lambda: tags(1), when="unless loaded")
    assert about(redis).keys() == {"store", "run_id", "log_size", "log_head"}


def test_a_load_whose_sql_fails_leaves_the_fence_and_the_server_as_they_were(redis, fence):
    fence.load(STORE, lambda: tags(1, 2))
    interrupt(fence)

    assert fenced(redis) == tags(1, 2)
    assert is_loaded(redis)


@pytest.fixture(params=["raised", "loaded", "loaded with none", "being loaded"])
def owned(request, redis, fence):
    """Fences that belong to a store, one way or the other."""
    if request.param == "raised":
        fence.add(tags(1), STORE)
    elif request.param == "being loaded":
        interrupt(fence)
    else:
        fence.load(STORE, lambda: tags(1) if request.param == "loaded" else set())
    return redis


@pytest.mark.parametrize("step", ["raise", "load", "check"])
def test_the_fences_of_another_store_are_refused_and_nothing_changes(owned, fence, step):
    """Neither store would know of the other's when it loads: a fence would fall."""
    before = held(owned)
    with pytest.raises(ConfigurationError, match="MM_TASKS_AUDIT_URL"):
        with_other_store(fence, step)

    assert held(owned) == before
    fence.check_store(STORE)


def test_the_stores_of_two_projects_do_not_meet(fence, redis):
    """Without a fence there is no store either."""
    assert fence.state() == FenceState(0, None)
    fence.check_store(STORE)
    fence.add(tags(1), STORE)
    Fence(redis, "q").add(tags(1), OTHER_STORE)

    fence.check_store(STORE)
    Fence(redis, "q").check_store(OTHER_STORE)


def test_a_failed_load_says_why_and_since_when_until_one_succeeds(redis, fence):
    """P7: every pause has a reason that `mm-tasks status` shows."""
    fence.note_failed("audit_unavailable")
    first = about(redis)
    redis.hset(KEYS.fences, "since_ms", "1000")
    fence.note_failed("audit_refused")
    fence.add(tags(1), STORE)

    assert first["why"] == "audit_unavailable"
    seconds, _ = redis.time()
    assert abs(int(first["since_ms"]) / 1000 - seconds) < 60
    assert (about(redis)["why"], about(redis)["since_ms"]) == ("audit_refused", "1000")
    fence.load(STORE, set)
    loaded = about(redis)
    assert loaded.keys() == {"store", "run_id", "log_size", "log_head"}
    fence.note_failed("audit_unavailable")  # by a worker that could not load them itself
    assert about(redis) == loaded


@pytest.mark.parametrize(
    ("one", "is_refused"),
    [
        (("u1", None), True),
        (("u1", "b"), True),
        (("u2", "a1"), True),
        ((None, "a1"), True),
        (("u2", "b"), False),
        (("a1", "u1"), False),
        ((None, None), False),
    ],
    ids=str,
)
def test_append_refuses_an_event_if_either_id_is_fenced(redis, fence, buffer, one, is_refused):
    """The kind is part of the tag: a user called a1 is not the anonymous a1."""
    fence.add([tag("p", "user", "u1"), tag("p", "anonymous", "a1")], STORE)
    result = buffer.append([event("other"), event(*one), event()])

    assert result.suppressed == ({1} if is_refused else frozenset())
    assert redis.llen(KEYS.lane("track").waiting) == (2 if is_refused else 3)
    assert int(redis.hget(KEYS.counts, "track:suppressed") or 0) == is_refused


def test_a_fence_raised_after_the_append_stops_the_claim_and_the_attempt(redis, fence, buffer):
    fence.load(STORE, set)
    first = claimed(buffer, "u1", "u2")
    buffer.append([event("u1"), event("u3")])
    fence.add(tags(1), STORE)
    second = buffer.claim()

    assert [buffer.begin(id_).sent for id_ in (first, second)] == [1, 1]
    assert redis.hgetall(KEYS.caught) == {tag("p", "user", "u1"): b"2"}


# A server that is not loaded. `run_id` of another is what a failover leaves behind.


def but_the_clock(seen):
    """The clock goes on, whatever else holds."""
    return {key: value for key, value in seen.items() if key != KEYS.clock.encode()}


@pytest.mark.parametrize(
    "lose",
    [
        lambda redis: redis.delete(KEYS.fences),
        lambda redis: redis.hset(KEYS.fences, "run_id", "0" * 40),
        lambda redis: redis.hdel(KEYS.fences, "run_id"),
        lambda redis: redis.flushall(),
    ],
    ids=["never", "another run_id", "no run_id", "flushed"],
)
def test_nothing_is_claimed_or_sent_until_the_fences_were_loaded(redis, fence, buffer, lose):
    """The fence may be anything here, so nobody's events may be sent."""
    fence.load(STORE, set)
    batch_id = claimed(buffer, "u1", "u2")
    buffer.append([event("u1"), event("u3")])
    lose(redis)
    is_flushed = not redis.exists(KEYS.lane("track").batch(batch_id))
    if is_flushed:
        buffer.append([event("u1")])
    before = but_the_clock(held(redis))
    assert buffer.claim() is None
    assert buffer.begin(batch_id) == Rejection("gone" if is_flushed else "unloaded")
    assert buffer.readiness(**EVERYTHING) == "unloaded"
    assert but_the_clock(held(redis)) == before

    fence.load(STORE, lambda: tags(1))
    assert buffer.readiness(**EVERYTHING) == "ready"
    assert (buffer.claim() is None) == is_flushed
    if not is_flushed:
        assert buffer.begin(batch_id).sent == 1


def test_a_restart_forgets_that_the_fences_were_loaded_and_nothing_else(persistent):
    """The AOF may have lost the last fence. An attempt that outlives the restart can be ended."""
    redis, fence = persistent.client, Fence(persistent.client, "p")
    fence.load(STORE, lambda: tags(1))
    with opened(redis) as buffer:
        sending = claimed(buffer, "u6", "u7")
        generation = buffer.begin(sending).generation
        batch_id = claimed(buffer, "u2", "u3")
        buffer.append([event("u4")])
        persistent.restart()

        assert fenced(redis) == tags(1)
        assert buffer.readiness(**EVERYTHING) == "unloaded"
        assert buffer.claim() is None
        assert buffer.begin(batch_id) == Rejection("unloaded")
        assert buffer.begin(sending) == Rejection("held")
        assert buffer.ack(sending, generation) == 2
        assert buffer.append([event("u1"), event("u5")]).suppressed == {0}
        fence.load(STORE, lambda: tags(1, 2))
        assert buffer.readiness(**EVERYTHING) == "ready"
        assert buffer.begin(batch_id).sent == 1
        assert buffer.claim() is not None


@pytest.mark.parametrize(("size", "moment"), MOMENTS.values(), ids=MOMENTS)
def test_a_restart_during_a_load_lets_it_start_over(persistent, size, moment):
    """The AOF restores token and draft, but a fence added meanwhile may be lost."""
    redis, fence = persistent.client, Fence(persistent.client, "p")
    fence.load(STORE, set)
    sql = Sql(*range(size))
    fence.load(STORE, read_with_interruption(sql, moment, persistent.restart))

    assert_loaded(redis, sql, reads=2)


@pytest.fixture
def full(servers):
    """A server at its maxmemory, with a fence of two, where append is refused."""
    server = servers()
    fence = Fence(server.client, "p")
    fence.add(tags(1, 2), STORE)
    # Scripts too are memory: what is to run must have been loaded, as on any server in use.
    fence.load(STORE, lambda: tags(1, 2))
    fence.note_failed("audit_unavailable")
    with opened(server.client) as buffer:
        buffer.append([event("u3")])
        server.client.hdel(KEYS.fences, "run_id")
        server.fill()
        with pytest.raises(BufferFull):
            buffer.append([event("u3")])
    return server.client


def test_at_maxmemory_fences_can_be_added_and_loaded(full):
    """A full Redis must not keep anybody from being forgotten, nor stay full for ever."""
    fence = Fence(full, "p")
    fence.note_failed("audit_refused")
    assert about(full)["why"] == "audit_refused"
    fence.add(tags(*range(3, 2003)), STORE)
    assert fenced(full) == tags(*range(1, 2003))

    fence.load(STORE, lambda: tags(*range(3000)))
    assert fenced(full) == tags(*range(3000))
    assert is_loaded(full)


def test_at_maxmemory_nobody_fenced_is_stored_or_sent(full):
    fence = Fence(full, "p")
    fence.add(tags(3), STORE)
    fence.load(STORE, lambda: tags(1, 2, 3))
    with opened(full) as buffer:
        assert buffer.claim() is None

    assert full.llen(KEYS.lane("track").waiting) == 0
    assert full.hgetall(KEYS.caught) == {tag("p", "user", "u3"): b"1"}


# The end of the audit log. A log is a list of its heads here.


def looked_for_in(log):
    """Return a function that finds the known end of the log in this one."""

    def log_end(known):
        if log[known.size - 1 : known.size] != [known.head] and known.size:
            msg = "it is another log"
            raise AuditChainBroken(msg, "audit_log_forked")
        return LogEnd(len(log), log[-1])

    return log_end


def test_the_known_end_of_the_log_moves_forward_only_for_a_caller_that_found_it(fence):
    """Two processes add at once: the second must look for the end that the first stored."""
    nothing = fence.add(tags(1), STORE)
    first, second = LogEnd(5, "a"), LogEnd(6, "b")
    assert nothing == LogEnd()
    assert fence.advance(nothing, first) == first
    assert fence.advance(nothing, second) == first
    assert fence.advance(first, second) == second
    assert fence.advance(second, first) == second

    assert fence.add(tags(2), STORE) == fence.state().known == second


def test_a_size_that_an_earlier_release_stored_gets_its_head(redis, fence):
    fence.load(STORE, set)
    redis.hset(KEYS.fences, "log_size", 5)
    redis.hdel(KEYS.fences, "log_head")
    assert fence.state().known == LogEnd(5, "")

    assert fence.advance(LogEnd(5, ""), LogEnd(5, "e")) == LogEnd(5, "e")


@pytest.mark.parametrize("log", ["abcd", "abxyz", "abxyzefg"], ids=["cut", "as long", "longer"])
def test_a_load_from_a_log_that_lost_entries_lowers_nothing(redis, fence, log):
    """A backup was put back: what it forgot stays fenced, also when the log has grown again."""
    fence.load(STORE, lambda: tags(1, 2), looked_for_in([*"abcde"]))
    before = about(redis)
    with pytest.raises(AuditChainBroken):
        fence.load(STORE, lambda: tags(1), looked_for_in([*log]))
    assert fenced(redis) == tags(1, 2)
    assert about(redis) == before

    fence.load(STORE, lambda: tags(1), looked_for_in([*"abcdef"]))
    assert fenced(redis) == tags(1)
    assert fence.state().known == LogEnd(6, "f")


def test_a_log_that_loses_entries_while_it_is_read_lowers_nothing(redis, fence):
    """The database fails over in the middle of a load."""
    log = [*"abcde"]
    fence.load(STORE, lambda: tags(1, 2), looked_for_in(log))

    def read():
        log[3:] = "xyz"
        return tags(1)

    with pytest.raises(AuditChainBroken):
        fence.load(STORE, read, looked_for_in(log))
    assert fenced(redis) == tags(1, 2)


def test_a_log_that_grows_during_a_load_is_not_taken_for_a_cut_one(redis, fence):
    """An erasure is accepted and its fence raised while another process loads."""
    log = [*"abcde"]
    fence.load(STORE, lambda: tags(1), looked_for_in(log))

    def read():
        log.append("f")
        fence.advance(fence.add(tags(2), STORE), LogEnd(6, "f"))
        log.append("g")
        return tags(1)

    assert fence.load(STORE, read, looked_for_in(log))
    assert fenced(redis) == tags(1, 2)
    assert fence.state().known == LogEnd(6, "f")
