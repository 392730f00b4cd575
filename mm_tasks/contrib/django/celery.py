"""The Celery app with Django's settings: `celery -A mm_tasks.contrib.django worker`, and beat.

Needs DJANGO_SETTINGS_MODULE, as `manage.py` does.
"""

from __future__ import annotations

import django

django.setup()

from mm_tasks.tasks.celery_app import app  # noqa: E402 - after Django has passed its settings on

__all__ = ["app"]
