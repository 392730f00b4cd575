"""`manage.py mm_tasks status --json`: the command `mm-tasks` with Django's settings."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import entry_points
from typing import Any

from django.core.management.base import BaseCommand

from mm_tasks.contrib.django import conf
from mm_tasks.settings import variable


class Command(BaseCommand):  # type: ignore[misc] # Django ships no types
    """Bridges to `mm-tasks`; its options are its own, so Django does not read them."""

    help = "Runs mm-tasks, for example: manage.py mm_tasks status"
    requires_system_checks = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Run it as from the shell."""
        self.handle(*argv[2:])

    def add_arguments(self, parser: Any) -> None:
        """Take everything as it is."""
        parser.add_argument("args", nargs=argparse.REMAINDER)

    def handle(self, *args: str, **_: Any) -> None:
        """Run it; ends by SystemExit as `mm-tasks` does."""
        # For the processes it starts, such as the worker of `up`.
        os.environ.update({variable(name): _text(value) for name, value in conf.given().items()})
        sys.argv = ["mm_tasks", *args]
        (command,) = entry_points(group="console_scripts", name="mm-tasks")
        command.load()()


def _text(value: object) -> str:
    if value is None:
        return ""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
