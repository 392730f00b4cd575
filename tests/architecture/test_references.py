"""A name in a document exists in the code, and the reverse where the document is the list."""

import ast
import re
from importlib import import_module
from pathlib import Path
from typing import get_args

from mm_tasks.client import outcome
from mm_tasks.tasks.celery_app import FLUSH, RUN_ERASURE, SEND_BATCH, SWEEP_ERASURES
from tests.architecture.test_docs import TEXTS
from tests.architecture.test_metrics_docs import TYPES
from tests.architecture.tree import EDGES, NINE, PACKAGE, PRODUCT, ROOT, SCRIPTS, SOURCES

ARCHITECTURE = TEXTS["architecture.md"]
DECISIONS = {
    f"adr/{path.name}": path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs" / "adr").glob("*.md"))
}
PAGES = TEXTS | DECISIONS
CODE = {source.name: source.text for source in SOURCES} | {
    f"buffer/lua/{path.name}": path.read_text(encoding="utf-8") for path in SCRIPTS
}

# ------------------------------------------------------------------------------- files

_FOLDERS = "|".join((*NINE, *EDGES, "docs", "tests", "scripts", "deploy", "examples", "mm_tasks"))
_FILE = re.compile(rf"(?<![\w./:@-])(?:{_FOLDERS})/[\w./-]*\w")


def missing(text):
    """Return the paths in a text, of the repository or below `mm_tasks`, that do not exist."""
    return [
        name
        for name in _FILE.findall(text)
        if not any(
            Path(f"{folder / name}{ending}").exists()
            for folder in (ROOT, PACKAGE)
            for ending in ("", ".py", ".lua", ".md")
        )
    ]


def test_each_file_that_a_page_names_exists():
    """Drawings included: these are the map by which a newcomer finds the code."""
    assert {page: missing(PAGES[page]) for page in PAGES} == {page: [] for page in PAGES}


def test_each_file_that_the_code_names_exists():
    """In docstrings and comments, between backticks."""
    quoted = {file: re.findall(r"`[\w/.-]+/[\w.-]+`", CODE[file]) for file in CODE}

    assert {file: missing(" ".join(quoted[file])) for file in CODE} == {file: [] for file in CODE}


def test_the_tree_has_every_entry_of_the_package():
    tree = ARCHITECTURE.partition("```\nmm_tasks/\n")[2].partition("```")[0]
    listed = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    entries = {path.name for path in PACKAGE.iterdir()}

    assert listed == entries - {"__pycache__", "py.typed"}


# ------------------------------------------------------------------------- dotted paths

TASKS = {FLUSH, RUN_ERASURE, SEND_BATCH, SWEEP_ERASURES}
_DOTTED = re.compile(r"(?<![\w./-])mm_tasks(?:\.[A-Za-z_]\w*)+(?::\w+)?(?![\w-]*/)")


def resolves(path):
    """Tell whether a dotted path is a module, or a name in one."""
    *names, last = path.replace(":", ".").split(".")
    try:
        return hasattr(import_module(".".join(names)), last) or bool(import_module(path))
    except ModuleNotFoundError:
        return len(names) > 1 and hasattr(_value(".".join(names)), last)


def _value(path):
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name, None)


def test_each_dotted_path_of_a_page_is_one_of_the_code():
    units = {path.name for path in (ROOT / "deploy" / "systemd").iterdir()}
    named = {(page, path) for page in PAGES for path in _DOTTED.findall(PAGES[page])}

    assert {
        (page, path) for page, path in named if path not in TASKS | units and not resolves(path)
    } == set()


# -------------------------------------------------------------------------- log events

_LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
_EVENT = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+")


