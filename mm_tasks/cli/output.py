"""What the commands share: plain texts, logs, whole tables, private files, one way to fail."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from mm_tasks import runtime
from mm_tasks.monitoring import log_format

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

# An id must stay in one piece to be copied, also where the terminal is narrower.
_TABLE_WIDTH = 160


class _AsSet(logging.Formatter):
    """As the settings say, which are read when something is logged: many commands need none."""

    def format(self, record: logging.LogRecord) -> str:
        return log_format.formatter(runtime.log_form(), "%(message)s").format(record)


def log_to_stderr() -> None:
    """Let a command say what it warns of, in the form that `MM_TASKS_LOG_FORMAT` names."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_AsSet())
    logging.getLogger().addHandler(handler)


def show_table(table: Table) -> None:
    """Print a table, wider than the terminal if it must be."""
    Console(width=max(Console().width, _TABLE_WIDTH)).print(table)


def plain(value: object) -> Text:
    """Return a value as it reads, neither markup nor commands to the terminal."""
    text = "" if value is None else str(value)
    return Text("".join(c if c.isprintable() else "\ufffd" for c in text))


def fail(sentence: str) -> NoReturn:
    """End the command with one sentence and exit code 1."""
    typer.echo(f"mm-tasks: {sentence}", err=True)
    raise typer.Exit(1)


@contextmanager
def destination(file: str, *, force: bool) -> Iterator[BinaryIO]:
    """Open stdout, or a new file that nobody else can read; a failure leaves no part of it."""
    if file == "-":
        yield sys.stdout.buffer
        return
    path = Path(file)
    try:
        if force and path.is_file():
            path.unlink()
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        rule = "is there already; a file is replaced with --force"
        raise typer.BadParameter(rule, param_hint="FILE") from None
    except OSError as error:
        rule = f"cannot be made: {error.strerror}"
        raise typer.BadParameter(rule, param_hint="FILE") from None
    try:
        with os.fdopen(opened, "wb") as written:
            yield written
    except BaseException:
        path.unlink()
        raise
