"""`mm-tasks top`: the status and the rates of the last minute, live. Reads only.

Redis is read at each interval; erasures change slowly and cost more, so they are read less
often. A store that does not answer is named, and the rest is shown.
"""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mm_tasks import runtime
from mm_tasks.buffer import snapshot
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from mm_tasks.monitoring import checks
from mm_tasks.monitoring.rates import WINDOW_S, RateWindow

if TYPE_CHECKING:
    from mm_tasks.buffer.snapshot import Snapshot
    from mm_tasks.erasure.models import ErasureDeadline
    from mm_tasks.monitoring.rates import RecentRates
    from mm_tasks.runtime import Runtime
    from mm_tasks.settings import Settings

# Interval of erasures.
SLOW_S = 10.0
ERASURES_MAX = 8
_DAY_S = 86_400


def run(*, interval_s: float, once: bool) -> None:
    """Show the view until Ctrl-C or SIGTERM; if `once` or without a terminal, print it once."""
    watch = RefreshingView(runtime.current())
    if once or not sys.stdout.isatty():
        # A rate is the difference of two snapshots.
        watch.view()
        time.sleep(interval_s)
        Console().print(watch.view())
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Live(watch.view(), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval_s)
                live.update(watch.view(), refresh=True)
    except KeyboardInterrupt:
        return


@dataclass
class RefreshingView:
    """The snapshots and slow values read so far."""

    current: Runtime
    window: RateWindow = field(default_factory=RateWindow)
    erasures: str = ""
    deadlines: list[ErasureDeadline] = field(default_factory=list)
    slow_at_s: float = -SLOW_S
    newest: Snapshot | None = None
    away_since_s: float | None = None

    def view(self) -> Group:
        """Read again, and return the view."""
        settings = self.current.settings
        away: Text | None = None
        is_due = time.monotonic() - self.slow_at_s >= SLOW_S
        try:
            self.newest = snapshot.read(self.current.worker_redis, settings.project)
        except RedisError as error:
            away = self._away(type(error).__name__)
        else:
            self.window.add(self.newest)
            self.away_since_s = None
        if is_due:
            self._read_erasures()
            self.slow_at_s = time.monotonic()
        return Group(*self._parts(settings, away))

    def _away(self, why: str) -> Text:
        if self.away_since_s is None:
            self.away_since_s = time.monotonic()
        for_s = time.monotonic() - self.away_since_s
        return Text(f"Redis does not answer ({why}), for {for_s:.0f} s", style="bold red")

    def _read_erasures(self) -> None:
        try:
            summary, self.deadlines = self.current.audit_store.open_erasures()
        except (AuditUnavailable, ConfigurationError) as error:
            self.erasures, self.deadlines = f"unknown: {error}", []
        else:
            self.erasures = checks.in_words(summary)

    def _parts(self, settings: Settings, away: Text | None) -> list[Any]:
        parts: list[Any] = [_head(settings.project, self.newest)]
        if away is not None:
            parts.append(away)
        if self.newest is not None:
            rates = self.window.rates()
            parts += [_places(self.newest), *_lines(self.newest, rates, settings), _outcomes(rates)]
            parts.append(_named("dead letters", self.newest.dead_reasons, "none"))
        parts.append(_line("erasures", self.erasures))
        parts += [_deadline(erasure) for erasure in self.deadlines[:ERASURES_MAX]]
        if len(self.deadlines) > ERASURES_MAX:
            parts.append(_line("", f"and {len(self.deadlines) - ERASURES_MAX} more"))
        return parts


def _head(project: str, newest: Snapshot | None) -> Text:
    at = (
        ""
        if newest is None
        else f"  {datetime.fromtimestamp(newest.clock.redis_s, UTC):%H:%M:%S} UTC"
    )
    return Text(f"mm-tasks  project {project}{at}", style="bold")


def _places(newest: Snapshot) -> Table:
    table = Table("lane", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    names = ("scheduled", "waiting", "oldest", "leased", "batches", "delivered", "dead", "erased")
    for name in names:
        table.add_column(name, justify="right")
    places = ("scheduled", "leased", "delivered", "dead", "erased")
    counted = {place: newest.by_lane(place) for place in places}
    for name, lane in newest.lanes.items():
        scheduled, leased, *ended = (f"{counted[place][name]:,}" for place in places)
        oldest = _span(newest.ages_s[name]) if name in newest.ages_s else "-"
        waits = (scheduled, f"{lane.waiting:,}", oldest, leased, f"{lane.batches:,}")
        table.add_row(name, *waits, *ended)
    return table


def _lines(newest: Snapshot, recent: RecentRates, settings: Settings) -> list[Text]:
    allowed = settings.batch_rate_per_s
    rate = (
        f"{recent.requests_per_s:.2f} of {allowed:g} requests a second "
        f"({recent.requests_per_s / allowed:.0%}), {recent.events_per_s:,.0f} events a second"
    )
    fill = "no batch yet"
    if recent.events_per_batch is not None:
        share = recent.events_per_batch / settings.batch_events_max
        most = settings.batch_events_max
        fill = f"{recent.events_per_batch:.0f} of {most} events a batch ({share:.0%})"
    held = newest.counts.get("held_bytes", 0)
    room = (
        f"{held:,} of {settings.buffer_bytes_max:,} bytes ({held / settings.buffer_bytes_max:.0%})"
    )
    return [_stop(newest), _line("rate", rate), _line("fill", fill), _line("buffer", room)]


def _stop(newest: Snapshot) -> Text:
    paused = newest.paused
    if paused is not None:
        for_ = _span(newest.paused_for_s)
        return _line("paused", f"{paused.reason}, for {for_}", "bold red")
    if not newest.fences_loaded:
        return _line("paused", "fences not loaded for this server: see mm-tasks status", "yellow")
    return _line("paused", "no", "green")


def _outcomes(recent: RecentRates) -> Text:
    outcomes = dict(recent.outcomes)
    if recent.ambiguous:
        outcomes["maybe stored"] = recent.ambiguous
    span_s = min(WINDOW_S, round(recent.span_s))
    return _named(f"last {span_s} s", outcomes, "no request")


def _named(name: str, numbers: dict[str, int], nothing: str) -> Text:
    in_order = sorted(numbers.items(), key=lambda pair: (-pair[1], pair[0]))
    return _line(name, ", ".join(f"{label} {number:,}" for label, number in in_order) or nothing)


def _deadline(erasure: ErasureDeadline) -> Text:
    left_s = (erasure.due_at - erasure.read_at).total_seconds()
    left = f"{_span(left_s)} left" if left_s > 0 else f"overdue for {_span(-left_s)}"
    colour = "red" if erasure.mark >= 100 else "yellow" if erasure.mark else ""  # noqa: PLR2004 - percent
    return _line("", f"{erasure.id}  {erasure.state}, {left}", colour)


def _line(name: str, text: str, style: str = "") -> Text:
    return Text.assemble((f"{name:13}", "bold"), (text, style))


def _span(seconds: float) -> str:
    if seconds < 100:  # noqa: PLR2004 - two digits
        return f"{seconds:.1f} s"
    if seconds < _DAY_S:
        return f"{seconds / 3600:.0f} h" if seconds > 2 * 3600 else f"{seconds / 60:.0f} min"
    return f"{seconds / _DAY_S:.1f} days"
