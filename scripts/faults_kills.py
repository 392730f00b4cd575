"""SIGKILL, at every step and at any time: workers, beats and producers die and are replaced.

Every second life of a worker is armed with one failpoint, so that who died by it is
known; the others die at a random time. Steps that are seldom reached are armed until
they were.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import faults_vendor as vendor_faults
from faults_checker import Planned
from faults_scenarios import SETTINGS, drain, finish_producers, once
from faults_world import BEAT, Life, worker, world

if TYPE_CHECKING:
    import random

    from faults_checker import Run
    from faults_scenarios import Plan
    from faults_world import World

KILLS = 200
# Scripts that a worker runs while it flushes and sends.
SCRIPTS = (
    *("batch_readiness", "rate_reserve", "batch_claim", "batch_assign_slot"),
    *("batch_take_over", "batch_begin", "batch_ack", "batch_release", "batch_bury"),
    *("batch_bisect", "batch_filter", "pause_start", "pause_probe", "pause_resume"),
    "pause_throttle",
)
FREQUENT = {
    *("batch_readiness", "rate_reserve", "batch_claim", "batch_begin"),
    *("send", "batch_ack"),
}
THREADS = 2


def failpoints() -> list[str]:
    """Return the failpoints of workers, before and after each of their steps."""
    return [f"{step}.{side}" for step in (*SCRIPTS, "send") for side in ("before", "after")]


class Killer:
    """Decides how each worker dies; `points` are the failpoints that must be hit."""

    def __init__(self, here: World, chance: random.Random, points: list[str]) -> None:
        """Start with every failpoint missing."""
        self._here, self._chance, self._points = here, chance, points
        self._pending: list[str] = []
        self._turn = count()
        self.is_over = False

    def missing(self) -> list[str]:
        """Return the failpoints at which nobody died so far."""
        return [point for point in self._points if not self._here.deaths[point]]

    def life(self, name: str) -> Life:
        """Return the next life of a worker."""
        chance, turn = self._chance, next(self._turn)
        command = (*worker(THREADS), "-n", f"{name}-{turn}@%h")
        if self.is_over:
            return Life(command, capacity=THREADS)
        if turn % 2 == 0 and self._points:
            rule = self._failpoint()
            # A batch is buried whole only where doubt is for a person to decide.
            env = {"MM_TASKS_ON_AMBIGUOUS": "park"} if rule.startswith("batch_bury") else {}
            dies_after_s = chance.uniform(6, 12)
            return Life(command, env, rule, dies_after_s=dies_after_s, capacity=THREADS)
        is_prefork = chance.random() < 0.4
        if is_prefork:
            command = (*worker(THREADS, "prefork"), "-n", f"{name}-{turn}@%h")
        return Life(
            command,
            dies_after_s=chance.uniform(1.5, 5),
            capacity=THREADS,
            whole_group=not is_prefork or chance.random() < 0.5,
        )

    def beat(self) -> Life:
        """Return the next life of a beat."""
        return Life(BEAT, dies_after_s=None if self.is_over else self._chance.uniform(3, 12))

    def producer(self, every_ms: int, poison_every: int) -> Life:
        """Return the next life of a producer."""
        chance = self._chance
        life = self._here.producer(300, every_ms, poison_every)
        if chance.random() < 0.5:
            point = chance.choice(("append.before", "append.after"))
            return replace(life, failpoint=f"{point}=0.02")
        return replace(life, dies_after_s=chance.uniform(1, 6))

    def _failpoint(self) -> str:
        if not self._pending:
            self._pending = self.missing() or list(self._points)
            self._chance.shuffle(self._pending)
        point = self._pending.pop()
        is_frequent = point.partition(".")[0] in FREQUENT
        chance = self._chance.choice((0.1, 0.4, 1)) if is_frequent else 1
        return f"{point}={chance}"


def kills(plan: Plan) -> Run:
    """Kill workers 200 times, at every failpoint and at random; beats and producers too."""
    chance, points = plan.chance, failpoints()
    with world(plan.folder, **SETTINGS) as here:
        here.faults(vendor_faults.steady())
        killer = Killer(here, chance, points)
        _populate(here, killer, plan.events)
        once(here, here.officer(100, 2000))
        here.run_until(lambda: len(here.kills) >= KILLS and not killer.missing(), 900)
        _calm_down(here, killer)
        here.planned["kills of workers"] = Planned(len(here.kills), KILLS)
        for point in (*points, "append.before", "append.after"):
            here.planned[f"died at {point}"] = Planned(here.deaths[point], 1)
        here.planned["random kills"] = Planned(here.deaths["random kill"], KILLS // 4)
        return here.left_behind()


def short(plan: Plan) -> Run:
    """Run a mixture of all within a minute: some faults, kills and restarts, a broker emptied."""
    chance = plan.chance
    names = ("500 before storing", "502 after storing", "503 before storing", "504 after storing")
    names += ("closed after storing", "cut_headers, stored", "closed before reading")
    known = vendor_faults.errors() | vendor_faults.breaks()
    some = {name: known[name] for name in names}
    points = ["claim.after", "begin.after", "send.before", "send.after", "ack.before", "ack.after"]
    quick = {"MM_TASKS_REQUEST_TIMEOUT_S": "2", "MM_TASKS_LEASE_S": "7"}
    with world(plan.folder, **{**SETTINGS, **quick}) as here:
        here.faults(vendor_faults.spread(some, chance, 2))
        killer = Killer(here, chance, points)
        _populate(here, killer, plan.events, workers=2, producers=2, poison_every=0)
        once(here, here.producer(60, 20, poison_every=60))
        once(here, here.officer(8, 1000))
        for _ in range(2):
            here.run_for(chance.uniform(4, 6))
            here.restart_redis(chance.uniform(0.1, 1))
            here.run_for(2)
            here.empty_broker()
        here.run_until(lambda: len(here.kills) >= 6 and here.faults_happened(), 20)
        _calm_down(here, killer)
        here.planned["kills of workers"] = Planned(len(here.kills), 6)
        here.planned["restarts of Redis"] = Planned(len(here.outages), 2)
        return here.left_behind()


def _populate(  # noqa: PLR0913 - how many of each
    here: World,
    killer: Killer,
    events: int,
    *,
    workers: int = 3,
    producers: int = 3,
    poison_every: int = 150,
) -> None:
    every_ms = max(1, 60_000 * producers // events)
    for index in range(workers):
        name = f"worker{index}"
        here.slot(name, lambda name=name: killer.life(name))
    here.slot("beat", killer.beat)
    for _ in range(producers):
        here.slot("producer", lambda: killer.producer(every_ms, poison_every))


def _calm_down(here: World, killer: Killer) -> None:
    """Kill nobody any more, but for those who are armed; wait until all has arrived."""
    killer.is_over = True
    finish_producers(here)
    here.collect_faults()
    # What waits may still hold some.
    here.faults(vendor_faults.poison())
    for slot in here.slots:
        if slot.process is not None:
            slot.kill()
    drain(here)
