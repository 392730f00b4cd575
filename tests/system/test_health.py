"""`mm-tasks health` beside a real worker and beat that hang, end, or lose their Redis.

One system for the module, and each test leaves it as it was. The last test reads the logs.
"""

import json
import os
import re
import signal

import pytest
from redis import Redis

from mm_tasks.buffer import heartbeats
from mm_tasks.cli.stack import END_S
from tests.conftest import embedded
from tests.system.processes import KEY, Stack, assert_alive, run

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
        done = run(self.env, "health", "--max-age", AGE_MAX_S, *options)
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
        system.running = system.worker_and_beat("-c", "2")
        system.wait_until_well()
        yield system
    finally:
        system.end()


def test_a_worker_or_beat_that_hangs_is_named_by_its_own_probe_and_by_that_of_all(system):
    """The process still exists, so nothing else would notice."""
    for process in system.running:
        process.send_signal(signal.SIGSTOP)
    try:
        system.wait(lambda: system.health()[1].count("problem") == 4)
        codes = [system.health(*options)[0] for options in (["--this-host"], ["--beat"])]
        checks = json.loads(system.health("--json")[1])["checks"]
    finally:
        for process in system.running:
            process.send_signal(signal.SIGCONT)

    assert codes == [1, 1]
    bad = {check["what"]: check["why"] for check in checks if not check["ok"]}
    assert set(bad) == {"mm.forget", "mm.deliver", "mm.identify", "beat"}
    name = f"celery@{os.uname().nodename}"
    assert bad["mm.forget"].startswith(f"no worker serves it: {name} is silent for")
    system.wait_until_well()


def test_a_worker_told_to_stop_deletes_its_heartbeat_and_a_killed_one_leaves_it(system, server):
    """A deployment is no problem, so `health` must not report it for a day; a kill is one."""
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
    """No process ends for want of its heartbeat: the same ones go on once Redis is back."""
    server.stop()
    try:
        code, report = system.health()
    finally:
        server.start()

    assert code == 1
    assert report.startswith("problem  Redis: ")
    system.wait_until_well()
    assert_alive(*system.running)


def test_the_logs_are_json_and_name_no_person(system):
    """Events pass through Redis and Celery's messages, and one is refused."""
    system.produce(CALLS)
    system.wait(lambda: system.get("summary")["distinct"] >= 2)
    for word in ("raised unexpected", "unregistered"):
        system.wait(lambda word=word: word in system.read(system.running[0]))

    lines = [line for process in system.running for line in system.read(process).splitlines()]
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert {"batch_settled"} <= {entry.get("event") for entry in logged}
    assert any(entry.get("exception") == "InvalidEvent" for entry in logged)
    assert all(re.fullmatch(r"\d{4}-.*T.*\.\d{3}Z", entry["time"]) for entry in logged)
    assert not [secret for secret in SECRETS if secret in "\n".join(lines)]
    # Celery prints a banner before the first line of the log.
    worker = system.read(system.running[0])
    assert all(line.startswith("{") for line in worker[worker.index("\n{") + 1 :].splitlines())
