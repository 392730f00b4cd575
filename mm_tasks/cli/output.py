"""Output of all commands: plain text, logs, whole tables, private files, errors."""

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


class _ConfiguredFormatter(logging.Formatter):
    """Reads the setting of the form at the first record, since many commands need no settings."""

    def format(self, record: logging.LogRecord) -> str:
        return log_format.formatter(runtime.log_form(), "%(message)s").format(record)


def log_to_stderr() -> None:
    """Write warnings to stderr, in the form that `MM_TASKS_LOG_FORMAT` names."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_ConfiguredFormatter())
    logging.getLogger().addHandler(handler)


def show_table(table: Table) -> None:
    """Print a table, wider than the terminal if it must be."""
    Console(width=max(Console().width, _TABLE_WIDTH)).print(table)


def plain(value: object) -> Text:
    """Return a value as text without markup and without control characters."""
    text = "" if value is None else str(value)
    return Text("".join(c if c.isprintable() else "\ufffd" for c in text))


def fail(sentence: str) -> NoReturn:
    """End the command with one sentence and exit code 1."""
    typer.echo(f"mm-tasks: {sentence}", err=True)
    raise typer.Exit(1)


@contextmanager
def destination(file: str, *, force: bool) -> Iterator[BinaryIO]:
    """Open stdout for `-`, or a new private file, which is removed if the block fails."""
    if file == "-":
        yield sys.stdout.buffer
        return
    path = Path(file)
    if force and path.is_file():
        path.unlink()
    opened = new_private_file(path, "FILE", "already exists; --force replaces it")
    try:
        with opened:
            yield opened
    except BaseException:
        path.unlink()
        raise


def new_private_file(path: str | Path, option: str, if_exists: str = "already exists") -> BinaryIO:
    """Create a file with mode 0600; raises `BadParameter` for the option if it cannot."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    except OSError as error:
        exists = isinstance(error, FileExistsError)
        rule = if_exists if exists else f"cannot be created: {error.strerror}"
        raise typer.BadParameter(rule, param_hint=option) from None
