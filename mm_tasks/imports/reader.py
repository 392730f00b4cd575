"""Bytes into numbered rows: JSON lines, or CSV with a header; gzip is seen by its first bytes.

A row carries the number of the line it begins at, from 1, as an editor and `sed -n` count
them: lines end with LF, or with CRLF. What is wrong with a row is a rule that it carries;
reading goes on after it. Only where nobody can tell where the next row begins does reading
end, with `ImportRefused`: broken quotes of CSV, damaged gzip data.

    not UTF-8, longer than LINE_BYTES_MAX       bad row
    no JSON, no object, a name twice, NaN       bad row
    more or fewer cells than the header         bad row
    blank line                                  skipped, counted as a line
    byte order mark at the beginning            skipped

Never more than a row is held, whatever the bytes are. Pure over a binary stream.
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
    from collections.abc import Callable, Iterator

# An event is at most 256 000 bytes, and JSON's escapes make a character six bytes of two.
LINE_BYTES_MAX = 1 << 20
# Of one row of CSV, however many lines it has.
_ROW_LINES_MAX = 10_000
_JSON_SPACE = " \t\r\n"
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)
_TOO_LONG = f"is longer than {LINE_BYTES_MAX} bytes"
_NOT_UTF8 = "is not UTF-8"
_NO_NUMBER = "has NaN or Infinity, which JSON does not know"
_TWICE = "has a name twice in one object"


class CellError(Exception):
    """A text breaks a rule; the rule, never the text, is its only argument."""


class Row(NamedTuple):
    """One row as it was read: its fields or cells, or the rule that it breaks; or blank.

    `raw` is its lines verbatim, cut where a line is too long.
    """

    line: int
    raw: bytes
    content: Any  # a dict of JSON lines, a list of texts of CSV, None
    rule: str = ""

    @property
    def is_blank(self) -> bool:
        """Say whether there is nothing to import and nothing wrong."""
        return self.content is None and not self.rule


class Lines:
    """The lines of a stream, counted, and the SHA-256 of those that are done.

    What was read is not done before `keep` is called. A last line without an end counts as
    if it had one, so that a file may grow behind it; a line that is too long counts by its
    own SHA-256.
    """

    def __init__(self, stream: io.BufferedIOBase) -> None:
        """Take a stream of bytes, as `opened` returns it."""
        self._stream = stream
        self._digest = hashlib.sha256()
        self._pending: list[bytes] = []
        self.read = 0
        self.done = 0

    def __iter__(self) -> Iterator[bytes]:
        """Yield the lines that are left."""
        return iter(self.next, None)

    def next(self) -> bytes | None:
        """Return the next line with its end; None after the last.

        One longer than `LINE_BYTES_MAX` is cut there, its end missing.
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
        """Let all that was read be done."""
        self._digest.update(b"".join(self._pending))
        self._pending.clear()
        self.done = self.read

    def skip_to(self, line: int) -> None:
        """Let the lines be done up to this one, or to the last one if there are fewer."""
        while self.read < line and self.next() is not None:
            self.keep()

    def digest(self) -> str:
        """Return the SHA-256 of the lines that are done, in hex."""
        return self._digest.hexdigest()

    def _readline(self) -> bytes:
        try:
            return self._stream.readline(LINE_BYTES_MAX + 1)
        except _DAMAGED as error:
            self._refuse(type(error).__name__)

    def _skip_line(self, head: bytes) -> bytes:
        digest = hashlib.sha256(head)
        while head and not head.endswith(b"\n"):
            head = self._readline()
            digest.update(head)
        return digest.digest()

    def _refuse(self, kind: str) -> NoReturn:
        msg = f"line {self.read + 1}: the gzip data is damaged or cut off ({kind})"
        raise ImportRefused(msg) from None


def opened(stream: io.BufferedReader) -> io.BufferedIOBase:
    """Return the bytes of a stream, unpacked where it begins as gzip does."""
    if stream.peek(2)[:2] != _GZIP:
        return stream
    return io.BufferedReader(gzip.GzipFile(fileobj=stream), 1 << 16)


