"""The Django app: passes the settings on and registers the system checks."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register

from mm_tasks import runtime
from mm_tasks.contrib.django import checks, conf


class MMTasksConfig(AppConfig):  # type: ignore[misc] # Django ships no types
    """`mm_tasks.contrib.django`."""

    name = "mm_tasks.contrib.django"
    label = "mm_tasks"
    verbose_name = "mm_tasks"

    def ready(self) -> None:
        """Give Django's settings precedence; ours are read at the first event, not here."""
        runtime.configure(**conf.explicit_settings())
        register(checks.settings_are_sound)
        register(checks.visits_are_sound)
        register(checks.allowed_is_sound)
