"""What is done to a running system, and what it must survive. Each returns what it left behind.

A scenario has a world of its own, a seed that decides what happens in which order, and
ends by itself. Times on the clock differ from run to run; the plan does not.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import faults_vendor as vendor_faults
from faults_checker import Planned
from faults_world import BEAT, Life, worker, world

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from faults_checker import Run
    from faults_world import World

SETTINGS = {
    "MM_TASKS_BATCH_EVENTS_MAX": "50",
    "MM_TASKS_LEASE_S": "10",
    "MM_TASKS_REQUEST_TIMEOUT_S": "4",
    "MM_TASKS_PROBE_INTERVAL_S": "2",
    "MM_TASKS_ERASURE_PASSES_S": "0,1,2",
}
ROUTES = ("/v1/batch", "/v1/identify")
DRAIN_S = 180
# Calls to the vendor for each erasure, as in SETTINGS.
PASSES = 3


@dataclass(frozen=True)
class Plan:
    """What a scenario is given."""

    name: str
    seed: int
    events: int
    folder: Path

    @property
    def chance(self) -> random.Random:
        """Return the randomness of this scenario, from its start."""
        return random.Random(f"{self.seed} {self.name}")  # noqa: S311 - no secret


def plain(plan: Plan) -> Run:
    """Few faults and no kills: the shortest that looks at every invariant."""
    settings = {
        **SETTINGS,
        "MM_TASKS_BATCH_EVENTS_MAX": "6",
        "MM_TASKS_LEASE_S": "6",
        "MM_TASKS_REQUEST_TIMEOUT_S": "1",
    }
    errors = vendor_faults.errors()
    few = {name: errors[name] for name in ("500 before storing", "503 after storing")}
    with world(plan.folder, **settings) as here:
        here.faults(vendor_faults.spread(few, plan.chance, 3))
        once(here, here.producer(plan.events, 1, poison_every=plan.events // 2))
        finish_producers(here)
        start(here, workers=1, beats=1)
        here.run_until(here.is_drained, 25)
        here.collect_faults()
        return here.left_behind()


def vendor(plan: Plan) -> Run:
    """Every fault of the vendor once, in an order that the seed decides."""
    producers = 4
    with world(plan.folder, **SETTINGS) as here:
        rules = vendor_faults.everything(here.elsewhere)
        apart = max(2, plan.events // 50 // len(rules))
        here.faults(vendor_faults.spread(rules, plan.chance, apart))
        start(here, workers=2, beats=1)
        for _ in range(producers):
            once(here, here.producer(plan.events // producers, 20, poison_every=400))
        finish_producers(here)
        drain(here)
        here.collect_faults()
        return here.left_behind()


def redis(plan: Plan) -> Run:
    """Redis is killed 20 times under load; nobody else is ever started again."""
    return restarts(plan, times=20)


def restarts(plan: Plan, times: int) -> Run:
    """Kill Redis so often and start it again on its AOF, which is written before each answer."""
    chance = plan.chance
    with world(plan.folder, **SETTINGS, **same_broker()) as here:
        here.faults(vendor_faults.slow())
        start(here, workers=2, beats=1)
        keep_producing(here, plan.events)
        here.run_for(4)
        for _ in range(times):
            here.run_for(chance.uniform(1, 4))
            here.restart_redis(chance.uniform(0.1, 2.5))
        finish_producers(here)
        drain(here)
        here.planned["restarts of Redis"] = Planned(len(here.outages), times)
        here.collect_faults(wanted=times)
        return here.left_behind()


def same_broker() -> dict[str, str]:
    """Return the settings of the buffer's Redis as broker too, in the same database."""
    return {"MM_TASKS_BROKER_URL": ""}


def broker(plan: Plan) -> Run:
    """Messages vanish again and again; three beats at once; then no beat for a minute."""
    chance, times = plan.chance, 30
    with world(plan.folder, **SETTINGS) as here:
        start(here, workers=2, beats=3)
        keep_producing(here, plan.events)
        here.run_for(5)
        for _ in range(times):
            here.run_for(chance.uniform(0.3, 2))
            here.empty_broker()
        stop_beats(here)
        before = here.status()["counts"]["accepted"]
        here.run_for(60)
        accepted = here.status()["counts"]["accepted"] - before
        start(here, workers=0, beats=1)
        finish_producers(here)
        drain(here)
        here.planned["broker emptied"] = Planned(times, times)
        here.planned["accepted without a beat"] = Planned(accepted, 1)
        return here.left_behind()


