"""Each metric is in docs/metrics.md, and each alert rule fires in its case, and in no other."""

import re
import shutil
import subprocess

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mm_tasks.monitoring.metrics import PAUSES, collector
from mm_tasks.runtime import Runtime
from mm_tasks.settings import Settings
from tests.architecture.tree import ROOT, assert_passes, text

RULES_FILE = ROOT / "deploy" / "prometheus" / "alerts.yml"
GROUPS = yaml.safe_load(RULES_FILE.read_text(encoding="utf-8"))["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
DOCS = text("docs/metrics.md")
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
    """Return what a scrape of an empty project shows, by the names in the docs."""
    folder = tmp_path_factory.mktemp("metrics")
    settings = Settings(redis_url=redis_url, state_dir=folder, project="docs")
    registry = CollectorRegistry()
    registry.register(collector(Runtime(settings)))
    scrape = generate_latest(registry).decode()
    return {_documented(family): family for family in text_string_to_metric_families(scrape)}


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
    inner += getattr(expression, "args", None) or []
    return set().union(*(_selected(part) for part in inner if part is not None))


def test_the_docs_have_every_metric_with_its_type_and_labels_and_no_other(families):
    """Base units in the name, `_total` for counters: prometheus.io/docs/practices/naming."""
    shown = {name: family.type for name, family in families.items()}
    shown["mm_tasks_info"] = "info"  # the text format has no such type

    assert {name: kind for name, (kind, _) in TYPES.items()} == shown
    for name, family in families.items():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert not family.samples or labels == set(re.findall(r"`(\w+)`", TYPES[name][1]))
        assert name.endswith("_total") == (family.type == "counter")
        assert not re.search(r"_(ms|us|kb|mb|percent|minutes|hours|days)(_|$)", name)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_selects_existing_metrics_and_has_a_severity_and_an_action(rule, families):
    """A misspelled metric would never fire."""
    suffixed = {f"{name}_{part}" for name in families for part in ("bucket", "sum", "count")}
    selected = _selected(promql_parser.parse(rule["expr"]))

    assert selected
    assert selected <= families.keys() | suffixed | OF_PROMETHEUS
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"].keys() == {"summary", "action"}
    assert f"| `{rule['alert']}` |" in DOCS


def test_the_docs_name_the_alerts_that_exist_and_every_kind_of_pause():
    named = re.findall(r"^\| `(MmTasks\w+)` \|", DOCS, re.MULTILINE)
    row = next(line for line in DOCS.splitlines() if line.startswith("| `mm_tasks_paused` "))

    assert named == [rule["alert"] for rule in RULES]
    assert all(f"`{kind}`" in row for kind in PAUSES)


@pytest.fixture
def promtool():
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed; the expressions were parsed above")
    return program


def test_promtool_takes_the_rules(promtool):
    assert_passes(promtool, "check", "rules", RULES_FILE)


# Series are in promtool's notation: `0x5 1x60` is six times 0 and 61 times 1, a value a minute.
UP = 'up{job="mm_tasks",instance="e"}'
REDIS_UP = {"redis_up": "1x90"}
REVOKED = 'paused{kind="unauthorized"}'
THROTTLED = 'requests_total{lane="track",outcome="throttled"}'
AMBIGUOUS = 'requests_total{lane="track",outcome="ambiguous"}'
WAITING = 'oldest_waiting_seconds{lane="track"}'
DISCARDED, DEAD = 'events_discarded_total{lane="track"}', 'events_dead{lane="track"}'
REFUSED = 'events_refused_total{lane="track",reason="unavailable"}'
WORKER_A, WORKER_B = (f'worker_heartbeat_age_seconds{{worker="{name}"}}' for name in "ab")
BEAT = 'beat_heartbeat_age_seconds{beat="a"}'
ALL_IS_WELL = {
    UP: "1x90",
    "redis_up": "1x90",
    "audit_up": "1x90",
    REVOKED: "0x90",
    'paused{kind="throttled"}': "1x90",
    THROTTLED: "3x90",
    AMBIGUOUS: "7x60 8x30",
    WAITING: "2x90",
    'oldest_waiting_seconds{lane="backfill"}': "5000x90",
    "buffer_bytes": "700x90",
    "buffer_max_bytes": "1000x90",
    DISCARDED: "5x90",
    REFUSED: "3x90",
    DEAD: "9x90",
    "fences_loaded": "1x90",
    "erasure_deadline_used_ratio_max": "0.1x90",
    'erasures_blocked{state="waiting_key"}': "0x90",
    'audit_problem{kind="audit_log_forked"}': "0x90",
    "audit_verified_age_seconds": "80000x90",
    WORKER_A: "5x90",
    'worker_heartbeat_age_seconds{worker="gone"}': "500x90",
    BEAT: "5x90",
}
# The series, the alert that they fire, and by when in minutes.
TROUBLES = {
    "the exporter is gone": ({UP: "0x90"}, "ExporterDown", 6),
    "no exporter is known": ({'up{job="other"}': "1x90"}, "ExporterDown", 6),
    "Redis is away": ({"redis_up": "0x90"}, "RedisDown", 2),
    "the audit database is away": ({"audit_up": "0x90"}, "AuditDown", 6),
    "the key was revoked": (
        {REVOKED: "0x5 1x90", 'paused{kind="rejected"}': "0x90"},
        "Paused",
        12,
    ),
    "the very first 429": ({THROTTLED: "0x5 1x90"}, "Throttled", 8),
    "nobody sends": ({WAITING: "0+60x90"}, "Behind", 12),
    "more comes than goes": (
        {"buffer_bytes": "850x90", "buffer_max_bytes": "1000x90"},
        "BufferFilling",
        6,
    ),
    "Redis was away for a while": ({REFUSED: "0x30 7x90"}, "Refused", 33),
    "an event was refused": ({DEAD: "0x30 1x90"}, "DeadLetters", 33),
    "a bound discarded one": ({DISCARDED: "0x30 1x90"}, "DeadLetters", 33),
    "a row of timeouts": ({AMBIGUOUS: "0x20 1+1x90"}, "MaybeRepeated", 33),
    "nobody loads the fences": ({"fences_loaded": "0x90", **REDIS_UP}, "FencesNotLoaded", 6),
    "half of a month is over": ({"erasure_deadline_used_ratio_max": "0.51x90"}, "ErasureLate", 1),
    "an erasure is overdue": ({"erasure_deadline_used_ratio_max": "1.1x90"}, "ErasureVeryLate", 1),
    "the vendor does not acknowledge": (
        {'erasures_blocked{state="retrying"}': "1x90"},
        "ErasureBlocked",
        62,
    ),
    "the audit log lost entries": (
        {'audit_problem{kind="audit_log_forked"}': "0x5 1x90"},
        "AuditProblem",
        6,
    ),
    "all workers are silent": ({WORKER_A: "0+60x90", WORKER_B: "0+60x90"}, "NoWorker", 5),
    "there is no worker": (REDIS_UP, "NoWorker", 3),
    "beat is silent": ({BEAT: "0+60x90"}, "NoBeat", 5),
    "there is no beat": (REDIS_UP, "NoBeat", 3),
}


@pytest.fixture
def fired(promtool, tmp_path):
    """Return the alerts that fire at a minute."""

    def fired(series, minute):
        test = {
            "interval": "1m",
            "input_series": [{"series": name, "values": v} for name, v in _named(series)],
            "alert_rule_test": [
                {"alertname": r["alert"], "eval_time": f"{minute}m"} for r in RULES
            ],
        }
        file = tmp_path / "test.yml"
        whole = {"rule_files": [str(RULES_FILE)], "evaluation_interval": "1m", "tests": [test]}
        file.write_text(yaml.safe_dump(whole))
        command = [promtool, "test", "rules", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        printed = done.stdout + done.stderr
        # The test expects none: promtool complains of those that fire.
        alerts = set(re.findall(r"alertname: MmTasks(\w+)", printed))
        assert bool(alerts) == bool(done.returncode), printed
        return alerts

    return fired


def _named(series):
    for name, values in series.items():
        family, _, labels = name.partition("{")
        ours = f'mm_tasks_{family}{{instance="e",{labels or "}"}'
        yield name if family == "up" else ours, values


def test_each_rule_has_a_trouble_and_each_series_is_a_metric(families):
    every = [ALL_IS_WELL, *(series for series, *_ in TROUBLES.values())]
    seen = {re.match(r"\w+", name)[0] for series in every for name, _ in _named(series)}

    assert {f"MmTasks{alert}" for _, alert, _ in TROUBLES.values()} == {r["alert"] for r in RULES}
    assert seen <= families.keys() | OF_PROMETHEUS


@pytest.mark.parametrize("minute", [10, 70, 90])
def test_nothing_fires_where_all_is_well(fired, minute):
    assert not fired(ALL_IS_WELL, minute)


@pytest.mark.parametrize(("series", "alert", "minute"), TROUBLES.values(), ids=TROUBLES)
def test_a_trouble_fires_its_alert(fired, series, alert, minute):
    assert alert in fired(series, minute)


def test_a_series_whose_increase_a_rule_reads_exists_from_the_beginning(families):
    """Prometheus sees no increase in a series whose first value is 1."""
    looked_for = {
        (name, outcome)
        for rule in RULES
        for name, outcome in re.findall(r'increase\((\w+)(?:{outcome="(\w+)"})?\[', rule["expr"])
    }
    shown = {
        (name, sample.labels.get("outcome", ""))
        for name, family in families.items()
        for sample in family.samples
    }

    assert looked_for
    assert looked_for <= shown
