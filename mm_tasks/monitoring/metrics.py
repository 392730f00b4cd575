"""Metrics of a project for Prometheus, read from Redis and the audit database.

Both hold the state of the whole fleet, so one exporter shows it: `mm-tasks metrics`, or a
process of yours that registers `mm_tasks.monitoring.metrics.collector`. Every name is in
docs/metrics.md. Needs the extra `metrics`, and no key of the vendor.

If a store does not answer, `mm_tasks_redis_up` or `mm_tasks_audit_up` is 0 and its metrics
are absent. A scrape is kept for five seconds, for further ones, while Redis answers. Counters
restart at 0 if Redis lost its data. No label is an id of a person, a batch or an erasure.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from importlib.metadata import version
from itertools import chain
from typing import TYPE_CHECKING, Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.buffer import heartbeats, histograms, snapshot
from mm_tasks.buffer.audit_state import AuditState
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.refusals import REASONS
from mm_tasks.client import outcome
from mm_tasks.erasure.audit.protocol import BLOCKED, OPEN
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from mm_tasks.monitoring import health
from mm_tasks.monitoring.erasure_durations import STEPS, ErasureDurations
from mm_tasks.monitoring.rates import by_kind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from prometheus_client import Metric
    from redis import Redis

    from mm_tasks.buffer.audit_state import AuditFindings
    from mm_tasks.buffer.heartbeats import Heartbeat
    from mm_tasks.buffer.snapshot import Snapshot
    from mm_tasks.runtime import Runtime

    Buckets = list[tuple[str, int]]

# Every kind of pause is shown, as 0 if sending is not paused by it, so that an alert sees it end.
PAUSES = sorted({"fences_not_loaded", *outcome.NAMES.values()} - {"delivered", "ambiguous"})
_EVENTS = {
    "accepted": "Events stored in Redis, once each.",
    "delivered": "Events that the vendor acknowledged.",
    "erased": "Events that an erasure removed before they were sent.",
    "discarded": "Dead letters that a person or a bound removed.",
    "suppressed": "Events refused because their person is erased; never accepted.",
}
_MESSAGES = {
    "messages_foreign": (
        "foreign_messages",
        "Messages of another project, which a worker put back to its queue.",
    ),
    "publishes_unserved": (
        "unserved_publishes",
        "Messages published to a broker that no worker of the project serves.",
    ),
}
_HISTOGRAMS = {
    histograms.EVENTS: ("batch_events", "Events of each delivered batch."),
    histograms.FILL: ("batch_fill_ratio", "Share of the nearer limit, of each delivered batch."),
    histograms.SECONDS: ("request_seconds", "Duration of each request, whatever its outcome."),
    histograms.AGE: ("delivery_age_seconds", "From accepted to delivered, of each event."),
}


# Several Prometheus servers and a dashboard may scrape within this time; one read serves them.
KEPT_S = 5.0


def collector(of: Runtime | None = None, *, kept_s: float = KEPT_S) -> Collector:
    """Return a collector for `prometheus_client`; without a runtime, of the process's own.

    Opens nothing before the first scrape. A scrape reads Redis and, if it exists, the audit
    database once; scrapes at the same time and within `kept_s` return the same metrics. Such a
    scrape still asks Redis whether it answers, and reads again if it does not.
    """
    return Collector(of, kept_s)


class Collector:
    """Reads both stores and yields their metrics."""

    def __init__(self, of: Runtime | None, kept_s: float) -> None:
        """Take the runtime; None is the process's own, at the first scrape."""
        self._of = of
        self._kept_s = kept_s
        self._durations: ErasureDurations | None = None
        # Two Prometheus servers may scrape at once: one read serves both.
        self._reading = threading.Lock()
        self._metrics: list[Metric] = []
        self._read_at_s = 0.0
        self._is_redis_up = False

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering reads no store."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics. An unavailable store raises nothing."""
        current = self._of or runtime.current()
        with self._reading:
            age_s = time.monotonic() - self._read_at_s
            is_kept = bool(self._metrics) and age_s <= self._kept_s
            # Answered the last scrape, and does not answer now.
            is_lost = is_kept and self._is_redis_up and not _answers(current.worker_redis)
            if is_lost or not is_kept:
                self._metrics = list(self._read(current, is_lost=is_lost))
                self._read_at_s = time.monotonic()
            metrics = self._metrics
        yield from metrics

    def _read(self, current: Runtime, *, is_lost: bool) -> Iterator[Metric]:
        began_s = time.monotonic()
        settings = current.settings
        yield InfoMetricFamily(
            "mm_tasks",
            "The version of mm_tasks, and the project.",
            {"version": version("mm-tasks"), "project": settings.project},
        )
        bytes_max, rate_max = settings.buffer_bytes_max, settings.batch_rate_per_s
        yield _gauge("buffer_max_bytes", "Above it BufferFull is raised.", bytes_max)
        yield _gauge("requests_per_second_max", "Permitted requests to /v1/batch.", rate_max)
        # If lost, do not wait for Redis once more.
        of_redis = None if is_lost else _of_redis(current.worker_redis, settings.project)
        self._is_redis_up = of_redis is not None
        yield _gauge("redis_up", "Whether Redis answered.", int(self._is_redis_up))
        yield from of_redis or ()
        yield from self._of_audit(current)
        yield _gauge("scrape_seconds", "Duration of this scrape.", time.monotonic() - began_s)

    def _of_audit(self, current: Runtime) -> Iterator[Metric]:
        try:
            summary, deadlines = current.audit_store.open_erasures()
            counters = self._counters(current)
        except (AuditUnavailable, ConfigurationError):
            yield _gauge("audit_up", "Whether the audit database answered.", 0)
            return
        yield _gauge("audit_up", "Whether the audit database answered.", 1)
        states = dict.fromkeys(sorted(OPEN), 0) | Counter(erasure.state for erasure in deadlines)
        yield _gauges("erasures_open", "Erasures that are not completed.", "state", states)
        overdue = summary["overdue"]
        yield _gauge("erasures_overdue", "Open erasures past their deadline.", overdue)
        blocked = {state: summary["blocked_reasons"].get(state, 0) for state in sorted(BLOCKED)}
        yield _gauges("erasures_blocked", "Open erasures that wait.", "state", blocked)
        used = (
            (erasure.read_at - erasure.received_at) / (erasure.due_at - erasure.received_at)
            for erasure in deadlines
            if erasure.due_at > erasure.received_at
        )
        help_text = "Largest share of its time that an open erasure has used."
        yield _gauge("erasure_deadline_used_ratio_max", help_text, max(used, default=0.0))
        steps = {step: histograms.read(counters, step, histograms.STEP) for step in STEPS}
        help_text = "Duration of each step of each erasure."
        yield _histogram("erasure_step_seconds", help_text, "step", steps)

    def _counters(self, current: Runtime) -> Mapping[str, int]:
        database = current.audit_store.log.database
        if self._durations is None:
            self._durations = ErasureDurations(current.settings.project)
        if not database.is_missing:
            self._durations.read(database)
        return self._durations.histogram_counters


