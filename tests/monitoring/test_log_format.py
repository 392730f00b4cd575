"""The fields of a log line, and the values that no line contains."""

import ast
import json
import logging
import re
import sys
from pathlib import Path

import pytest
from billiard.einfo import ExceptionInfo
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

import mm_tasks
from mm_tasks.errors import ConfigurationError
from mm_tasks.monitoring import log_format

PACKAGE = Path(mm_tasks.__file__).parent
SECRET = "hunter2"
DOCS = (PACKAGE.parent / "docs" / "logs.md").read_text()


def record(message, *args, name="mm_tasks.delivery", level=logging.WARNING, **rest):
    args = args[0] if len(args) == 1 and isinstance(args[0], dict) else args
    made = logging.makeLogRecord(
        {"name": name, "msg": message, "args": args, "levelno": level, "created": 1.25, **rest}
    )
    made.levelname = logging.getLevelName(level)
    return made


def line(*args, **rest):
    return json.loads(log_format.formatter("json").format(record(*args, **rest)))


def text(*args, **rest):
    return log_format.formatter("text", "%(message)s").format(record(*args, **rest))


def test_an_event_is_one_object_with_its_fields():
    assert line("batch_settled", batch_id="b1", attempt=2) == {
        "time": "1970-01-01T00:00:01.250Z",
        "level": "warning",
        "logger": "mm_tasks.delivery",
        "event": "batch_settled",
        "batch_id": "b1",
        "attempt": 2,
    }


def test_the_text_is_the_event_followed_by_its_fields():
    said = text("project_paused", reason='a "b"\nc', wait_s=1.5)

    assert said == r'project_paused reason="a \"b\"\nc" wait_s=1.5'


def test_a_field_that_the_message_contains_is_not_repeated():
    """Some messages contain their fields, for hosts whose formatter shows no `extra`."""
    message = ("erasure_failed erasure=%s error=%s", "e1", "KeyError")

    assert text(*message, erasure="e1", error="KeyError") == message[0] % message[1:]
    assert "message" not in line(*message, erasure="e1", error="KeyError")


def test_a_sentence_is_kept_beside_its_event():
    fields = line("host_configuration_problem: %s", "use 2")

    assert fields["event"] == "host_configuration_problem"
    assert fields["message"] == "host_configuration_problem: use 2"


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), st.text()), st.booleans())
def test_only_named_fields_are_written(extra, is_json):
    """A colleague who logs a property by mistake leaks none."""
    hidden = {f"x_{name}": f"hidden{value}" for name, value in extra.items()}
    made = record("event", **hidden)

    assert "hidden" not in log_format.formatter("json" if is_json else "text").format(made)


def test_a_value_of_another_type_than_text_and_number_is_written_as_its_type():
    assert line("event", why={"user_id": "u"}, kind=ValueError("u"))["why"] == "dict"


@given(st.text())
def test_any_record_is_one_line(value):
    made = record("event", why=value)

    for form in ("json", "text"):
        assert len(log_format.formatter(form).format(made).splitlines()) == 1


def failing(error):
    def inner():
        raise error(SECRET) from ValueError(SECRET)

    try:
        inner()
    except Exception:  # noqa: BLE001
        return sys.exc_info()


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_exception_is_written_as_its_type_and_places_without_its_text(form):
    """Redis quotes the arguments of a script that fails: these are records."""
    said = log_format.formatter(form).format(
        record("backend_unavailable", exc_info=failing(ResponseError))
    )

    assert "ResponseError" in said
    assert "ValueError" in said
    assert "in inner" in said
    assert SECRET not in said


def test_the_text_of_our_own_errors_is_written():
    """It names the setting and the rule, and never a value."""
    assert (
        "ConfigurationError: hunter2"
        in line("x", exc_info=failing(ConfigurationError))["traceback"]
    )


def test_the_exception_text_of_another_formatter_is_not_used():
    """`logging` keeps the first one's for all."""
    made = record("backend_unavailable", exc_info=failing(ResponseError))
    logging.Formatter().format(made)

    assert SECRET not in log_format.formatter("text").format(made)
    assert SECRET in made.exc_text


