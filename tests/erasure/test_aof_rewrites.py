"""One rewrite of Redis's AOF for all erasures that completed before it began.

Sabotages that turn this file red, each tried on a copy:

- a rewrite is started for each erasure, while one runs, or while others are about to complete;
- a rewrite counts for an erasure that completed after its start, or that a restart ended;
- the result is not recorded if it is `off` or `refused`.
"""

import time

from redis import Redis

from mm_tasks.buffer.purge import Purge
from mm_tasks.erasure import aof_rewrites
from mm_tasks.erasure.audit.verification import verify


def rewrites(client):
    return client.info("commandstats").get("cmdstat_bgrewriteaof", {"calls": 0})["calls"]


def outcomes(store):
    return [one["details"]["outcome"] for one in store.parsed("aof_rewritten")]


def completed(store, *names):
    return [store.completed(user_id=name).id for name in names]


def test_thirty_completions_are_served_by_one_rewrite(sqlite_store, persistent):
    """Each waited for its own, and the first call of a new erasure came after 42 s."""
    store, purge = sqlite_store, Purge(persistent.client, "p")
    for n in range(30):
        completed(store, f"person-{n}")
        aof_rewrites.follow(store.steps, purge, is_idle=False)
    assert rewrites(persistent.client) == 0
    ends_s = time.monotonic() + 30
    while store.steps.without_aof(99):
        assert time.monotonic() < ends_s
        aof_rewrites.follow(store.steps, purge, is_idle=True)

    assert rewrites(persistent.client) == 1
    assert outcomes(store) == ["rewritten"] * 30
    verify(store.log)


def follow(store, client):
    aof_rewrites.follow(store.steps, Purge(client, "p"), is_idle=True)


def test_what_completes_while_redis_rewrites_waits_for_the_next_rewrite(sqlite_store, persistent):
    """That one may hold what was removed since it began."""
    store, client = sqlite_store, persistent.client
    client.mset({f"key-{n}": n for n in range(20)})
    client.config_set("rdb-key-save-delay", 50_000)
    (first,) = completed(store, "first")
    follow(store, client)
    (second,) = completed(store, "second")
    for _ in range(3):
        follow(store, client)
    assert rewrites(client) == 1
    run_id = client.info("server")["run_id"]
    assert store.steps.without_aof(9) == {first: run_id, second: ""}
    client.config_set("rdb-key-save-delay", 0)
    ends_s = time.monotonic() + 30
    while store.steps.without_aof(9):
        assert time.monotonic() < ends_s
        follow(store, client)

    assert rewrites(client) == 2
    assert outcomes(store) == ["rewritten", "rewritten"]


def test_a_rewrite_that_a_restart_ended_is_started_again(sqlite_store, persistent):
    store, client = sqlite_store, persistent.client
    ids = completed(store, "a person")
    store.steps.await_aof(ids, "the server before")
    follow(store, client)

    assert rewrites(client) == 1
    assert outcomes(store) == []


def test_without_an_aof_and_without_the_right_the_log_says_so(sqlite_store, persistent, servers):
    store = sqlite_store
    completed(store, "a", "b")
    follow(store, servers().client)
    persistent.client.acl_setuser(
        "tenant", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-bgrewriteaof"]
    )
    completed(store, "c")
    with Redis(port=persistent.port, username="tenant", password="any") as tenant:
        follow(store, tenant)

    assert outcomes(store) == ["off", "off", "refused"]
    assert store.steps.without_aof(9) == {}
