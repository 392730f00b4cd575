"""The base class of the tasks that beat publishes: flush and sweep.

Every beat publishes by `apply_async`: ours, that of a host, django-celery-beat, several at once.
So here is the place to publish nothing while an earlier message has not begun: see `buffer/nudges`.
"""

from __future__ import annotations

from typing import Any

from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.tasks import heartbeat_writer
from mm_tasks.tasks.base import BaseTask


class PeriodicTask(BaseTask):
    """A task whose message says only: look whether there is something to do."""

    abstract = True

    def kind(self, args: tuple[Any, ...]) -> str:
        """Return the kind of queue that these arguments belong to."""
        raise NotImplementedError

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Publish, unless this task is asked for already: then return None.

        A call with keywords asks for more than beat does, and is always published. While Redis is
        away nothing is published, as nothing could be done.
        """
        is_asked = bool(kwargs) or self.app.conf.task_always_eager or self._ask(tuple(args or ()))
        result = super().apply_async(args, kwargs, **options) if is_asked else None
        heartbeat_writer.beat_is_alive()
        return result

    def _ask(self, args: tuple[Any, ...]) -> bool:
        current = runtime.current()
        try:
            return current.has_broker and current.nudges.ask(self.kind(args))
        except RedisError:
            return False

    def begin(self, *args: Any) -> None:
        """Let the next event ask for this task again; before any other work of it."""
        runtime.current().nudges.begin(self.kind(args))
