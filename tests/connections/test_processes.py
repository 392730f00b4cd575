"""Real processes by each way: the demo, a failover by sentinels, and a user with few rights."""

import os
import subprocess

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from tests.connections.servers import SENTINEL_PASSWORD, USER_PASSWORD, until
from tests.system.caller import Caller, assert_all_go_on
from tests.system.processes import Stack


def run(*command, **env):
    """Run one of our commands, and return its output; it must succeed."""
    inherited = {name: value for name, value in os.environ.items() if "MM_TASKS" not in name}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, check=False, env={**inherited, **env}, timeout=110, **output)
    assert done.returncode == 0, done.stdout
    return done.stdout


def demo(**env):
    return run("mm-tasks", "demo", "--on-settings", "--bulk", "300", **env)


@pytest.fixture(scope="module")
def few_rights(servers, postgresql, tmp_path_factory):
    """The variables of processes under our user, after a demo on PostgreSQL and over TLS."""
    servers.alone.redis.flushall()
    servers.alone.redis.acl_log_reset()
    options = servers.certificates.options()
    at = f"mm_tasks:{USER_PASSWORD}@127.0.0.1:{servers.front.port}"
    env = {
        "MM_TASKS_REDIS_URL": f"rediss://{at}/0?{options}",
        "MM_TASKS_AUDIT_URL": postgresql,
        "MM_TASKS_STATE_DIR": str(tmp_path_factory.mktemp("state")),
        "MM_TASKS_PSEUDONYM_KEY": "0" * 64,
        "MILLIMETRIC_KEY": "sk_test_abc_not-a-real-secret",
    }
    env["DEMO"] = demo(**env)
    return env


def test_the_demo_passes_over_tls_on_postgresql_under_our_user(few_rights, servers):
    """It has real producers, a worker, beat and an erasure, and no command was refused to them."""
    assert "broken" not in few_rights["DEMO"]
    assert USER_PASSWORD not in few_rights["DEMO"]
    assert not servers.alone.redis.acl_log()


COMMANDS = """
from mm_tasks import runtime
from mm_tasks.buffer import heartbeats
from mm_tasks.cli import app
# `flush` fails without a worker.
queues = ("mm.deliver", "mm.identify")
heartbeats.write(runtime.current().worker_redis, "default", "worker", "w@h", queues)
for command in ("check", "status", "flush", "dead list", "erasure list",
        "audit checkpoint", "audit verify"):
    assert not app(command.split(), standalone_mode=False), command
"""


def test_our_user_may_run_our_commands(few_rights, servers):
    run("python", "-c", COMMANDS, **few_rights)
    assert not servers.alone.redis.acl_log()


def test_stores_that_are_not_empty_are_no_place_for_the_demo(few_rights):
    """Its events and its erasure would be mixed with others'."""
    with pytest.raises(AssertionError, match="MM_TASKS_REDIS_URL: must name an empty database"):
        demo(**few_rights)


@pytest.mark.parametrize(
    "command",
    [
        *("FLUSHALL", "FLUSHDB", "CONFIG GET *", "KEYS *", "SCAN 0", "GET of-others"),
        *("DEL of-others", f"EVALSHA {'0' * 40} 1 of-others", "PUBLISH of-others x"),
        *("CLIENT KILL TYPE normal", "REPLICAOF NO ONE", "ACL LIST", "SHUTDOWN"),
    ],
)
@pytest.mark.parametrize("username", ["mm_tasks", "mm_tasks_producer"])
def test_every_other_command_and_key_is_refused(username, command, servers):
    with (
        Redis(port=servers.alone.port, username=username, password=USER_PASSWORD) as redis,
        pytest.raises(NoPermissionError),
    ):
        redis.execute_command(*command.split())


PRODUCER = """
from mm_tasks import forget, identify, track
from mm_tasks.errors import InvalidEvent
try:
    track.delay("")
except InvalidEvent:
    pass
track.delay("a", user_id="u")
track.delay_many({"event": "a", "user_id": "u"} for _ in range(1000))
identify.delay(anonymous_id="a", user_id="u")
assert forget.delay(user_id="u", requested_by="shop").fenced
assert not track.delay("a", user_id="u").accepted
track.apply_async(("b",), {"user_id": "v"}, countdown=1)
"""


def test_a_producer_needs_no_more_than_its_own_user(servers, sqlite_url, tmp_path):
    """Web servers that can neither read what waits nor send it."""
    servers.alone.redis.flushall()
    servers.alone.redis.acl_log_reset()
    at = f"mm_tasks_producer:{USER_PASSWORD}@127.0.0.1:{servers.alone.port}"
    printed = run(
        *("python", "-W", "error", "-c", PRODUCER),
        MM_TASKS_REDIS_URL=f"redis://{at}/0",
        MM_TASKS_AUDIT_URL=sqlite_url,
        MM_TASKS_STATE_DIR=str(tmp_path),
    )

    assert not printed
    # `forget` asks once a process whether anything of the person is here.
    refused = servers.alone.redis.acl_log()
    assert [(each["object"], each["count"]) for each in refused] == [("zcard", 3)]
    assert servers.alone.redis.hget("{mm:default}:counts", "track:refused:invalid") == b"1"
    with Redis.from_url(f"redis://{at}/0") as redis, pytest.raises(NoPermissionError):
        redis.lrange("{mm:default}:track:waiting", 0, -1)


@pytest.fixture
def watched(servers, sqlite_url, tmp_path):
    """The variables of processes that find Redis through sentinels."""
    servers.wait_for_quorum()
    servers.primary().flushall()
    return {
        "MM_TASKS_REDIS_URL": servers.urls["sentinel"],
        "MM_TASKS_AUDIT_URL": sqlite_url,
        "MM_TASKS_STATE_DIR": str(tmp_path),
    }


def test_the_demo_passes_through_sentinels(watched):
    assert "broken" not in demo(**watched)


def test_no_password_is_in_celerys_report(watched):
    """It shows the settings of the app, and people put it into issues."""
    printed = run("celery", "-A", "mm_tasks", "report", **watched)
    assert "master_name" in printed
    assert SENTINEL_PASSWORD not in printed


@pytest.fixture
def sending(watched, tmp_path):
    """A worker, beat and a producer that find Redis through sentinels, and the sandbox."""
    stack = Stack(watched["MM_TASKS_REDIS_URL"], tmp_path)
    stack.env.update(watched)
    stack.sandbox_of_small_batches(100)
    stack.programs, stack.caller = (stack.worker(), stack.beat()), Caller(stack)
    try:
        stack.wait(lambda: stack.get("summary")["batches"] >= 2)
        yield stack
    finally:
        stack.end()


@pytest.mark.parametrize("trouble", ["demoted", "killed", "frozen"])
def test_all_go_on_with_the_next_primary(sending, servers, trouble):
    """No process is restarted, and nothing that was replicated is lost."""
    safe = servers.replicated(lambda: sending.caller.results()["stored"])
    old = servers.primary()
    with getattr(servers, f"{trouble}_primary")():
        until(lambda: all(servers.primary(n) is not old for n in range(3)))
        if trouble == "demoted":
            # Until it is told, the old one takes events that nobody will ever replicate.
            until(lambda: old.info("replication")["role"] == "slave")
        assert_all_go_on(sending, sending.caller, sending.programs, servers.primary(), safe)
