"""Checkpoints: the size and head of the audit log, kept where the database's owner is not.

A chain of hashes shows that a line was changed, not that its last ones are gone. So after
each commit size and head also go to a file, to the log output and to a hook if there is one.

The file has a line for each: `<size> <head> <at>`, size in decimal, head in hex. A line that
reads otherwise (a disk was full, a machine went down) is skipped, and said so.
"""

from __future__ import annotations

import os
import re
from logging import getLogger
from typing import TYPE_CHECKING, NamedTuple

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
        """Take the file, which is made when it is needed, and whom else to tell."""
        self._path = path
        self._hook = hook

    def publish(self, checkpoint: Checkpoint) -> None:
        """Tell all three. Never raises: what the checkpoint is about was committed before."""
        size, head, at = checkpoint
        about = {"size": size, "head": head, "at": at}
        _log.info("audit_checkpoint size=%d head=%s at=%s", size, head, at, extra=about)
        try:
            self._append(f"{checkpoint.size} {checkpoint.head} {checkpoint.at}\n".encode())
        except OSError as error:
            said = "checkpoint_not_written size=%d errno=%s"
            _log.error(said, checkpoint.size, error.errno, extra={"errno": error.errno})
        if self._hook is not None:
            try:
                self._hook(checkpoint)
            except Exception as error:  # noqa: BLE001 - a host's code raises what it likes
                _log.error("checkpoint_hook_failed", extra={"kind": type(error).__name__})

    def read(self) -> list[Checkpoint]:
        """Return those of the file; none where it is not there yet."""
        try:
            lines = self._path.read_text("utf-8", errors="replace").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = [match for line in lines if (match := _LINE.fullmatch(line))]
        if len(found) < len(lines):
            _log.warning("checkpoints_unreadable", extra={"lines": len(lines) - len(found)})
        return [Checkpoint(int(size), head, at) for size, head, at in map(re.Match.groups, found)]

    def _append(self, line: bytes) -> None:
        is_new = not self._path.exists()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            end = os.lseek(file, 0, os.SEEK_END)
            if end and os.pread(file, 1, end - 1) != b"\n":
                line = b"\n" + line  # the one before was cut: do not make both unreadable
            os.write(file, line)
            os.fsync(file)
        finally:
            os.close(file)
        if is_new:
            _sync_folder(self._path.parent)


def _sync_folder(path: Path) -> None:
    """Make a new name in a folder outlive a crash of the machine."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
