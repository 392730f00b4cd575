"""The Django project of the tests. Django's settings are made once a process."""

import django
from django.conf import settings

_MEMORY = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
_PROCESSORS = ("template.context_processors.request", "contrib.auth.context_processors.auth")


def configure():
    """Make the settings, unless another module of tests did."""
    if settings.configured:
        return
    processors = [f"django.{name}" for name in _PROCESSORS]
    processors.append("django.contrib.messages.context_processors.messages")
    settings.configure(
        ALLOWED_HOSTS=["testserver"],
        DATABASES={"default": {**_MEMORY}, "other": {**_MEMORY}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=[
            *(f"django.contrib.{app}" for app in ("admin", "auth", "contenttypes")),
            *(f"django.contrib.{app}" for app in ("sessions", "messages", "staticfiles")),
            "mm_tasks.contrib.django",
        ],
        SECRET_KEY="for tests",
        STATIC_URL="static/",
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {"context_processors": processors},
            }
        ],
        USE_TZ=True,
    )
    django.setup()
