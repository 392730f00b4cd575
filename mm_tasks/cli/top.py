"""`mm-tasks top`: what `status` shows and what happened lately, as it changes. Reads only.

Redis is asked at each interval; dead letters and erasures change slowly and cost more, so
they are read less often. Whatever is away is named, and the rest is shown.
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

# Of what changes slowly.
SLOW_S = 10.0
ERASURES_MAX = 8
_DAY_S = 86_400


def run(*, interval_s: float, once: bool) -> None:
    """Show the view until Ctrl-C or SIGTERM; once, where nobody watches or it is asked for."""
    watch = RefreshingView(runtime.current())
    if once or not sys.stdout.isatty():
        # Rates are the difference of two looks.
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
    """What was seen so far."""

    current: Runtime
    window: RateWindow = field(default_factory=RateWindow)
    reasons: dict[str, int] = field(default_factory=dict)
    erasures: str = ""
    deadlines: list[ErasureDeadline] = field(default_factory=list)
    slow_at_s: float = -SLOW_S
    look: Snapshot | None = None
    away_since_s: float | None = None

    def view(self) -> Group:
        """Look again, and return what is to be shown."""
        settings = self.current.settings
        away: Text | None = None
        is_due = time.monotonic() - self.slow_at_s >= SLOW_S
        try:
            self.look = snapshot.read(self.current.worker_redis, settings.project)
            if is_due:
                self.reasons = snapshot.dead_reasons(self.current.worker_redis, settings.project)
        except RedisError as error:
            away = self._away(type(error).__name__)
        else:
            self.window.add(self.look)
            self.away_since_s = None
        if is_due:
            self._look_at_erasures()
            self.slow_at_s = time.monotonic()
        return Group(*self._parts(settings, away))

    def _away(self, why: str) -> Text:
        if self.away_since_s is None:
            self.away_since_s = time.monotonic()
        for_s = time.monotonic() - self.away_since_s
        return Text(f"Redis does not answer ({why}), for {for_s:.0f} s", style="bold red")

    def _look_at_erasures(self) -> None:
        try:
            found, self.deadlines = self.current.look_at_erasures(datetime.now(UTC))
        except (AuditUnavailable, ConfigurationError) as error:
            self.erasures, self.deadlines = f"unknown: {error}", []
        else:
            self.erasures = checks.in_words(found)

    def _parts(self, settings: Settings, away: Text | None) -> list[Any]:
        parts: list[Any] = [_head(settings.project, self.look)]
        if away is not None:
            parts.append(away)
        if self.look is not None:
            lately = self.window.rates()
            parts += [_places(self.look), *_lines(self.look, lately, settings), _outcomes(lately)]
            parts.append(_named("dead letters", self.reasons, "none"))
        parts.append(_line("erasures", self.erasures))
        parts += [_deadline(one) for one in self.deadlines[:ERASURES_MAX]]
        if len(self.deadlines) > ERASURES_MAX:
            parts.append(_line("", f"and {len(self.deadlines) - ERASURES_MAX} more"))
        return parts


def _head(project: str, look: Snapshot | None) -> Text:
    at = "" if look is None else f"  {datetime.fromtimestamp(look.now_us / 1e6, UTC):%H:%M:%S} UTC"
    return Text(f"mm-tasks  project {project}{at}", style="bold")


def _places(look: Snapshot) -> Table:
    table = Table("lane", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("waiting", "oldest", "leased", "batches", "delivered", "dead", "erased"):
        table.add_column(name, justify="right")
    places = ("leased", "delivered", "dead", "erased")
    counted = {place: look.by_lane(place) for place in places}
    for name, lane in look.lanes.items():
        leased, *ended = (f"{counted[place][name]:,}" for place in places)
        oldest = _span(look.ages_s[name]) if name in look.ages_s else "-"
        table.add_row(name, f"{lane.waiting:,}", oldest, leased, f"{lane.batches:,}", *ended)
    return table


def _lines(look: Snapshot, lately: RecentRates, settings: Settings) -> list[Text]:
    allowed = settings.batch_rate_per_s
    rate = (
        f"{lately.requests_per_s:.2f} of {allowed:g} requests a second "
        f"({lately.requests_per_s / allowed:.0%}), {lately.events_per_s:,.0f} events a second"
    )
    fill = "no batch yet"
    if lately.events_per_batch is not None:
        share = lately.events_per_batch / settings.batch_events_max
        most = settings.batch_events_max
        fill = f"{lately.events_per_batch:.0f} of {most} events a batch ({share:.0%})"
    held = look.counts.get("held_bytes", 0)
    room = (
        f"{held:,} of {settings.buffer_bytes_max:,} bytes ({held / settings.buffer_bytes_max:.0%})"
    )
    return [_stop(look), _line("rate", rate), _line("fill", fill), _line("buffer", room)]


def _stop(look: Snapshot) -> Text:
    paused = look.paused
    if paused is not None:
        for_ = _span(look.paused_for_s)
        return _line("paused", f"{paused.reason}, for {for_}", "bold red")
    if not look.fences_loaded:
        return _line("paused", "fences not loaded for this server: see mm-tasks status", "yellow")
    return _line("paused", "no", "green")


def _outcomes(lately: RecentRates) -> Text:
    found = dict(lately.outcomes)
    if lately.ambiguous:
        found["maybe stored"] = lately.ambiguous
    span_s = min(WINDOW_S, round(lately.span_s))
    return _named(f"last {span_s} s", found, "no request")


def _named(name: str, numbers: dict[str, int], nothing: str) -> Text:
    in_order = sorted(numbers.items(), key=lambda pair: (-pair[1], pair[0]))
    return _line(name, ", ".join(f"{what} {number:,}" for what, number in in_order) or nothing)


def _deadline(one: ErasureDeadline) -> Text:
    left_s = (one.due_at - datetime.now(UTC)).total_seconds()
    left = f"{_span(left_s)} left" if left_s > 0 else f"overdue for {_span(-left_s)}"
    colour = "red" if one.mark >= 100 else "yellow" if one.mark else ""  # noqa: PLR2004 - percent
    return _line("", f"{one.id}  {one.state}, {left}", colour)


def _line(name: str, said: str, style: str = "") -> Text:
    return Text.assemble((f"{name:13}", "bold"), (said, style))


def _span(seconds: float) -> str:
    if seconds < 100:  # noqa: PLR2004 - two digits
        return f"{seconds:.1f} s"
    if seconds < _DAY_S:
        return f"{seconds / 3600:.0f} h" if seconds > 2 * 3600 else f"{seconds / 60:.0f} min"
    return f"{seconds / _DAY_S:.1f} days"