def _logged(source):
    """Yield the events that a module logs: the first words of the texts given to a logger."""
    # A text may have a name, where the line would be too long.
    named = {
        node.targets[0].id: node.value
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for call in ast.walk(source.tree):
        is_log = (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr in _LEVELS
            and ast.unparse(call.func.value) in {"log", "_log"}
        )
        if is_log:
            message = call.args[0]
            message = named[message.id] if isinstance(message, ast.Name) else message
            for node in ast.walk(message):
                text = getattr(node, "value", None)
                if isinstance(text, str) and (event := _EVENT.match(text)):
                    yield event[0]


LOGGED = {event for source in PRODUCT for event in _logged(source)}
LISTED = set(
    re.findall(
        r"^\| `([a-z_]+)` \| (?:info|warning|error) \|", TEXTS["operations.md"], re.MULTILINE
    )
)


def test_the_log_events_of_the_code_and_of_the_docs_are_the_same():
    assert len(LOGGED) > 20
    assert LISTED == LOGGED


def test_each_log_event_that_a_page_shows_is_logged():
    """As in "log `nudge_failed`", or in a line of JSON."""
    pattern = r"\blogs? `([a-z_]+)[` ]|\"logger\": .*?\"event\": \"([a-z_]+)\""
    shown = {(page, a or b) for page in PAGES for a, b in re.findall(pattern, PAGES[page])}

    assert {(page, event) for page, event in shown if event not in LOGGED} == set()


# ----------------------------------------------------------------------------- metrics

# A user of Redis, a file of a secret, a header, a fixture, options of the pytest plugin.
NOT_METRICS = {
    "mm_tasks_audit_password",
    "mm_tasks_events",
    "mm_tasks_guard",
    "mm_tasks_producer",
    "mm_tasks_project",
    "mm_tasks_sandbox",
}


def test_each_metric_that_a_page_names_is_exported():
    """docs/metrics.md is the list: `test_metrics_docs` holds it to the exporter."""
    pattern = r"(?<![\w.])mm_tasks_[a-z_]+[a-z](?![\w.-])"
    named = {(page, name) for page in PAGES for name in re.findall(pattern, PAGES[page])}
    parts = {f"{name}_{part}" for name in TYPES for part in ("bucket", "sum", "count")}

    assert {name for _, name in named} - TYPES.keys() - parts - NOT_METRICS == set()


# ---------------------------------------------------------------- promises and outcomes

_PROMISE = re.compile(r"\bP([1-9])\b")
_TABLE = re.compile(r"\*Outcomes\*")
DEFINED = set(re.findall(r"^### P([1-9])$", ARCHITECTURE, re.MULTILINE))


def test_the_eight_promises_are_defined_once():
    assert sorted(re.findall(r"^### P(\d+)$", ARCHITECTURE, re.MULTILINE)) == list("12345678")


def test_the_table_of_outcomes_is_that_of_the_code():
    table = ARCHITECTURE.partition("\n## Outcomes\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z]\w+) \|", table, re.MULTILINE)

    assert sorted(rows) == sorted(kind.__name__ for kind in get_args(outcome.Outcome))


def test_a_page_that_cites_a_promise_links_to_it():
    for page in PAGES.keys() - {"architecture.md"}:
        up = {"README.md": "docs/", "CONTRIBUTING.md": "docs/"}.get(page, "../" * page.count("/"))
        link = rf"\[[^]]*\]\({up}architecture\.md#(?:p[1-8]|promises|outcomes)\)"
        text = re.sub(link, "", PAGES[page])

        assert (page, _PROMISE.findall(text), _TABLE.findall(text)) == (page, [], [])


def test_a_file_that_cites_a_promise_says_where_it_is_defined():
    cited = {file for file in CODE if _PROMISE.search(CODE[file]) or _TABLE.search(CODE[file])}

    assert {n for file in cited for n in _PROMISE.findall(CODE[file])} <= DEFINED
    assert {file for file in cited if "docs/architecture.md" not in CODE[file]} == set()


def test_the_glossary_has_ten_words():
    glossary = ARCHITECTURE.partition("\n## Glossary\n")[2].partition("\n## ")[0]

    assert len(re.findall(r"^\| \*\*", glossary, re.MULTILINE)) == 10
