"""The commands as a person types them: what they print, how they end, what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from redis import Redis

from tests.conftest import embedded

SECRET = "not-a-real-secret"


def run(env, *command):
    return subprocess.run(
        [sys.executable, "-m", "mm_tasks.cli", *command],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def server():
    """Start servers with the given configuration; stop them all."""
    started = []

    def start(**config):
        one = embedded(config={name.replace("_", "-"): v for name, v in config.items()})
        one.start()
        started.append(one)
        return f"redis://127.0.0.1:{one.port}/0"

    yield start
    for one in started:
        one.stop()


def test_check_is_content_with_a_sound_setup_and_hides_the_secret(stack, server):
    stack.env["MM_TASKS_REDIS_URL"] = server(appendonly="yes")
    stack.sandbox()
    done = run(stack.env, "check", "--send")

    assert done.returncode == 0, done.stdout
    assert "problem" not in done.stdout
    assert "Delivered" in done.stdout
    assert "sk_test_abc_…" in done.stdout
    assert SECRET not in done.stdout + done.stderr
    assert stack.get("summary")["events"] == 1


def test_check_warns_of_a_redis_without_aof_and_still_passes(stack, server):
    stack.env["MM_TASKS_REDIS_URL"] = server(appendonly="no")
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


@pytest.mark.parametrize(("env", "named"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_check_and_a_worker_refuse(stack, env, named):
    """The same problem, the same sentence, and never the value."""
    stack.env.update(env)
    checked = run(stack.env, "check")
    worker = stack.worker()
    stack.wait(lambda: worker.poll() is not None, 30)

    for code, text in (
        (checked.returncode, checked.stdout + checked.stderr),
        (worker.returncode, stack.read(worker)),
    ):
        assert code == 1
        assert named in text
        assert SECRET not in text


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"maxmemory": "100mb"}, "MM_TASKS_BUFFER_BYTES_MAX"),
        ({"maxmemory": "4gb", "maxmemory_policy": "allkeys-lru"}, "noeviction"),
    ],
    ids=["a buffer larger than Redis", "a Redis that evicts"],
)
def test_a_redis_that_would_lose_events_is_refused(stack, server, config, said):
    stack.env["MM_TASKS_REDIS_URL"] = server(**config)
    stack.env["MILLIMETRIC_HOST"] = "http://127.0.0.1:1"
    checked = run(stack.env, "check")
    worker = stack.worker()
    stack.wait(lambda: worker.poll() is not None, 30)

    assert checked.returncode == worker.returncode == 1
    assert said in checked.stdout
    assert said in stack.read(worker)


@pytest.mark.timeout(300)
def test_up_brings_its_own_redis_delivers_and_leaves_nothing_running(stack, tmp_path):
    """One Ctrl-C ends all; what was stored is there when it is started again."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    stack.env["MM_TASKS_REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
    stack.env["MM_TASKS_STATE_DIR"] = str(tmp_path / "state")
    stack.sandbox()
    stack.env["PYTHONUNBUFFERED"] = "1"
    up = stack.start("up", "mm_tasks.cli", "up", "--concurrency", "2")
    stack.wait(lambda: "up:" in stack.read(up))
    stack.produce("from mm_tasks import track; track.delay('signed_up', user_id='u')")
    stack.wait_for_events(1)
    status = run(stack.env, "status", "--json")
    found = json.loads(status.stdout)
    server_pid = Redis(port=port).info("server")["process_id"]
    up.send_signal(signal.SIGINT)
    up.wait(120)

    assert up.returncode == 0
    assert found["counts"]["accepted"] == 1
    assert found["paused"] is None
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
    stack.produce("from mm_tasks import track; track.delay('signed_up', user_id='u')")
    done = run(stack.env, "flush")
    stack.wait_for_events(1)

    assert done.returncode == 0
    assert redis.llen("{mm:default}:track:waiting") == 0


def test_without_redis_a_command_says_so_in_one_sentence(stack):
    stack.env["MM_TASKS_REDIS_URL"] = "redis://127.0.0.1:1/0"
    done = run(stack.env, "status", "--json")

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip() == "mm-tasks: Redis does not answer (ConnectionError)"
