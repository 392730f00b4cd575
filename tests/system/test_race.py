"""P1, P3 and P6 under any interleaving of an erasure with everything else: see `race`.

Each seed checks these promises, at every step and at its end:

- `I1`  once P is fenced, no claim makes a batch that holds an event of P;
- `I2`  no attempt with one is admitted;
- `I3`  none is accepted; each refusal is counted, and no event of another person is refused;
- `I4`  the erasure completes, and then the *vendor* has no row with P's user id; *redis* holds
        an id or a tag of P only in the fence; the *others*' events are all stored, and repeated
        no more often than there was a doubt; the *counts* add up; the *log* verifies, has each
        pass acknowledged, none called before it was due and each its interval after the one
        before, and no id of P is left in the database's files; every attempt to load the
        *fences* succeeds, since SQL is up, or leaves it to another attempt;
- `I5`  while the vendor refuses the *key*, no erasure calls it but as the probe.

Each part of the protocol is needed: without one of them the seeds turn red.

    the part removed                    found by
    the fence at claim                  I1
    the fence at begin                  I2
    the fence at append                 I3
    quiesce                             I4 vendor: a request arrives after the last pass
    the second pass                     I4 vendor: the same, of an attempt that had ended
    the purge of what waits             I4 redis
    the purge of dead letters           I4 redis
    the interval between two passes     I4 log
    the pause of the project            I5 key
"""

import hashlib
import os
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest

from mm_tasks.buffer import batches, producer, purge
from mm_tasks.buffer.pauses import Pauses
from mm_tasks.buffer.purge import Purge
from mm_tasks.buffer.scripts import Script
from mm_tasks.erasure import steps
from tests.system import race
from tests.system.race import Ground

# `scripts/race` sets both.
SEEDS, FIRST = (
    int(os.environ.get(f"RACE_{name}", n)) for name, n in (("SEEDS", 200), ("FIRST", 0))
)
BLOCK = 50
# A seed among so many must find a sabotage.
SEEDS_SABOTAGED = 100


@pytest.fixture
def ground(redis, monkeypatch):
    # A step of a purge reads few records, and a purge has many steps.
    monkeypatch.setattr(purge, "STEP", 3)
    # In memory if possible: no seed tests a loss of power.
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="mm_race_", dir=memory if memory.is_dir() else None))
    ground = Ground(redis, folder)
    yield ground
    ground.close()
    shutil.rmtree(folder)


def broken(ground, seeds):
    """Yield the seeds that broke a promise, with the error."""
    for seed in seeds:
        try:
            race.run(ground, seed)
        except Exception as error:  # noqa: BLE001 - yielded with its seed
            yield seed, error


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, BLOCK))
def test_an_erasure_keeps_its_promises_in_any_interleaving(ground, first):
    seeds = range(first, min(first + BLOCK, FIRST + SEEDS))

    assert {seed: str(error) for seed, error in broken(ground, seeds)} == {}


def test_a_seed_is_the_same_history_each_time(ground):
    """Otherwise nobody could examine a seed that failed."""
    for seed in (3, 14):
        assert race.run(ground, seed) == race.run(ground, seed)


def without_fence(script_name, call):
    """A script that reads the fence, and lets everybody pass."""
    script = Script(script_name)
    assert script.text.count(call) == 1, "the script calls the fence in another way now"
    script.text = script.text.replace(call, "{}")
    script.sha = hashlib.sha1(script.text.encode()).hexdigest()
    return script


def blind_scan(self, subjects, keep_alive, *, scan=Purge.scan, **how):
    scans = scan(self, subjects, keep_alive, **how)
    return {name: found._replace(sending_ms=0) for name, found in scans.items()}


def hurried(kind, next_at, then=steps._then):  # noqa: SLF001 - the bug is planted there
    """Let a pass be due too early, as if it were counted from quiesce."""
    return then(kind, next_at and next_at - timedelta(seconds=20))


def at_claim():
    return batches, "_CLAIM", without_fence("batch_claim", "fenced(KEYS[7], page, 15)")


def at_begin():
    return batches, "_BEGIN", without_fence("batch_begin", "fenced(KEYS[6], records, 15)")


def at_append():
    call = "fenced(KEYS[3], {unpack(ARGV, first)}, 1)"
    return producer, "_APPEND", without_fence("append", call)


# The promise that is broken, and the replacement.
SABOTAGES = {
    "fence at claim": ("I1", at_claim),
    "fence at begin": ("I2", at_begin),
    "fence at append": ("I3", at_append),
    "quiesce": ("I4 vendor", lambda: (Purge, "scan", blind_scan)),
    "second pass": ("I4 vendor", lambda: (race, "PASSES_S", (0.0,))),
    "interval of the passes": ("I4 log", lambda: (steps, "_then", hurried)),
    "pause of the key": ("I5 key", lambda: (Pauses, "is_paused", lambda _: False)),
    "purge of what waits": ("I4 redis", lambda: (Purge, "_pending", lambda *_: iter(()))),
    "purge of dead letters": ("I4 redis", lambda: (Purge, "_dead", lambda *_: iter(()))),
}


@pytest.mark.parametrize(("promise", "sabotage"), SABOTAGES.values(), ids=SABOTAGES)
def test_a_protocol_without_one_of_its_parts_breaks_a_promise(
    monkeypatch, request, promise, sabotage
):
    monkeypatch.setattr(*sabotage())
    # Made now, since a buffer packs its scripts at once.
    ground = request.getfixturevalue("ground")

    errors = (error for _, error in broken(ground, range(SEEDS_SABOTAGED)))
    assert any(getattr(error, "promise", "") == promise for error in errors)
