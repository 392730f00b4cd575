"""Bytes into numbered rows: each rule about bytes, and no other exception for any bytes.

Sabotages that turn this file red, each tried on a copy:

- blank lines are not counted, or a row of CSV has the number of its last line;
- a byte order mark is left, or taken off every line;
- duplicate names or NaN pass, as `json.loads` lets them;
- a bad byte is decoded alone, so that the rest of its row begins a new one;
- reading goes on behind a broken quote;
- what was read counts as done before it is kept.
"""

import csv
import gzip
import hashlib
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_tasks.errors import ImportRefused
from mm_tasks.imports.reader import LINE_BYTES_MAX, CsvRows, Lines, json_rows, opened

HEAD = b"a,b\n"


def lines_of(data):
    return Lines(opened(io.BufferedReader(io.BytesIO(data))))


def parts_of(rows):
    """Return line, content and rule of each row that is not blank."""
    return [(row.line, row.content, row.rule) for row in rows if not row.is_blank]


def of_json(data):
    return parts_of(json_rows(lines_of(data)))


def of_csv(data, delimiter=","):
    return parts_of(CsvRows(lines_of(data), delimiter))


JSON_RULES = {
    "a row": (b'{"a": 1}', {"a": 1}, ""),
    "spaces around": (b'  {"a": 1}\t', {"a": 1}, ""),
    "no JSON": (b'{"a": ', None, "is not JSON"),
    "two objects": (b"{} {}", None, "is not JSON"),
    "single quotes": (b"{'a': 1}", None, "is not JSON"),
    "nested without end": (b"[" * 100_000, None, "is not JSON"),
    "a number of 5000 digits": (b'{"a": ' + b"9" * 5000 + b"}", None, "is not JSON"),
    "a list": (b"[1]", None, "must be a JSON object"),
    "null": (b"null", None, "must be a JSON object"),
    "NaN": (b'{"a": NaN}', None, "has NaN or Infinity, which JSON does not know"),
    "Infinity": (b'{"a": [-Infinity]}', None, "has NaN or Infinity, which JSON does not know"),
    "a name twice": (b'{"a": 1, "a": 1}', None, "has a name twice in one object"),
    "a name twice below": (b'{"a": {"b": 1, "b": 2}}', None, "has a name twice in one object"),
    "the same name elsewhere": (b'{"a": {"a": 1}}', {"a": {"a": 1}}, ""),
    "not UTF-8": (b'{"a": "\xff"}', None, "is not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), None, "is not UTF-8"),
    "a mark in the middle": (b'\xef\xbb\xbf{"a": 1}', None, "is not JSON"),
    "at the limit": (b'"%b"' % (b"x" * (LINE_BYTES_MAX - 3)), None, "must be a JSON object"),
    "above it": (b'"%b"' % (b"x" * LINE_BYTES_MAX), None, "is longer than 1048576 bytes"),
    "far above it": (b"x" * (4 * LINE_BYTES_MAX), None, "is longer than 1048576 bytes"),
}


@pytest.mark.parametrize(("text", "content", "rule"), JSON_RULES.values(), ids=JSON_RULES.keys())
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""], ids=["LF", "CRLF", "no end"])
def test_a_line_of_json_is_a_row_or_breaks_a_rule(text, content, rule, end):
    """And it is the second one, between good ones, whatever its end is."""
    first, last = (1, {"n": 1}, ""), (3, {"n": 3}, "")
    if end == b"\r\n" and len(text) == LINE_BYTES_MAX - 1:
        rule = "is longer than 1048576 bytes"  # the end counts
    behind = end + b'{"n": 3}' if end else b""
    found = of_json(b'{"n": 1}\n' + text + behind)

    assert found == [first, (2, content, rule), *([last] if end else [])]


def test_blank_lines_are_no_rows_and_have_numbers():
    assert of_json(b'\n \t\r\n{"a": 1}\n\n{"a": 2}\n\n') == [(3, {"a": 1}, ""), (5, {"a": 2}, "")]


def test_a_byte_order_mark_is_not_part_of_the_first_row():
    """Spreadsheets write one in front of the header."""
    assert of_json(b'\xef\xbb\xbf{"a": 1}\n') == [(1, {"a": 1}, "")]
    assert CsvRows(lines_of(b"\xef\xbb\xbfa,b\n"), ",").header == ["a", "b"]


BAD_BYTES = (2, None, "is not UTF-8")
CSV_ROWS = {
    "plain": (b"1,2\n", [(2, ["1", "2"], "")]),
    "CRLF": (b"1,2\r\n3,4\r\n", [(2, ["1", "2"], ""), (3, ["3", "4"], "")]),
    "no end": (b"1,2", [(2, ["1", "2"], "")]),
    "blank lines": (b"\n\n1,2\n  \n3,4\n", [(4, ["1", "2"], ""), (6, ["3", "4"], "")]),
    "a quoted comma": (b'"1,x",2\n', [(2, ["1,x", "2"], "")]),
    "a quoted quote": (b'"1""x",2\n', [(2, ['1"x', "2"], "")]),
    "a quoted newline": (b'"1\nx",2\n3,4\n', [(2, ["1\nx", "2"], ""), (4, ["3", "4"], "")]),
    "a quoted blank line": (b'"1\n\nx",2\n3,4\n', [(2, ["1\n\nx", "2"], ""), (5, ["3", "4"], "")]),
    "empty cells": (b",\n", [(2, ["", ""], "")]),
    "too few": (b"1\n3,4\n", [(2, None, "has 1 cells; the header has 2"), (3, ["3", "4"], "")]),
    "too many": (b"1,2,3\n", [(2, None, "has 3 cells; the header has 2")]),
    "not UTF-8": (b"1,\xff\n3,4\n", [BAD_BYTES, (3, ["3", "4"], "")]),
    "quoted, not UTF-8": (
        b'"\xff\n1,2\n",2\n3,4\n',
        [(2, None, "is not UTF-8"), (5, ["3", "4"], "")],
    ),
}


