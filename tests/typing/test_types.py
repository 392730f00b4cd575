"""mypy and pyright agree with us about right and wrong calls."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from mm_tasks.erasure.request import MODES, ErasureRequest, Reason
from mm_tasks.events import fields as signatures
from mm_tasks.events.context import SHARED
from mm_tasks.events.models import IdentifyEvent, TrackEvent

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = (str(HERE / "accepted.py"), str(HERE / "refused.py"))


def ran(*command):
    done = subprocess.run(
        [sys.executable, "-m", *command, *FILES],
        cwd=ROOT,
        # What pyright needs comes with its wheels: nothing may be downloaded.
        env={**os.environ, "npm_config_registry": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.stdout


def found_by_mypy():
    """Return what mypy finds wrong in which line of which file."""
    options = ("--strict", "--show-column-numbers", "--no-error-summary")
    printed = ran("mypy", *options, "--config-file", "pyproject.toml")
    found = re.findall(r"(\w+\.py):(\d+):\d+: error: (.*)", printed)
    return {(name, int(line)): said for name, line, said in found}


def found_by_pyright():
    """Return what pyright finds wrong in which line of which file."""
    told = json.loads(ran("pyright", "--outputjson", "--pythonpath", sys.executable))
    assert told["summary"]["filesAnalyzed"] == len(FILES)
    return {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1): one["message"]
        for one in told["generalDiagnostics"]
        if one["severity"] == "error"
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize("found_by", [found_by_mypy, found_by_pyright], ids=["mypy", "pyright"])
def test_each_wrong_call_is_refused_and_nothing_else(found_by):
    """None in `accepted.py`, and in `refused.py` each line that says so."""
    wrong = {
        (Path(name).name, number)
        for name in FILES
        for number, line in enumerate(Path(name).read_text().splitlines(), 1)
        if line.endswith("# refused")
    }
    found = found_by()

    assert {place: found[place] for place in found.keys() - wrong} == {}
    assert wrong - found.keys() == set()


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (signatures.TrackItem, set(TrackEvent.model_fields)),
        (signatures.IdentifyFields, set(IdentifyEvent.model_fields)),
        (signatures.ForgetFields, {one.name for one in fields(ErasureRequest)}),
        (signatures.SharedFields, set(SHARED)),
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
