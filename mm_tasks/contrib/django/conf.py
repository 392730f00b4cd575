"""Our settings among Django's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from mm_tasks.contrib.request_context import VisitOptions
from mm_tasks.errors import ConfigurationError
from mm_tasks.settings import Settings, variable

if TYPE_CHECKING:
    from collections.abc import Callable

VISIT = "MM_TASKS_VISIT"
ALLOWED = "MM_TASKS_ERASURES_ALLOWED"
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
    known = {VISIT, ALLOWED, *map(variable, Settings.model_fields)}
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


def may(user: Any, action: str) -> bool:
    """Return whether a user may do this on the pages of erasures.

    The action is view, request, cancel, lift or retry. Raises `ImproperlyConfigured`.
    """
    return user.is_active and bool(allowed()(user, action))


def allowed() -> Callable[[Any, str], object]:
    """Return the function that decides, by default for superusers; see `may`."""
    function = getattr(settings, ALLOWED, None)
    if function is None:
        return lambda user, _action: user.is_superuser
    if isinstance(function, str):
        try:
            function = import_string(function)
        except ImportError:
            function = None
    if callable(function):
        return function  # type: ignore[no-any-return] # any function of the host
    msg = f"{ALLOWED}: must be a function of a user and an action, or its dotted path"
    raise ImproperlyConfigured(msg)
