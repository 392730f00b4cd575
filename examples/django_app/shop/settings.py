"""Settings of a project with mm_tasks: the app, the middleware, and optional settings.

Settings of mm_tasks have the names of its environment variables, and win over them.
"""

from __future__ import annotations

import os

DEBUG = False
SECRET_KEY = "for the example only"  # noqa: S105
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "shop.example"]
ROOT_URLCONF = "shop.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DATABASE", "shop.sqlite3"),
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
    }
}

INSTALLED_APPS = ["mm_tasks.contrib.django", "shop"]
MIDDLEWARE = ["mm_tasks.contrib.django.middleware.VisitMiddleware"]
MM_TASKS_PROJECT = "shop"
