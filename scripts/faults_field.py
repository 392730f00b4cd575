"""What the field does to a system that is all right by itself; people are erased throughout.

Two projects on one Redis, clocks that step, hops that change answers, a filter that looks into
bodies, and a night without a worker.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import faults_vendor as vendor_faults
import requests
from faults_checker import Planned, check
from faults_clock import Clock
from faults_producer import POISON
from faults_scenarios import SETTINGS, drain, finish_producers, keep_producing, once, start
from faults_world import BEAT, Life, worker, world

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults_checker import Run
    from faults_scenarios import Plan
    from faults_world import World

HOUR_S, STEP_S = 3600.0, 600.0
# An event, and a first call to forget, leave within this time of a worker that is there.
FIRST_S = 5.0
NIGHT_BYTES_MAX = 100_000
# Beside a filter that refuses a few events, half of the others arrive within this time.
PROMPT_S, HALF = 3.0, 0.5
# Of a hundred answers.
SHARES = {"interim": 0.2, "gzip": 0.2, "page": 0.06, "late": 0.03, "cut": 0.08, "leftover": 0.1}


def projects(plan: Plan) -> Run:
    """Two projects share Redis and broker; each has a key and a vendor of its own."""
    other = {**SETTINGS, "MM_TASKS_PROJECT": "shop"}
    with (
        world(plan.folder, **SETTINGS) as here,
        world(plan.folder / "shop", beside=here, **other) as shop,
    ):
        for each in (here, shop):
            each.set_keys(each.key)
            start(each, workers=1, beats=1)
            keep_producing(each, plan.events)
            once(each, each.officer(15, 500))
        # The shop has no worker for a while: the other project's must not take its place.
        here.run_for(3)
        for turn in range(10):
            (here, shop)[turn % 2].run_for(3)
        for each in (here, shop):
            finish_producers(each)
            drain(each)
        theirs = check(shop.left_behind())
        return here.left_behind([f"shop: {text}" for text in (*theirs.broken, *theirs.invalid)])


def clocks(plan: Plan) -> Run:
    """Every clock steps, of Redis by ten minutes and of the others by an hour, 12 times."""
    chance, times = plan.chance, 12
    with world(plan.folder, has_own_clock=True, **SETTINGS) as here:
        assert here.clock is not None
        throttles = vendor_faults.throttles()
        here.faults({name: {**throttles[name], "after": 5 * n} for n, name in enumerate(throttles)})
        worker_clocks = [Clock(plan.folder / f"worker{n}.clock", ahead) for n, ahead in AHEAD]
        for number, clock in enumerate(worker_clocks):
            command = (*worker(4), "-n", f"worker{number}@%h")
            env = with_clock(here, clock)
            here.slot(f"worker{number}", lambda c=command, e=env: Life(c, e, capacity=4))
        beat_clock = Clock(plan.folder / "beat.clock")
        here.slot("beat", lambda: Life(BEAT, with_clock(here, beat_clock)))
        keep_producing(here, plan.events)
        once(here, here.officer(30, 1500))
        here.run_for(6)
        for turn in range(times):
            here.clock.set(chance.choice((-STEP_S, 0, STEP_S)))
            beat_clock.set(chance.choice((-HOUR_S, 0, HOUR_S)))
            worker_clocks[turn % 2].set(chance.choice((-HOUR_S, 0, HOUR_S)))
            here.run_for(chance.uniform(3, 8))
        finish_producers(here)
        drain(here)
        here.planned["clocks that stepped"] = Planned(times, times)
        here.collect_faults()
        silent_s = longest_silence_s(here)
        broken = [f"clocks: nothing was sent for {silent_s:.0f} s"] if silent_s > SILENT_S else []
        return here.left_behind(broken)


def with_clock(here: World, clock: Clock) -> dict[str, str]:
    """Return the variables of a Python that has this clock."""
    return {**clock.env, "PYTHONPATH": f"{clock.python_path}:{here.env['PYTHONPATH']}"}


# How far the clocks of the two workers are ahead at first.
AHEAD = ((0, HOUR_S), (1, -HOUR_S))
# A step may cost ten seconds, and the vendor's longest throttle is 12 s.
SILENT_S = 24.0


def longest_silence_s(here: World) -> float:
    """Return the longest time between two requests with events; producers never pause."""
    starts = sorted(row["at"] for row in here.journal() if row["route"] == "/v1/batch")
    return max(later - earlier for earlier, later in pairwise(starts))


def hops(plan: Plan) -> Run:
    """Let a hop send interim answers, and pack, replace, delay and cut the vendor's answers."""
    shares = (f"--fault={kind}={share}" for kind, share in SHARES.items())
    # Longer than the request timeout.
    return _behind_hop(plan, "--seed", str(plan.seed), "--late-s", "6", *shares)


