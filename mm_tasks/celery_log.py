"""How our Celery app writes its log: as Celery does, with our formatter on its handlers.

`--loglevel` and `-f` are Celery's as ever. A host's app is left as it is.
"""

from __future__ import annotations

from typing import Any

from celery.app.log import Logging as CeleryLogging

from mm_tasks import logs, runtime

_Logging: Any = CeleryLogging  # celery-types knows no handler with another formatter


class Logging(_Logging):  # type: ignore[misc]
    """Celery's own, in the form that `MM_TASKS_LOG_FORMAT` names."""

    def setup_handlers(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - Celery's
        """Add a handler to a logger; also that of tasks gets our formatter."""
        return super().setup_handlers(*args, **{**options, "formatter": self._formatter})

    def _formatter(self, *_: Any, **__: Any) -> Any:  # noqa: ANN401
        return logs.formatter(runtime.log_form(), self.format)
