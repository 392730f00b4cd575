"""The base class of all our tasks."""

from __future__ import annotations

import time
from contextlib import suppress
from logging import getLogger
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject
from celery.utils.functional import firstmethod
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.buffer import heartbeats
from mm_tasks.events import lanes
from mm_tasks.tasks import celery_app, publisher
from mm_tasks.tasks.celery_app import PROJECT_HEADER, app

_log = getLogger(__name__)
# A worker that serves the queue of another project by mistake sees the message again after this.
_PUT_BACK_S = 5
# celery-types knows only tasks whose `delay` returns an AsyncResult.
_Task: Any = Task
_by_name: Any = firstmethod("annotate")  # type: ignore[arg-type] # it takes the name


class BaseTask(_Task):  # type: ignore[misc] # its base is untyped
    """Options of our tasks that do not depend on the settings of their app.

    JSON, no result, no rate limit (`buffer/rate_limiter` keeps the vendor's, over all workers),
    no limit on retries, and an acknowledgement after the work. The tasks check their arguments.
    """

    abstract = True
    _app = app  # not the current app, which may be a host's
    typing = False
    serializer = "json"
    ignore_result = True
    store_errors_even_if_ignored = False
    acks_late = True
    max_retries = None
    rate_limit = 0  # none; None would be the host's default

    @classmethod
    def annotate(cls) -> None:
        """Apply annotations that name our tasks; ignore `"*"`."""
        for name, value in (_by_name(cls.app.annotations, cls) or {}).items():
            setattr(cls, name, value)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Publish, with the project in a header."""
        headers = {PROJECT_HEADER: _project(), **(options.pop("headers", None) or {})}
        result = super().apply_async(args, kwargs, headers=headers, **options)
        if not self.app.conf.task_always_eager:
            publisher.note_publish()
        return result

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - Celery's
        """Put a message of another project back, to that project's queue, instead of running it.

        A message without the header is of an earlier release or of `send_task`, and belongs to
        the project whose queue it was in.
        """
        project = self.request.get(PROJECT_HEADER)
        if project is None or project == _project() or self.request.is_eager:
            return
        extra = {"task": self.name, "project": project}
        _log.warning("message_of_another_project", extra=extra)
        with suppress(RedisError):
            heartbeats.count_foreign(runtime.current().producer_redis, _project())
        self._put_back(project, args, kwargs)
        raise Ignore

    def _put_back(self, project: str, args: Any, kwargs: Any) -> None:
        queue = celery_app.queue(lanes.queue_name(project, celery_app.TASK_QUEUES[self.name]))
        options = {
            **self.request.as_execution_options(),
            **celery_app.REDACTED,
            "headers": {**(self.request.headers or {}), PROJECT_HEADER: project},
            "queue": queue,
            "countdown": _PUT_BACK_S,
        }
        try:
            super().apply_async(args, kwargs, **options, **publisher.publish_options())
        except OperationalError:
            publisher.publish_failed()
            time.sleep(1)  # the broker delivers it again at once
            raise Reject(None, requeue=True) from None

    def apply(self, *args: Any, **options: Any) -> Any:
        """Run the task in the caller. Finalize first: Celery reads the registry of tasks."""
        self.app.finalize(auto=True)
        return super().apply(*args, **options)


def _project() -> str:
    return runtime.current().settings.project
