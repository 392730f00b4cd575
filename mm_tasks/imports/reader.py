"""Bytes into numbered rows: JSON lines, or CSV with a header; gzip is seen by its first bytes.

A row carries the number of its first line, from 1, as an editor and `sed -n` count lines:
they end with LF, or with CRLF. A bad row carries the rule that it breaks, and reading
continues. Reading ends with `ImportRefused` if the beginning of the next row is unknown:
broken quotes of CSV, damaged gzip data.

    not UTF-8, longer than LINE_BYTES_MAX       bad row
    no JSON, no object, a name twice, NaN       bad row
    more or fewer cells than the header         bad row
    blank line                                  skipped, counted as a line
    byte order mark at the beginning            skipped

At most one row is in memory. Pure over a binary stream.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from mm_tasks.errors import ImportRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

# An event is at most 256 000 bytes, and JSON's escapes make a character six bytes of two.
LINE_BYTES_MAX = 1 << 20
# Of one row of CSV, however many lines it has.
_ROW_LINES_MAX = 10_000
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)
_TOO_LONG = f"is longer than {LINE_BYTES_MAX} bytes"
_NOT_UTF8 = "is not UTF-8"
_NOT_JSON = "is not JSON"
_NOT_OBJECT = "must be a JSON object"
_NO_NUMBER = "has NaN or Infinity, which JSON does not know"
_TWICE = "has a name twice in one object"


class CellError(Exception):
    """A text breaks a rule. The only argument is the rule, never the text."""


class Row(NamedTuple):
    """One row: its fields or cells, or the rule that it breaks; or blank.

    `raw` is its lines verbatim; a line that is too long is truncated.
    """

    line: int
    raw: bytes
    content: Any  # a dict of JSON lines, a list of texts of CSV, None
    rule: str = ""

    @property
    def is_blank(self) -> bool:
        """Say whether the row is neither an event nor an error."""
        return self.content is None and not self.rule


class Lines:
    """The lines of a stream, counted, and the SHA-256 of the lines that are done.

    Lines that were read are done once `keep` is called. A last line without an end counts as
    if it had one, so that the file may grow later. A line that is too long counts by its own
    SHA-256.
    """

    def __init__(self, stream: io.BufferedIOBase) -> None:
        """Take a stream of bytes, as `opened` returns it."""
        self._stream = stream
        self._digest = hashlib.sha256()
        self._pending: list[bytes] = []
        self.read = 0
        self.done = 0

    def __iter__(self) -> Iterator[bytes]:
        """Yield the remaining lines."""
        return iter(self.next, None)

    def next(self) -> bytes | None:
        """Return the next line with its end; None after the last.

        A line longer than `LINE_BYTES_MAX` is truncated there and has no end.
        """
        line = self._readline()
        if not line:
            return None
        self.read += 1
        if len(line) > LINE_BYTES_MAX:
            self._pending.append(self._skip_line(line))
            return line[: LINE_BYTES_MAX + 1]
        self._pending.append(line if line.endswith(b"\n") else line + b"\n")
        return line.removeprefix(_BOM) if self.read == 1 else line

    def keep(self) -> None:
        """Mark all lines that were read as done."""
        self._digest.update(b"".join(self._pending))
        self._pending.clear()
        self.done = self.read

    def skip_to(self, line: int) -> None:
        """Read lines up to this one, or to the last one, and mark them as done."""
        while self.read < line and self.next() is not None:
            self.keep()

    def digest(self) -> str:
        """Return the SHA-256 of the lines that are done, in hex."""
        return self._digest.hexdigest()

    def _readline(self) -> bytes:
        try:
            return self._stream.readline(LINE_BYTES_MAX + 1)
        except _DAMAGED as error:
            kind = type(error).__name__
            msg = f"line {self.read + 1}: the gzip data is damaged or cut off ({kind})"
            raise ImportRefused(msg) from None

    def _skip_line(self, head: bytes) -> bytes:
        digest = hashlib.sha256(head)
        while head and not head.endswith(b"\n"):
            head = self._readline()
            digest.update(head)
        return digest.digest()


def opened(stream: io.BufferedReader) -> io.BufferedIOBase:
    """Return the bytes of a stream, unpacked if it begins as gzip does."""
    if stream.peek(2)[:2] != _GZIP:
        return stream
    return io.BufferedReader(gzip.GzipFile(fileobj=stream), 1 << 16)


def decode(text: str) -> Any:
    """Return the value of a JSON text; raise `CellError` if it is not strictly JSON."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        raise CellError(_NOT_JSON) from None


