"""Signs of life and what a probe makes of them, on a real server."""

from __future__ import annotations

import pytest
from redis import Redis

from mm_tasks import health, signs
from mm_tasks.keys import ProjectKeys
from mm_tasks.runtime import Runtime
from mm_tasks.settings import Settings
from tests.conftest import embedded

KEYS = ProjectKeys("p")


def age(redis, field, by_s):
    """Let a sign be so much older."""
    at_ms, _, queues = redis.hget(KEYS.signs, field).decode().partition(" ")
    redis.hset(KEYS.signs, field, f"{int(at_ms) - round(1000 * by_s)} {queues}")


def states(verdicts):
    return {verdict.what: verdict.state for verdict in verdicts}


def test_a_sign_names_kind_node_and_queues(redis):
    signs.leave(redis, "p", signs.WORKER, "celery@a:1", ["mm.deliver", "mm.identify"])
    signs.leave(redis, "p", signs.BEAT, "host")

    worker, beat = sorted(signs.read(redis, "p"), key=lambda sign: sign.kind, reverse=True)

    assert worker[:2] == ("worker", "celery@a:1")
    assert worker.queues == {"mm.deliver", "mm.identify"}
    assert (beat.kind, beat.name, beat.queues) == ("beat", "host", frozenset())
    assert 0 <= worker.age_s < 60


def test_a_worker_is_dead_once_its_sign_is_too_old(redis):
    signs.leave(redis, "p", signs.WORKER, "w@a", ["mm.deliver"])
    assert health.worker(signs.read(redis, "p"), "w@a").state == "ok"
    age(redis, "worker:w@a", health.AGE_MAX_S + 1)

    assert health.worker(signs.read(redis, "p"), "w@a").state == "problem"
    assert health.worker(signs.read(redis, "p"), "w@a", age_max_s=3600).state == "ok"
    assert health.worker(signs.read(redis, "p"), "w@b").state == "problem"


def test_a_queue_that_nobody_serves_is_seen(redis):
    """A worker of deliveries does not make erasures alive."""
    signs.leave(redis, "p", signs.WORKER, "w@a", ["mm.deliver"])
    signs.leave(redis, "p", signs.WORKER, "w@b", ["mm.deliver", "mm.forget"])
    age(redis, "worker:w@b", 3600)

    found = health.queues(signs.read(redis, "p"), ["mm.deliver", "mm.forget", "mm.identify"])

    assert states(found) == {
        "workers of mm.deliver": "ok",
        "workers of mm.forget": "problem",
        "workers of mm.identify": "problem",
    }


def test_a_beat_of_any_host_will_do(redis):
    assert health.beat(signs.read(redis, "p")).state == "problem"
    signs.leave(redis, "p", signs.BEAT, "old")
    age(redis, "beat:old", 3600)
    assert health.beat(signs.read(redis, "p")).state == "problem"
    signs.leave(redis, "p", signs.BEAT, "new")

    assert health.beat(signs.read(redis, "p")).state == "ok"


def test_names_that_do_not_come_back_are_forgotten_after_a_day(redis):
    """Each restart of a container is another name."""
    for name in ("gone", "here"):
        signs.leave(redis, "p", signs.WORKER, name)
    age(redis, "worker:gone", 86_401)
    age(redis, "worker:here", 86_000)
    signs.leave(redis, "p", signs.BEAT, "host")

    assert {sign.name for sign in signs.read(redis, "p")} == {"here", "host"}


def test_a_replica_is_not_well(redis):
    """It answers, and takes nothing."""
    replica = embedded()
    replica.start()
    try:
        client = Redis(port=replica.port)
        assert health.redis(client).state == "ok"
        client.replicaof("127.0.0.1", redis.connection_pool.connection_kwargs["port"])

        assert health.redis(client).state == "problem"
        client.close()
    finally:
        replica.stop()


def test_nobody_is_not_well():
    client = Redis(port=1)

    assert health.redis(client).state == "problem"


@pytest.mark.parametrize(
    ("audit_url", "state"),
    [(None, "ok"), ("postgresql://nobody@127.0.0.1:1/nothing", "problem")],
    ids=["no file yet", "a server that is away"],
)
def test_asking_for_the_audit_database_makes_nothing(redis_url, tmp_path, audit_url, state):
    """A probe runs as whoever; a file or a key of its own would be in the way."""
    folder = tmp_path / "state"
    settings = Settings(redis_url=redis_url, audit_url=audit_url, state_dir=folder)

    assert health.audit(Runtime(settings)).state == state
    assert not folder.exists()


def test_an_audit_database_that_is_there_is_asked(redis_url, tmp_path):
    current = Runtime(Settings(redis_url=redis_url, state_dir=tmp_path))
    assert current.register.store_id

    assert health.audit(current).sentence == "answers"
