"""Each alert rule fires at what it is for, and none where all is well: by Prometheus itself.

Series are in promtool's notation: `0x5 1x60` is six times 0 and 61 times 1, a value a minute.
"""

import re
import shutil
import subprocess

import pytest
import yaml

from tests.architecture.test_metrics_docs import (
    OF_PROMETHEUS,
    RULES,
    RULES_FILE,
    families,  # noqa: F401 - a fixture
)

UP = 'up{job="mm_tasks",instance="e"}'
REDIS_UP = {"redis_up": "1x90"}
ALL_IS_WELL = {
    UP: "1x90",
    "redis_up": "1x90",
    "audit_up": "1x90",
    'paused{kind="unauthorized"}': "0x90",
    'paused{kind="throttled"}': "1x90",
    'requests_total{lane="track",outcome="throttled"}': "3x90",
    'requests_total{lane="track",outcome="ambiguous"}': "7x60 8x30",
    'oldest_waiting_seconds{lane="track"}': "2x90",
    'oldest_waiting_seconds{lane="backfill"}': "5000x90",
    "buffer_bytes": "700x90",
    "buffer_max_bytes": "1000x90",
    'events_discarded_total{lane="track"}': "5x90",
    'events_dead{lane="track"}': "9x90",
    "fences_loaded": "1x90",
    "erasure_deadline_used_ratio_max": "0.1x90",
    'erasures_blocked{state="waiting_key"}': "0x90",
    'worker_heartbeat_age_seconds{worker="a"}': "5x90",
    'worker_heartbeat_age_seconds{worker="gone"}': "500x90",
    'beat_heartbeat_age_seconds{beat="a"}': "5x90",
}
# What is seen, the alert that it fires, and by when in minutes.
TROUBLES = {
    "the exporter is gone": ({UP: "0x90"}, "ExporterDown", 6),
    "no exporter is known": ({'up{job="other"}': "1x90"}, "ExporterDown", 6),
    "Redis is away": ({"redis_up": "0x90"}, "RedisDown", 2),
    "the audit database is away": ({"audit_up": "0x90"}, "AuditDown", 6),
    "the key was revoked": (
        {'paused{kind="unauthorized"}': "0x5 1x90", 'paused{kind="rejected"}': "0x90"},
        "Paused",
        12,
    ),
    "the very first 429": (
        {'requests_total{lane="track",outcome="throttled"}': "0x5 1x90"},
        "Throttled",
        8,
    ),
    "nobody sends": ({'oldest_waiting_seconds{lane="track"}': "0+60x90"}, "Behind", 12),
    "more comes than goes": (
        {"buffer_bytes": "850x90", "buffer_max_bytes": "1000x90"},
        "BufferFilling",
        6,
    ),
    "an event was refused": ({'events_dead{lane="track"}': "0x30 1x90"}, "DeadLetters", 33),
    "a bound discarded one": (
        {'events_discarded_total{lane="track"}': "0x30 1x90"},
        "DeadLetters",
        33,
    ),
    "a row of timeouts": (
        {'requests_total{lane="track",outcome="ambiguous"}': "0x20 1+1x90"},
        "MaybeRepeated",
        33,
    ),
    "nobody loads the fences": ({"fences_loaded": "0x90", **REDIS_UP}, "FencesNotLoaded", 6),
    "half of a month is over": ({"erasure_deadline_used_ratio_max": "0.51x90"}, "ErasureLate", 1),
    "an erasure is overdue": ({"erasure_deadline_used_ratio_max": "1.1x90"}, "ErasureVeryLate", 1),
    "the vendor does not acknowledge": (
        {'erasures_blocked{state="retrying"}': "1x90"},
        "ErasureBlocked",
        62,
    ),
    "all workers are silent": (
        {
            'worker_heartbeat_age_seconds{worker="a"}': "0+60x90",
            'worker_heartbeat_age_seconds{worker="b"}': "0+60x90",
        },
        "NoWorker",
        5,
    ),
    "there is no worker": (REDIS_UP, "NoWorker", 3),
    "beat is silent": ({'beat_heartbeat_age_seconds{beat="a"}': "0+60x90"}, "NoBeat", 5),
    "there is no beat": (REDIS_UP, "NoBeat", 3),
}


@pytest.fixture
def fired(tmp_path):
    """Return the alerts that Prometheus's own checker says fire at a minute."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; the expressions are parsed in test_metrics_docs")

    def fired(series, minute):
        asked = [{"alertname": rule["alert"], "eval_time": f"{minute}m"} for rule in RULES]
        test = {
            "interval": "1m",
            "input_series": [{"series": one, "values": v} for one, v in _named(series)],
            "alert_rule_test": asked,
        }
        file = tmp_path / "test.yml"
        whole = {"rule_files": [str(RULES_FILE)], "evaluation_interval": "1m", "tests": [test]}
        file.write_text(yaml.safe_dump(whole))
        command = [promtool, "test", "rules", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        # It was asked for none: what fires is its complaint.
        found = set(re.findall(r"alertname: MmTasks(\w+)", said))
        assert bool(found) == bool(done.returncode), said
        return found

    return fired


def _named(series):
    for one, values in series.items():
        if one.startswith("up{"):
            yield one, values
        else:
            name, _, labels = one.partition("{")
            yield f'mm_tasks_{name}{{instance="e",{labels or "}"}', values


def test_each_rule_has_a_trouble_that_is_seen_by_metrics_that_there_are(families):  # noqa: F811
    seen = {
        re.match(r"\w+", one)[0]
        for series in (ALL_IS_WELL, *(t[0] for t in TROUBLES.values()))
        for one, _ in _named(series)
    }

    assert {f"MmTasks{alert}" for _, alert, _ in TROUBLES.values()} == {r["alert"] for r in RULES}
    assert seen <= families.keys() | OF_PROMETHEUS


@pytest.mark.parametrize("minute", [10, 70, 90])
def test_nothing_fires_where_all_is_well(fired, minute):
    assert not fired(ALL_IS_WELL, minute)


@pytest.mark.parametrize(("series", "alert", "minute"), TROUBLES.values(), ids=TROUBLES)
def test_a_trouble_fires_its_alert(fired, series, alert, minute):
    assert alert in fired(series, minute)


def test_what_an_increase_is_looked_for_in_is_shown_from_the_beginning(families):  # noqa: F811
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
