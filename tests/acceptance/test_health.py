"""`mm-tasks health` of real processes that are alive, stopped and gone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from typer.main import get_command

from mm_tasks import cli

DOCS = Path(__file__).parents[2] / "docs" / "health.md"


def asked(stack, *options):
    """Return exit code and verdicts of a probe, which has no key."""
    env = {name: value for name, value in stack.env.items() if name != "MILLIMETRIC_KEY"}
    command = [sys.executable, "-m", "mm_tasks.cli", "health", "--json", *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert not done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] == (done.returncode == 0)
    return done.returncode, {one["what"]: one["ok"] for one in found["found"]}


def is_well(stack, *options):
    return asked(stack, *options)[0] == 0


def test_what_is_alive_is_well_and_what_hangs_is_not(stack):
    """A worker that is stopped keeps its process and its connections: only its signs end."""
    stack.sandbox()
    worker, beat = stack.worker("-n", "one@%h"), stack.beat()
    stack.wait(lambda: is_well(stack))
    stack.wait(lambda: is_well(stack, "--worker", "one@%h"))
    assert is_well(stack, "--beat")
    assert not is_well(stack, "--worker", "two@%h")

    worker.send_signal(signal.SIGSTOP)
    beat.send_signal(signal.SIGKILL)
    stack.wait(lambda: not is_well(stack, "--worker", "one@%h", "--max-age", "6"))
    stack.wait(lambda: not is_well(stack, "--beat", "--max-age", "6"))
    code, found = asked(stack, "--max-age", "6")
    worker.send_signal(signal.SIGCONT)

    assert code == 1
    assert {what for what, is_alive in found.items() if is_alive} == {"Redis", "audit database"}
    stack.wait(lambda: is_well(stack, "--worker", "one@%h", "--max-age", "6"))


def test_without_redis_there_is_one_problem_and_no_traceback(stack):
    stack.env["MM_TASKS_REDIS_URL"] = "redis://127.0.0.1:1/0"

    code, found = asked(stack, "--worker", "one@%h")

    assert code == 1
    assert found == {"Redis": False}


def test_the_docs_name_every_option():
    options = [name for one in get_command(cli.app).commands["health"].params for name in one.opts]

    assert [name for name in options if name not in DOCS.read_text()] == []