def _answers(redis: Redis) -> bool:
    try:
        return bool(redis.ping())
    except RedisError:
        return False


def _of_redis(redis: Redis, project: str) -> Iterator[Metric] | None:
    """Return the metrics of one read of Redis; None if it does not answer."""
    try:
        read = snapshot.read(redis, project)
        raw: Any = redis.hgetall(ProjectKeys(project).histogram_counters)
        beats = heartbeats.read(redis, project)
        findings = AuditState(redis, project).read()
    except RedisError:
        return None
    counters = {name.decode(): int(number) for name, number in raw.items()}
    return chain(
        _of_events(read),
        _of_requests(read),
        _of_pauses(read),
        _of_messages(read),
        _of_heartbeats(beats.values()),
        _of_log(findings),
        _of_histograms(counters, read.lanes),
    )


def _of_heartbeats(beats: Collection[Heartbeat]) -> Iterator[Metric]:
    for kind in ("worker", "beat"):
        ages = {heartbeat.name: heartbeat.age_s for heartbeat in beats if heartbeat.kind == kind}
        help_text = f"Since the last heartbeat of a {kind}."
        yield _gauges(f"{kind}_heartbeat_age_seconds", help_text, kind, ages)


def _of_log(findings: AuditFindings) -> Iterator[Metric]:
    problems = health.audit_problems(findings)
    kinds = {kind: int(kind in problems) for kind in health.AUDIT_KINDS}
    yield _gauges("audit_problem", "Whether this was found about the audit log.", "kind", kinds)
    help_text = "Since the audit log was verified."
    age = GaugeMetricFamily("mm_tasks_audit_verified_age_seconds", help_text)
    if findings.verified_age_s is not None:
        age.add_metric((), findings.verified_age_s)
    yield age
    size = findings.verified_size
    yield _gauge("audit_verified_entries", "Entries of the log when it was verified.", size)


def _of_histograms(counters: Mapping[str, int], lanes: Iterable[str]) -> Iterator[Metric]:
    for name, (shown, help_text) in _HISTOGRAMS.items():
        values = {lane: histograms.read(counters, lane, name) for lane in lanes}
        yield _histogram(shown, help_text, "lane", values)


