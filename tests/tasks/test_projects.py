"""Several projects on one broker: each message is of a project, and so is each queue."""

import json
import logging

import pytest

from mm_tasks import forget, identify, install, runtime, track
from mm_tasks.buffer import heartbeats
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.events.lanes import queue_names
from mm_tasks.tasks import worker
from mm_tasks.tasks.celery_app import beat_schedule, queues, route
from tests.conftest import waiting_events
from tests.tasks.test_install import run, work

OTHER = {
    "mm_tasks.track": "mm.shop.deliver",
    "mm_tasks.identify": "mm.shop.identify",
    "mm_tasks.forget": "mm.shop.forget",
    "mm_tasks.flush": "mm.shop.deliver",
    "mm_tasks.send_batch": "mm.shop.deliver",
    "mm_tasks.run_erasure": "mm.shop.forget",
    "mm_tasks.sweep_erasures": "mm.shop.forget",
}


@pytest.fixture
def of_shop(installed, fresh):
    """Make this process one of the project `shop`."""
    fresh(MM_TASKS_PROJECT="shop")
    return installed


def test_the_project_default_keeps_its_queues():
    assert queue_names("default") == ["mm.forget", "mm.deliver", "mm.identify"]


def test_every_place_that_names_a_queue_names_that_of_the_project(of_shop):
    entries = beat_schedule(runtime.current().settings).values()

    assert [queue.name for queue in queues()] == queue_names("shop")
    assert {task: route(task)["queue"].name for task in OTHER} == OTHER
    assert {entry["options"]["queue"] for entry in entries} == set(queue_names("shop"))
    assert {of_shop.amqp.router.route({}, task)["queue"].name for task in OTHER} == set(
        queue_names("shop")
    )


def test_two_projects_publish_to_no_queue_of_each_other(of_shop, redis, published, fresh, tmp_path):
    """With shared queues 15 of 20 events went to the other's vendor, with the other's key."""
    fresh(MM_TASKS_BATCH_EVENTS_MAX="1", MM_TASKS_STATE_DIR=str(tmp_path))
    track.delay("e")
    identify.delay("a", "u")
    forget.delay(user_id="u", requested_by="dpo")
    work(of_shop, "e")
    of_shop.send_task("mm_tasks.track", ("by_name",))
    worker.sweep_erasures.apply_async()
    track.s("in_a_chain").apply_async(link=identify.s("a", "u"))
    lists = {key.decode() for key in redis.scan_iter("host:mm.*")}

    assert lists == {f"host:{name}" for name in queue_names("shop")}
    headers = [h for name in queue_names("shop") for h, *_ in published(name)]
    projects = [message.get("mm_tasks_project") for message in headers]
    assert set(projects) == {"shop", None}
    assert projects.count(None) == 1  # by name


def test_a_message_of_another_project_is_put_back_and_not_run(
    of_shop, redis, published, fresh, caplog
):
    """As when a worker is told to serve the queues of another."""
    sent = track.apply_async(("e",), {"user_id": "s3cret"}, queue="mm.deliver", retries=2)
    fresh(MM_TASKS_PROJECT="default")
    with caplog.at_level(logging.WARNING):
        run(of_shop, "mm.deliver", redis)
    ((headers, args, fields),) = published("mm.shop.deliver")

    assert published("mm.deliver") == waiting_events(redis) == []
    assert (headers["id"], headers["retries"], headers["mm_tasks_project"]) == (sent.id, 2, "shop")
    assert (args, fields["user_id"]) == (["e"], "s3cret")
    # Not at once: a worker that serves both queues would see it again and again.
    assert headers["eta"]
    assert [(r.message, r.task, r.project) for r in caplog.records] == [
        ("message_of_another_project", "mm_tasks.track", "shop")
    ]
    assert "s3cret" not in json.dumps(headers)
    assert redis.hget(ProjectKeys("default").counts, "foreign_messages") == b"1"
    fresh(MM_TASKS_PROJECT="shop")
    run(of_shop, "mm.shop.deliver", redis)
    assert [event["event"] for event in waiting_events(redis, "shop")] == ["e"]


def test_a_chain_that_is_put_back_goes_on_at_home(of_shop, redis, fresh):
    work(of_shop, "x")
    link = of_shop.signature("host.work", queue="slow", immutable=True)
    track.apply_async(("e",), queue="mm.deliver", chain=[link])
    fresh(MM_TASKS_PROJECT="default")
    run(of_shop, "mm.deliver", redis)
    fresh(MM_TASKS_PROJECT="shop")
    run(of_shop, "mm.shop.deliver", redis)

    assert redis.llen("host:slow") == 1


@pytest.mark.parametrize("project", ["default", "shop"])
def test_a_message_without_a_project_is_that_of_its_queue(of_shop, redis, fresh, project):
    """Of an earlier release, or of `send_task` in another program."""
    fresh(MM_TASKS_PROJECT=project)
    of_shop.send_task("mm_tasks.track", ("e",), queue="any")
    run(of_shop, "any", redis)

    assert [event["event"] for event in waiting_events(redis, project)] == ["e"]


def test_a_retry_and_a_later_task_of_a_chain_have_the_project(of_shop, redis, published, fresh):
    work(of_shop, "x")
    (of_shop.signature("host.work") | track.s("done")).apply_async(queue="slow", serializer="json")
    run(of_shop, "slow", redis)
    fresh(MM_TASKS_REDIS_URL="redis://127.0.0.1:1/0")
    run(of_shop, "mm.shop.deliver", redis)
    ((headers, *_),) = published("mm.shop.deliver")

    assert (headers["retries"], headers["mm_tasks_project"]) == (1, "shop")


def test_projects_of_a_server_are_known_by_their_workers(redis):
    heartbeats.write(redis, "shop", "worker", "w@h", ["mm.shop.forget"])
    heartbeats.write(redis, "p", "worker", "w@h", ["mm.p.forget"])
    heartbeats.write(redis, "q", "beat", "h")

    assert heartbeats.other_projects(redis, "p") == ["shop"]
    assert heartbeats.other_projects(redis, "q") == ["p", "shop"]


def test_a_wrong_project_name_lets_the_host_start(host, fresh):
    """Its first use of the settings raises."""
    fresh(MM_TASKS_PROJECT="no/slash")
    install(host)

    assert host.conf.beat_schedule["mm_tasks-flush-track"]["options"] == {"queue": "mm.deliver"}
