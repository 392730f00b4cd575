"""Checkpoints: the size and head of the audit log, out of reach of the database's owner.

A chain of hashes detects a changed line, but not a missing tail. So after each commit size
and head also go to a file, to the log output and to an optional hook.

The file has a line for each: `<size> <head> <at>`, size in decimal, head in hex. An unreadable
line (the disk was full, the machine went down) is skipped with a warning.
"""

from __future__ import annotations

import os
import re
from logging import getLogger
from typing import TYPE_CHECKING, NamedTuple

from mm_tasks.erasure.audit.database import create_private_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_log = getLogger(__name__)

_LINE = re.compile(r"(\d{1,18}) ([0-9a-f]{64}) (\S{24})", re.ASCII)


class Checkpoint(NamedTuple):
    """The log has `size` entries, and `head` is the SHA-256 of the last line."""

    size: int
    head: str
    at: str


class CheckpointSinks:
    """The checkpoints outside of the database: a file, the log output, a hook."""

    def __init__(self, path: Path, hook: Callable[[Checkpoint], None] | None = None) -> None:
        """Take the file, which the first checkpoint creates, and the hook."""
        self._path = path
        self._hook = hook

    def publish(self, checkpoint: Checkpoint) -> None:
        """Write to all three. Never raises, because the entries are committed."""
        fields = {"size": checkpoint.size, "head": checkpoint.head, "at": checkpoint.at}
        _log.info("audit_checkpoint size=%d head=%s at=%s", *checkpoint, extra=fields)
        try:
            self._append("{} {} {}\n".format(*checkpoint).encode())
        except OSError as error:
            extra = {"errno": error.errno}
            message = "checkpoint_not_written size=%d errno=%s"
            _log.error(message, checkpoint.size, error.errno, extra=extra)
        if self._hook is not None:
            try:
                self._hook(checkpoint)
            except Exception as error:  # noqa: BLE001 - a host's code raises what it likes
                _log.error("checkpoint_hook_failed", extra={"kind": type(error).__name__})

    @property
    def file_bytes(self) -> int:
        """Return the size of the file; 0 if it does not exist."""
        try:
            return self._path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def read(self, start: int = 0) -> list[Checkpoint]:
        """Return the checkpoints of the file, as `read_file`; an empty list without a file."""
        try:
            return read_file(self._path, start)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def set_aside(self, word: str) -> Path | None:
        """Rename the file, so that the next checkpoint begins a new one; return its new path."""
        if not self._path.exists():
            return None
        return self._path.rename(self._path.with_name(f"{self._path.name}.{word}"))

    def _append(self, line: bytes) -> None:
        if not self._path.exists():
            create_private_file(self._path)
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(descriptor, 1, end - 1) != b"\n":
                line = b"\n" + line  # the last line was cut: keep this one readable
            file.write(line)
            os.fsync(file)


def read_file(path: Path, start: int = 0) -> list[Checkpoint]:
    """Return the checkpoints of a file that was kept, without its unreadable lines.

    With `start` only those after so many bytes, from the first line that begins there.
    """
    with path.open("rb") as file:
        file.seek(max(0, start - 1))
        content = file.read()
    if start > 0:
        _, _, content = content.partition(b"\n")
    lines = content.decode("utf-8", errors="replace").splitlines()
    matches = [match for line in lines if (match := _LINE.fullmatch(line))]
    if len(matches) < len(lines):
        _log.warning("checkpoints_unreadable", extra={"lines": len(lines) - len(matches)})
    return [Checkpoint(int(size), head, at) for size, head, at in map(re.Match.groups, matches)]