def _of_events(read: Snapshot) -> Iterator[Metric]:
    for place, help_text in _EVENTS.items():
        yield _by_lane(f"events_{place}", help_text, read, place)
    # Shown from the start: Prometheus sees no increase in a series that begins with 1.
    refused = {(lane, str(reason)): 0 for lane in read.lanes for reason in REASONS}
    refused |= by_kind(read.counts, "refused")
    help_text = "Events that calls did not store, by reason."
    yield _counter("events_refused", help_text, ("lane", "reason"), refused)
    waiting = {name: lane.waiting for name, lane in read.lanes.items()}
    yield _gauges("events_waiting", "Events that wait for a batch.", "lane", waiting)
    scheduled = read.by_lane("scheduled")
    yield _gauges("events_scheduled", "Events that wait for their time.", "lane", scheduled)
    yield _gauges("events_leased", "Events in batches.", "lane", read.by_lane("leased"))
    yield _gauges("events_dead", "Events in dead letters.", "lane", read.by_lane("dead"))
    yield _gauges("dead_letters", "Dead letters by reason.", "reason", read.dead_reasons)
    ages = {name: read.ages_s.get(name, 0.0) for name in read.lanes}
    yield _gauges("oldest_waiting_seconds", "Age of the oldest waiting event.", "lane", ages)
    held = read.counts.get("held_bytes", 0)
    help_text = "Bytes of all records: scheduled, waiting, in batches, dead."
    yield _gauge("buffer_bytes", help_text, held)
    help_text = "Fields dropped from events because the vendor would reject them."
    yield _by_lane("fields_dropped", help_text, read, "left_out")


def _of_messages(read: Snapshot) -> Iterator[Metric]:
    for name, (count, help_text) in _MESSAGES.items():
        yield _counter(name, help_text, (), {(): read.counts.get(count, 0)})


def _of_requests(read: Snapshot) -> Iterator[Metric]:
    # As above.
    outcomes = {(lane, name): 0 for lane in read.lanes for name in outcome.NAMES.values()}
    outcomes |= by_kind(read.counts, "outcome")
    yield _counter("requests", "Requests by outcome.", ("lane", "outcome"), outcomes)
    doubts = by_kind(read.counts, "ambiguous")
    help_text = "Requests that may have been stored, by kind of doubt."
    yield _counter("requests_ambiguous", help_text, ("lane", "kind"), doubts)
    help_text = "Acknowledgements whose count differs from the number of events sent."
    yield _by_lane("ack_count_mismatches", help_text, read, "count_differs")
    batches = {name: lane.batches for name, lane in read.lanes.items()}
    yield _gauges("batches", "Batches, from claimed to settled.", "lane", batches)
    claimed = {name: lane.claimed for name, lane in read.lanes.items()}
    yield _gauges("batches_claimed", "Batches that wait for their slot.", "lane", claimed)
    help_text = "Time until the rate limit has its full burst again."
    yield _gauge("rate_limit_reserved_seconds", help_text, read.slots_ahead_s)


def _of_pauses(read: Snapshot) -> Iterator[Metric]:
    paused = None if read.paused is None else read.paused.kind
    kinds = {kind: int(kind == paused) for kind in PAUSES}
    yield _gauges("paused", "Whether sending is paused, by kind of reason.", "kind", kinds)
    yield _gauge("paused_seconds", "Duration of the pause so far.", read.paused_for_s)
    step = read.clock.step
    help_text = "The last step of Redis's clock, for a day; below 0 if back, 0 without one."
    yield _gauge("clock_step_seconds", help_text, 0.0 if step is None else step.by_s)
    yield _gauge("fenced_ids", "Ids in the fence: those of erased persons.", read.fence_tags)
    yield _gauge("fences_loaded", "Whether this Redis has all of them.", int(read.fences_loaded))


def _by_lane(name: str, help_text: str, read: Snapshot, count: str) -> Metric:
    values = {(lane,): number for lane, number in read.by_lane(count).items()}
    return _counter(name, help_text, ("lane",), values)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"mm_tasks_{name}", help_text, value)


def _gauges(name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"mm_tasks_{name}", help_text, labels=[label])
    for label_value, number in values.items():
        family.add_metric([label_value], number)
    return family


def _counter(
    name: str, help_text: str, labels: tuple[str, ...], values: Mapping[Any, int]
) -> Metric:
    family = CounterMetricFamily(f"mm_tasks_{name}", help_text, labels=labels)
    for label_values, number in values.items():
        family.add_metric(label_values, number)
    return family


def _histogram(
    name: str, help_text: str, label: str, values: Mapping[str, tuple[Buckets, float]]
) -> Metric:
    family = HistogramMetricFamily(f"mm_tasks_{name}", help_text, labels=[label])
    for label_value, (buckets, total) in values.items():
        family.add_metric([label_value], buckets, total)
    return family
