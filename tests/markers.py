"""Markers of tests, set by the fixtures that a test uses and by the folder that it is in.

`redis`      needs a Redis or a PostgreSQL
`processes`  starts processes of ours, or servers of its own
`slow`       takes more than two seconds, or repeats on PostgreSQL a test that runs on SQLite

`scripts/test --fast` leaves out the last two; `scripts/compat` leaves out `processes`.
"""

import pytest
from hypothesis import settings

# Few examples, for `scripts/test --fast`.
settings.register_profile("fast", deadline=None, max_examples=10)

OF_SERVERS = {"postgresql", "redis", "redis_url", "servers"}
OF_POSTGRESQL = {"postgresql", "postgresql_url"}
OF_PROCESSES = {"stepping", "migrated", "mortal", "run_pytest", "serve", "servers", "stack"}
# Tests that start processes without a fixture, and slow ones: by the beginning of their ids.
PROCESSES = (
    "client/test_hop.py",
    "client/test_unsent.py::test_a_child_forked",
    "erasure/test_stopped_processes.py",
    "system/",
    "testing/test_docs.py::test_the_examples_pass",
    "testing/test_sandbox.py",
    "testing/test_without_redis.py",
    "typing/",
)
SLOW = (
    "buffer/test_dead_letters.py::test_no_sequence",
    "buffer/test_machine.py",
    "delivery/test_clock_steps.py",
    "delivery/test_doubts.py",
    "buffer/test_purge.py::test_nothing_of_the_person_stays_and_nothing_of_others_goes",
    "client/test_hop.py",
    "erasure/test_database.py::test_of_eight_processes",
    "erasure/test_machine.py",
    "erasure/test_rows.py::test_no_remains",
    "erasure/test_verification.py::test_a_log_of_thousands",
    "erasure/test_workflow.py::test_a_sweep_alone",
    "monitoring/test_health.py::test_a_probe_needs_no_celery",
    "sandbox/test_journal.py::test_the_process",
    "tasks/test_tasks.py::test_a_worker_that_starts_from_either_module",
)


def pytest_collection_modifyitems(items):
    """Mark each test before `-m` selects."""
    for item in items:
        place = item.nodeid.removeprefix("tests/")
        fixtures = set(item.fixturenames)
        if fixtures & OF_SERVERS:
            item.add_marker(pytest.mark.redis)
        if fixtures & OF_PROCESSES or place.startswith(PROCESSES):
            item.add_marker(pytest.mark.processes)
        if place.startswith(SLOW) or fixtures & OF_POSTGRESQL or "[postgresql" in place:
            item.add_marker(pytest.mark.slow)
