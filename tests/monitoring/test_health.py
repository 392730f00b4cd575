"""Heartbeats on a real Redis, and the output of `mm-tasks health` about them."""

import json
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from celery.beat import Service
from celery.signals import beat_init
from redis import Redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError
from typer.main import get_command
from typer.testing import CliRunner

from mm_tasks import runtime, track
from mm_tasks.buffer import heartbeats
from mm_tasks.buffer.heartbeats import Heartbeat
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.cli import app
from mm_tasks.events.lanes import queue_names
from mm_tasks.monitoring import health
from mm_tasks.tasks import heartbeat_writer
from mm_tasks.tasks.celery_app import queues
from mm_tasks.tasks.worker import flush
from tests.conftest import embedded, held

KEYS = ProjectKeys("p")
QUEUES = queue_names("p")
AWAY = "redis://127.0.0.1:1/0"
NAMES = (f"celery@{socket.gethostname()}", "other@host")


def age(redis, who, by_s):
    """Make a heartbeat older, as if its process had stopped writing then."""
    written_ms, _, queues = redis.hget(KEYS.heartbeats, who).decode().partition(" ")
    redis.hset(KEYS.heartbeats, who, f"{int(written_ms) - round(by_s * 1000)} {queues}")


def health_command(*options):
    done = CliRunner().invoke(app, ["health", *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


@pytest.fixture
def ask(redis, redis_url, fresh, tmp_path):  # noqa: ARG001 - `redis` empties the server
    state_dir = str(tmp_path / "state")
    fresh(MM_TASKS_REDIS_URL=redis_url, MM_TASKS_PROJECT="p", MM_TASKS_STATE_DIR=state_dir)
    return health_command


@pytest.fixture
def alive(redis):
    heartbeats.write(redis, "p", "worker", NAMES[0], QUEUES[1:])
    heartbeats.write(redis, "p", "worker", NAMES[1], QUEUES[:1])
    heartbeats.write(redis, "p", "beat", "host")
    return redis


def test_a_heartbeat_has_a_process_its_queues_and_its_age(alive):
    age(alive, "worker:other@host", 12)
    found = heartbeats.read(alive, "p")
    other = found["worker:other@host"]

    assert set(found) == {f"worker:{NAMES[0]}", "worker:other@host", "beat:host"}
    assert other[:2] == ("worker", "other@host")
    assert other.queues == ("mm.p.forget",)
    assert other.age_s >= 12
    assert found["beat:host"].queues == ()
    heartbeats.delete(alive, "p", "beat", "host")
    assert "beat:host" not in heartbeats.read(alive, "p")


def test_a_heartbeat_of_more_than_a_day_ago_is_deleted_by_the_next_one(alive):
    """Each container has another name: the hash would grow with every deployment."""
    age(alive, "worker:other@host", 86_401)
    age(alive, "beat:host", 86_000)

    heartbeats.write(alive, "p", "worker", NAMES[0], QUEUES)
    assert set(heartbeats.read(alive, "p")) == {f"worker:{NAMES[0]}", "beat:host"}


def test_a_full_server_still_takes_heartbeats(alive):
    """Otherwise all workers would look dead at the moment when they have to drain it."""
    age(alive, "beat:host", 50)
    alive.config_set("maxmemory", 1)
    try:
        heartbeats.write(alive, "p", "beat", "host")
        with pytest.raises(OutOfMemoryError):
            heartbeats.refuse_if_unwritable(alive, "p")
    finally:
        alive.config_set("maxmemory", 0)

    assert heartbeats.read(alive, "p")["beat:host"].age_s < 50


def test_a_probe_leaves_redis_and_the_state_directory_as_they_were(alive, ask, tmp_path):
    before = held(alive)

    ask()
    assert held(alive) == before
    assert not (tmp_path / "state").exists()


def test_the_queues_are_those_that_workers_serve(fresh):
    fresh(MM_TASKS_PROJECT="p")
    assert [queue.name for queue in queues()] == QUEUES


@pytest.mark.usefixtures("alive")
def test_all_is_well_where_each_queue_is_served_and_beat_ticks(ask):
    code, said = ask("--json")

    checks = json.loads(said)["checks"]
    assert (code, json.loads(said)["healthy"]) == (0, True)
    assert [one["what"] for one in checks] == [*QUEUES, "beat", "Redis"]
    assert all(one["ok"] for one in checks)


@pytest.mark.parametrize(
    ("who", "line"),
    [
        (
            "worker:other@host",
            "mm.p.forget: no worker serves it: other@host is silent for",
        ),
        ("beat:host", "problem  beat: is silent: last heartbeat"),
    ],
)
def test_a_process_that_is_silent_for_too_long_is_named(alive, ask, who, line):
    age(alive, who, 31)
    code, output = ask()

    assert code == 1
    assert line in output
    assert output.count("problem") == 1
    assert ask("--max-age", "60")[0] == 0


def test_a_queue_without_a_worker_is_named(alive, ask):
    """A worker that was started with `-Q mm.p.deliver` alone leaves erasures undone."""
    heartbeats.delete(alive, "p", "worker", "other@host")
    code, output = ask()

    assert code == 1
    assert "problem  mm.p.forget: no worker serves it\n" in output
    alive.delete(KEYS.heartbeats)
    code, output = ask()
    assert code == 1
    assert "problem  beat: has no heartbeat" in output


def test_a_queue_with_one_live_worker_is_served_although_another_is_silent(alive, ask):
    """An old heartbeat is of a container that was killed; another one does its work."""
    heartbeats.write(alive, "p", "worker", "dead@host", QUEUES)
    age(alive, "worker:dead@host", 600)

    assert ask()[0] == 0


@pytest.mark.parametrize(
    ("options", "silent", "code"),
    [
        (["--worker", "other@host"], "beat:host", 0),
        (["--worker", "other@host"], "worker:other@host", 1),
        (["--worker", "unknown@host"], "beat:host", 1),
        (["--this-host"], "worker:other@host", 0),
        (["--this-host"], f"worker:{NAMES[0]}", 1),
        (["--beat"], "worker:other@host", 0),
        (["--beat"], "beat:host", 1),
        (["--this-host", "--beat"], "worker:other@host", 0),
        (["--this-host", "--beat"], "beat:host", 1),
    ],
)
def test_a_probe_of_one_part_fails_for_that_part_alone(alive, ask, options, silent, code):
    """A container that is restarted for another's trouble makes two troubles of one."""
    age(alive, silent, 31)

    assert ask(*options)[0] == code


def test_a_replica_is_a_problem_because_it_takes_no_writes(alive, ask):
    """After a failover an old primary still answers, and refuses every event."""
    alive.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(ReadOnlyError):
            heartbeats.refuse_if_unwritable(alive, "p")
        code, output = ask()
    finally:
        alive.replicaof("NO", "ONE")

    assert code == 1
    assert "problem  Redis: does not answer, or takes no writes (ReadOnlyError)" in output


def publish_from(redis, broker, age_s=0):
    heartbeats.write_publisher(redis, "p", broker, "web-1")
    written_ms, host = redis.hget(KEYS.publishers, broker).decode().split()
    redis.hset(KEYS.publishers, broker, f"{int(written_ms) - round(age_s * 1000)} {host}")


def worker_of(redis, broker):
    heartbeats.write(redis, "p", "worker", NAMES[0], QUEUES, broker=broker)
    heartbeats.delete(redis, "p", "worker", NAMES[1])


def test_a_process_that_publishes_where_no_worker_listens_is_named(alive, ask):
    """It did not import the app that has the tasks, and every tool said ok."""
    worker_of(alive, "theirs")
    publish_from(alive, "theirs")
    assert ask()[0] == 0
    publish_from(alive, "wrong", 12)
    code, output = ask()

    assert code == 1
    assert "warning  broker: 12 s ago a process on web-1 published to a broker that no" in output
    assert "wrong" not in output
    publish_from(alive, "wrong", 400)
    assert ask()[0] == 0


@pytest.mark.parametrize("known", [(), ("theirs",)], ids=["none", "some"])
def test_workers_that_do_not_tell_their_broker_raise_no_alarm(alive, ask, known):
    """They are of an earlier release."""
    publish_from(alive, "wrong")
    for broker in known:
        heartbeats.write(alive, "p", "worker", "new@host", QUEUES, broker=broker)

    assert ask()[0] == 0


def test_an_earlier_release_reads_the_queues_of_a_heartbeat_with_a_broker(alive):
    """Both releases are there during an upgrade, and its health must not raise an alarm."""
    worker_of(alive, "b")
    _, _, queues = alive.hget(KEYS.heartbeats, f"worker:{NAMES[0]}").decode().partition(" ")

    assert set(QUEUES) <= set(queues.split(","))
    assert heartbeats.read(alive, "p")[f"worker:{NAMES[0]}"].queues == tuple(QUEUES)


def test_other_projects_of_the_server_are_named(alive, ask):
    heartbeats.write(alive, "shop", "worker", "w@h", ["mm.shop.forget"])
    code, output = ask()

    assert code == 0
    assert "ok       projects: on this server too: shop" in output


def test_an_unreachable_redis_is_named_and_the_database_is_still_checked(fresh, tmp_path):
    fresh(MM_TASKS_REDIS_URL=AWAY, MM_TASKS_AUDIT_URL=f"sqlite:///{tmp_path}/none/audit.sqlite")
    code, output = health_command()

    assert code == 1
    assert output.splitlines() == [
        "problem  Redis: does not answer, or takes no writes (ConnectionError)",
        "ok       audit database: does not exist yet",
    ]


def test_a_server_that_loads_is_not_healthy(tmp_path, fresh):
    """It answers at once, and takes no event until it is done, which may be minutes."""
    config = {
        "appendonly": "yes",
        "enable-debug-command": "yes",
        # Otherwise it answers no client before all keys are loaded.
        "loading-process-events-interval-bytes": "1024",
    }
    server = embedded(data_dir=tmp_path, persist=True, config=config)
    server.start()
    try:
        fresh(MM_TASKS_REDIS_URL=f"redis://127.0.0.1:{server.port}/0")
        code, output = _while_loading(server)
    finally:
        server.stop()

    assert code == 1
    assert "(BusyLoadingError)" in output


def _while_loading(server):
    with Redis(port=server.port) as redis, Redis(port=server.port) as other:
        redis.execute_command("DEBUG", "POPULATE", "2000", "key", "100")
        redis.config_set("key-load-delay", "2000")
        other.connection_pool.get_connection().send_command("DEBUG", "RELOAD")
        ends_at = time.monotonic() + 20
        while not redis.info("persistence")["loading"]:
            assert time.monotonic() < ends_at
        done = health_command()
        redis.config_set("key-load-delay", "0")
    return done


@pytest.mark.usefixtures("alive")
@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("sqlite:///{}/none/audit.sqlite", "ok       audit database: does not exist yet"),
        ("postgresql://u:hunter2@127.0.0.1:1/d", "problem  audit database: audit database error"),
        ("mysql://u:hunter2@h/d", "problem  audit database: MM_TASKS_AUDIT_URL: must begin"),
    ],
)
def test_the_audit_database_is_reached_or_named_without_its_url(ask, fresh, tmp_path, url, line):
    fresh(MM_TASKS_AUDIT_URL=url.format(tmp_path))

    code, said = ask()
    assert line in said
    assert "hunter2" not in said
    assert code == ("problem" in line)
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("alive")
def test_a_database_that_answers_is_healthy_without_any_table(ask, fresh, tmp_path):
    """A probe makes none: their owner is decided where a worker starts."""
    file = tmp_path / "audit.sqlite"
    with closing(sqlite3.connect(file)) as made:
        made.execute("CREATE TABLE other (n)")
        fresh(MM_TASKS_AUDIT_URL=f"sqlite:///{file}")

        assert "ok       audit database: answers" in ask()[1]
        assert made.execute("SELECT name FROM sqlite_master").fetchall() == [("other",)]


