"""The import of a file: rows validated, stored in parts, each part once.

A part is at most 1 000 rows. It is stored by one script that also moves the position of the
import (see `position`), so an import that was killed goes on where it was, and a part whose
answer was lost is asked for again. A row that gives no `event_id` has one that follows from
project, name and line: the same on every run and host.

Not here: bytes (`rows`), columns (`mapping`), what a person sees (`cli.imports`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mm_tasks.buffer.producer import Appended
from mm_tasks.errors import BufferFull, BufferUnavailable, ImportRefused
from mm_tasks.imports.position import Position, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from mm_tasks.buffer.producer import Producer
    from mm_tasks.imports.chunks import BadRow, Chunk, ChunkReader, End, Stop
    from mm_tasks.imports.position import Moved, Positions
    from mm_tasks.imports.reader import Lines

_WAIT_FIRST_S, _WAIT_MOST_S = 0.1, 2.0
_GIVE_UP_S = 60.0


@dataclass(slots=True)
class ImportResult:
    """What one run did with one import. Of a part whose answer was lost all counts as stored."""

    name: str
    lines_before: int = 0  # lines that earlier runs had done
    lines: int = 0  # lines that are done now
    stored: int = 0
    suppressed: int = 0  # rows of erased persons, refused by the fence
    bad: int = 0
    undated: int = 0  # rows without a timestamp, which have the moment of import
    end: End = "failed"


class ProgressListener(Protocol):
    """Whoever shows what happens, called between parts."""

    def bad(self, rows: list[BadRow]) -> None:
        """Name these, before the import moves past them."""

    def progress(self, tally: ImportResult) -> None:
        """Show how far it is."""

    def waiting(self, why: str) -> None:
        """Say that it waits, and why; once for each try."""


class Import:
    """One import, by its name, into one lane."""

    def __init__(
        self,
        positions: Positions,
        producer: Producer,
        tally: ImportResult,
        watch: ProgressListener,
        stop: Stop,
    ) -> None:
        """Take everything as arguments, a new tally among them; nothing is asked here."""
        self._positions = positions
        self._producer = producer
        self._watch = watch
        self._stop = stop
        self._before: Position | None = None
        self._tally = tally

    def resume(self, lines: Lines, *, again: bool = False) -> None:
        """Read on to where the import stands; with `again` it starts over.

        Raises `ImportRefused` where the lines up to there are not those that were imported.
        """
        stands = self._before = self._positions.find(self._tally.name)
        if stands is not None and not again:
            lines.skip_to(stands.lines)
            if (lines.done, lines.digest()) != stands:
                msg = (
                    f"the first {stands.lines} lines are not those that were imported under this "
                    "name. Give another --name, or --again to start over from line 1"
                )
                raise ImportRefused(msg)
            self._tally.lines_before = self._tally.lines = stands.lines

    def store(self, reading: ChunkReader, on_full: Callable[[], None]) -> None:
        """Store part after part, waiting while there is no room; the tally says how it ended.

        `on_full` is called when a full batch waits. Raises `BufferUnavailable` when Redis took
        nothing for a minute, and `ImportRefused`; what was stored before is, and the next run
        goes on behind it.
        """
        for part in reading:
            # Before the position moves: a row that nobody was told of must not be left behind.
            self._watch.bad(part.bad)
            appended = self._append(part)
            if appended is None:
                self._tally.end = "stopped"
                return
            self._count(part, appended)
            if isinstance(appended, Appended) and appended.nudge:
                on_full()
            self._watch.progress(self._tally)
        self._tally.end = reading.end or "finished"

    def _append(self, part: Chunk) -> Appended | Moved | None:
        """Store one part, however often it takes; None when it was stopped meanwhile."""
        if not part.moves:
            return Appended(frozenset(), nudge=False)
        step, wait_s, gives_up_s = Step(self._before, part.after), _WAIT_FIRST_S, 0.0
        while True:
            try:
                done = self._positions.append(self._producer, self._tally.name, step, part.entries)
            except BufferFull:
                why, gives_up_s = "for room in the buffer", 0.0
            except BufferUnavailable:
                now_s = time.monotonic()
                gives_up_s = gives_up_s or now_s + _GIVE_UP_S
                if now_s >= gives_up_s:
                    raise
                why = "for Redis"
            else:
                self._before = part.after
                return done
            self._watch.waiting(why)
            if self._stop.wait(wait_s):
                return None
            wait_s = min(2 * wait_s, _WAIT_MOST_S)

    def _count(self, part: Chunk, done: Appended | Moved) -> None:
        suppressed = len(done.suppressed) if isinstance(done, Appended) else 0
        tally = self._tally
        tally.lines = part.after.lines if part.moves else tally.lines
        tally.stored += len(part.entries) - suppressed
        tally.suppressed += suppressed
        tally.bad += len(part.bad)
        tally.undated += part.undated


def check(reading: ChunkReader, tally: ImportResult, watch: ProgressListener) -> None:
    """Validate all rows and store none; `stored` of the tally counts those that would be."""
    for part in reading:
        watch.bad(part.bad)
        tally.lines = part.after.lines
        tally.stored += len(part.entries)
        tally.bad += len(part.bad)
        tally.undated += part.undated
        watch.progress(tally)
    tally.end = reading.end or "finished"
