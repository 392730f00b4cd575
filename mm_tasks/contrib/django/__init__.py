"""Django: put `mm_tasks.contrib.django` into INSTALLED_APPS.

Settings have the names of the environment, `MM_TASKS_…` and `MILLIMETRIC_…`. Django's settings win
over the environment. `MM_TASKS_VISIT` is a dict of options for the middleware: see `VisitOptions`.
"""
