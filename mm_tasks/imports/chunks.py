"""Rows of a file, validated, in chunks that are stored together."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import uuid_utils

from mm_tasks.buffer.producer import APPEND_RECORDS_MAX, Record
from mm_tasks.errors import ImportRefused, InvalidEvent, Problem
from mm_tasks.events.encode import encode_track
from mm_tasks.imports.position import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mm_tasks.imports.reader import Lines, Row

# The rows of a chunk are in memory, and in one command, together.
CHUNK_BYTES_MAX = 4_000_000
# A random UUID of ours, so that ids differ from those of other programs.
_NAMESPACE = uuid_utils.UUID("5f1d9a52-7c1e-4d0e-9a0e-3f6f6a1b8c2d")
_POLL_INTERVAL_S = 0.1
End = Literal["finished", "stopped", "bad", "failed"]


class BadRow(NamedTuple):
    """A row that was not stored, and every rule it breaks."""

    line: int
    problems: tuple[Problem, ...]
    raw: bytes


@dataclass(slots=True)
class Chunk:
    """Rows that are stored together, and the position after them."""

    entries: list[Record] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    undated: int = 0
    after: Position | None = None  # None if the chunk does not advance the position


@dataclass(slots=True)
class Stop:
    """A request to stop, by a signal. No lock: a signal handler may interrupt its holder."""

    signal: int = 0  # 0 without a request

    def wait(self, wait_s: float) -> bool:
        """Wait until a request or the timeout; return whether there is a request."""
        ends_at_s = time.monotonic() + wait_s
        while not self.signal and (left_s := ends_at_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _POLL_INTERVAL_S))
        return bool(self.signal)


@dataclass(slots=True)
class ChunkReader:
    """The chunks of one file, validated; `end` is None until it has ended.

    Without `skip_bad` it ends with the chunk that has the first bad row. That row and all later
    ones are not stored, and the position stays before them. The chunk names its other bad rows
    as well. `stop` ends it with the current chunk.
    """

    lines: Lines
    rows: Iterable[Row]  # of which each iteration continues the last one
    encode: Callable[[Row], tuple[Record, bool]]
    skip_bad: bool
    stop: Stop
    end: End | None = None

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks; raise `ImportRefused` after the last row that can be read."""
        while self.end is None:
            chunk, began, refused = Chunk(), self.lines.done, None
            try:
                self._fill(chunk)
            except ImportRefused as error:
                refused = error
            if self.lines.done > began:
                chunk.after = Position(self.lines.done, self.lines.digest())
            if chunk.bad or chunk.after:
                yield chunk
            if refused is not None:
                raise refused

    def _fill(self, chunk: Chunk) -> None:
        is_held, size, left = False, 0, APPEND_RECORDS_MAX
        for row in self.rows:
            # Checked first: the cause of the stop may have truncated this line.
            if self.stop.signal:
                self.end = "stopped"
                return
            if not row.is_blank:
                self._add(chunk, row, is_held=is_held)
                is_held = bool(chunk.bad) and not self.skip_bad
                size += len(row.raw)
                left -= 1
            if not is_held:
                self.lines.keep()
            if left == 0 or size >= CHUNK_BYTES_MAX:
                self.end = "bad" if is_held else None
                return
        self.end = "bad" if is_held else "finished"

    def _add(self, chunk: Chunk, row: Row, *, is_held: bool) -> None:
        try:
            entry, is_dated = self.encode(row)
        except InvalidEvent as error:
            chunk.bad.append(BadRow(row.line, tuple(error.problems), row.raw))
            return
        if not is_held:
            chunk.entries.append(entry)
            chunk.undated += not is_dated


@dataclass(slots=True)
class RowEncoder:
    """Turns rows into records of one import. CSV needs a mapping of its cells.

    A row without `event_id` gets the UUIDv5 of project, name and line.
    """

    project: str
    name: str
    event_bytes_max: int
    mapping: Callable[[Any], dict[str, Any]] = dict

    def __call__(self, row: Row) -> tuple[Record, bool]:
        """Return the record of a row, and whether the row has a timestamp.

        Raises `InvalidEvent`, as `track.delay` does.
        """
        if row.rule:
            raise InvalidEvent([Problem("row", row.rule)])
        fields = self.mapping(row.content)
        if fields.get("event_id") is None:
            of_row = f"{self.project}\0{self.name}\0{row.line}"
            fields["event_id"] = str(uuid_utils.uuid5(_NAMESPACE, of_row))
        _, body, user_id, anonymous_id = encode_track(fields, bytes_max=self.event_bytes_max)
        return Record(body, user_id, anonymous_id), fields.get("timestamp") is not None
