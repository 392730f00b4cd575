"""`mm-tasks flush`: ask the workers for a flush, and fail if none would hear it."""

from __future__ import annotations

from kombu.exceptions import OperationalError

from mm_tasks import runtime
from mm_tasks.buffer import heartbeats
from mm_tasks.cli.output import fail
from mm_tasks.events.lanes import ENDPOINTS, QUEUES
from mm_tasks.monitoring import health
from mm_tasks.tasks import publisher
from mm_tasks.tasks.celery_app import declared_queue, queue_name
from mm_tasks.tasks.worker import flush


def run() -> None:
    """Publish a flush for each endpoint; exit 1 if no worker would take it."""
    current = runtime.current()
    project = current.settings.project
    found = heartbeats.read(current.worker_redis, project)
    kinds = {lane: QUEUES[lane] for lane, *_ in ENDPOINTS}
    for queue, state, sentence in health.queues(found, project, health.AGE_MAX_S):
        if state != "ok" and queue in map(queue_name, kinds.values()):
            fail(f"nothing was asked for: {queue}: {sentence}")
    if health.serves_no_worker(found, publisher.own_broker()):
        fail(
            "nothing was asked for: no worker of this project serves the broker of "
            "MM_TASKS_BROKER_URL; if your own app has the tasks, use "
            "celery -A your_app call mm_tasks.flush"
        )
    try:
        for lane, kind in kinds.items():
            options = {"queue": declared_queue(kind), **publisher.publish_options()}
            flush.apply_async((lane,), {"linger": False}, **options)
    except OperationalError as error:
        fail(f"the broker does not answer ({type(error.__cause__ or error).__name__})")
