"""Folders, files and functions stay small enough to be read, and the whole stays in its budget."""

import ast
import re
from collections import Counter

import pytest

from tests.architecture.tree import CORE, PACKAGE, PRODUCT, SOURCES, TESTS, docstring_lines

# With `erasures`, the public API of that name, and `verify_export`, which a stranger runs alone.
ENTRIES_MAX = 22
MODULES_MAX = 20
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 41
NAMES_MAX = 15
# 7 226 lines after the move. Since then: answers read to their end (client) 398, nudges, addresses
# and countdowns (tasks) 321, few connections and a breaker (connections) 310, a clock, doubts,
# scheduled records and bounds (buffer, delivery) 269, the database's clock and delayed requests
# (erasure) 153, and what shows all this (monitoring, events, settings) 190. Then 2 860 for the
# log that rules the tables: seals, replay, upgrade, checkpoints' witnesses, time stamps
# (erasure/audit) 1 017, receipts for a person and an authority 575, daily verification, adoption,
# traces, pauses and rewrites (erasure) 645, the API and the stranger's verifier 247, findings and
# searches in Redis (buffer) 199, and what shows and starts all this 175.
CORE_LINES_MAX = 11_850
TEST_LINES_MAX = 33_500
SUPPRESSIONS_PER_1000_LINES_MAX = 4
# Of 1000 words of docstrings. A sentence with one of these usually avoids the noun.
WORDS_PER_1000_MAX = {"what": 2, "whoever": 0}

SUPPRESSION = re.compile(r"# (?:noqa|type: ignore)\b(.*)")
# The rules, then the reason: "noqa: SLF001 - a process reads its settings once", or after a
# second `#`, as mypy wants it.
WITH_REASON = re.compile(
    r"(?:: [A-Z]+\d+(?:, [A-Z]+\d+)*|\[[a-z-]+(?:, ?[a-z-]+)*\])(?: - | +# )\S.*"
)


def test_the_package_was_found():
    """Without this, an empty list of files would pass everything below."""
    assert {"__init__.py", "buffer/batches.py"} <= {source.name for source in PRODUCT}
    assert len(TESTS) > 50


def exported(source):
    """Return the number of names in `__all__`, each of which is a promise."""
    return sum(
        len(ast.literal_eval(node.value))
        for node in source.tree.body
        if isinstance(node, ast.Assign) and "__all__" in map(ast.unparse, node.targets)
    )


def length(function):
    """Return the number of lines; a docstring may be as long as the contract needs."""
    return function.end_lineno - function.lineno + 1 - len(docstring_lines(function))


FOLDERS = Counter(source.path.parent.relative_to(PACKAGE).as_posix() for source in SOURCES)
FUNCTIONS = {f"{s.name}:{node.name}": length(node) for s in SOURCES for node in s.functions}
ENTRIES = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
# A file that grows past its limit holds two nouns; split it.
LIMITS = {
    "entries of the package": (ENTRIES_MAX, {"mm_tasks": len(ENTRIES)}),
    "modules of a folder": (MODULES_MAX, FOLDERS),
    "lines of a file": (FILE_LINES_MAX, {s.name: len(s.lines) for s in SOURCES}),
    "lines of a function": (FUNCTION_LINES_MAX, FUNCTIONS),
    "names that a module exports": (NAMES_MAX, {s.name: exported(s) for s in SOURCES}),
}


@pytest.mark.parametrize(("most", "sizes"), LIMITS.values(), ids=LIMITS)
def test_nothing_is_larger_than_a_reader_follows(most, sizes):
    assert {name: n for name, n in sizes.items() if n > most} == {}


def test_the_core_stays_in_its_budget():
    """The core: without command line, frameworks, the kit for users' tests and the sandbox."""
    assert sum(source.code_lines for source in CORE) <= CORE_LINES_MAX


def test_the_tests_stay_in_their_budget():
    assert sum(len(path.read_text("utf-8").splitlines()) for path in TESTS) <= TEST_LINES_MAX


@pytest.mark.parametrize("word", WORDS_PER_1000_MAX)
def test_a_docstring_names_the_thing(word):
    """The noun: "the batch" and "the caller", not "what is sent" and "whoever calls"."""
    docstrings = "\n".join(text for source in PRODUCT for text in source.docstrings)
    words = Counter(re.findall(r"[a-z']+", docstrings.lower()))

    assert 1000 * words[word] / words.total() <= WORDS_PER_1000_MAX[word]


def test_few_rules_are_suppressed_and_each_with_its_rule_and_a_reason():
    suppressed = [(s.name, text) for s in PRODUCT for text in SUPPRESSION.findall(s.text)]
    lines = sum(len(source.lines) for source in PRODUCT)

    assert 1000 * len(suppressed) / lines <= SUPPRESSIONS_PER_1000_LINES_MAX
    assert [entry for entry in suppressed if not WITH_REASON.match(entry[1])] == []
