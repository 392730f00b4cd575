"""Our settings among Django's."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from mm_tasks.contrib.request_context import VisitOptions
from mm_tasks.errors import ConfigurationError
from mm_tasks.settings import Settings, variable

VISIT = "MM_TASKS_VISIT"
# Django has its own settings for the headers of a proxy.
_DJANGO_KNOWS = "forwarded"


def explicit_settings() -> dict[str, Any]:
    """Return our settings that Django's settings contain, by field."""
    names = {field: variable(field) for field in Settings.model_fields}
    return {
        field: getattr(settings, name) for field, name in names.items() if hasattr(settings, name)
    }


def unknown() -> list[str]:
    """Return the names with our prefixes that are no settings of ours."""
    known = {VISIT, *map(variable, Settings.model_fields)}
    prefixes = ("MM_TASKS_", "MILLIMETRIC_")
    return sorted(name for name in dir(settings) if name.startswith(prefixes) and name not in known)


def visit_options() -> VisitOptions:
    """Return the options of the middleware; raises `ImproperlyConfigured`."""
    options = getattr(settings, VISIT, {})
    try:
        if _DJANGO_KNOWS not in options:
            return VisitOptions(**options)
        msg = (
            f"{VISIT}: {_DJANGO_KNOWS}: is not used here; set SECURE_PROXY_SSL_HEADER and "
            "USE_X_FORWARDED_HOST"
        )
    except (ConfigurationError, TypeError) as error:
        msg = f"{VISIT}: {error}"
    raise ImproperlyConfigured(msg)
