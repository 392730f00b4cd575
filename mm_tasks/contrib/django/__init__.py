"""Django: put `mm_tasks.contrib.django` into INSTALLED_APPS.

Settings: those of the environment, by the same names, `MM_TASKS_…` and `MILLIMETRIC_…`; here
they win over it. `MM_TASKS_VISIT` is a dict of options for the middleware: see `VisitOptions`.
"""
