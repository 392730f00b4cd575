"""Celery's logging with the formats of `logs`, for our own app: see MM_TASKS_LOG_FORMAT.

`--loglevel` and `--logfile` work as ever. A host's app keeps its own logging.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from celery.app.log import Logging as CeleryLogging

from mm_tasks import logs, runtime

if TYPE_CHECKING:
    import logging


class Logging(CeleryLogging):
    """As Celery's, but that each handler gets our formatter."""

    def setup_handlers(self, logger: logging.Logger, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - Celery's
        """Put up a handler with the format of the settings."""
        kind = runtime.current().settings.log_format
        return super().setup_handlers(
            logger, *args, **{**options, "formatter": partial(_made, kind)}
        )


def _made(kind: str, pattern: str, *_: object, **__: object) -> logging.Formatter:
    """Return what Celery asks for: a formatter of a pattern, in colours or not."""
    return logs.formatter(kind, pattern)
