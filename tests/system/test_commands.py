"""The commands as a person types them: their output, their exit codes, and their traces."""

import json
import os
import signal

import pytest
from redis import Redis

from tests.conftest import free_port
from tests.system.accounting import waiting
from tests.system.processes import run

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


def checked_and_started(stack):
    """Return exit code and output of `check`, and of a worker that must not start."""
    checked = run(stack.env, "check")
    worker = stack.worker()
    stack.wait_until_ended(worker)
    return [
        (checked.returncode, checked.stdout + checked.stderr),
        (worker.returncode, stack.read(worker)),
    ]


@pytest.mark.parametrize(("env", "named"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_check_and_a_worker_refuse_a_setting_by_name(stack, env, named):
    """Both print the same sentence, and never the value."""
    stack.env.update(env)

    for code, text in checked_and_started(stack):
        assert code == 1
        assert named in text
        assert SECRET not in text


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"maxmemory": "100mb"}, "MM_TASKS_BUFFER_BYTES_MAX"),
        ({"maxmemory": "4gb", "maxmemory_policy": "allkeys-lru"}, "noeviction"),
    ],
    ids=["a buffer larger than Redis", "a Redis that evicts"],
)
def test_a_redis_that_would_lose_events_is_refused(stack, servers, config, named):
    servers(**config)
    stack.env["MILLIMETRIC_HOST"] = "http://127.0.0.1:1"

    for code, text in checked_and_started(stack):
        assert code == 1
        assert named in text


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
