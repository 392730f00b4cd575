"""`mm-tasks health` beside a real worker and beat that hang, end, or lose their Redis.

One system for the module, and each test leaves it as it was. What these processes
logged meanwhile is looked at last.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from redis import Redis

from mm_tasks.buffer import heartbeats
from mm_tasks.cli.stack import END_S
from tests.conftest import embedded
from tests.system.conftest import KEY, Stack

AGE_MAX_S = "8"
SECRETS = ("person-1", "anonymous-1", "hidden@example.com", "gold-plan", KEY)
CALLS = """
from mm_tasks import app, identify, track
ids = {"user_id": "person-1", "anonymous_id": "anonymous-1"}
track.delay("bought", properties={"plan": "gold-plan"}, **ids)
track.apply_async(("bought",), {"properties": {"plan": "gold-plan"}, **ids}, countdown=1)
app.send_task("mm_tasks.track", ("bought", "person-1"), {"plan": "gold-plan"})
app.send_task("mm_tasks.unknown", ("person-1",), {"plan": "gold-plan"}, queue="mm.deliver")
identify.delay(traits={"email": "hidden@example.com"}, **ids)
"""


class System(Stack):
    def health(self, *options):
        done = subprocess.run(
            [sys.executable, "-m", "mm_tasks.cli", "health", "--max-age", AGE_MAX_S, *options],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode in (0, 1), done.stderr
        return done.returncode, done.stdout

    def wait_until_well(self):
        self.wait(lambda: self.health()[0] == 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    config = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
    server = embedded(data_dir=tmp_path_factory.mktemp("redis"), persist=True, config=config)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def system(server, tmp_path_factory):
    system = System(f"redis://127.0.0.1:{server.port}/0", tmp_path_factory.mktemp("logs"))
    system.env["MM_TASKS_LOG_FORMAT"] = "json"
    try:
        system.sandbox()
        system.running = [system.worker("-c", "2"), system.beat()]
        system.wait_until_well()
        yield system
    finally:
        system.end()


def test_a_worker_or_beat_that_hangs_is_named_by_its_own_probe_and_by_that_of_all(system):
    """The process is there, so nothing else would notice."""
    for process in system.running:
        process.send_signal(signal.SIGSTOP)
    try:
        system.wait(lambda: system.health()[1].count("problem") == 4)
        codes = [system.health(*options)[0] for options in (["--this-host"], ["--beat"])]
        said = system.health("--json")[1]
    finally:
        for process in system.running:
            process.send_signal(signal.SIGCONT)

    assert codes == [1, 1]
    bad = {one["what"]: one["why"] for one in json.loads(said)["checks"] if not one["ok"]}
    assert set(bad) == {"mm.forget", "mm.deliver", "mm.identify", "beat"}
    name = f"celery@{os.uname().nodename}"
    assert bad["mm.forget"].startswith(f"no worker serves it: {name} is silent for")
    system.wait_until_well()


def test_a_worker_that_is_told_to_stop_takes_its_sign_with_it_and_one_that_is_killed_leaves_it(
    system, server
):
    """A deployment is no trouble, and says nothing for a day; a kill is, and does."""
    first = system.worker("-c", "1", "-n", "first@h", "-Q", "mm.identify")
    second = system.worker("-c", "1", "-n", "second@h", "-Q", "mm.identify", "-P", "threads")
    with Redis(port=server.port) as redis:
        both = {"worker:first@h", "worker:second@h"}
        system.wait(lambda: both <= set(heartbeats.read(redis, "default")))
        first.terminate()
        second.kill()
        assert (first.wait(END_S), second.wait(30)) == (0, -signal.SIGKILL)

        left = heartbeats.read(redis, "default")
    assert both & set(left) == {"worker:second@h"}
    assert left["worker:second@h"].queues == ("mm.identify",)


def test_without_redis_nothing_is_healthy_and_with_it_all_is_again(system, server):
    """Nothing is ended by its sign: the same processes go on once Redis is back."""
    server.stop()
    try:
        code, said = system.health()
    finally:
        server.start()

    assert code == 1
    assert said.startswith("problem  Redis: ")
    system.wait_until_well()
    assert [process.poll() for process in system.running] == [None, None]


def test_what_they_logged_is_json_and_names_nobody(system):
    """Events went through them, by Redis and by Celery's messages, and one that is refused."""
    system.produce(CALLS)
    system.wait(lambda: system.get("summary")["distinct"] >= 2)
    for word in ("raised unexpected", "unregistered"):
        system.wait(lambda word=word: word in system.read(system.running[0]))

    lines = [line for one in system.running for line in system.read(one).splitlines()]
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert {"batch_settled"} <= {one.get("event") for one in logged}
    assert any(one.get("exception") == "InvalidEvent" for one in logged)
    assert all(re.fullmatch(r"\d{4}-.*T.*\.\d{3}Z", one["time"]) for one in logged)
    said = "\n".join(lines)
    assert not [secret for secret in SECRETS if secret in said]
    # Before them there is only what Celery prints when it starts, which is no log.
    worker = system.read(system.running[0])
    assert all(line.startswith("{") for line in worker[worker.index("\n{") + 1 :].splitlines())
