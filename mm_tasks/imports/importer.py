"""The import of a file: the loop that stores validated chunks, each once.

A chunk is at most 1 000 rows. One script stores it and advances the position of the import
(see `position`), so an import that was killed continues where it was, and a chunk whose reply
was lost is sent again. A row without `event_id` gets one from project, name and line: the same
on every run and host.

See `reader` for bytes, `columns` for CSV, `chunks` for chunks, `cli/import_progress` for output.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mm_tasks.errors import BufferFull, BufferUnavailable, ImportRefused
from mm_tasks.imports.position import ALREADY_STORED, Position, Positions, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from mm_tasks.buffer.producer import Appended, Producer
    from mm_tasks.imports.chunks import BadRow, Chunk, ChunkReader, End, Stop
    from mm_tasks.imports.reader import Lines

_WAIT_INITIAL_S, _WAIT_MAX_S = 0.1, 2.0
_GIVE_UP_S = 60.0


@dataclass(slots=True)
class ImportResult:
    """The result of one run. If the reply to a chunk is lost, all its rows count as stored."""

    name: str
    lines_before: int = 0  # lines done by earlier runs
    lines: int = 0  # lines done in total
    stored: int = 0
    suppressed: int = 0  # rows of erased persons, refused by the fence
    bad: int = 0
    undated: int = 0  # rows without a timestamp, which get the time of the import
    end: End = "failed"

    def add(self, chunk: Chunk, suppressed: int = 0) -> None:
        """Count one chunk; `suppressed` of its rows were refused by the fence."""
        if chunk.after is not None:
            self.lines = chunk.after.lines
        self.stored += len(chunk.entries) - suppressed
        self.suppressed += suppressed
        self.bad += len(chunk.bad)
        self.undated += chunk.undated


class ProgressListener(Protocol):
    """Shows the progress of an import. Its methods are called between chunks."""

    def bad(self, rows: list[BadRow]) -> None:
        """Show these rows; the position is still before them."""

    def progress(self, tally: ImportResult) -> None:
        """Show the current counts."""

    def waiting(self, why: str) -> None:
        """Show that the import waits; called once for each attempt."""


@dataclass(slots=True)
class Import:
    """One import, by its name, into one lane."""

    positions: Positions
    producer: Producer
    result: ImportResult  # a new one
    listener: ProgressListener
    stop: Stop
    before: Position | None = None

    def resume(self, lines: Lines, *, again: bool = False) -> None:
        """Read up to the position of the import; with `again` it starts over.

        Raises `ImportRefused` if those lines are not the ones that were imported.
        """
        position = self.before = self.positions.find(self.result.name)
        if position is not None and not again:
            lines.skip_to(position.lines)
            if (lines.done, lines.digest()) != position:
                msg = (
                    f"the first {position.lines} lines are not those that were imported under this "
                    "name. Give another --name, or --again to start over from line 1"
                )
                raise ImportRefused(msg)
            self.result.lines_before = self.result.lines = position.lines

    def store(self, reader: ChunkReader, on_full: Callable[[], None]) -> None:
        """Store the chunks, waiting while there is no room; the result holds how it ended.

        `on_full` is called when a full batch waits. Raises `BufferUnavailable` if Redis was away
        for a minute, and `ImportRefused`. Chunks stored before stay stored, and the next run
        continues after them.
        """
        for chunk in reader:
            # Shown before the position moves: after a crash, no bad row may go unnoticed.
            self.listener.bad(chunk.bad)
            appended = self._append(chunk)
            if appended is None:
                self.result.end = "stopped"
                return
            self.result.add(chunk, len(appended.suppressed))
            if appended.nudge:
                on_full()
            self.listener.progress(self.result)
        self.result.end = reader.end or "finished"

    def _append(self, chunk: Chunk) -> Appended | None:
        """Store one chunk, with as many attempts as it takes; return None if stopped meanwhile."""
        if chunk.after is None:
            return ALREADY_STORED
        step, wait_s, gives_up_s = Step(self.before, chunk.after), _WAIT_INITIAL_S, 0.0
        while True:
            try:
                done = self.positions.append(self.producer, self.result.name, step, chunk.entries)
            except BufferFull:
                why, gives_up_s = "for room in the buffer", 0.0
            except BufferUnavailable:
                now_s = time.monotonic()
                gives_up_s = gives_up_s or now_s + _GIVE_UP_S
                if now_s >= gives_up_s:
                    raise
                why = "for Redis"
            else:
                self.before = chunk.after
                return done
            self.listener.waiting(why)
            if self.stop.wait(wait_s):
                return None
            wait_s = min(2 * wait_s, _WAIT_MAX_S)


def check(reader: ChunkReader, result: ImportResult, listener: ProgressListener) -> None:
    """Validate all rows and store none; `result.stored` counts the rows that would be stored."""
    for chunk in reader:
        listener.bad(chunk.bad)
        result.add(chunk)
        listener.progress(result)
    result.end = reader.end or "finished"
