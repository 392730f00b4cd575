"""The sizes that style asks for: the largest file and function are where readers give up."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mm_tasks

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 50
NAMES_MAX = 15

PACKAGE = Path(mm_tasks.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def functions_of(tree):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def lines_without_docstring(function):
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - (docstring.end_lineno - docstring.lineno + 1)


def public_names(tree):
    for node in tree.body:
        if isinstance(node, ast.Assign) and "__all__" in map(ast.unparse, node.targets):
            return ast.literal_eval(node.value)
    return []


@pytest.fixture(params=FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def source(request):
    return request.param.read_text(encoding="utf-8")


def test_the_package_was_found():
    """Without this, an empty list of files would pass everything below."""
    assert PACKAGE / "__init__.py" in FILES


def test_no_file_is_longer_than_a_reader_follows(source):
    """A file that grows past this holds two nouns; split it."""
    assert len(source.splitlines()) <= FILE_LINES_MAX


def test_no_function_is_longer_than_a_page(source):
    """The docstring is not counted: a contract may be as long as it needs to be."""
    functions = functions_of(ast.parse(source))

    assert {
        function.name: lines
        for function in functions
        if (lines := lines_without_docstring(function)) > FUNCTION_LINES_MAX
    } == {}


def test_no_module_exports_more_than_can_be_remembered(source):
    """What is in `__all__` is a promise."""
    assert len(public_names(ast.parse(source))) <= NAMES_MAX
