"""What was found about the audit log is shown wherever a person or a program looks."""

import json

import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from mm_tasks.buffer import heartbeats
from mm_tasks.buffer.audit_state import AuditState
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.cli import app
from mm_tasks.events.lanes import queue_names
from mm_tasks.monitoring import health
from mm_tasks.monitoring.metrics import collector

KEYS = ProjectKeys("p")
DAY_MS = 86_400_000


@pytest.fixture
def state(redis, redis_url, fresh, tmp_path):
    """A project whose workers and beat are alive, and whose log was verified a moment ago."""
    folder = str(tmp_path / "state")
    fresh(MM_TASKS_REDIS_URL=redis_url, MM_TASKS_PROJECT="p", MM_TASKS_STATE_DIR=folder)
    heartbeats.write(redis, "p", "worker", "w@host", queue_names("p"))
    heartbeats.write(redis, "p", "beat", "host")
    state = AuditState(redis, "p", "host-a")
    state.verified(3)
    return state


def ran(*words):
    done = CliRunner().invoke(app, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


def scraped():
    """Return the kinds of problems that are 1, and the ages and entries."""
    registry = CollectorRegistry()
    registry.register(collector())
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name.startswith("mm_tasks_audit_")
    }
    return {name[1] for name, value in samples.items() if name[1:] and value}, samples


def hook_failed(state, redis):
    redis.hset(KEYS.audit, mapping={"hook_failures": 3, "hook_failed_ms": now_ms(state)})


def now_ms(state):
    return state.read().now_ms


FINDINGS = {
    "audit_log_forked": lambda state, _: state.mark_log("audit_log_forked"),
    "audit_log_cut": lambda state, _: state.mark_log("audit_log_cut"),
    "audit_log_broken": lambda state, _: state.found_broken("entry 7: it does not follow entry 6"),
    "guards_missing": lambda state, _: state.guards("mm_erasure_audit_no_update"),
    "hook_failed": hook_failed,
    "not_verified": lambda state, redis: redis.hset(
        KEYS.audit, "verified", f"{now_ms(state) - 3 * DAY_MS} 3"
    ),
}


def test_a_verified_log_is_shown_as_such(state):
    assert state.read().verified_size == 3
    assert ran("health")[0] == 0
    assert "ok       audit log: verified 0 h ago: 3 entries" in ran("health")[1]
    assert json.loads(ran("status", "--json")[1])["problems"] == []
    problems, samples = scraped()

    assert problems == set()
    assert 0 <= samples["mm_tasks_audit_verified_age_seconds",] < 60
    assert samples["mm_tasks_audit_verified_entries",] == 3


@pytest.mark.parametrize("kind", FINDINGS)
def test_a_finding_is_shown_by_health_status_and_its_metric(redis, state, kind):
    FINDINGS[kind](state, redis)
    code, printed = ran("health")
    (problem,) = json.loads(ran("status", "--json")[1])["problems"]
    sentence = problem.removeprefix("audit log: ")

    assert code == 1
    assert f"problem  audit log: {sentence}" in printed
    assert f"problem: {problem}" in ran("status")[1]
    assert scraped()[0] == {kind}


def test_each_kind_of_finding_has_its_case():
    assert FINDINGS.keys() == set(health.AUDIT_KINDS)


def test_a_hook_that_failed_two_days_ago_is_no_news(redis, state):
    redis.hset(
        KEYS.audit, mapping={"hook_failures": 3, "hook_failed_ms": now_ms(state) - 2 * DAY_MS}
    )

    assert scraped()[0] == set()
