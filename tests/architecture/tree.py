"""The source tree as the tests of this folder read it: files, syntax trees, docstrings."""

import ast
import io
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import COMMENT, DEDENT, ENDMARKER, INDENT, NEWLINE, NL, generate_tokens

from typer.main import get_command

from mm_tasks import cli

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mm_tasks"
EDGES = ("cli", "contrib", "testing", "sandbox")
# The life of an event, the life of an erasure, and the code that runs and watches both.
NINE = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {*EDGES}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
DEFINITIONS = ast.Module | ast.ClassDef | FUNCTIONS
# No code: the tokenizer reports them on lines of their own.
_LAYOUT = {COMMENT, NL, NEWLINE, INDENT, DEDENT, ENDMARKER}


@dataclass(frozen=True)
class Source:
    """One Python file of the package."""

    path: Path

    @property
    def name(self):
        """Return the path below `mm_tasks`, as `events/event_fields.py`."""
        return self.path.relative_to(PACKAGE).as_posix()

    @property
    def folder(self):
        return self.name.partition("/")[0] if "/" in self.name else ""

    @cached_property
    def text(self):
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self):
        return ast.parse(self.text)

    @cached_property
    def definitions(self):
        return [node for node in ast.walk(self.tree) if isinstance(node, DEFINITIONS)]

    @property
    def functions(self):
        return [node for node in self.definitions if isinstance(node, FUNCTIONS)]

    @property
    def classes(self):
        return [node for node in self.definitions if isinstance(node, ast.ClassDef)]

    @property
    def docstrings(self):
        return [text for node in self.definitions if (text := ast.get_docstring(node))]

    @property
    def lines(self):
        return self.text.splitlines()

    @property
    def code_lines(self):
        """Count the lines that hold code: no blank line, comment or docstring."""
        lines = set()
        for token in generate_tokens(io.StringIO(self.text).readline):
            if token.type not in _LAYOUT:
                lines |= set(range(token.start[0], token.end[0] + 1))
        return len(lines.difference(*map(docstring_lines, self.definitions)))


def docstring_lines(node):
    """Return the numbers of the lines of a definition's docstring."""
    if ast.get_docstring(node) is None:
        return range(0)
    return range(node.body[0].lineno, node.body[0].end_lineno + 1)


def text(name):
    """Return the text of a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def options(command):
    """Return the options of a command, long and short."""
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)}


def assert_passes(*command):
    """Run a checker, which must find nothing; return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    return printed


COMMANDS = get_command(cli.app).commands
SOURCES = [Source(path) for path in sorted(PACKAGE.rglob("*.py"))]
# The sandbox is a program of its own that imports nothing of ours.
PRODUCT = [source for source in SOURCES if source.folder != "sandbox"]
CORE = [source for source in SOURCES if source.folder not in EDGES]
SCRIPTS = sorted((PACKAGE / "buffer" / "lua").glob("*.lua"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
