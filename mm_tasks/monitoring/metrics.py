"""Metrics of a project for Prometheus, from what Redis and the audit database hold.

All of the fleet is in there, so one exporter shows it: `mm-tasks metrics`, or in a process of
yours, with `mm_tasks.monitoring.metrics.collector` registered. Every name is in
docs/metrics.md. Needs the extra `metrics`, and no key of the vendor.

A store that does not answer is shown as such (`mm_tasks_redis_up`, `mm_tasks_audit_up`), and
nothing is shown in place of what it would have said. Counters are those of Redis: where it lost
its data they begin again. No label is an id of a person, a batch or an erasure.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.buffer import heartbeats, histograms, snapshot
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.client import outcome
from mm_tasks.erasure.audit.protocol import BLOCKED, OPEN
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from mm_tasks.monitoring.erasure_durations import STEPS, ErasureDurations

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client import Metric

    from mm_tasks.buffer.snapshot import Snapshot
    from mm_tasks.runtime import Runtime

# Kinds of pauses: shown as 0 where there is none, so that an alert can tell.
PAUSES = (
    "fences_not_loaded",
    "misdirected",
    "rejected",
    "throttled",
    "unauthorized",
    "unavailable",
)
_EVENTS = {
    "accepted": "Events stored in Redis, once each.",
    "delivered": "Events that the vendor acknowledged.",
    "erased": "Events that an erasure removed before they were sent.",
    "discarded": "Dead letters that a person or a bound removed.",
    "suppressed": "Events refused because their person is erased; never accepted.",
}
_HISTOGRAMS = {
    histograms.EVENTS: ("batch_events", "Events of each delivered batch."),
    histograms.FILL: ("batch_fill_ratio", "Share of the nearer limit, of each delivered batch."),
    histograms.SECONDS: ("request_seconds", "Duration of each request, whatever its outcome."),
    histograms.AGE: ("delivery_age_seconds", "From accepted to delivered, of each event."),
}


def collector(of: Runtime | None = None) -> Collector:
    """Return what `prometheus_client` registers; without a runtime, that of the process.

    Opens nothing before the first scrape. Each scrape is one look at Redis and, where there
    is an audit database, one at that.
    """
    return Collector(of)


class Collector:
    """Turns one look at the stores into metrics, at each scrape."""

    def __init__(self, of: Runtime | None) -> None:
        """Take the runtime, or that of the process at the first scrape."""
        self._of = of
        self._progress: ErasureDurations | None = None
        # Two servers of Prometheus may ask at once, and each entry counts once.
        self._reading = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """Name nothing ahead: registering must not ask any store."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield everything; raises nothing when a store is away."""
        began_s = time.monotonic()
        current = self._of or runtime.current()
        yield InfoMetricFamily(
            "mm_tasks",
            "The version of mm_tasks, and the project.",
            {"version": version("mm-tasks"), "project": current.settings.project},
        )
        yield from _of_settings(current)
        yield from self._of_redis(current)
        yield from self._of_audit(current)
        yield _gauge("scrape_seconds", "What this scrape took.", time.monotonic() - began_s)

    def _of_redis(self, current: Runtime) -> Iterator[Metric]:
        redis, project = current.worker_redis, current.settings.project
        try:
            look = snapshot.read(redis, project)
            raw = redis.hgetall(ProjectKeys(project).histogram_counters)
            reasons = snapshot.dead_reasons(redis, project)
            left = heartbeats.read(redis, project)
        except RedisError:
            yield _gauge("redis_up", "Whether Redis answered.", 0)
            return
        histogram_counters = {name.decode(): int(number) for name, number in raw.items()}  # type: ignore[union-attr]
        yield _gauge("redis_up", "Whether Redis answered.", 1)
        yield from _of_events(look)
        yield from _of_requests(look)
        yield from _of_stops(look)
        yield _by_label("dead_letters", "Dead letters by reason.", "reason", reasons)
        for kind in ("worker", "beat"):
            ages = {sign.name: sign.age_s for sign in left.values() if sign.kind == kind}
            name, said = f"{kind}_heartbeat_age_seconds", f"Since the last heartbeat of a {kind}."
            yield _by_label(name, said, kind, ages)
        for name, (shown, said) in _HISTOGRAMS.items():
            yield _histogram(shown, said, "lane", histogram_counters, name, look.lanes)

    def _of_audit(self, current: Runtime) -> Iterator[Metric]:
        said = "Whether the audit database answered."
        try:
            found, deadlines = current.look_at_erasures(datetime.now(UTC))
            steps = self._steps(current)
        except (AuditUnavailable, ConfigurationError):
            yield _gauge("audit_up", said, 0)
            return
        yield _gauge("audit_up", said, 1)
        states = dict.fromkeys(sorted(OPEN), 0)
        for one in deadlines:
            states[one.state] += 1
        yield _by_label("erasures_open", "Erasures that are not completed.", "state", states)
        yield _gauge("erasures_overdue", "Open erasures past their deadline.", found["overdue"])
        blocked = {state: found["blocked_reasons"].get(state, 0) for state in sorted(BLOCKED)}
        yield _by_label("erasures_blocked", "Open erasures that wait.", "state", blocked)
        now = datetime.now(UTC)
        used = (
            (now - one.received_at) / (one.due_at - one.received_at)
            for one in deadlines
            if one.due_at > one.received_at
        )
        share = max(used, default=0.0)
        yield _gauge(
            "erasure_deadline_used_ratio_max",
            "Largest share of its time that an open erasure has used.",
            share,
        )
        name, said = "erasure_step_seconds", "Duration of each step of each erasure."
        yield _histogram(name, said, "step", steps, histograms.STEP, STEPS)

    def _steps(self, current: Runtime) -> dict[str, int]:
        database = current.audit_log.database
        with self._reading:
            progress = self._progress = self._progress or ErasureDurations(current.settings.project)
            if not database.is_missing:
                progress.read(database)
            return dict(progress.histogram_counters)


