"""A host's own Celery app with real worker and beat: its settings, its prefix, its results.

No process of ours runs beside them. Broker and results are in another database of Redis than
the buffer.
"""

import json
import re
from collections import Counter

import pytest
from redis import Redis

from mm_tasks.buffer import heartbeats
from tests.system.accounting import wait_until_all_is_sent
from tests.system.processes import ROOT

HOST = """
import os

from celery import Celery
import mm_tasks

app = Celery("hostapp")
app.config_from_object("hostconfig")
if os.environ.get("INSTALL_LATE"):
    app.conf.task_routes
mm_tasks.install(app)
app.autodiscover_tasks(["mm_tasks"])

@app.task
def work(n):
    return n * 2

@app.task
def checkout(n):
    mm_tasks.track.delay("in_a_task", user_id=f"u{n}")
    return n
"""

CONFIG = """
import os

from kombu import Queue

broker_url = os.environ["HOST_REDIS"]
result_backend = os.environ["HOST_REDIS"]
broker_transport_options = {"global_keyprefix": "shop:", "visibility_timeout": 1800}
result_backend_transport_options = {"global_keyprefix": "shop-results:"}
task_serializer = "json"
accept_content = ["json"]
task_default_queue = "shop"
task_routes = {"hostapp.work": {"queue": "heavy"}, "*": {"queue": "shop"}}
task_time_limit = 300
if "TASK_QUEUES" in os.environ:
    task_queues = [Queue("shop"), Queue("heavy")]
    task_create_missing_queues = False
beat_schedule = {
    "reports": {
        "task": "mm_tasks.track",
        "schedule": 1.0,
        "kwargs": {"event": "beat_entry", "user_id": "robot"},
    },
}
worker_prefetch_multiplier = 4
"""

CALLS = """
from celery import chain, chord, group

from hostapp import app, checkout, work
from mm_tasks import forget, identify, track

track.delay("plain", user_id="u1")
track.apply_async(("countdown",), {"user_id": "u1"}, countdown=2)
chain(work.s(21), track.s("chained", user_id="u1")).apply_async()
group(track.s("grouped", user_id="u1", properties={"n": n}) for n in range(3)).apply_async()
chord([work.s(1), work.s(2)], track.s("after_a_chord", user_id="u1")).apply_async()
(
    group(work.s(1), work.s(2))
    | group(track.s("after_a_group", user_id="u1"), track.si("after_a_group", user_id="u1"))
).apply_async()
chord([track.s("in_a_chord", user_id="u1"), work.s(1)], work.si(1)).apply_async()
work.apply_async((1,), link=track.si("linked", user_id="u1"))
app.send_task("mm_tasks.track", ("by_name",), {"user_id": "u1"})
track.delay_many({"event": "many", "user_id": "u1"} for _ in range(1_200))
identify.delay("visitor", "u1")
identify.apply_async(kwargs={"anonymous_id": "visitor", "user_id": "u2"}, countdown=1)
assert work.delay(21).get(timeout=30) == 42
assert checkout.delay(7).get(timeout=30) == 7
erasure = forget.delay(user_id="gone", requested_by="dpo", ticket="GDPR-1")
forget.s(user_id="gone2", requested_by="dpo", ticket="GDPR-2").apply_async(countdown=1)
print(erasure.id)
"""
# Without beat nothing flushes the events that came after its last flush.
LAST_FLUSHES = """
import time

import hostapp
from mm_tasks.tasks.worker import flush

for _ in range(4):
    flush.delay(linger=False)
    time.sleep(0.5)
"""
# The number of each event; the events of beat are extra.
ONCE = ("plain", "countdown", "chained", "after_a_chord", "in_a_chord", "linked", "by_name")
EXPECTED = dict.fromkeys((*ONCE, "in_a_task"), 1) | {
    "grouped": 3,
    "after_a_group": 2,
    "many": 1_200,
}


@pytest.fixture
def host(stack, redis_url):
    """The stack with the host's modules and its Redis."""
    (stack.log_dir / "hostapp.py").write_text(HOST)
    (stack.log_dir / "hostconfig.py").write_text(CONFIG)
    url = redis_url.rsplit("/", 1)[0] + "/5"
    stack.env |= {"HOST_REDIS": url, "PYTHONPATH": str(stack.log_dir)}
    stack.env["MM_TASKS_ERASURE_PASSES_S"] = "0,1,2"
    with Redis.from_url(url) as stack.broker:
        stack.broker.flushdb()
        yield stack


