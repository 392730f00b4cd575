"""A recorder, and pytest as a user runs it: a process of its own, without any of our settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from textwrap import dedent

import pytest

from mm_tasks.testing import record

# Without the plugins that take a second to load, or that warn of a setting that they want.
WITHOUT = ("asyncio", "anyio", "cacheprovider", "hypothesispytest", "valkey", "xdist")
OPTIONS = (*(f"-pno:{name}" for name in WITHOUT), "-W", "error")
PREFIXES = ("MM_TASKS_", "MILLIMETRIC_", "PYTEST_")


def bare_environment(**more):
    """The environment without our settings and without those of the pytest that runs this."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(PREFIXES)}
    return {**kept, **more}


def python(code, **more):
    """Run a program; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)],
        env=bare_environment(**more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Outcomes(dict):
    """What became of each test, by its name; of one with parameters, the worst."""

    def __init__(self, output):
        line = r"^(PASSED|FAILED|ERROR|SKIPPED) [^\s\[]*::(\w+)"
        found = re.findall(line, output, re.MULTILINE)
        found.sort(key=lambda one: one[0] != "PASSED")
        super().__init__((name, word.lower()) for word, name in found)
        self.output = output


@pytest.fixture
def run_pytest(tmp_path):
    """Run pytest on files given by name; return the outcomes."""

    def run(ini="", **files):
        (tmp_path / "pytest.ini").write_text(f"[pytest]\naddopts = --strict-markers -rA\n{ini}\n")
        for name, code in files.items():
            (tmp_path / f"{name}.py").write_text(dedent(code))
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pytest", *OPTIONS, "."],
            env=bare_environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        return Outcomes(done.stdout + done.stderr)

    return run


@pytest.fixture
def events():
    with record() as recorder:
        yield recorder
