"""Each metric is in docs/metrics.md, and the alert rules speak of metrics that there are."""

import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from typer.main import get_command

from mm_tasks import cli
from mm_tasks.monitoring.metrics import PAUSES, collector
from mm_tasks.runtime import Runtime
from mm_tasks.settings import Settings

ROOT = Path(__file__).parents[2]
RULES_FILE = ROOT / "deploy" / "prometheus" / "alerts.yml"
RULES = [
    rule
    for group in yaml.safe_load(RULES_FILE.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
DOCS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
TYPES = {
    name: (kind, labels)
    for name, kind, labels in re.findall(
        r"^\| `(mm_tasks_\w+)` \| (\w+) \|([^|]*)\|", DOCS, re.MULTILINE
    )
}
# Of Prometheus itself, for each target.
OF_PROMETHEUS = {"up"}


@pytest.fixture(scope="module")
def families(redis_url, tmp_path_factory):
    """What a scrape of an empty project shows."""
    folder = tmp_path_factory.mktemp("metrics")
    settings = Settings(redis_url=redis_url, state_dir=folder, project="docs")
    registry = CollectorRegistry()
    registry.register(collector(Runtime(settings)))
    text = generate_latest(registry).decode()
    return {_documented(family): family for family in text_string_to_metric_families(text)}


def _documented(family):
    """Return the name as the docs have it: a counter with its suffix."""
    if family.name == "mm_tasks_info":
        return family.name
    return f"{family.name}_total" if family.type == "counter" else family.name


def _selected(expression):
    """Return the metrics that an expression selects, by its own parser."""
    if isinstance(expression, promql_parser.VectorSelector):
        return {expression.name}
    if isinstance(expression, promql_parser.MatrixSelector):
        return {expression.vector_selector.name}
    inner = [getattr(expression, name, None) for name in ("expr", "lhs", "rhs")]
    inner += list(getattr(expression, "args", None) or [])
    return set().union(*(_selected(one) for one in inner if one is not None))


def test_the_docs_have_every_metric_and_no_other(families):
    assert families.keys() == TYPES.keys()


def test_the_docs_say_of_each_metric_its_type(families):
    shown = {name: family.type for name, family in families.items()}
    # The text format has no type `info`.
    shown["mm_tasks_info"] = "info"

    assert {name: kind for name, (kind, _) in TYPES.items()} == shown


def test_the_docs_say_of_each_metric_its_labels(families):
    shown = {
        name: {label for sample in family.samples for label in sample.labels} - {"le"}
        for name, family in families.items()
        if family.samples
    }

    assert shown == {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, (_, labels) in TYPES.items()
        if name in shown
    }


def test_names_are_as_prometheus_asks_for(families):
    """Base units in the name, `_total` for counters: prometheus.io/docs/practices/naming."""
    for name, family in families.items():
        assert name.endswith("_total") == (family.type == "counter")
        assert not re.search(r"_(ms|us|kb|mb|percent|minutes|hours|days)(_|$)", name)


def test_the_docs_have_every_kind_of_pause():
    row = next(line for line in DOCS.splitlines() if line.startswith("| `mm_tasks_paused` "))

    assert all(f"`{kind}`" in row for kind in PAUSES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_is_an_expression_of_metrics_that_there_are(rule, families):
    """A misspelled metric would never fire."""
    suffixed = {f"{name}_{part}" for name in families for part in ("bucket", "sum", "count")}
    found = _selected(promql_parser.parse(rule["expr"]))

    assert found
    assert found <= families.keys() | suffixed | OF_PROMETHEUS


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_says_how_bad_it_is_and_what_to_do(rule):
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"].keys() == {"summary", "action"}
    assert f"| `{rule['alert']}` |" in DOCS


def test_the_docs_name_no_alert_that_is_not_there():
    named = re.findall(r"^\| `(MmTasks\w+)` \|", DOCS, re.MULTILINE)

    assert named == [rule["alert"] for rule in RULES]


def test_the_docs_name_every_option():
    options = [n for one in get_command(cli.app).commands["metrics"].params for n in one.opts]

    assert [name for name in options if f"{name}" not in DOCS] == []


def test_promtool_takes_the_rules():
    """Prometheus's own checker, where it is installed."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; the expressions were parsed above")
    checked = [promtool, "check", "rules", str(RULES_FILE)]
    done = subprocess.run(checked, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
