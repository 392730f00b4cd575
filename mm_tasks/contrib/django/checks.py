"""System checks: `manage.py check` reports wrong settings before anything is started."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import Error, Warning  # noqa: A004 - Django's own name
from django.core.exceptions import ImproperlyConfigured

from mm_tasks.contrib.django import conf
from mm_tasks.errors import ConfigurationError
from mm_tasks.settings import Settings

_OURS = "mm_tasks.contrib.django.middleware.VisitMiddleware"


def settings_are_sound(app_configs: Any, **_: Any) -> list[Any]:  # noqa: ARG001 - Django's form
    """Return errors for wrong settings, and for names with our prefixes that are no settings."""
    errors: list[Any] = [
        Error(f"{name} is not a setting of mm_tasks", id="mm_tasks.E002") for name in conf.unknown()
    ]
    try:
        Settings.load(conf.explicit_settings())
    except ConfigurationError as error:
        errors.append(Error(str(error), id="mm_tasks.E001"))
    return errors


def allowed_is_sound(app_configs: Any, **_: Any) -> list[Any]:  # noqa: ARG001 - Django's form
    """Return an error if nobody can tell who may see erasures."""
    try:
        conf.allowed()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="mm_tasks.E004")]
    return []


def visits_are_sound(app_configs: Any, **_: Any) -> list[Any]:  # noqa: ARG001 - Django's form
    """Return errors and warnings for options that are wrong or have no effect."""
    try:
        options = conf.visit_options()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="mm_tasks.E003")]
    if not options.issue_cookie or _OURS in settings.MIDDLEWARE:
        return []
    hint = f"Add {_OURS} to MIDDLEWARE."
    return [Warning("issue_cookie has no effect", hint=hint, id="mm_tasks.W001")]