def filtered(plan: Plan) -> Run:
    """Let a filter refuse every body that holds a word, with a page and without a code."""
    return _behind_hop(plan, "--filter", POISON, poison_every=3000)


def _behind_hop(plan: Plan, *options: str, poison_every: int = 0) -> Run:
    # With the vendor's limit: the search for a refused event must not use up the rate.
    settings = {**SETTINGS, "MM_TASKS_BATCH_EVENTS_MAX": "500"}
    with world(plan.folder, **settings) as here:
        hop = here.hop(*options)
        start(here, workers=2, beats=1)
        for _ in range(3):
            once(here, here.producer(plan.events // 3, 15, poison_every))
        once(here, here.officer(20, 1500))
        finish_producers(here)
        requests.post(f"{hop}/_hop", json={}, timeout=30)
        drain(here)
        counts = requests.get(f"{hop}/_hop", timeout=30).json()
        kinds = ("filtered",) if poison_every else SHARES
        here.planned |= {f"hop: {kind}": Planned(counts.get(kind, 0), 1) for kind in kinds}
        spoiled = requests.get(f"{hop}/_hop/spoiled", timeout=30).json()
        paused = here.status()["paused"]
        broken = [f"after all arrived it is paused: {paused}"] if paused else []
        if poison_every and (late := _share_late(here)) > HALF:
            broken.append(f"{late:.0%} of the events arrived after {PROMPT_S} s or later")
        return replace(here.left_behind(broken), spoiled=spoiled)


def _share_late(here: World) -> float:
    """Return the share of the delivered events that were older than `PROMPT_S`."""
    counted = {
        name.decode().removeprefix("track:age_s:"): int(number)
        for name, number in here.redis.hgetall(f"{{mm:{here.project}}}:tallies").items()
        if name.startswith(b"track:age_s:") and not name.endswith(b":sum")
    }
    late = sum(n for bound, n in counted.items() if bound == "inf" or float(bound) > PROMPT_S)
    here.planned["events that arrived in time"] = Planned(sum(counted.values()) - late, 1)
    return late / max(1, sum(counted.values()))


def night(plan: Plan) -> Run:
    """Two beats ask for a flush thousands of times while no worker is there; then one comes."""
    hurry = {"MM_TASKS_FLUSH_INTERVAL_S": "0.02"}
    with world(plan.folder, **{**SETTINGS, "MM_TASKS_BROKER_URL": ""}) as here:
        for number in range(2):
            here.slot(f"beat{number}", lambda: Life(BEAT, hurry))
        here.run_for(6)
        before = _used_bytes(here)
        here.run_for(30)
        grown = _used_bytes(here) - before
        once(here, here.producer(plan.events, 1))
        once(here, here.officer(1, 10))
        finish_producers(here)
        start(here, workers=1, beats=0)
        here.run_until(lambda: bool(here.redis.hlen(f"{{mm:{here.project}}}:signs") > 2), 60)
        since = time.time()
        firsts = {
            "event": lambda: bool(here.requests_since(since - 60)),
            "erasure": lambda: bool(here.passes()),
        }
        broken = [text for text in (_late(here, *each) for each in firsts.items()) if text]
        if grown > NIGHT_BYTES_MAX:
            broken.append(f"a night of two beats took {grown:,} bytes of Redis")
        drain(here)
        here.planned["bytes of a night"] = Planned(max(0, grown), 0)
        return here.left_behind(broken)


def _late(here: World, name: str, happened: Callable[[], bool]) -> str:
    is_there = here.run_until(happened, FIRST_S)
    return "" if is_there else f"the first {name} did not leave within {FIRST_S:.0f} s"


def _used_bytes(here: World) -> int:
    return int(here.redis.info("memory")["used_memory_dataset"])


FIELD: dict[str, Callable[[Plan], Run]] = {
    scenario.__name__: scenario for scenario in (projects, clocks, hops, filtered, night)
}
