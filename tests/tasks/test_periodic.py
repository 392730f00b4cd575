"""What beat publishes, by its own code on a real Redis; the tests do the work of a worker."""

import asyncio
import logging
import os
import subprocess
import sys
import time
from datetime import timedelta

import pytest
from celery.beat import Scheduler as CelerysScheduler
from celery.beat import Service
from celery.signals import beat_init

from mm_tasks import forget, identify, track
from mm_tasks.buffer import heartbeats
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.tasks import heartbeat_writer, worker
from mm_tasks.tasks.overrides import Scheduler

KEYS = ProjectKeys("default")
QUEUES = ("mm.forget", "mm.deliver", "mm.identify")
NIGHT_S = 8 * 3600


@pytest.fixture(params=[Scheduler, CelerysScheduler], ids=["ours", "Celery's"])
def beat(request, installed, monkeypatch):
    """A beat of a host with this scheduler, which has started."""
    monkeypatch.setattr(heartbeat_writer, "_beat", heartbeat_writer._Beat())  # noqa: SLF001 - one a thread
    return start_beat(installed, request.param)


def start_beat(host, scheduler):
    service = Service(host, scheduler_cls=scheduler)
    assert service.scheduler
    beat_init.send(sender=service)
    return service.scheduler


def all_due(beat):
    """Let beat publish each of our entries, as it does once a second."""
    for name, entry in beat.schedule.items():
        if name.startswith("mm_tasks"):
            beat.apply_entry(entry, producer=beat.producer)


def pass_time(redis, seconds):
    for kind, mark in redis.hgetall(KEYS.nudges).items():
        asked_us, *times = mark.decode().split()
        redis.hset(KEYS.nudges, kind, " ".join([str(int(asked_us) - round(seconds * 1e6)), *times]))


def lengths(redis):
    return [redis.llen(f"host:{queue}") for queue in QUEUES]


def test_no_message_of_beat_expires(beat, published):
    """It did by the clock of the worker that took it: one 1.2 s ahead discarded everything."""
    all_due(beat)
    messages = [headers for queue in QUEUES for headers, *_ in published(queue)]

    assert [headers["expires"] for headers in messages] == [None] * 3
    assert [headers["mm_tasks_project"] for headers in messages] == ["default"] * 3


