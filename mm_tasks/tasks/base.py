"""The base class of all our tasks."""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.utils.functional import firstmethod

from mm_tasks.tasks.celery_app import app

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

    def apply(self, *args: Any, **options: Any) -> Any:
        """Run the task in the caller. Finalize first: Celery reads the registry of tasks."""
        self.app.finalize(auto=True)
        return super().apply(*args, **options)
