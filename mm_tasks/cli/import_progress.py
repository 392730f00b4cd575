"""What a person sees of an import while it goes on: bad rows, how far it is, why it waits.

On stderr all of it: a bar where that is a terminal, plain lines elsewhere. Rows that were
refused can go to a file as well, verbatim, to be corrected and imported as another file.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from mm_tasks.cli.output import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mm_tasks.imports.chunks import BadRow
    from mm_tasks.imports.importer import ImportResult

_LINE_EVERY_S = 10.0


class Shown(NamedTuple):
    """What is told of one file, where it is read, and how large it is (None: nobody knows)."""

    name: str
    position: Callable[[], int] = int
    size: int | None = None


class Rejects:
    """A new file of refused rows, that nobody else can read. Without a path nothing is written."""

    def __init__(self, path: str | None) -> None:
        """Make the file; raises `BadParameter` where it is there already or cannot be made."""
        self._file: BinaryIO | None = None
        self._head = b""
        self.head = b""
        if path is None:
            return
        try:
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            rule = f"cannot be made: {error.strerror}"
            raise typer.BadParameter(rule, param_hint="--rejects") from None
        self._file = os.fdopen(number, "wb")

    def write(self, rows: list[BadRow]) -> None:
        """Write rows, of CSV under the header of their file, to the disk's cache at least."""
        if self._file is None or not rows:
            return
        if self.head != self._head:
            self._head = self.head
            self._file.write(_line(self.head))
        self._file.writelines(_line(row.raw) for row in rows)
        self._file.flush()

    def close(self) -> None:
        """Close the file; may be repeated."""
        if self._file is not None:
            self._file.close()


class ProgressLines:
    """A `Watch` for a log: a line now and then."""

    def __init__(self, shown: Shown, rejects: Rejects, *, is_one_of_many: bool) -> None:
        """Take what is shown."""
        self._shown = shown
        self._rejects = rejects
        self._prefix = f"{plain(shown.name)}: " if is_one_of_many else ""
        self._began_s = time.monotonic()
        self._said_s = {"progress": self._began_s}

    def bad(self, rows: list[BadRow]) -> None:
        """Write the rows to the rejects, then name each with every rule it breaks."""
        self._rejects.write(rows)
        for row in rows:
            for problem in row.problems:
                self.say(f"{self._prefix}line {row.line}: {problem}")

    def progress(self, tally: ImportResult) -> None:
        """Say how far it is, every ten seconds."""
        if self._is_time("progress"):
            size = self._shown.size
            part = f", {100 * self._shown.position() // size} %" if size else ""
            self.say(f"{self._prefix}{_rows(tally)} rows, {self.rate(tally)}{part}")

    def waiting(self, why: str) -> None:
        """Say that it waits, every ten seconds."""
        if self._is_time(why):
            self.say(f"{self._prefix}waiting {why}")

    def say(self, line: str) -> None:
        """Print one line."""
        typer.echo(line, err=True)

    def rate(self, tally: ImportResult) -> str:
        """Return how fast this run was so far."""
        took_s = max(time.monotonic() - self._began_s, 0.001)
        return f"{_rows(tally) / took_s:,.0f}/s"

    def _is_time(self, what: str) -> bool:
        now_s = time.monotonic()
        is_time = now_s - self._said_s.get(what, -_LINE_EVERY_S) >= _LINE_EVERY_S
        if is_time:
            self._said_s[what] = now_s
        return is_time


class Bar(ProgressLines):
    """A `Watch` for a terminal: a bar with rows, rate and time left; lines go above it."""

    def __init__(
        self, shown: Shown, rejects: Rejects, bar: Progress, *, is_one_of_many: bool
    ) -> None:
        """Take what is shown, and the bar that is on the screen."""
        super().__init__(shown, rejects, is_one_of_many=is_one_of_many)
        self._bar = bar
        self._task = bar.add_task(str(plain(shown.name)), total=shown.size, rows=0, rate="", why="")

    def progress(self, tally: ImportResult) -> None:
        """Move the bar."""
        self._bar.update(
            self._task,
            completed=self._shown.position(),
            rows=_rows(tally),
            rate=self.rate(tally),
            why="",
        )

    def waiting(self, why: str) -> None:
        """Say beside the bar that it waits."""
        self._bar.update(self._task, why=f"waiting {why}")

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def watching(shown: Shown, rejects: Rejects, *, is_one_of_many: bool) -> Iterator[ProgressLines]:
    """Show one file's import until the end."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressLines(shown, rejects, is_one_of_many=is_one_of_many)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows {task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[why]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield Bar(shown, rejects, bar, is_one_of_many=is_one_of_many)


def _rows(tally: ImportResult) -> int:
    return tally.stored + tally.suppressed + tally.bad


def _line(raw: bytes) -> bytes:
    return raw if raw.endswith(b"\n") else raw + b"\n"
