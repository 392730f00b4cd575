"""A name means one thing: modules, classes, Lua scripts and folders of tests."""

from collections import Counter

import pytest

from tests.architecture.tree import NINE, PACKAGE, PRODUCT, ROOT, SCRIPTS

# The first word of a script's file name, and the module of `buffer/` that runs it.
FAMILIES = {
    "batch": "batches",
    "dead": "dead_letters",
    "fence": "fence",
    "heartbeat": "heartbeats",
    "pause": "pauses",
    "nudge": "nudges",
    "purge": "purge",
    "rate": "rate_limiter",
    "scheduled": "scheduled",
    "refusals": "refusals",
    "snapshot": "snapshot",
    "subject": "subjects",
}
# Of the producer, which has two scripts; `base.lua` and `common.lua` are prepended.
WITHOUT_FAMILY = {"append": "producer", "count_dropped": "producer"}
# Three public classes that a host names by their dotted path, one for each kind of server.
# `Erasure` is the public value, without ids, and that of the workflow.
PUBLIC_TWICE = {"VisitMiddleware", "Erasure"}
# Each folder keeps its data classes there, as Django's applications do.
MODULES_TWICE = {"__init__", "models"}
FOLDERS_OF_TESTS = {"architecture", "system", "typing"}


def twice(names):
    return {name for name, n in Counter(names).items() if n > 1}


def test_there_are_scripts():
    assert len(SCRIPTS) > 20


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_named_after_the_module_that_runs_it(script):
    if script.stem in {"base", "common"}:
        return
    module = WITHOUT_FAMILY.get(script.stem) or FAMILIES[script.stem.partition("_")[0]]

    assert f'"{script.stem}"' in (PACKAGE / "buffer" / f"{module}.py").read_text(encoding="utf-8")


def test_no_class_name_occurs_twice():
    names = [node.name for source in PRODUCT for node in source.classes]

    assert twice(names) <= PUBLIC_TWICE


def test_no_module_name_occurs_twice():
    """A traceback and an editor's tab show the last part alone."""
    names = [source.path.stem for source in PRODUCT if source.folder in NINE]

    assert twice(names) <= MODULES_TWICE


def test_each_folder_of_tests_is_a_folder_of_the_package():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/*.py")}
    parts = {path.name for path in PACKAGE.iterdir() if path.is_dir()}

    assert folders <= parts | FOLDERS_OF_TESTS
