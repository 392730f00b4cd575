"""Erasures in Django's admin: a list, each with its timeline, and the actions on it.

Django imports this module for the default site. For an `AdminSite` of your own that is not the
default, call `add_erasures(site)`. There is no model, so no migration and no content type.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.urls import reverse

from mm_tasks.contrib.django import erasure_pages
from mm_tasks.contrib.django.conf import may


def add_erasures(site: Any) -> None:
    """Add the pages of erasures, and their line in the list of apps, to an admin site."""
    urls_before, apps_before = site.get_urls, site.get_app_list
    home = f"{site.name}:{erasure_pages.LIST}"

    def get_urls() -> list[Any]:
        return [*erasure_pages.urls(site), *urls_before()]

    def get_app_list(request: Any, app_label: str | None = None) -> list[Any]:
        apps = list(apps_before(request, app_label))
        if app_label is None and may(request.user, "view"):
            apps.append(_app(reverse(home), reverse(f"{site.name}:{erasure_pages.REQUEST}")))
        return apps

    site.get_urls, site.get_app_list = get_urls, get_app_list


def _app(list_url: str, request_url: str) -> dict[str, Any]:
    """Return a line in the list of apps, as Django makes one for each app with models."""
    erasures = {
        "name": "Erasures",
        "object_name": "Erasure",
        "admin_url": list_url,
        "add_url": request_url,
        "view_only": True,
        "perms": {"add": True, "change": False, "delete": False, "view": True},
    }
    return {
        "name": "mm_tasks",
        "app_label": "mm_tasks",
        "app_url": list_url,
        "has_module_perms": True,
        "models": [erasures],
    }


add_erasures(admin.site)
