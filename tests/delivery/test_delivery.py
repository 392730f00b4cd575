"""Delivery by hand: the effect of each response of the vendor on batches and project.

Every test ends with the counts adding up; the fixture sees to it.
"""

import json
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import pytest

from mm_tasks.buffer.batches import Admitted
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.records import tag
from mm_tasks.delivery.flush import flush as dispatches
from mm_tasks.delivery.retry import FAILURES_MAX, FILTERED_MAX, ISOLATION_MAX
from mm_tasks.delivery.send import send
from tests.buffer.lane_buffer import advance_scheduled
from tests.delivery.conftest import BAD, KEYS, flush, flush_and_send, letter_of, requests_seen


@pytest.fixture
def delivery(flow):
    return flow.delivery()


@pytest.fixture
def nobody():
    """The URL of a port that refuses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


def assert_all_delivered(flow, sandbox, n, *, repeated=0):
    """All events arrived, only `repeated` ones twice; Redis keeps counters and the fence."""
    summary = sandbox.get("summary")
    assert summary["distinct"] == flow.counts()["delivered"] == n
    assert summary["duplicates"] == repeated
    kept = {KEYS.counts, KEYS.histogram_counters, KEYS.rate, KEYS.fences, KEYS.clock}
    kept.add(KEYS.nudges)
    assert {key.decode() for key in flow.redis.keys()} <= kept  # noqa: SIM118 - Redis is no dict


def test_appended_events_arrive_unchanged_and_are_removed(flow, delivery, sandbox):
    flow.append(10)
    assert flush_and_send(delivery)[1] == [None] * 3

    assert b"".join(sandbox.bodies()).count(flow.body(9)) == 1
    assert [body.count(b'"event"') for body in sandbox.bodies()] == [4, 4, 2]
    assert_all_delivered(flow, sandbox, 10)
    assert flow.redis.hget(KEYS.counts, "held_bytes") == b"0"


def test_a_part_full_batch_is_not_sent_before_it_has_lingered(flow, delivery):
    flow.append(6)

    assert len([dispatch.batch_ids for dispatch in dispatches(delivery)]) == 1
    assert flow.counts()["leased"] == 4


@pytest.mark.parametrize("lane", ["track", "identify"])
def test_a_scheduled_event_is_sent_when_it_is_due_and_never_before(make_flow, sandbox, lane):
    """Not even by `mm-tasks flush`, which sends what waits at once."""
    flow = make_flow(lane)
    delivery = flow.delivery()
    flow.buffer.schedule([Record(flow.body(0), None, None)], 3_600_000)
    flow.append(1)
    assert [len(flush_and_send(delivery)[0]) for _ in range(2)] == [1, 0]
    assert flow.counts()["scheduled"] == 1
    advance_scheduled(flow.redis, flow.keys.scheduled, 3_600_000)
    assert len(flush_and_send(delivery)[0]) == 1

    assert flow.counts()["delivered"] == 2
    assert len(sandbox.get("bodies")) == 2


def test_batches_whose_message_was_lost_are_found_again_and_sent_once(flow, delivery, sandbox):
    """P2: a Celery message is a nudge, never the data."""
    flow.append(8)
    lost = flush(delivery)
    assert flush(delivery) == []
    flow.time_passes()
    assert sorted(flush_and_send(delivery)[0]) == sorted(lost)
    for batch_id in lost:
        send(delivery, batch_id)

    assert_all_delivered(flow, sandbox, 8)
    assert requests_seen(sandbox) == 2


def test_a_subject_fenced_after_the_claim_is_not_sent(flow, delivery, sandbox):
    """P6: an attempt is admitted by a script that looks at the fence."""
    flow.append(3)
    flow.append_bodies([b'{"event":"signup","event_id":"x","user_id":"u"}'], "u")
    (batch_id,) = flush(delivery)
    flow.redis.sadd(KEYS.fence, tag("p", "user", "u"))
    send(delivery, batch_id)

    assert sorted(sandbox.get("ids")) == ["e0", "e1", "e2"]
    assert flow.counts()["erased"] == 1


def test_identifies_travel_one_a_request_and_together_in_a_message(make_flow, sandbox):
    """Neither a slot nor the 429 of `track` concerns them."""
    track, flow = make_flow(), make_flow("identify")
    sandbox.fault("status", status=429, headers={"Retry-After": "60"})
    track.append(1)
    busy = track.delivery()
    send(busy, flush(busy)[0])
    delivery = flow.delivery()
    flow.append(30)
    messages = [dispatch.batch_ids for dispatch in dispatches(delivery)]
    assert [len(ids) for ids in messages] == [25, 5]
    for batch_id in [id_ for ids in messages for id_ in ids]:
        assert send(delivery, batch_id) is None

    assert sorted(sandbox.bodies()) == sorted(flow.body(i) for i in range(30))
    assert flow.counts()["delivered"] == 30
    assert track.counts()["outcome:throttled"] == 1


def test_a_429_stops_the_lane_for_all_until_its_time(flow, delivery, sandbox):
    """All workers wait after one 429, and nothing is sent before its time."""
    sandbox.fault("status", status=429, headers={"Retry-After": "60"})
    other = flow.delivery()
    flow.append(12)
    first, second, third = flush(delivery)
    wait_s = send(delivery, first)
    assert 60 - 2 < wait_s <= 66
    assert all(58 < send(worker, id_) <= 66 for worker, id_ in ((other, second), (delivery, third)))
    assert flush(delivery) == flush(other) == []
    assert requests_seen(sandbox) == 1

    flow.settle(other, 3)
    assert_all_delivered(flow, sandbox, 12)
    assert flow.counts()["outcome:throttled"] == 1
    assert "ambiguous" not in flow.counts()


PAUSES = {
    "401": (
        {"status": 401, "body": '{"error":"invalid_api_key"}'},
        "unauthorized 401 invalid_api_key",
    ),
    "403": (
        {"status": 403, "body": '{"error":"insufficient_scope"}'},
        "unauthorized 403 insufficient_scope",
    ),
    "307": ({"status": 307, "body": "", "headers": {"Location": "/"}}, "misdirected 307 -"),
}


@pytest.mark.parametrize(("response", "reason"), PAUSES.values(), ids=PAUSES.keys())
def test_a_refused_key_or_host_stops_all_but_one_probe(flow, delivery, sandbox, response, reason):
    sandbox.fault("status", times=3, **response)
    flow.append(12)
    ids, results = flush_and_send(delivery)
    assert results[1:] == [None, None]
    assert flush(delivery) == []
    assert requests_seen(sandbox) == 1
    parts = flow.redis.hmget(KEYS.pause, "kind", "status", "code")
    assert b" ".join(parts).decode() == reason
    for n in (2, 3):
        probe = probe_after_a_wait(flow, delivery)
        for id_ in {*ids} - {probe}:
            send(delivery, id_)
        send(delivery, probe)

        assert requests_seen(sandbox) == n
        assert flow.redis.exists(KEYS.pause)
    flow.settle(delivery, 4)
    assert_all_delivered(flow, sandbox, 12)
    assert "ambiguous" not in flow.counts()


def probe_after_a_wait(flow, delivery):
    """Let the wait for the next probe be over; return the probe."""
    flow.time_passes()
    (probe,) = flush(delivery)
    assert flush(delivery) == []
    return probe


@pytest.mark.parametrize("n", [1, 4, 12])
@pytest.mark.parametrize("status", [401, 403, 404, 451])
def test_a_page_for_every_request_pauses_and_buries_nothing(flow, delivery, sandbox, status, n):
    """The host or the key is wrong, however many batches there are."""
    sandbox.fault("status", status=status, body="<html>", times=10_000)
    flow.append(n)
    for _ in range(20):
        for batch_id in flush(delivery):
            while send(delivery, batch_id) == 0:
                pass
        if flow.redis.exists(flow.keys.outage):
            break
        flow.time_passes()
    assert requests_seen(sandbox) == FILTERED_MAX == 3
    parts = flow.redis.hmget(flow.keys.outage, "kind", "status", "code", "wait_ms")
    assert parts == [b"filtered", b"%d" % status, b"-", b"1000"]
    for wait_ms in (2000, 4000):
        assert send(delivery, probe_after_a_wait(flow, delivery)) is None
        assert sandbox.get("requests")[-1]["events"] == 1
        assert int(flow.redis.hget(flow.keys.outage, "wait_ms")) == wait_ms

    assert "dead" not in flow.counts()
    assert not flow.redis.exists(KEYS.pause)
    sandbox.post("faults")
    flow.settle(delivery, 8)
    assert_all_delivered(flow, sandbox, n)


def test_a_batch_that_a_filter_refused_is_probed_only_if_no_other_is_left(flow, delivery, sandbox):
    """New batches are probed too: only the refused ones may contain a bad event."""
    sandbox.fault("status", status=403, body="<html>", times=10_000)
    flow.append(12)
    flush_and_send(delivery)
    batches = flow.redis.zrange(flow.keys.leases, 0, -1)
    flow.append_bodies([flow.body(i) for i in range(12, 20)])
    probes = []
    for _ in range(4):
        probes.append(probe_after_a_wait(flow, delivery))
        send(delivery, probes[-1])
    assert len(set(probes)) == 4
    everything = {*probes, *map(bytes.decode, batches)}
    assert len(everything) == 5
    assert probe_after_a_wait(flow, delivery) in everything

    sandbox.post("faults")
    flow.settle(delivery, 30)
    assert_all_delivered(flow, sandbox, 20)


def test_a_refused_connection_keeps_the_data_and_is_no_doubt(flow, sandbox, nobody):
    cut_off = flow.delivery(url=nobody)
    batch_id = flow.claim(cut_off)

    assert send(cut_off, batch_id) <= 1
    assert flow.counts()["outcome:unavailable"] == 1
    assert "ambiguous" not in flow.counts()
    assert flow.counts()["leased"] == 4
    flow.settle(flow.delivery(), 3)
    assert_all_delivered(flow, sandbox, 4)


def test_an_outage_ends_in_one_probe_at_a_time_and_with_it(flow, sandbox, nobody):
    cut_off = flow.delivery(url=nobody)
    flow.append(4 * (FAILURES_MAX + 2))
    flush_and_send(cut_off)
    assert flow.counts()["outcome:unavailable"] == FAILURES_MAX
    assert flow.redis.hget(flow.keys.outage, "wait_ms") == b"1000"
    flow.time_passes()
    assert len(flush_and_send(cut_off)[0]) == 1
    assert flow.redis.hget(flow.keys.outage, "wait_ms") == b"2000"
    flow.time_passes()

    working = flow.delivery()
    assert len(flush_and_send(working)[0]) == 1
    assert not flow.redis.exists(KEYS.pause, flow.keys.outage)
    flow.settle(working, 3)
    assert_all_delivered(flow, sandbox, 4 * (FAILURES_MAX + 2))


def append_beside(flow, n, position, body):
    """Append n good events and a bad one among them."""
    bodies = [flow.body(i) for i in range(n)]
    bodies.insert(position, body)
    flow.append_bodies(bodies)


@pytest.mark.parametrize("position", range(4))
def test_a_poison_event_is_buried_and_its_neighbours_arrive(flow, delivery, sandbox, position):
    """P5: bisection takes one request a half of the isolated records, and one for the rest."""
    append_beside(flow, 7, position, b'{"event":7}')
    flow.settle(delivery, 12)
    reason, attempts, record = letter_of(flow.redis)

    assert record.endswith(b'{"event":7}')
    assert reason == {"reason": "rejected", "status": 400, "code": "invalid_payload"}
    assert 3 <= attempts <= 4
    assert sorted(sandbox.get("ids")) == sorted(f"e{i}" for i in range(7))
    assert flow.counts()["delivered"] == 7
    assert requests_seen(sandbox) <= 1 + 5


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("n", [4, 9])
def test_an_event_that_a_filter_refuses_is_buried_alone(flow, delivery, sandbox, position, n):
    """A proxy that dislikes one event answers with a page, as if the key or host were wrong."""
    sandbox.fault("status", status=403, body="<html>", poison=True, event="bad")
    append_beside(flow, n - 1, position, BAD)
    for _ in range(12):
        for batch_id in flush(delivery):
            send(delivery, batch_id)
            assert not flow.redis.exists(KEYS.pause, flow.keys.outage)
        flow.time_passes()
    reason, _, record = letter_of(flow.redis)

    assert b'"bad"' in record
    assert reason == {"reason": "filtered", "status": 403, "code": "-"}
    assert sorted(sandbox.get("ids")) == sorted(f"e{i}" for i in range(n - 1))
    assert flow.counts()["delivered"] == n - 1


def test_a_lone_event_that_a_filter_refuses_waits_until_another_passes(flow, delivery, sandbox):
    sandbox.fault("status", status=404, body="<html>", poison=True, event="bad")
    flow.append_bodies([BAD])
    flow.settle(delivery, 5)
    assert flow.redis.hget(flow.keys.outage, "kind") == b"filtered"
    assert flow.counts()["leased"] == 1
    flow.append(4)
    flow.settle(delivery, 4)

    assert (flow.counts()["delivered"], flow.counts()["dead"]) == (4, 1)
    assert not flow.redis.exists(flow.keys.outage)


def test_a_lone_event_that_a_filter_refuses_holds_nobody_up(flow, delivery, sandbox):
    """The host was right a moment ago, and one body refused again and again says nothing new."""
    sandbox.fault("status", status=403, body="<html>", poison=True, event="bad")
    flow.append(4)
    flow.settle(delivery, 1)
    flow.append_bodies([BAD])
    for _ in range(6):
        flush_and_send(delivery)
        assert not flow.redis.exists(KEYS.pause, flow.keys.outage)
        flow.time_passes()
    assert flow.counts()["leased"] == 1
    flow.append_bodies([flow.body(9)])
    flow.settle(delivery, 3)

    assert (flow.counts()["delivered"], flow.counts()["dead"]) == (5, 1)
    assert not flow.redis.exists(flow.keys.outage)


def test_a_lone_refused_event_is_sent_again_after_a_growing_wait(flow, delivery, sandbox):
    sandbox.fault("status", status=403, body="<html>", poison=True, event="bad")
    flow.append(4)
    flow.settle(delivery, 1)
    flow.append_bodies([BAD])
    (batch_id,) = flush(delivery)
    assert send(delivery, batch_id) == 0

    assert send(delivery, batch_id) > 0
    assert flow.redis.hget(flow.keys.batch(batch_id), "due_ms") is not None
    assert flush(delivery) == []


def test_two_batches_refused_at_once_hold_others_up_for_one_probe(flow, delivery, sandbox):
    """A filter dislikes one event of each; others are delivered meanwhile, and nothing stays."""
    sandbox.fault("status", status=403, body="<html>", poison=True, event="bad")
    flow.append(4)
    flow.settle(delivery, 1)
    flow.append_bodies([BAD, *map(flow.body, range(10, 13)), BAD, *map(flow.body, range(13, 16))])
    flow.append_bodies(map(flow.body, range(20, 28)))
    flow.settle(delivery, 8)

    assert (flow.counts()["delivered"], flow.counts()["dead"]) == (18, 2)
    assert not flow.redis.exists(KEYS.pause, flow.keys.outage)


def test_a_batch_that_an_earlier_release_isolated_is_delivered(flow, delivery, sandbox):
    """Its workers share the Redis: they left `alone`, and `suspect` of a bisected batch."""
    batch_id = flow.claim(delivery)
    flow.redis.hset(flow.keys.batch(batch_id), mapping={"alone": 1, "suspect": 4})
    flow.settle(delivery, 4)

    assert_all_delivered(flow, sandbox, 4)


def test_a_vendor_that_refuses_everything_stops_the_project_with_its_data(flow, delivery, sandbox):
    """Its rules changed: a thousand requests and as many dead letters would be useless."""
    flow.append(40)
    sandbox.fault("status", status=400, body='{"error":"invalid_payload"}', times=10_000)
    flow.settle(delivery, 60)
    requests_meanwhile = requests_seen(sandbox)

    assert flow.redis.hget(flow.keys.outage, "kind") == b"rejected"
    assert requests_meanwhile < 150
    assert flow.counts()["dead"] < ISOLATION_MAX
    sandbox.post("faults")
    flow.settle(delivery, 60)
    assert not flow.redis.exists(KEYS.pause, flow.keys.outage)
    assert flow.counts()["delivered"] + flow.counts()["dead"] == 40


AMBIGUOUS = {
    "cut, stored": ({"kind": "cut_body", "store": True}, "cut", 4),
    "cut, not stored": ({"kind": "cut_body"}, "cut", 0),
    "closed before it was read": ({"kind": "close_before_read"}, "cut", 0),
    "no answer, stored": ({"kind": "hang", "store": True, "for_s": 1}, "timeout", 4),
    "502, stored": ({"kind": "status", "status": 502, "store": True}, "502", 4),
    "202 that says nothing": ({"kind": "status", "status": 202, "body": "{}"}, "unusable", 0),
}


@pytest.mark.parametrize(("fault", "kind", "repeated"), AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_doubt_is_counted_and_the_batch_sent_again(flow, sandbox, fault, kind, repeated):
    """P3: at most one batch arrives twice for each such case, and it is visible."""
    delivery = flow.delivery(timeout_s=0.3)
    sandbox.fault(**fault)
    flow.append(8)
    doubtful, other = flush(delivery)
    assert send(delivery, doubtful) <= 1
    assert send(delivery, other) == 0
    assert sandbox.get("requests")[-1]["events"] == 1
    assert flow.counts()["ambiguous"] == flow.counts()[f"ambiguous:{kind}"] == 1
    flow.settle(delivery, 2)

    assert_all_delivered(flow, sandbox, 8, repeated=repeated)
    assert flow.counts()["ambiguous"] == 1


DOUBTS = {
    "an unreadable 202": {"kind": "status", "status": 202, "body": "<html>", "store": True},
    "a late answer": {"kind": "hang", "store": True, "for_s": 1},
    "a 500": {"kind": "status", "status": 500, "store": True},
}


@pytest.mark.parametrize("doubt", DOUBTS.values(), ids=DOUBTS)
def test_an_outage_that_stores_everything_repeats_what_was_under_way_and_one_event_a_request(
    flow, sandbox, doubt
):
    """P3: each later request shows as much with one event as with a whole batch."""
    delivery = flow.delivery(timeout_s=0.1)
    sandbox.fault(**doubt, times=10_000)
    flow.append(40)
    for _ in range(14):
        flush_and_send(delivery)
        flow.time_passes()
    sizes = [request["events"] for request in sandbox.get("requests")]
    assert len(sizes) > 14
    assert sizes == [4] + [1] * (len(sizes) - 1)

    sandbox.post("faults")
    flow.settle(delivery, 30)
    summary = sandbox.get("summary")
    assert summary["distinct"] == flow.counts()["delivered"] == 40
    assert summary["duplicates"] <= sum(sizes)
    # Nobody arrives a third time while there is an event that never was in doubt.
    assert max(Counter(sandbox.get("ids")).values()) == 2
    assert 4 in [request["events"] for request in sandbox.get("requests")[len(sizes) :]]


def test_after_one_clear_answer_batches_in_doubt_go_whole(flow, sandbox):
    delivery = flow.delivery(timeout_s=0.3)
    sandbox.fault("cut_body", times=FAILURES_MAX)
    flow.append(12)
    while not flow.redis.exists(flow.keys.outage):
        flush_and_send(delivery)
        flow.time_passes()
    n = requests_seen(sandbox)
    flow.settle(delivery, 6)

    first, *sizes = [request["events"] for request in sandbox.get("requests")[n:]]
    assert (first, sorted(sizes)) == (1, [3, 4, 4])
    assert_all_delivered(flow, sandbox, 12)


def test_a_probe_carries_an_event_that_was_never_in_doubt_if_there_is_one(flow, delivery, sandbox):
    """A new part-full batch before one that may be stored."""
    sandbox.fault("cut_body", times=10_000, store=True)
    flow.append(1)
    while not flow.redis.exists(flow.keys.outage):
        flush_and_send(delivery)
        flow.time_passes()
    flow.append_bodies([flow.body(7)])
    send(delivery, probe_after_a_wait(flow, delivery))

    assert sandbox.get("ids")[-1] == "e7"


def test_workers_that_die_show_nothing_about_the_vendor(flow, delivery, sandbox):
    batch_id = flow.claim(delivery)
    for _ in range(FAILURES_MAX + 1):
        begin_and_die(flow, batch_id)
        flow.time_passes()
        assert flush(delivery) == []
        flow.time_passes()
    assert not flow.redis.exists(flow.keys.outage, flow.keys.failures)
    assert flush_and_send(delivery)[0] == [batch_id]

    assert flow.counts()["ambiguous:lease"] == FAILURES_MAX + 1
    flow.settle(delivery, 4)
    assert_all_delivered(flow, sandbox, 4)


def test_a_batch_that_is_too_large_to_be_answered_in_time_gets_smaller(flow, sandbox):
    """A clear answer to one event alone must not bring all the others again and again."""
    delivery = flow.delivery()
    sandbox.fault("cut_body", store=True, times=3)
    batch_id = flow.claim(delivery)
    while flow.redis.exists(flow.keys.batch(batch_id)):
        # Another batch was answered.
        flow.redis.delete(flow.keys.failures)
        flow.time_passes()
        flush_and_send(delivery)

    assert [request["events"] for request in sandbox.get("requests")] == [4, 4, 2, 1, 1, 1, 1]
    assert_all_delivered(flow, sandbox, 4, repeated=10)


def test_of_a_probe_in_doubt_one_event_is_parked(flow, sandbox):
    delivery = flow.delivery(park_ambiguous=True)
    sandbox.fault("cut_body", store=True, times=2)
    flow.append(8)
    flow.settle(delivery, 4)

    assert (flow.counts()["dead"], flow.counts()["delivered"]) == (5, 3)
    assert sandbox.get("summary")["duplicates"] == 0


def test_parked_doubt_becomes_dead_letters_and_is_not_sent_again(flow, sandbox):
    delivery = flow.delivery(park_ambiguous=True)
    sandbox.fault("cut_body", store=True)
    flow.append(8)
    flow.settle(delivery, 3)
    letters = flow.redis.hvals(KEYS.dead)

    reason = json.loads(letters[0].partition(b"\n")[0])
    assert (reason["reason"], reason["kind"]) == ("ambiguous", "cut")
    bodies = [flow.body(i) for i in range(4)]
    assert sorted(letter[-len(bodies[0]) :] for letter in letters) == bodies
    assert flow.counts()["dead"] == flow.counts()["delivered"] == 4
    assert sandbox.get("summary")["duplicates"] == 0


def begin_and_die(flow, batch_id):
    """Admit a worker that is then killed, so that it never reports an outcome."""
    begun = flow.buffer.begin(batch_id, slot="none", slot_valid_ms=2000, lease_ms=60_000)
    assert isinstance(begun, Admitted)


def test_an_expired_lease_is_doubt_and_the_batch_sent_again(flow, delivery, sandbox):
    batch_id = flow.claim(delivery)
    begin_and_die(flow, batch_id)
    assert send(delivery, batch_id) is None
    assert flush(delivery) == []
    flow.time_passes()
    assert flush(delivery) == []
    assert flow.counts()["ambiguous:lease"] == 1
    assert requests_seen(sandbox) == 0
    flow.time_passes()

    assert flush_and_send(delivery)[0] == [batch_id]
    assert_all_delivered(flow, sandbox, 4)
    assert flow.counts()["ambiguous"] == 1


@pytest.mark.parametrize("settled_as", ["dead", "delivered"])
def test_an_expired_lease_is_parked_where_doubt_is_or_acknowledged_late(flow, sandbox, settled_as):
    """The worker may be slow, not dead: its success counts although its lease has expired."""
    delivery = flow.delivery(park_ambiguous=settled_as == "dead")
    batch_id = flow.claim(delivery)
    begin_and_die(flow, batch_id)
    flow.time_passes()
    if settled_as == "delivered":
        flush(delivery)
        flow.buffer.ack(batch_id, 0)
    flow.settle(delivery, 2)

    assert flow.counts()[settled_as] == 4
    assert requests_seen(sandbox) == 0


def test_a_dead_probe_gives_way_to_another(flow, delivery, sandbox):
    """A SIGKILL of the probe's worker must not pause the project for ever."""
    sandbox.fault("status", status=401)
    flow.append(8)
    send(delivery, flush(delivery)[0])
    begin_and_die(flow, probe_after_a_wait(flow, delivery))
    assert flush(delivery) == []
    flow.settle(delivery, 4)

    assert_all_delivered(flow, sandbox, 8)
    assert flow.counts()["ambiguous:lease"] == 1