def test_a_probe_needs_no_celery():
    """Each import is paid at each probe, in each container, for as long as it runs."""
    code = "import sys, mm_tasks.cli; print([m for m in ('celery', 'kombu') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_newest_of_several_beats_counts():
    """Two are harmless, and one is enough."""
    beats = {f"beat:{age_s}": Heartbeat("beat", "", age_s, ()) for age_s in (500.0, 1.0)}

    assert health.beat(beats, 30).is_ok


def test_a_heartbeat_that_fails_is_logged_once_and_ends_nothing(fresh, caplog):
    """It is tried every few seconds, for as long as the outage is."""
    server = embedded()
    server.start()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        away = f"redis://127.0.0.1:{sock.getsockname()[1]}/0"
    writer = heartbeat_writer.HeartbeatWriter("worker", "w@h")
    try:
        for url, said in (
            (away, 1),
            (away, 1),
            (f"redis://127.0.0.1:{server.port}/0", 1),
            (away, 2),
        ):
            fresh(MM_TASKS_REDIS_URL=url)
            writer.write(["mm.forget"])
            assert caplog.text.count("heartbeat_failed") == said
        with Redis(port=server.port) as redis:
            assert "worker:w@h" in heartbeats.read(redis, "default")
    finally:
        server.stop()


def test_a_beat_in_a_worker_writes_heartbeats_for_its_own_flushes_only(
    redis, redis_url, fresh, monkeypatch
):
    """With `worker -B` the worker's own nudges are published from the same process."""
    fresh(MM_TASKS_REDIS_URL=redis_url, MM_TASKS_PROJECT="p")
    monkeypatch.setattr(heartbeat_writer, "_beat", heartbeat_writer._Beat())  # noqa: SLF001 - one a thread
    beat_init.send(sender=Service(track.app))
    runtime.current().nudges.ask("deliver")
    thread = threading.Thread(target=flush.apply_async)
    thread.start()
    thread.join()
    assert heartbeats.read(redis, "p") == {}

    flush.apply_async()
    assert [sign.kind for sign in heartbeats.read(redis, "p").values()] == ["beat"]


def test_the_docs_name_every_option():
    docs = (Path(__file__).parents[2] / "docs" / "health.md").read_text()
    options = [name for one in get_command(app).commands["health"].params for name in one.opts]

    assert len(options) >= 5
    assert not [name for name in options if f"`{name}" not in docs and name != "--help"]
