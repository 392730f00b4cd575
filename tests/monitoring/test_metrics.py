"""What an exporter shows, against what was done: real Redis, real requests to the sandbox."""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry

from mm_tasks.buffer.producer import Record
from mm_tasks.delivery.send import send
from mm_tasks.erasure.request import ErasureRequest
from mm_tasks.monitoring.metrics import collector
from mm_tasks.runtime import Runtime
from mm_tasks.settings import Settings
from tests.conftest import embedded
from tests.delivery.conftest import flush

PERSON = "person-of-the-metrics"


class Scrape:
    """The samples of an exporter that was just asked."""

    def __init__(self, runtime, kept_s=0):
        self.registry = CollectorRegistry()
        self.registry.register(collector(runtime, kept_s=kept_s))

    def __call__(self, name, **labels):
        return self.registry.get_sample_value(f"mm_tasks_{name}", labels)


def send_all(delivery):
    for batch_id in flush(delivery):
        send(delivery, batch_id)


@pytest.fixture
def current(redis_url, tmp_path):
    return Runtime(Settings(redis_url=redis_url, state_dir=tmp_path, project="p"))


@pytest.fixture
def scrape(current):
    return Scrape(current)


def test_events_requests_and_histograms_add_up(flow, sandbox, scrape):
    """Ten events in batches of four: three deliveries and what each of them was."""
    delivery = flow.delivery()
    flow.append(10)
    send_all(delivery)

    assert scrape("events_accepted_total", lane="track") == 10
    assert scrape("events_delivered_total", lane="track") == 10
    assert scrape("events_waiting", lane="track") == scrape("events_leased", lane="track") == 0
    assert scrape("requests_total", lane="track", outcome="delivered") == 3
    assert scrape("batch_events_count", lane="track") == 3
    assert scrape("batch_events_sum", lane="track") == 10
    assert scrape("batch_events_bucket", lane="track", le="10.0") == 3
    assert scrape("batch_fill_ratio_sum", lane="track") == 1 + 1 + 0.5
    assert scrape("request_seconds_count", lane="track") == 3
    assert 0 < scrape("request_seconds_sum", lane="track") < 15
    assert scrape("delivery_age_seconds_count", lane="track") == 10
    assert scrape("delivery_age_seconds_bucket", lane="track", le="+Inf") == 10
    assert sandbox.get("summary")["batches"] == 3


def test_what_waits_is_aged_and_held(flow, scrape):
    flow.append(3)

    assert scrape("events_waiting", lane="track") == 3
    assert scrape("oldest_waiting_seconds", lane="track") >= 0
    assert scrape("oldest_waiting_seconds", lane="identify") == 0
    assert scrape("buffer_bytes") > 3 * 46
    assert scrape("buffer_max_bytes") == 1 << 30


def test_what_is_scheduled_is_a_place_of_its_own(flow, scrape):
    flow.buffer.schedule([Record(flow.body(n), None, None) for n in range(3)], 3_600_000)

    assert scrape("events_scheduled", lane="track") == scrape("events_accepted_total", lane="track")
    assert (
        scrape("events_waiting", lane="track") == scrape("events_scheduled", lane="identify") == 0
    )
    assert scrape("oldest_waiting_seconds", lane="track") == 0
    assert scrape("buffer_bytes") > 3 * 46


def test_a_request_is_timed_whatever_came_of_it(flow, sandbox, scrape):
    """Refused, throttled, ambiguous: each took its time, and none was a delivery."""
    delivery = flow.delivery()
    flow.append(1)
    for status in (429, 400, 500):
        sandbox.fault("status", status=status)
        send_all(delivery)
        flow.time_passes()

    assert scrape("request_seconds_count", lane="track") >= 2
    assert scrape("batch_events_count", lane="track") == 0
    assert scrape("requests_total", lane="track", outcome="throttled") == 1


def test_a_pause_and_its_kind_are_shown(flow, sandbox, scrape):
    delivery = flow.delivery()
    sandbox.fault("status", status=401)
    flow.append(4)
    send_all(delivery)

    assert scrape("paused", kind="unauthorized") == 1
    assert scrape("paused", kind="throttled") == 0
    assert scrape("paused_seconds") >= 0
    assert scrape("events_leased", lane="track") == 4


def test_erasures_are_shown_by_state_without_a_name(current, scrape):
    assert scrape("erasures_open", state="received") == 0
    current.audit_store.commands.open_request(ErasureRequest(PERSON, "dpo"))

    assert scrape("audit_up") == 1
    assert scrape("erasures_open", state="received") == 1
    assert scrape("erasures_overdue") == 0
    assert 0 <= scrape("erasure_deadline_used_ratio_max") < 0.01
    assert PERSON not in str(list(scrape.registry.collect()))


def test_scrapes_at_once_count_each_step_once(current, scrape):
    """Two Prometheus servers are usual; what one of them has read, the other has too."""
    for n in range(40):
        claim = current.audit_store.commands.open_request(
            ErasureRequest(f"{PERSON}-{n}", "dpo")
        ).claim
        current.audit_store.steps.mark_fenced(claim)  # as a worker does
    every_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns in the middle of a read
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: list(scrape.registry.collect()), range(8)))
    finally:
        sys.setswitchinterval(every_s)

    assert scrape("erasure_step_seconds_count", step="fenced") == 40


@contextmanager
def own_redis(tmp_path):
    server = embedded()
    server.start()
    url = f"redis://127.0.0.1:{server.port}/0"
    runtime = Runtime(Settings(redis_url=url, state_dir=tmp_path, project="p"))
    yield server, runtime
    runtime.worker_redis.close()


def test_several_scrapes_within_five_seconds_make_one_read(tmp_path):
    """Each read of 100 000 dead letters held Redis for 0.3 s, and one Prometheus is not alone."""
    with own_redis(tmp_path) as (server, runtime):
        scrape = Scrape(runtime, kept_s=60)
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda _: scrape("redis_up"), range(24)))
        scripts = runtime.worker_redis.info("commandstats")["cmdstat_evalsha"]["calls"]
        server.stop()

    assert found == [1] * 24
    # The first call loads the script.
    assert scripts <= 2


def test_a_redis_that_went_away_is_shown_by_the_next_scrape(tmp_path):
    """Whatever was kept: a stale figure would show a healthy system."""
    with own_redis(tmp_path) as (server, runtime):
        scrape = Scrape(runtime, kept_s=60)
        assert (scrape("redis_up"), scrape("fenced_ids")) == (1, 0)
        server.stop()

        assert (scrape("redis_up"), scrape("fenced_ids")) == (0, None)


def test_an_unreachable_audit_database_hides_erasures_and_a_redis_events(redis_url, tmp_path):
    """A stale figure would show a healthy system."""
    away = {"audit_url": "postgresql://nobody@127.0.0.1:1/nothing", "pseudonym_key": "k" * 40}
    no_audit, no_redis = (
        Scrape(Runtime(Settings(**settings, state_dir=tmp_path)))
        for settings in ({"redis_url": redis_url, **away}, {"redis_url": "redis://127.0.0.1:1/0"})
    )

    assert (no_audit("audit_up"), no_audit("redis_up")) == (0, 1)
    assert no_audit("erasures_overdue") is None
    assert (no_redis("audit_up"), no_redis("redis_up")) == (1, 0)
    assert no_redis("events_waiting", lane="track") is None