def json_rows(lines: Lines) -> Iterator[Row]:
    """Yield a row for each line."""
    for raw in lines:
        try:
            yield Row(lines.read, raw, _object(raw))
        except CellError as unfit:
            yield Row(lines.read, raw, None, str(unfit))


def _object(raw: bytes) -> dict[str, Any] | None:
    if len(raw) > LINE_BYTES_MAX:
        raise CellError(_TOO_LONG)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise CellError(_NOT_UTF8) from None
    if not text or text.isspace():
        return None
    value = decode(text)
    if not isinstance(value, dict):
        raise CellError(_NOT_OBJECT)
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise CellError(_TWICE)
    return value


def _constant(_: str) -> NoReturn:
    raise CellError(_NO_NUMBER)


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)


class CsvRows:
    """The rows of CSV (RFC 4180); the first that is not blank is the header.

    Raises `ImportRefused` if quotes are broken: the beginning of the next row is unknown.
    """

    def __init__(self, lines: Lines, delimiter: str) -> None:
        """Read the header; raises `ImportRefused` if there is none."""
        self._lines = lines
        self._raw: list[bytes] = []
        self._reader = csv.reader(self._texts(), delimiter=delimiter, strict=True)
        self._rows = self._read()
        self.header: list[str] = []
        head = next((row for row in self._rows if not row.is_blank), None)
        if head is None:
            msg = "the file is empty: CSV needs a header"
            raise ImportRefused(msg)
        if head.rule:
            msg = f"line {head.line}: the header {head.rule}"
            raise ImportRefused(msg)
        self.header, self.header_raw = head.content, head.raw
        lines.keep()

    def __iter__(self) -> Iterator[Row]:
        """Return the rows behind the header."""
        return self._rows

    def _read(self) -> Iterator[Row]:
        while (cells := self._cells()) is not None:
            raw = b"".join(self._raw)
            rule = "" if raw.isspace() else self._rule(cells)
            yield Row(self._line, raw, None if rule or raw.isspace() else cells, rule)

    def _cells(self) -> list[str] | None:
        self._line = self._lines.read + 1
        self._raw.clear()
        try:
            return next(self._reader, None)
        except csv.Error:
            msg = (
                f"line {self._line}: has a quote in the wrong place, or one that is not closed, or "
                "a cell that is too long. Where the next row begins cannot be told; reading ends"
            )
            raise ImportRefused(msg) from None

    def _rule(self, cells: list[str]) -> str:
        if any("\udc80" <= c <= "\udcff" for cell in cells if not cell.isascii() for c in cell):
            return _NOT_UTF8
        if self.header and len(cells) != len(self.header):
            return f"has {len(cells)} cells; the header has {len(self.header)}"
        return ""

    def _texts(self) -> Iterator[str]:
        for raw in self._lines:
            self._raw.append(raw)
            if len(raw) > LINE_BYTES_MAX or len(self._raw) > _ROW_LINES_MAX:
                msg = (
                    f"line {self._line}: {_TOO_LONG}, or its row has more than {_ROW_LINES_MAX} "
                    "lines; a file of CSV cannot be read on behind it"
                )
                raise ImportRefused(msg)
            # A bad row is decoded too: its quotes decide where the next row begins.
            yield raw.decode(errors="surrogateescape")