def decode(text: str) -> Any:
    """Return a JSON text's value; raise `CellError` where the text is not one, and strictly so."""
    text = text.strip(_JSON_SPACE)
    try:
        value, end = _SCAN(text, 0)
    except (StopIteration, ValueError, RecursionError):
        end = -1
    if end != len(text):
        rule = "is not JSON"
        raise CellError(rule)
    return value


def json_rows(lines: Lines) -> Iterator[Row]:
    """Yield a row for each line."""
    for raw in lines:
        try:
            yield Row(lines.read, raw, _object(raw))
        except CellError as unfit:
            yield Row(lines.read, raw, None, str(unfit))


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        text = _text(raw)
    except UnicodeDecodeError:
        raise CellError(_NOT_UTF8) from None
    if not text or text.isspace():
        return None
    value = decode(text)
    if type(value) is not dict:
        rule = "must be a JSON object"
        raise CellError(rule)
    return value


def _text(raw: bytes) -> str:
    if len(raw) > LINE_BYTES_MAX:
        raise CellError(_TOO_LONG)
    return raw.decode()


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise CellError(_TWICE)
    return value


def _constant(_: str) -> NoReturn:
    raise CellError(_NO_NUMBER)


# What `decode` calls; that looks for spaces with regular expressions, as slow as the rest.
_SCAN: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_constant=_constant
).scan_once  # type: ignore[attr-defined] # typeshed has no attributes of a decoder


class CsvRows:
    """The rows of CSV (RFC 4180); the first that is not blank is the header.

    Raises `ImportRefused` where quotes are broken: nobody can tell where the next row begins.
    """

    def __init__(self, lines: Lines, delimiter: str) -> None:
        """Read the header; raises `ImportRefused` where there is none."""
        self._lines = lines
        self._raw: list[bytes] = []
        self._reader = csv.reader(self._texts(), delimiter=delimiter, strict=True)
        self.header: list[str] = []
        head = Row(0, b"", None)
        while head.is_blank:
            head = self._next()
        if head.rule:
            msg = f"line {head.line}: the header {head.rule}"
            raise ImportRefused(msg)
        self.header, self.header_raw = head.content, head.raw
        lines.keep()

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows behind the header."""
        try:
            while True:
                yield self._next()
        except _End:
            return

    def _next(self) -> Row:
        begins = self._lines.read + 1
        self._raw = []
        try:
            cells = next(self._reader)
        except StopIteration:
            if self.header:
                raise _End from None
            msg = "the file is empty: CSV needs a header"
            raise ImportRefused(msg) from None
        except csv.Error:
            cells = None
        if cells is None:
            msg = (
                f"line {begins}: has a quote in the wrong place, or one that is not closed, or a "
                "cell that is too long. Where the next row begins cannot be told; reading ends"
            )
            raise ImportRefused(msg)
        raw = b"".join(self._raw)
        if raw.isspace():
            return Row(begins, raw, None)
        rule = self._rule(cells)
        return Row(begins, raw, None if rule else cells, rule)

    def _rule(self, cells: list[str]) -> str:
        if any("\udc80" <= c <= "\udcff" for cell in cells if not cell.isascii() for c in cell):
            return _NOT_UTF8
        if self.header and len(cells) != len(self.header):
            return f"has {len(cells)} cells; the header has {len(self.header)}"
        return ""

    def _texts(self) -> Iterator[str]:
        begins = self._lines.read
        for raw in self._lines:
            if not self._raw:
                begins = self._lines.read
            self._raw.append(raw)
            if len(raw) > LINE_BYTES_MAX or len(self._raw) > _ROW_LINES_MAX:
                msg = (
                    f"line {begins}: {_TOO_LONG}, or its row has more than {_ROW_LINES_MAX} lines; "
                    "a file of CSV cannot be read on behind it"
                )
                raise ImportRefused(msg)
            # Decoded in any case: the quotes of a bad row count, or the next one begins amiss.
            yield raw.decode(errors="surrogateescape")


class _End(Exception):  # noqa: N818 - no error
    """There are no more rows."""
