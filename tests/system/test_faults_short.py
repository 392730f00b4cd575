"""The short version of `scripts/faults`, where machines have the time for it."""

from __future__ import annotations

import os

import pytest

from tests.system.processes import SCRIPTS, run_python

INVALID = 2


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
