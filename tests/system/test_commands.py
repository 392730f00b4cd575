"""The commands as a person types them: their output, their exit codes, and their traces."""

import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest
from redis import Redis

from mm_tasks.buffer import heartbeats
from tests.cli.test_erasure import in_this_process
from tests.conftest import free_port
from tests.system.accounting import waiting
from tests.system.processes import read_to_end, run

SECRET = "not-a-real-secret"
TRACK = "from mm_tasks import track; track.delay('signed_up', user_id='u')"


def test_check_passes_a_sound_setup_and_hides_the_secret(stack, servers):
    servers(appendonly="yes")
    stack.sandbox()
    done = run(stack.env, "check", "--send")

    assert done.returncode == 0, done.stdout
    assert "problem" not in done.stdout
    assert "Delivered" in done.stdout
    assert "sk_test_abc_…" in done.stdout
    assert SECRET not in done.stdout + done.stderr
    assert stack.get("summary")["events"] == 1


def test_check_warns_of_a_redis_without_aof_and_still_passes(stack, servers):
    servers(appendonly="no")
    done = run(stack.env, "check")

    assert done.returncode == 0
    assert "warning  AOF" in done.stdout


PROBLEMS = {
    "a key for browsers": ({"MILLIMETRIC_KEY": f"pk_a_b_{SECRET}"}, "MILLIMETRIC_KEY"),
    "a key that reads": ({"MILLIMETRIC_KEY": f"rk_a_b_{SECRET}"}, "MILLIMETRIC_KEY"),
    "a malformed key": ({"MILLIMETRIC_KEY": SECRET}, "MILLIMETRIC_KEY"),
    "no key": ({"MILLIMETRIC_KEY": ""}, "MILLIMETRIC_KEY"),
    "a host in the clear": ({"MILLIMETRIC_HOST": "http://example.com"}, "MILLIMETRIC_HOST"),
    "a lease too short": ({"MM_TASKS_LEASE_S": "12"}, "MM_TASKS_LEASE_S"),
    "a batch of none": ({"MM_TASKS_BATCH_EVENTS_MAX": "0"}, "MM_TASKS_BATCH_EVENTS_MAX"),
}


LOSSY = {
    "a buffer larger than Redis": ({"maxmemory": "100mb"}, "MM_TASKS_BUFFER_BYTES_MAX"),
    "a Redis that evicts": ({"maxmemory": "4gb", "maxmemory_policy": "allkeys-lru"}, "noeviction"),
}
OTHER_HOST = {"MILLIMETRIC_HOST": "http://127.0.0.1:1"}
REFUSED = {name: (None, *problem) for name, problem in PROBLEMS.items()}
REFUSED |= {name: (config, OTHER_HOST, named) for name, (config, named) in LOSSY.items()}


@pytest.mark.parametrize(("config", "env", "named"), REFUSED.values(), ids=REFUSED)
def test_check_and_a_worker_refuse_a_setting_or_a_lossy_redis(stack, servers, config, env, named):
    """Both name it, neither shows a secret, and the worker does not start."""
    if config:
        servers(**config)
    stack.env.update(env)
    checked = run(stack.env, "check")
    worker = stack.worker()
    stack.wait_until_ended(worker)

    assert (checked.returncode, worker.returncode) == (1, 1)
    for text in (checked.stdout + checked.stderr, stack.read(worker)):
        assert named in text
        assert SECRET not in text


@pytest.mark.timeout(300)
def test_up_brings_its_own_redis_delivers_and_leaves_nothing_running(stack, tmp_path):
    """One Ctrl-C ends all, and stored events are there after the next start."""
    port = free_port()
    stack.env.update(
        MM_TASKS_REDIS_URL=f"redis://127.0.0.1:{port}/0",
        MM_TASKS_STATE_DIR=str(tmp_path / "state"),
        PYTHONUNBUFFERED="1",
    )
    stack.sandbox()
    up = stack.start("up", "mm_tasks.cli", "up", "--concurrency", "2")
    stack.wait(lambda: "up:" in stack.read(up))
    stack.produce(TRACK)
    stack.wait_for_events(1)
    status = json.loads(run(stack.env, "status", "--json").stdout)
    server_pid = Redis(port=port).info("server")["process_id"]
    up.send_signal(signal.SIGINT)
    up.wait(120)

    assert up.returncode == 0
    assert status["counts"]["accepted"] == 1
    assert status["paused"] is None
    with pytest.raises(ProcessLookupError):
        os.kill(server_pid, 0)
    assert "Traceback" not in stack.read(up)
    again = stack.start("up", "mm_tasks.cli", "up", "--concurrency", "1")
    stack.wait(lambda: "up:" in stack.read(again))

    assert json.loads(run(stack.env, "status", "--json").stdout)["counts"]["delivered"] == 1


def test_flush_sends_a_part_full_batch_at_once(stack, redis):
    stack.env["MM_TASKS_LINGER_S"] = "3600"
    stack.sandbox()
    stack.worker()
    stack.wait(lambda: heartbeats.read(redis, "default"))
    stack.produce(TRACK)
    done = run(stack.env, "flush")
    stack.wait_for_events(1)

    assert done.returncode == 0
    assert waiting(redis) == []


def test_without_redis_a_command_says_so_in_one_sentence(stack):
    stack.env["MM_TASKS_REDIS_URL"] = "redis://127.0.0.1:1/0"
    done = run(stack.env, "status", "--json")

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip() == "mm-tasks: Redis does not answer (ConnectionError)"


# The live view.

NAME = "person-of-the-view"
EVENTS = f"""
from mm_tasks import forget, track
track.delay_many({{"event": "seen", "user_id": f"{NAME}-{{i}}"}} for i in range(700))
forget.delay(user_id="{NAME}-699", requested_by="dpo")
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
    assert NAME not in done.stdout + done.stderr


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
    command = [sys.executable, "-m", "mm_tasks.cli", "top", "--interval", "0.2"]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    process = subprocess.Popen(command, env=env, **streams)
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