@pytest.mark.parametrize(("data", "rows"), CSV_ROWS.values(), ids=CSV_ROWS.keys())
def test_a_row_of_csv_has_the_number_of_the_line_it_begins_at(data, rows):
    assert of_csv(HEAD + data) == rows


MISPLACED = "has a quote in the wrong place"
BROKEN_CSV = {
    "text behind a quote": (b'1,2\n"3"x,4\n5,6\n', f"line 3: {MISPLACED}"),
    "a quote that is not closed": (b'1,2\n"3,4\n5,6\n', f"line 3: {MISPLACED}"),
    "a cell without end": (b'"' + (b"x" * 99 + b"\n") * 2000, f"line 2: {MISPLACED}"),
    "a row of very many lines": (b'"' + b"\n" * 20_000, "line 2: is longer than"),
    "a line that is too long": (b"x" * (LINE_BYTES_MAX + 1) + b"\n", "line 2: is longer than"),
    "a lone CR": (b"1,2\r3,4\n", f"line 2: {MISPLACED}"),
}


@pytest.mark.parametrize(("data", "message"), BROKEN_CSV.values(), ids=BROKEN_CSV.keys())
def test_csv_is_refused_if_the_beginning_of_the_next_row_is_unknown(data, message):
    """Half a row that is taken for one would be an event that never happened."""
    with pytest.raises(ImportRefused) as caught:
        of_csv(HEAD + data)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xff,b\n"], ids=["empty", "blank", "not UTF-8"])
def test_csv_without_a_header_is_refused(data):
    with pytest.raises(ImportRefused):
        of_csv(data)


def test_gzip_is_unpacked_whatever_the_file_is_called():
    data = gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}')

    assert of_json(data) == [(1, {"a": 1}, ""), (2, {"a": 2}, "")]


@pytest.mark.parametrize("cut", [5, 40, -1], ids=["head", "middle", "check sum"])
def test_damaged_gzip_data_is_refused_by_its_line(cut):
    data = gzip.compress(b"".join(b'{"a": %d}\n' % n for n in range(1000)))[:cut]
    with pytest.raises(ImportRefused, match=r"line \d+: the gzip data is damaged or cut off"):
        of_json(data)


def test_the_digest_is_that_of_the_lines_that_are_kept():
    """`head -n 2 FILE | sha256sum` tells the same."""
    lines = lines_of(b'{"a": 1}\r\n\n{"a": 3}')
    rows = json_rows(lines)
    next(rows), next(rows)
    lines.keep()
    next(rows)

    assert (lines.done, lines.read) == (2, 3)
    assert lines.digest() == hashlib.sha256(b'{"a": 1}\r\n\n').hexdigest()


def test_a_last_line_without_an_end_counts_as_if_it_had_one():
    """The file may then grow: the next line begins with that end."""
    short, grown = lines_of(b"{}"), lines_of(b"{}\n{}\n")
    short.skip_to(1)
    grown.skip_to(1)

    assert short.digest() == grown.digest()
    grown.skip_to(5)
    assert grown.done == 2  # skipping ends with the file


PIECES = [b'{"a": 1}', b"{}", b"NaN", b"a,b", b'"', b",", b"\n", b"\r\n", b"\r"]
PIECES += [b"\xff", b"\xef\xbb\xbf"]
BYTES = st.one_of(st.binary(), st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join))


@given(BYTES)
def test_any_bytes_read_as_lines_of_json_are_numbered_and_raise_nothing(data):
    if data.startswith(b"\x1f\x8b"):
        return
    lines = lines_of(data)
    rows = list(json_rows(lines))

    assert [row.line for row in rows] == list(range(1, lines.read + 1))
    assert b"".join(row.raw for row in rows) == data.removeprefix(b"\xef\xbb\xbf")


@given(BYTES)
def test_any_bytes_read_as_csv_raise_our_error_or_give_every_line(data):
    lines = lines_of(HEAD + data)
    rows = []
    try:
        rows.extend(CsvRows(lines, ","))
    except ImportRefused:
        assert HEAD + data != b"".join(row.raw for row in rows)
        return

    assert HEAD + b"".join(row.raw for row in rows) == HEAD + data
    starts = [row.line for row in rows]
    assert starts == sorted(set(starts))
    assert all(row.raw.count(b"\n") <= 1 or b'"' in row.raw for row in rows)


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=20)


@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=20), st.sampled_from(",;\t|"))
def test_the_output_of_the_csv_module_is_read_back(table, delimiter):
    """With the lines that its rows begin at, counted independently."""
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(["x", "y", "z"])
    expected = []
    for cells in table:
        expected.append((written.getvalue().count("\n") + 1, cells, ""))
        writer.writerow(cells)
    found = of_csv(written.getvalue().encode(), delimiter)

    assert found == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=10))
def test_the_output_of_the_json_module_is_read_back(objects):
    data = "\n".join(map(json.dumps, objects)).encode()

    assert of_json(data) == [(number, value, "") for number, value in enumerate(objects, 1)]
