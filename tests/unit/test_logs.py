"""What a log line shows, and what it never does."""

from __future__ import annotations

import ast
import json
import logging
import re
from pathlib import Path

import pytest

import mm_tasks
from mm_tasks import logs
from mm_tasks.errors import BufferUnavailable

PACKAGE = Path(mm_tasks.__file__).parent
DOCS = (Path(__file__).parents[2] / "docs" / "logs.md").read_text(encoding="utf-8")
SECRET = "person-of-the-log"


def record(event="batch_lapsed", exc_info=None, **extra):
    made = logging.LogRecord("mm_tasks.delivery", logging.WARNING, "", 1, event, (), exc_info)
    vars(made).update(extra)
    return made


def caught(error):
    try:
        raise error
    except type(error) as raised:
        return type(raised), raised, raised.__traceback__


def keys_of_extra():
    """Yield every key that the package gives to a log call, as the source has it."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_extra = isinstance(node, ast.keyword) and node.arg == "extra"
            is_named = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "extra"
            if (is_extra or is_named) and isinstance(node.value, ast.Dict):
                yield from (ast.literal_eval(key) for key in node.value.keys)


def test_no_log_call_has_a_field_that_is_not_shown_or_not_allowed():
    """A new field is a decision: it is looked at, named in FIELDS, and documented."""
    assert set(keys_of_extra()) == set(logs.FIELDS)


def test_the_docs_name_every_field_and_no_other():
    assert set(re.findall(r"^\| `(\w+)` \|", DOCS, re.MULTILINE)) == set(logs.FIELDS)


def test_a_line_of_json_has_its_fields_and_its_time_in_utc():
    made = record(batch_id="b", wait_s=1.5)
    made.created = 1_800_000_000.1239

    assert json.loads(logs.formatter("json").format(made)) == {
        "at": "2027-01-15T08:00:00.123Z",
        "level": "warning",
        "logger": "mm_tasks.delivery",
        "process": made.process,
        "event": "batch_lapsed",
        "batch_id": "b",
        "wait_s": 1.5,
    }


def test_a_line_of_text_has_its_fields_behind_it():
    line = logs.formatter("text", "%(levelname)s %(message)s").format(
        record(batch_id="b", attempt=2)
    )

    assert line == "WARNING batch_lapsed attempt=2 batch_id=b"


@pytest.mark.parametrize("kind", ["text", "json"])
def test_what_is_no_field_of_ours_is_not_written(kind):
    """Whoever adds `extra={"user_id": …}` one day does not write it into a log."""
    line = logs.formatter(kind).format(record(user_id=SECRET, properties={"plan": SECRET}))

    assert SECRET not in line


@pytest.mark.parametrize("kind", ["text", "json"])
def test_an_exception_is_told_without_what_it_was_given(kind):
    """redis-py's errors may quote a command, those of a database a row."""
    made = record(exc_info=caught(ValueError(SECRET)))
    logging.Formatter().format(made)  # another handler's text of it stays with the record

    line = logs.formatter(kind).format(made)

    assert "ValueError" in line
    assert "test_logs.py" in line
    assert SECRET not in line


@pytest.mark.parametrize("kind", ["text", "json"])
def test_an_error_of_ours_says_what_it_says(kind):
    """Its message never holds a value: see `errors`."""
    made = record(exc_info=caught(BufferUnavailable("Redis did not store the event (X)")))

    assert "BufferUnavailable: Redis did not store the event (X)" in logs.formatter(kind).format(
        made
    )


def test_a_line_stays_one_line():
    made = record("a sentence\nof two lines", exc_info=caught(ValueError("x")))

    assert "\n" not in logs.formatter("json").format(made)