def test_two_flushes_at_once_claim_no_record_twice(flow):
    workers = flow.delivery(), flow.delivery()
    flow.append(40)
    steps = zip_longest(*(dispatches(worker, linger=False) for worker in workers))
    ids = [id_ for step in steps for dispatch in step if dispatch for id_ in dispatch.batch_ids]

    assert len(ids) == len(set(ids)) == 10
    assert flow.counts()["leased"] == 40


def test_workers_with_the_same_messages_send_no_batch_twice(flow, sandbox):
    """Celery delivers a message again whenever it likes."""
    workers = [flow.delivery() for _ in range(4)]
    flow.append(80)
    ids = flush(workers[0])
    with ThreadPoolExecutor(len(workers)) as threads:
        list(threads.map(lambda worker: [send(worker, id_) for id_ in ids], workers))

    assert_all_delivered(flow, sandbox, 80)
    assert requests_seen(sandbox) == 20


def test_an_admission_that_became_old_sends_nothing(flow, sandbox):
    """A process that was frozen since: a fence may have been raised in between (P6)."""
    stale = flow.delivery(lease_s=0)
    send(stale, flow.claim(stale))

    assert requests_seen(sandbox) == 0
    assert flow.counts()["outcome:unavailable"] == 1
    flow.settle(flow.delivery(), 3)
    assert_all_delivered(flow, sandbox, 4)
