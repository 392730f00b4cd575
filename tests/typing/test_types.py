"""mypy and pyright accept the right calls and refuse the wrong ones; the types match the tables."""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from mm_tasks.erasure.request import MODES, ErasureRequest, Reason
from mm_tasks.events import typed_dicts as typed
from mm_tasks.events.event_fields import IDENTIFY_FIELDS, SHARED_FIELDS, TRACK_FIELDS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = (str(HERE / "accepted.py"), str(HERE / "refused.py"))
SOURCE = Path(typed.__file__).read_text()
REQUIRED = {"user_id", "requested_by"}  # parameters of `forget` itself


def output_of(*command):
    done = subprocess.run(
        [sys.executable, "-m", *command, *FILES],
        cwd=ROOT,
        # pyright's wheels bring everything that it needs: nothing may be downloaded.
        env={**os.environ, "npm_config_registry": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.stdout


def mypy_errors():
    """Return mypy's messages, by file and line."""
    options = ("--strict", "--show-column-numbers", "--no-error-summary")
    printed = output_of("mypy", *options, "--config-file", "pyproject.toml")
    errors = re.findall(r"(\w+\.py):(\d+):\d+: error: (.*)", printed)
    return {(name, int(line)): message for name, line, message in errors}


def pyright_errors():
    """Return pyright's messages, by file and line."""
    report = json.loads(output_of("pyright", "--outputjson", "--pythonpath", sys.executable))
    assert report["summary"]["filesAnalyzed"] == len(FILES)
    return {
        (Path(entry["file"]).name, entry["range"]["start"]["line"] + 1): entry["message"]
        for entry in report["generalDiagnostics"]
        if entry["severity"] == "error"
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize("errors_of", [mypy_errors, pyright_errors], ids=["mypy", "pyright"])
def test_each_wrong_call_is_refused_and_nothing_else(errors_of):
    """No call in `accepted.py`, and in `refused.py` each one marked with a comment."""
    wrong = {
        (Path(name).name, number)
        for name in FILES
        for number, line in enumerate(Path(name).read_text().splitlines(), 1)
        if line.endswith("# refused")
    }
    errors = errors_of()

    assert {place: errors[place] for place in errors.keys() - wrong} == {}
    assert wrong - errors.keys() == set()


@pytest.mark.parametrize(
    ("types", "names"),
    [
        (typed.TrackItem, set(TRACK_FIELDS)),
        (typed.IdentifyFields, set(IDENTIFY_FIELDS)),
        (typed.ForgetDetails, {field.name for field in fields(ErasureRequest)} - REQUIRED),
        (typed.SharedFields, set(SHARED_FIELDS)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_types_have_the_fields_of_the_calls(types, names):
    assert set(types.__annotations__) == names


def test_the_words_of_forget_are_those_of_its_request():
    assert set(get_args(typed.Reason)) == set(Reason)
    assert set(get_args(typed.Mode)) == set(MODES)


def help_texts():
    """Return the text below each field, by class and field: Python does not keep it."""
    classes = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.ClassDef)]
    return {
        (one.name, field.target.id): ast.unparse(below) if isinstance(below, ast.Expr) else ""
        for one in classes
        for field, below in zip(one.body, [*one.body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign)
    }


def test_each_field_has_a_help_text_with_the_limit_of_the_table():
    """Editors show it, and nobody looks up a limit that is shown."""
    assert [field for field, text in help_texts().items() if not text] == []
    for (class_name, name), text in help_texts().items():
        table = IDENTIFY_FIELDS if class_name == "IdentifyFields" else TRACK_FIELDS
        limit = re.search(r"at most (\d+) characters", text.lower())
        if name in table and limit:
            assert int(limit[1]) == table[name].characters_max, (class_name, name)