def test_a_night_without_workers_leaves_a_few_messages(beat, redis):
    """It left 259 200 a day, in the buffer's own Redis."""
    all_due(beat)
    before = held_bytes(redis)
    for _ in range(60):
        all_due(beat)
    assert lengths(redis) == [1, 1, 1]
    for _ in range(NIGHT_S // 30):
        pass_time(redis, 30)
        all_due(beat)

    assert max(lengths(redis)) < 16
    assert held_bytes(redis) - before < 100_000


def held_bytes(redis):
    return sum(redis.memory_usage(key) for key in redis.scan_iter())


def test_several_beats_publish_no_more_than_one(beat, installed, redis):
    other = start_beat(installed, type(beat))
    for _ in range(3):
        all_due(beat)
        all_due(other)

    assert lengths(redis) == [1, 1, 1]


DJANGOS_BEAT = """
import django
from celery import Celery
from django.conf import settings
from django.core.management import call_command

settings.configure(
    INSTALLED_APPS=["django_celery_beat"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    USE_TZ=True,
)
django.setup()
call_command("migrate", verbosity=0)

from django_celery_beat.schedulers import DatabaseScheduler

import mm_tasks
from mm_tasks import runtime

host = Celery("host", broker=runtime.current().settings.redis_url.get_secret_value())
mm_tasks.install(host)
beat = DatabaseScheduler(host)
for _ in range(3):
    for name, entry in beat.schedule.items():
        if name.startswith("mm_tasks"):
            beat.apply_entry(entry, producer=beat.producer)
"""


def test_the_schedule_of_djangos_database_is_held_to_the_same(redis, redis_url):
    """Its scheduler ignores `expires`, and publishes by the tasks as any other does."""
    pytest.importorskip("django_celery_beat")
    env = {**os.environ, "MM_TASKS_REDIS_URL": redis_url}
    subprocess.run([sys.executable, "-c", DJANGOS_BEAT], env=env, check=True)

    assert [redis.llen(queue) for queue in QUEUES] == [1, 1, 1]


def test_what_begins_can_be_asked_for_again(beat, redis):
    """An event stored while a flush runs must not wait for a mark of the flush before."""
    all_due(beat)
    for task in (worker.flush, worker.sweep_erasures):
        task.run()
    all_due(beat)

    assert lengths(redis) == [2, 2, 1]
    worker.flush.run("identify")
    all_due(beat)
    assert lengths(redis) == [2, 2, 2]


def test_a_full_batch_and_beat_ask_together_once(beat, redis, fresh):
    fresh(MM_TASKS_BATCH_EVENTS_MAX="1")
    track.delay("e")
    all_due(beat)
    track.delay("e")
    identify.delay("a", "u")

    assert lengths(redis) == [1, 1, 1]


def test_an_event_of_an_event_loop_leaves_the_flush_to_beat(beat, redis, fresh):
    """It sets no mark, as it publishes nothing."""
    fresh(MM_TASKS_BATCH_EVENTS_MAX="1")
    asyncio.run(track.adelay("e"))
    assert not redis.exists(KEYS.nudges)
    all_due(beat)

    assert lengths(redis) == [1, 1, 1]


@pytest.mark.usefixtures("installed")
def test_a_person_who_asks_for_part_full_batches_is_always_heard(redis):
    """The flush that is asked for already leaves events that have not lingered."""
    assert worker.flush.apply_async() is not None
    assert worker.flush.apply_async() is None
    assert worker.flush.delay(linger=False) is not None

    assert redis.llen("host:mm.deliver") == 2


def test_beat_goes_on_while_redis_is_away(beat, fresh, caplog, redis):
    """A flush could do nothing then. The broker, here another server, gets nothing."""
    fresh(MM_TASKS_REDIS_URL="redis://127.0.0.1:1/0")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            all_due(beat)

    assert lengths(redis) == [0, 0, 0]
    assert [record.message for record in caplog.records] == ["heartbeat_failed"]


def test_beat_is_alive_although_it_publishes_nothing(beat, redis):
    """Its heartbeat came with a published flush."""
    all_due(beat)
    heartbeats.delete(redis, "default", "beat", next(iter(beats(redis))))
    heartbeat_writer._beat.next_s = 0.0  # noqa: SLF001 - the next one is due
    all_due(beat)

    assert lengths(redis) == [1, 1, 1]
    assert beats(redis)


def beats(redis):
    found = heartbeats.read(redis, "default").values()
    return [sign.name for sign in found if sign.kind == "beat"]


@pytest.mark.usefixtures("installed")
def test_an_erasure_is_asked_for_at_once_without_expiry(published, fresh, tmp_path):
    fresh(MM_TASKS_STATE_DIR=str(tmp_path))
    accepted = forget.delay(user_id="u", requested_by="dpo")
    ((headers, args, _),) = published("mm.forget")

    assert (headers["task"], headers["expires"], args) == (
        "mm_tasks.run_erasure",
        None,
        [accepted.id],
    )


def test_a_clock_set_back_an_hour_stops_no_entry(installed, redis):
    """Each entry waited until the clock had reached its last run again."""
    beat, now = Scheduler(installed), installed.now
    assert wait_until_published(beat, redis, [1, 1, 1])
    installed.now = lambda: now() - timedelta(hours=1)
    redis.delete(KEYS.nudges)

    assert wait_until_published(beat, redis, [2, 2, 2])


def wait_until_published(beat, redis, numbers):
    """Run beat's loop until it published as many, for a few seconds at most."""
    ends_at = time.monotonic() + 4
    while lengths(redis) != numbers and time.monotonic() < ends_at:
        time.sleep(max(0, min(beat.tick(), 1)))
    return lengths(redis) == numbers
