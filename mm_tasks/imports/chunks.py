"""Rows of a file, validated, in chunks that are stored together."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import UUID

from mm_tasks.buffer.producer import APPEND_RECORDS_MAX, Record
from mm_tasks.errors import ImportRefused, InvalidEvent, Problem
from mm_tasks.events.encode import encode_track
from mm_tasks.imports.position import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mm_tasks.imports.reader import Lines, Row

# What one script stores; all rows of a part are in memory and in one command.
PART_BYTES_MAX = 4_000_000
# Ours alone, of no meaning: the ids of two programs never meet.
_NAMESPACE = UUID("5f1d9a52-7c1e-4d0e-9a0e-3f6f6a1b8c2d")
_VARIANT = "89ab" * 4
_LOOK_EVERY_S = 0.1
_NOWHERE = Position(0, "")
End = Literal["finished", "stopped", "bad", "failed"]


class BadRow(NamedTuple):
    """A row that was not stored, and every rule it breaks."""

    line: int
    problems: tuple[Problem, ...]
    raw: bytes


@dataclass(slots=True)
class Chunk:
    """Rows that are stored together, and the position behind them."""

    entries: list[Record] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    undated: int = 0
    moves: bool = False  # whether any line more is done behind it
    after: Position = _NOWHERE


class Stop:
    """Asked for by a signal. No lock: the handler may come while another is held."""

    def __init__(self) -> None:
        """Begin with nothing asked for."""
        self.signal = 0

    def ask(self, signal: int, _frame: object = None) -> None:
        """Let the import end with the part in hand."""
        self.signal = signal

    def wait(self, wait_s: float) -> bool:
        """Wait so long, or until it is asked for; return whether it was."""
        ends_at_s = time.monotonic() + wait_s
        while not self.signal and (left_s := ends_at_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _LOOK_EVERY_S))
        return bool(self.signal)


class ChunkReader:
    """The parts of one file, validated; `end` says how it ended, once it has.

    Without `skip_bad` it ends with the part that has the first bad row. That row and those
    behind it are not stored and stay before the position; the part's other bad rows are
    named as well. `stop` ends it with the part in hand.
    """

    def __init__(
        self,
        lines: Lines,
        rows: Iterable[Row],
        encode: Callable[[Row], tuple[Record, bool]],
        *,
        skip_bad: bool,
        stop: Stop,
    ) -> None:
        """Take everything as arguments; nothing is read here."""
        self._lines = lines
        self._rows = iter(rows)
        self._encode = encode
        self._skip_bad = skip_bad
        self._stop = stop
        self.end: End | None = None

    def __iter__(self) -> Iterator[Chunk]:
        """Yield part after part; raise `ImportRefused` behind the last row that can be read."""
        while self.end is None:
            part, began, refused = Chunk(), self._lines.done, None
            try:
                self._fill(part)
            except ImportRefused as error:
                refused = error
            part.after = Position(self._lines.done, self._lines.digest())
            part.moves = self._lines.done > began
            if part.bad or part.moves:
                yield part
            if refused is not None:
                raise refused

    def _fill(self, part: Chunk) -> None:
        is_held, size, left = False, 0, APPEND_RECORDS_MAX
        for row in self._rows:
            # Looked at first: a last line may have been cut off by what stopped us.
            if self._stop.signal:
                self.end = "stopped"
                return
            if not row.is_blank:
                self._add(part, row, is_held)
                is_held = bool(part.bad) and not self._skip_bad
                size += len(row.raw)
                left -= 1
            if not is_held:
                self._lines.keep()
            if left == 0 or size >= PART_BYTES_MAX:
                self.end = "bad" if is_held else None
                return
        self.end = "bad" if is_held else "finished"

    def _add(self, part: Chunk, row: Row, is_held: bool) -> None:  # noqa: FBT001 - of each row
        try:
            entry, is_dated = self._encode(row)
        except InvalidEvent as error:
            part.bad.append(BadRow(row.line, tuple(error.problems), row.raw))
            return
        if not is_held:
            part.entries.append(entry)
            part.undated += not is_dated


class RowEncoder:
    """Turns rows into entries of one import."""

    def __init__(
        self,
        project: str,
        name: str,
        event_bytes_max: int,
        mapping: Callable[[Any], dict[str, Any]] = dict,
    ) -> None:
        """Take the mapping of CSV's cells; JSON lines need none."""
        self._ids = hashlib.sha1(
            _NAMESPACE.bytes + f"{project}\0{name}\0".encode(), usedforsecurity=False
        )
        self._event_bytes_max = event_bytes_max
        self._mapping = mapping

    def __call__(self, row: Row) -> tuple[Record, bool]:
        """Return what is stored of a row, and whether it gave a timestamp.

        Raises `InvalidEvent`, as `track.delay` does.
        """
        if row.rule:
            raise InvalidEvent([Problem("row", row.rule)])
        fields = self._mapping(row.content)
        if fields.get("event_id") is None:
            fields["event_id"] = self._id_of(row.line)
        _, body, user_id, anonymous_id = encode_track(fields, bytes_max=self._event_bytes_max)
        return Record(body, user_id, anonymous_id), fields.get("timestamp") is not None

    def _id_of(self, line: int) -> str:
        """Return the UUIDv5 (RFC 9562) of project, name and line, in a third of `uuid5`'s time."""
        sha1 = self._ids.copy()
        sha1.update(b"%d" % line)
        x = sha1.hexdigest()
        variant = _VARIANT[int(x[16], 16)]
        return f"{x[:8]}-{x[8:12]}-5{x[13:16]}-{variant}{x[17:20]}-{x[20:32]}"
