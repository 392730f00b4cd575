"""`mm-tasks flush` fails where nobody would hear it, and says why."""

import pytest

from mm_tasks.buffer import heartbeats
from mm_tasks.tasks import publisher
from tests.cli.in_process import in_this_process
from tests.conftest import free_port


@pytest.fixture
def flush(redis, redis_url, fresh):
    """Return a function that runs the command, beside a worker with this broker."""

    def run(broker=None, queues=("mm.deliver", "mm.identify"), **env):
        fresh(MM_TASKS_REDIS_URL=redis_url)
        if broker is not None:
            heartbeats.write(redis, "default", "worker", "w@h", queues, broker=broker)
        return in_this_process({"MM_TASKS_REDIS_URL": redis_url, **env}, ["flush"], None)

    return run


def own(fresh, redis_url):
    fresh(MM_TASKS_REDIS_URL=redis_url)
    return publisher.own_broker()


def published(redis):
    return redis.llen("mm.deliver"), redis.llen("mm.identify")


def test_a_flush_is_published_again_although_one_is_asked_for(flush, redis, redis_url, fresh):
    """Beat's leaves events that have not lingered."""
    broker = own(fresh, redis_url)

    assert [flush(broker).returncode, flush(broker).returncode] == [0, 0]
    assert published(redis) == (2, 2)
    assert flush("").returncode == 0  # a worker of an earlier release


def test_without_a_worker_of_each_queue_it_fails(flush, redis):
    assert "mm.deliver: no worker serves it" in (done := flush()).stderr
    assert done.returncode == 1
    done = flush("b", ("mm.deliver", "mm.forget"))
    assert "mm.identify: no worker serves it" in done.stderr
    assert done.returncode == 1

    assert published(redis) == (0, 0)


def test_with_the_workers_at_another_broker_it_fails_with_that_sentence(flush, redis):
    done = flush("another")

    assert done.returncode == 1
    assert "no worker of this project serves the broker of MM_TASKS_BROKER_URL" in done.stderr
    assert published(redis) == (0, 0)


def test_a_broker_that_does_not_answer_is_one_sentence(flush):
    done = flush("", MM_TASKS_BROKER_URL=f"amqp://127.0.0.1:{free_port()}//")

    assert done.returncode == 1
    assert done.stderr.startswith("mm-tasks: the broker does not answer (ConnectionRefused")
