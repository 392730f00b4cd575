"""`mm-tasks top` as a person sees it: the real command, on a terminal and without one."""

import os
import pty
import re
import signal
import subprocess
import sys

import pytest

from tests.cli.test_erasure import in_this_process
from tests.system.processes import read_to_end

SECRET = "person-of-the-view"
EVENTS = f"""
from mm_tasks import forget, track
track.delay_many({{"event": "seen", "user_id": f"{SECRET}-{{i}}"}} for i in range(700))
forget.delay(user_id="{SECRET}-699", requested_by="dpo")
"""


@pytest.fixture
def watched(stack):
    """Events that wait, one erasure, and no worker."""
    stack.produce(EVENTS)
    # `top` needs no key.
    stack.env.pop("MILLIMETRIC_KEY")
    return stack


def once(stack):
    return in_this_process(stack.env, ("top", "--once", "--interval", "0.2"), None)


def test_one_view_names_every_part_and_no_person(watched):
    done = once(watched)

    assert done.returncode == 0, done.stderr
    for word in ("track", "identify", "backfill", "700", "rate", "fill", "dead letters"):
        assert word in done.stdout
    assert "1 open, 0 overdue" in done.stdout
    assert re.search(r"\d+\.\d days left", done.stdout)
    assert SECRET not in done.stdout + done.stderr


def test_a_redis_that_is_away_is_named_and_the_rest_is_shown(watched):
    watched.env["MM_TASKS_REDIS_URL"] = "redis://127.0.0.1:1/0"

    done = once(watched)

    assert done.returncode == 0, done.stderr
    assert "Redis does not answer (ConnectionError)" in done.stdout
    assert "1 open" in done.stdout


def test_on_a_terminal_it_goes_on_until_ctrl_c_ends_it(watched):
    """On a real terminal of 80 by 24, which it restores."""
    primary, terminal = pty.openpty()
    env = {**watched.env, "COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mm_tasks.cli", "top", "--interval", "0.2"],
        env=env,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    try:
        while shown.count(b"project default") < 4:
            shown += os.read(primary, 65536)
        process.send_signal(signal.SIGINT)
        shown += read_to_end(primary)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(primary)

    assert b"\x1b[?1049h" in shown
    assert b"\x1b[?1049l" in shown
    assert b"Traceback" not in shown
