"""`scripts/faults` keeps every promise, and finds each bug planted in a copy of the package.

Without the bugs nobody knows whether the checker checks the promises that it claims to check.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mm_tasks
from tests.system.processes import SCRIPTS, run_python

# The exit code of a run that proves nothing.
INVALID = 2
PACKAGE = Path(mm_tasks.__file__).parent
RELEASED_ONCE = """(buffer.ack(batch_id, attempt) if attempt.attempt > 1
    else buffer.release(batch_id, attempt, wait_ms=0, grace_ms=0))"""
# The bug, its file, the code replaced, the replacement, and: events, exit code, words printed.
BUGS = {
    "an ambiguous failure is taken for a success": (
        "delivery/retry.py",
        "return Retry(backoff_s(attempt.in_a_row, random_s))",
        "return Ack(None)",
        (120, 1, "BROKEN lost: "),
    ),
    "a delivered batch is sent once more": (
        "delivery/settle.py",
        "buffer.ack(batch_id, attempt, count_differs=differs)",
        RELEASED_ONCE,
        (90, 1, "BROKEN sent again without a cause: "),
    ),
    "a slot is always free now": (
        "buffer/lua/rate_reserve.lua",
        "local slot = math.max(now, tat - tolerance)",
        "local slot = now",
        (300, 1, "BROKEN over the rate: "),
    ),
    "what was delivered is not counted": (
        "buffer/lua/batch_ack.lua",
        "count(KEYS[5], lane .. ':delivered', #taken)",
        "",
        (60, 1, "BROKEN counts: "),
    ),
    "a batch holds an event that nobody reported": (
        "client/api.py",
        'b",".join(bodies)',
        'b",".join([*bodies, b\'{"event":"stray","event_id":"stray"}\'])',
        (60, 1, "BROKEN unexpected: "),
    ),
    "what a refusal shows to be good is buried too": (
        "buffer/lua/batch_bisect.lua",
        "if sent > 1 then",
        "if sent > 3 then",
        (90, 1, "BROKEN dead letters that the vendor would take: "),
    ),
    "only the poison is ever refused": (
        "sandbox/faults.py",
        "return next((fault for fault in faults if fault.take(route, at, body)), None)",
        "return next((f for f in faults if f.poison and f.take(route, at, body)), None)",
        (60, 2, "INVALID vendor: "),
    ),
}


def plant(name, folder):
    """Put a copy of the package with this bug into the folder."""
    file_name, old, new, _ = BUGS[name]
    shutil.copytree(PACKAGE, folder / "mm_tasks")
    file = folder / "mm_tasks" / file_name
    text = file.read_text()
    assert text.count(old) == 1, f"{file_name} no longer holds: {old}"
    file.write_text(text.replace(old, new))


def run(name, folder):
    plant(name, folder)
    events = BUGS[name][-1][0]
    options = ("--seed", "1", "--scenario", "plain", "--events", str(events))
    env = {**os.environ, "PYTHONPATH": str(folder), "TMPDIR": str(folder)}
    return run_python(SCRIPTS / "faults_run.py", *options, env=env, cwd=folder, timeout=100)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run several at once: most of the time they wait for their slots."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        yield {
            name: pool.submit(run, name, tmp_path_factory.mktemp(f"bug{number}"))
            for number, name in enumerate(BUGS)
        }


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_reported(runs, name):
    *_, (_, code, words) = BUGS[name]
    done = runs[name].result()

    assert words in done.stdout, done.stdout + done.stderr
    assert done.returncode == code


@pytest.mark.timeout(650)
@pytest.mark.skipif("CI" not in os.environ, reason="takes a minute; scripts/faults --short runs it")
def test_a_mixture_of_faults_loses_nothing(tmp_path):
    """Kills, restarts of Redis, an emptied broker and a vendor that fails, all in one run.

    A run that did not meet all of its faults, on a machine too slow for it, proves nothing:
    try another seed. A run that broke a promise fails the test.
    """
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    for seed in ("1", "2", "3"):
        command = (SCRIPTS / "faults_run.py", "--short", "--seed", seed)
        done = run_python(*command, env=env, timeout=200)
        if done.returncode != INVALID:
            break

    assert done.returncode == 0, done.stdout + done.stderr
