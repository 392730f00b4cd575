"""The short version of `scripts/faults`, where machines have the time for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.faults.conftest import SCRIPTS


@pytest.mark.skipif("CI" not in os.environ, reason="takes a minute; scripts/faults --short runs it")
def test_a_mixture_of_faults_loses_nothing(tmp_path):
    """Kills, restarts of Redis, an emptied broker and a vendor that fails, all in one run."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "faults_run.py"), "--short", "--seed", "1"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