def test_the_exception_of_a_pool_process_has_its_places_too():
    """Celery logs those with billiard's own tracebacks."""
    kind, error, places = failing(KeyError)
    info = ExceptionInfo((kind, error, places)).exc_info

    assert "in inner" in line("x", exc_info=info, name="celery.app.trace")["traceback"]


TASK = {"name": "t", "id": "1"}
UNREGISTERED = "Received unregistered task of type %s.\n\nThe full contents of the body was:\n%s"
APPLY = "TaskPool: Apply %s (args:%r kwargs:%r)"
OF_CELERY = {
    "failed": (
        "Task %(name)s[%(id)s] %(description)s: %(exc)s",
        {**TASK, "description": "raised unexpected", "exc": "E('hunter2')"},
        "Task t[1] raised unexpected: E",
    ),
    "retried": (
        "Task %(name)s[%(id)s] retry: %(exc)s",
        {**TASK, "exc": "Retry in 2s: KeyError('hunter2')"},
        "Task t[1] retry: Retry in 2s",
    ),
    "succeeded": (
        "Task %(name)s[%(id)s] succeeded in %(runtime)ss: %(return_value)s",
        {**TASK, "runtime": 0.5, "return_value": "'hunter2'"},
        "Task t[1] succeeded in 0.5s:",
    ),
    "unregistered": (
        UNREGISTERED,
        (KeyError("hunter2"), "hunter2"),
        "Received unregistered task of type KeyError.",
    ),
    "debug": (APPLY, ("f", "hunter2", {}), APPLY),
    "harmless": ("Connected to %s", ("redis://h:1//",), "Connected to redis://h:1//"),
    "broken": ("broken %d", ("hunter2",), "broken %d"),
}
LEVELS = {"failed": logging.ERROR, "unregistered": logging.ERROR, "debug": logging.DEBUG}


@pytest.mark.parametrize("name", OF_CELERY)
def test_a_message_of_celery_has_no_argument_of_a_task(name):
    message, args, logged = OF_CELERY[name]
    args = (args,) if isinstance(args, dict) else args
    level = LEVELS.get(name, logging.INFO)

    fields = line(message, *args, name="celery.app.trace", level=level, why="hunter2")
    assert fields["message"] == logged
    assert "hunter2" not in str(fields)


def extras():
    """Yield every `extra=` of the package: where it is, and the names of its fields."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        named = {
            node.targets[0].id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            of = getattr(call.func, "attr", "")
            given = [k.value for k in call.keywords if k.arg == "extra"]
            if given and of in {
                "debug",
                "info",
                "warning",
                "error",
                "exception",
                "critical",
                "log",
            }:
                value = named.get(given[0].id) if isinstance(given[0], ast.Name) else given[0]
                yield f"{path.name}:{call.lineno}", names(value)


def names(value):
    assert isinstance(value, ast.Dict), "an `extra` is a dict that stands where it is read"
    return {key.value if isinstance(key, ast.Constant) else "**" for key in value.keys}


def test_every_field_that_the_package_logs_is_named():
    found = list(extras())

    assert len(found) > 20
    assert not [(where, more) for where, fields in found if (more := fields - log_format.FIELDS)]


def test_every_field_that_is_named_is_logged_and_in_the_docs():
    """A name that nobody needs is a hole for the next one who uses it."""
    used = set().union(*(fields for _, fields in extras()))

    assert used == log_format.FIELDS
    assert not [name for name in log_format.FIELDS if f"`{name}`" not in DOCS]


def test_every_event_that_the_docs_name_is_logged():
    """The documents named `redis_away` long after no code logged it."""
    shown = "\n".join(path.read_text() for path in (PACKAGE.parent / "docs").glob("*.md"))
    named = set(re.findall(r"\blogs? `([a-z_]+)`|\"logger\": .*?\"event\": \"([a-z_]+)\"", shown))
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))

    assert len(named) > 3
    assert [event for pair in named if (event := "".join(pair)) not in code] == []