def outage(plan: Plan) -> Run:
    """Let the vendor answer 500 for a minute, then revoke the key for 20 s."""
    return _outage(plan, ROUTES, revoked_s=20)


def partial(plan: Plan) -> Run:
    """Let one route answer 500 for a minute, while the other goes on."""
    return _outage(plan, ROUTES[:1], revoked_s=0)


def _outage(plan: Plan, routes: Sequence[str], revoked_s: float) -> Run:
    settings = {**SETTINGS, "MM_TASKS_PROBE_INTERVAL_S": "10"}
    with world(plan.folder, **settings) as here:
        start(here, workers=2, beats=1)
        keep_producing(here, plan.events)
        here.run_for(6)
        broken = down(here, 60, routes)
        if revoked_s:
            broken += revoked(here, revoked_s)
        goes_on = here.run_until(lambda: here.status()["paused"] is None, 30)
        here.planned["sending goes on"] = Planned(int(goes_on), 1)
        finish_producers(here)
        drain(here)
        return here.left_behind(broken)


def down(here: World, seconds: float, routes: Sequence[str]) -> list[str]:
    """Answer 500 on these routes for so long; return what was not as promised."""
    since = time.time()
    fault = {**vendor_faults.errors()["500 before storing"], "between": (since, since + seconds)}
    here.faults({f"500 from {route}": {**fault, "route": route} for route in routes})
    here.run_for(seconds)
    found = sum(row["status"] == 500 for row in here.requests_since(since))
    here.collect_faults(wanted=1)
    here.run_until(lambda: here.status()["paused"] is None, 30)
    here.run_for(3)
    return [f"outage: {found} requests in {seconds:.0f} s of 500"] if found >= 40 else []


def revoked(here: World, seconds: float) -> list[str]:
    """Revoke the key for so long; return what was not as promised."""
    here.set_keys("sk_test_another_key")
    since = time.time()
    here.run_for(seconds)
    paused = here.status()["paused"]
    refused = [row for row in here.requests_since(since) if row["status"] == 401]
    here.set_keys()
    here.planned["requests with a revoked key"] = Planned(len(refused), 1)
    broken = []
    if len(refused) > 4:
        broken.append(f"revoked key: {len(refused)} requests in {seconds:.0f} s")
    if paused is None or paused["reason"] != "unauthorized: 401 invalid_api_key":
        broken.append(f"revoked key: status shows {paused}")
    return broken


def start(here: World, workers: int, beats: int) -> None:
    """Start workers and beats that nobody kills; one that ends by itself is trouble."""
    pools = ("threads", "prefork")
    for index in range(workers):
        name = f"worker{len(here.slots)}"
        command = (*worker(4, pools[index % 2]), "-n", f"{name}@%h")
        here.slot(name, lambda command=command: Life(command, capacity=4))
    for _ in range(beats):
        here.slot(f"beat{len(here.slots)}", lambda: Life(BEAT))


def stop_beats(here: World) -> None:
    """End every beat with SIGTERM."""
    for slot in [slot for slot in here.slots if slot.name.startswith("beat")]:
        here.slots.remove(slot)
        slot.end()


def once(here: World, life: Life) -> None:
    """Start a producer that is not started again."""
    lives = iter([life])
    here.slot("producer", lambda: next(lives, None))


def keep_producing(here: World, events: int, slots: int = 3) -> None:
    """Start producers that report about `events` a minute together, one life after another."""
    every_ms = max(1, 60_000 * slots // max(1, events))
    for _ in range(slots):
        here.slot("producer", lambda: here.producer(300, every_ms))


def finish_producers(here: World) -> None:
    """Start no further producer, and wait for those that run."""
    producers = [slot for slot in here.slots if slot.name == "producer"]
    for slot in producers:
        slot.close()
    ended = here.run_until(lambda: all(slot.process is None for slot in producers), 300)
    here.planned["producers that ended"] = Planned(int(ended), 1)


def drain(here: World, within_s: float = DRAIN_S) -> None:
    """Wait until nothing is left to send; whether it came so far is the checker's to say."""
    here.run_until(here.is_drained, within_s)
    people = {leaver.person for leaver in here.leavers()}
    here.run_until(lambda: people <= {p for p, n in here.passes().items() if n >= PASSES}, 60)
    unfinished = people - {p for p, n in here.passes().items() if n >= PASSES}
    if unfinished:
        here.trouble.append(f"{len(unfinished)} of {len(people)} erasures are not finished")


SCENARIOS: dict[str, Callable[[Plan], Run]] = {
    scenario.__name__: scenario for scenario in (vendor, redis, broker, outage, partial, plain)
}
