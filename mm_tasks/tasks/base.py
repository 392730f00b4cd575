"""What all our tasks have in common."""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.utils.functional import firstmethod

from mm_tasks.tasks.celery_app import app

# celery-types knows only tasks whose `delay` returns an AsyncResult.
_Task: Any = Task
_by_name: Any = firstmethod("annotate")  # type: ignore[arg-type] # it takes the name


class BaseTask(_Task):  # type: ignore[misc]
    """What all our tasks need, whatever the settings of the app they are in.

    That is JSON, no result, no rate limit (the vendor's is kept by `limiter`, over all
    workers), no end to retries, and an acknowledgement when done. Arguments are checked by
    the tasks.
    """

    abstract = True
    _app = app  # not the current app of a host, whichever that is
    typing = False
    serializer = "json"
    ignore_result = True
    store_errors_even_if_ignored = False
    acks_late = True
    max_retries = None
    rate_limit = 0  # none; None would be the host's default

    @classmethod
    def annotate(cls) -> None:
        """Heed a host's annotations by our names; those for all tasks are not meant for ours."""
        for name, value in (_by_name(cls.app.annotations, cls) or {}).items():
            setattr(cls, name, value)

    def apply(self, *args: Any, **options: Any) -> Any:
        """Run it here and now; Celery looks it up in the registry, which may not be made yet."""
        self.app.finalize(auto=True)
        return super().apply(*args, **options)