def celery(stack, *args):
    return stack.start(args[0], "celery", "-A", "hostapp", *args, "-l", "info")


def events(stack):
    """Return how many of each event the vendor has."""
    bodies = [json.loads(body) for _, body in stack.get("bodies")]
    return Counter(event["event"] for body in bodies for event in body.get("events", ()))


def forgotten(stack):
    """Return how often the vendor was called to forget each person."""
    return Counter(forget["user_id"] for forget in stack.get("forgets"))


@pytest.mark.parametrize(
    ("env", "queues"),
    [("TASK_QUEUES", ()), ("INSTALL_LATE", ("-Q", "shop,heavy,mm.forget,mm.deliver,mm.identify"))],
    ids=["queues of its own, all served", "installed late, queues named"],
)
def test_a_host_delivers_everything_with_its_own_worker_and_beat(host, redis, env, queues):
    host.env[env] = "1"
    host.sandbox("--no-limits")
    worker = celery(host, "worker", "-c", "2", *queues)
    beat = celery(host, "beat")
    host.produce(CALLS)
    host.wait(lambda: events(host).items() >= EXPECTED.items() and "beat_entry" in events(host), 60)
    host.wait(lambda: forgotten(host) == {"gone": 3, "gone2": 3}, 60)
    # In the buffer's Redis, which `mm-tasks health` reads, whatever the host's broker is.
    alive = {sign.kind: set(sign.queues) for sign in heartbeats.read(redis, "default").values()}
    assert alive == {"worker": {"mm.forget", "mm.deliver", "mm.identify"}, "beat": set()}
    host.stop([beat])
    host.produce(LAST_FLUSHES)
    wait_until_all_is_sent(host, redis)

    arrived, log = events(host), host.read(worker)
    assert {name: arrived[name] for name in EXPECTED} == EXPECTED
    assert "Traceback" not in log
    assert "host_configuration_problem: worker_prefetch_multiplier" in log
    assert host.get("summary")["identifies"] == 2
    assert not redis.keys("mm.*")
    # Celery's keys for us have the host's prefix; all results are the host's.
    assert {key.split(b":")[0] for key in host.broker.scan_iter()} <= {b"shop", b"shop-results"}
    results = map(host.broker.get, host.broker.keys("shop-results:celery-task-meta-*"))
    assert sorted(json.loads(raw)["result"] for raw in results) == [2] * 5 + [4, 4, 7, 42, 42]


def test_every_example_of_the_docs_runs(host, redis_url):
    page = (ROOT / "docs" / "celery.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    program = "\n".join(examples).replace("redis://127.0.0.1:6379/1", redis_url)
    host.produce(program + '\nimport asyncio\n\nasyncio.run(signup("visitor", "user_42"))\n')

    assert len(examples) == 5


SHOP = """
import time

from celery import Celery
from celery.contrib.testing.worker import start_worker
from kombu import Queue

import mm_tasks
from hostconfig import broker_url

OURS = {"mm.forget", "mm.identify", "mm.deliver"}
app = Celery("shop", broker=broker_url)
app.conf.task_default_queue = "shop"
mm_tasks.install(app)
"""
QUEUES = """
assert set(app.Worker(queues=["shop"]).app.amqp.queues.consume_from) == {"shop"}
assert set(app.amqp.queues) == OURS | {"shop"}
"""
TEST_WORKER = """
app.conf.task_queues = [Queue("shop"), *map(Queue, OURS)]
with start_worker(app, pool="solo", perform_ping_check=False):
    assert set(app.amqp.queues.consume_from) == OURS | {"shop"}
    app.send_task("mm_tasks.track", ("by_name",), {"user_id": "u1"})
    deadline = time.monotonic() + 20
    redis = mm_tasks.runtime.current().producer_redis
    while not redis.llen("{mm:default}:track:waiting"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
"""


@pytest.mark.parametrize("program", [QUEUES, TEST_WORKER], ids=["queues", "testing"])
def test_the_lines_that_the_docs_give_for_special_cases_work(host, program):
    host.produce(SHOP + program)
