"""A recorder, and pytest in a process of its own without our settings, as users run it."""

import os
import re
import subprocess
import sys
from textwrap import dedent

import pytest

from mm_tasks.testing import record

# Without the plugins that load slowly or warn of a missing setting.
WITHOUT = ("asyncio", "anyio", "cacheprovider", "hypothesispytest", "valkey", "xdist")
OPTIONS = (*(f"-pno:{name}" for name in WITHOUT), "-W", "error")
PREFIXES = ("MM_TASKS_", "MILLIMETRIC_", "PYTEST_")


def run(*command, cwd=None, **more):
    """Run Python without our settings and those of the surrounding pytest."""
    env = {name: text for name, text in os.environ.items() if not name.startswith(PREFIXES)} | more
    output = {"capture_output": True, "text": True}
    command = [sys.executable, *command]
    return subprocess.run(command, env=env, cwd=cwd, timeout=100, check=False, **output)


def python(code):
    """Run a program; return its output."""
    process = run("-c", dedent(code))
    assert process.returncode == 0, process.stderr
    return process.stdout


class Outcomes(dict):
    """The outcome of each test by its name: the worst one of a parametrized test."""

    def __init__(self, output):
        line = r"^(PASSED|FAILED|ERROR|SKIPPED) [^\s\[]*::test_(\w+)"
        outcomes = re.findall(line, output, re.MULTILINE)
        outcomes.sort(key=lambda outcome: outcome[0] != "PASSED")
        super().__init__((name, word.lower()) for word, name in outcomes)
        self.output = output


@pytest.fixture
def run_pytest(tmp_path):
    """Run pytest on files given by name; return the outcomes."""

    def run_files(ini="", **files):
        (tmp_path / "pytest.ini").write_text(f"[pytest]\naddopts = --strict-markers -rA\n{ini}\n")
        for name, code in files.items():
            (tmp_path / f"{name}.py").write_text(dedent(code))
        process = run("-P", "-m", "pytest", *OPTIONS, ".", cwd=tmp_path)
        return Outcomes(process.stdout + process.stderr)

    return run_files


@pytest.fixture
def events():
    with record() as recorder:
        yield recorder
