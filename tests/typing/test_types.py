"""mypy and pyright agree with us about right and wrong calls."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from mm_tasks import signatures
from mm_tasks.ambient import SHARED, SharedFields
from mm_tasks.erasures import MODES, ErasureRequest, Reason
from mm_tasks.events import IdentifyEvent, TrackEvent

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def found_by_mypy(name):
    """Return the lines of a file that mypy finds an error in, with what it says."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--show-column-numbers"),
            *("--no-error-summary", "--config-file", "pyproject.toml", str(HERE / name)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not done.stderr, done.stderr
    found = re.findall(rf"{name}:(\d+):\d+: error: (.*)", done.stdout)
    return {int(line): said for line, said in found}


def found_by_pyright(name):
    """Return the lines of a file that pyright finds an error in, with what it says."""
    if not (shutil.which("pyright") and shutil.which("node")):
        pytest.skip("pyright, or a node for it, is missing")
    done = subprocess.run(
        ["pyright", "--outputjson", "--pythonpath", sys.executable, str(HERE / name)],
        cwd=ROOT,
        env={**os.environ, "PYRIGHT_PYTHON_GLOBAL_NODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    told = json.loads(done.stdout)["generalDiagnostics"]
    return {
        one["range"]["start"]["line"] + 1: one["message"]
        for one in told
        if one["severity"] == "error"
    }


CHECKERS = pytest.mark.parametrize(
    "found_by", [found_by_mypy, found_by_pyright], ids=["mypy", "pyright"]
)


@pytest.mark.timeout(300)
@CHECKERS
def test_right_calls_are_accepted(found_by):
    assert found_by("accepted.py") == {}


@pytest.mark.timeout(300)
@CHECKERS
def test_each_wrong_call_is_refused_and_nothing_else(found_by):
    lines = (HERE / "refused.py").read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# refused")}

    assert set(found_by("refused.py")) == wrong


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (signatures.TrackItem, set(TrackEvent.model_fields)),
        (signatures.IdentifyFields, set(IdentifyEvent.model_fields)),
        (signatures.ForgetFields, {one.name for one in fields(ErasureRequest)}),
        (SharedFields, set(SHARED)),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_the_signatures_have_the_fields_that_are_taken(fields, names):
    assert set(fields.__annotations__) == names


def test_the_words_of_forget_are_those_that_are_taken():
    assert set(get_args(signatures.Reason)) == set(Reason)
    assert set(get_args(signatures.Mode)) == set(MODES)


def test_each_field_says_what_it_means():
    """Editors show the text below a field; Python does not keep it."""
    lines = Path(signatures.__file__).read_text().splitlines()
    missing = [
        line.strip()
        for line, below in pairwise(lines)
        if re.match(r"    [a-z_]+: ", line) and not below.strip().startswith('"""')
    ]

    assert missing == []
