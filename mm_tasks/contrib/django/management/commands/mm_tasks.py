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
    """Runs `mm-tasks`, which parses its options itself."""

    help = "Runs mm-tasks, for example: manage.py mm_tasks status"
    requires_system_checks = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Pass all arguments on, without Django's parser."""
        self.handle(*argv[2:])

    def add_arguments(self, parser: Any) -> None:
        """Accept all arguments, for `call_command`."""
        parser.add_argument("args", nargs=argparse.REMAINDER)

    def handle(self, *args: str, **_: Any) -> None:
        """Run `mm-tasks`; raises SystemExit with its exit code."""
        # Child processes, such as the worker of `up`, read them from the environment.
        os.environ.update(
            {variable(name): _text(value) for name, value in conf.explicit_settings().items()}
        )
        sys.argv = ["mm_tasks", *args]
        (command,) = entry_points(group="console_scripts", name="mm-tasks")
        command.load()()


def _text(value: object) -> str:
    if value is None:
        return ""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
