"""Run scenarios of faults and say what came through; see `scripts/faults` for how to call it."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from faults_checker import check
from faults_field import FIELD
from faults_kills import kills, short
from faults_scenarios import SCENARIOS, Plan

if TYPE_CHECKING:
    from faults_checker import Run, Verdict

ALL = {**SCENARIOS, **FIELD, "kills": kills, "short": short}
DEFAULT = ("vendor", "kills", "redis", "broker", "outage", "partial", *FIELD)
# Where it is a pace and not a number, so many a minute.
EVENTS = {
    "plain": 300,
    "short": 3000,
    "kills": 1500,
    "broker": 5000,
    "outage": 3000,
    "partial": 3000,
    "projects": 3000,
    "clocks": 3000,
    "night": 200,
}
EVENTS_DEFAULT = 10_000


def run(name: str, seed: int, events: int | None) -> int:
    """Run one scenario, print what was found, and return the exit code."""
    events = events or EVENTS.get(name, EVENTS_DEFAULT)
    folder = Path(tempfile.mkdtemp(prefix=f"mm_faults_{name}_"))
    print(f"{name}: seed {seed}, {events} events", flush=True)
    since = time.monotonic()
    try:
        left = ALL[name](Plan(name, seed, events, folder))
    except Exception:  # noqa: BLE001 - whatever stopped the run, it proves nothing
        traceback.print_exc()
        print(f"  INVALID: it was stopped; logs: {folder}\n", flush=True)
        return 2
    verdict = check(left)
    verdict.figures["seconds"] = time.monotonic() - since
    show(left, verdict)
    if verdict.code:
        print(f"  journal and logs: {folder}")
    else:
        shutil.rmtree(folder)
    again = f"scripts/faults --seed {seed} --scenario {name} --events {events}"
    print(f"  {('KEPT', 'BROKEN', 'INVALID')[verdict.code]}; again: {again}\n", flush=True)
    return verdict.code


def show(left: Run, verdict: Verdict) -> None:
    """Print faults, figures and findings."""
    for name, planned in left.planned.items():
        print(f"  {name:34} {planned.hits:10,}  of {planned.wanted:,}")
    for name, figure in verdict.figures.items():
        text = f"{figure:12,.2f}" if isinstance(figure, float) else f"{figure:>9,}"
        print(f"  {name:34} {text}")
    counts = ", ".join(f"{place} {number:,}" for place, number in left.counts.items())
    print(f"  counts: {counts}")
    for text in verdict.broken:
        print(f"  BROKEN {text}")
    for text in verdict.invalid:
        print(f"  INVALID {text}")


def main() -> int:
    """Run what was asked for; the worst of all codes: broken before invalid."""
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeats a run; none: a new one")
    parser.add_argument("--scenario", action="append", choices=sorted(ALL), metavar="NAME")
    parser.add_argument("--events", type=int, help="how many, or how many a minute")
    parser.add_argument("--short", action="store_true", help="a mixture, within a minute")
    given = parser.parse_args()
    # So that what was started is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    names = given.scenario or (["short"] if given.short else DEFAULT)
    codes = {run(name, seed, given.events) for name in names}
    return next((code for code in (1, 2) if code in codes), 0)


if __name__ == "__main__":
    sys.exit(main())