def _of_settings(current: Runtime) -> Iterator[Metric]:
    settings = current.settings
    most = settings.buffer_bytes_max
    yield _gauge("buffer_max_bytes", "Above it BufferFull is raised.", most)
    rate = settings.batch_rate_per_s
    yield _gauge("requests_per_second_max", "Requests to /v1/batch that are allowed.", rate)


def _of_events(look: Snapshot) -> Iterator[Metric]:
    for place, said in _EVENTS.items():
        yield _counter(f"events_{place}", said, ("lane",), _of_lanes(look, place))
    waiting = {name: lane.waiting for name, lane in look.lanes.items()}
    yield _by_label("events_waiting", "Events that wait for a batch.", "lane", waiting)
    for place, said in (("leased", "Events in batches."), ("dead", "Events in dead letters.")):
        yield _by_label(f"events_{place}", said, "lane", look.by_lane(place))
    ages = {name: look.ages_s.get(name, 0.0) for name in look.lanes}
    yield _by_label("oldest_waiting_seconds", "Age of the oldest waiting event.", "lane", ages)
    held = look.counts.get("held_bytes", 0)
    yield _gauge("buffer_bytes", "Bytes of all records: waiting, in batches, dead.", held)
    left_out = _of_lanes(look, "left_out")
    said = "Fields dropped from events because the vendor would reject them."
    yield _counter("fields_dropped", said, ("lane",), left_out)


def _of_requests(look: Snapshot) -> Iterator[Metric]:
    # Shown before there is any: Prometheus sees no increase in a series that begins with 1.
    none = {(lane, name): 0 for lane in look.lanes for name in outcome.NAMES.values()}
    found = none | _by_kind(look.counts, "outcome")
    yield _counter("requests", "Requests by outcome.", ("lane", "outcome"), found)
    said = "Requests that may have been stored, by kind of doubt."
    doubts = _by_kind(look.counts, "ambiguous")
    yield _counter("requests_ambiguous", said, ("lane", "kind"), doubts)
    said = "Acknowledgements whose count differs from the number of events sent."
    yield _counter("ack_count_mismatches", said, ("lane",), _of_lanes(look, "count_differs"))
    batches = {name: lane.batches for name, lane in look.lanes.items()}
    yield _by_label("batches", "Batches, from claimed to settled.", "lane", batches)
    claimed = {name: lane.claimed for name, lane in look.lanes.items()}
    yield _by_label("batches_claimed", "Batches that wait for their slot.", "lane", claimed)
    ahead = look.slots_ahead_s
    yield _gauge(
        "rate_limit_reserved_seconds", "Time until the rate limit has its full burst again.", ahead
    )


def _of_stops(look: Snapshot) -> Iterator[Metric]:
    paused = look.paused
    kinds = {kind: int(paused is not None and paused.kind == kind) for kind in PAUSES}
    yield _by_label("paused", "Whether sending is paused, by kind of reason.", "kind", kinds)
    yield _gauge("paused_seconds", "For how long it has been paused.", look.paused_for_s)
    yield _gauge("fenced_ids", "Ids in the fence: those of erased persons.", look.fence_tags)
    loaded = int(look.fences_loaded)
    yield _gauge("fences_loaded", "Whether this Redis has all of them.", loaded)


def _of_lanes(look: Snapshot, name: str) -> dict[tuple[str, ...], int]:
    return {(lane,): number for lane, number in look.by_lane(name).items()}


def _by_kind(counts: Mapping[str, int], name: str) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for field, number in counts.items():
        lane, is_kind, kind = field.partition(f":{name}:")
        if is_kind:
            found[lane, kind] = number
    return found


def _gauge(name: str, said: str, value: float) -> Metric:
    return GaugeMetricFamily(f"mm_tasks_{name}", said, value)


def _by_label(name: str, said: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"mm_tasks_{name}", said, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _counter(
    name: str, said: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> Metric:
    family = CounterMetricFamily(f"mm_tasks_{name}", said, labels=labels)
    for where, number in values.items():
        family.add_metric(where, number)
    return family


def _histogram(  # noqa: PLR0913, PLR0917 - where it is, and what it is called
    shown: str,
    said: str,
    label: str,
    histogram_counters: Mapping[str, int],
    name: str,
    of: Iterable[str],
) -> Metric:
    family = HistogramMetricFamily(f"mm_tasks_{shown}", said, labels=[label])
    for one in of:
        buckets, total = histograms.read(histogram_counters, one, name)
        family.add_metric([one], buckets, total)
    return family
