"""A process that is stopped (SIGSTOP, a lost host) in a transaction: the others soon go on.

Each process stops itself before the commit of one kind of transaction, when it has all locks. Real
time: PostgreSQL ends its session after a few seconds. When the process goes on, nothing of its
transaction is applied, and the result of a call is recorded all the same.

Sabotages that turn this file red, each tried on a copy:

- no `idle_in_transaction_session_timeout`, or one that is longer than a writer waits;
- `record_with_retry` gives up when the process goes on after its time.
"""

import multiprocessing
import os
import signal
from datetime import timedelta

import pytest
from sqlalchemy import event

from mm_tasks.client.backoff import record_with_retry
from mm_tasks.erasure.audit.verification import verify
from mm_tasks.errors import AuditUnavailable
from tests.erasure.stores import DONE, NOW, PASSES_S, Store

FORK = multiprocessing.get_context("fork")


def _claimed(store):
    return store.ask("another").claim


def _purged(store):
    claim = store.steps.mark_fenced(_claimed(store), NOW)
    return store.steps.mark_purged(claim, {}, NOW)


def _submitted(store):
    return store.steps.intent(store.quiesced(user_id="another"), NOW)


def _passed(store):
    claim = store.quiesced(user_id="another")
    for wait_s in PASSES_S:
        store.call(claim, now=store.now + timedelta(seconds=wait_s))
    return claim


# How a transaction is made ready, and the transaction in which the process stops.
WRITES = {
    "request": (lambda _: None, lambda store, _: store.ask("another")),
    "claim": (
        lambda store: store.steps.release(_claimed(store)),
        lambda store, _: store.steps.claim(store.steps.due(60, NOW)[0], NOW, 60),
    ),
    "fenced": (_claimed, lambda store, claim: store.steps.mark_fenced(claim, NOW)),
    "quiesced": (_purged, lambda store, claim: store.steps.mark_quiesced(claim, PASSES_S, NOW)),
    "intent": (
        lambda store: store.quiesced(user_id="another"),
        lambda store, claim: store.steps.intent(claim, NOW),
    ),
    "result": (_submitted, lambda store, call: store.steps.result(call, DONE, NOW)),
    "complete": (_passed, lambda store, claim: store.steps.complete(claim)),
    "cancel": (_claimed, lambda store, claim: store.commands.cancel(claim.id, "dpo", NOW)),
}
READS = {
    "export": lambda store: list(store.log.export()),
    "verify": lambda store: verify(store.log),
    "fences": lambda store: list(store.queries.fences()),
}


def _stop(_):
    os.kill(os.getpid(), signal.SIGSTOP)


def stopped(store, moment, work):
    """Start a process that stops at this event of its database, and wait until it has stopped."""
    answers, to_parent = FORK.Pipe(duplex=False)

    def run():
        own = Store(store.url, store.folder)
        own.now = store.now
        event.listen(own.database._engine, moment, lambda *_: _stop(_), once=True)  # noqa: SLF001
        try:
            to_parent.send(("done", repr(work(own))))
        except AuditUnavailable:
            to_parent.send(("failed", ""))

    process = FORK.Process(target=run, daemon=True)
    process.start()
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    return process, answers


def goes_on(process, answers):
    """Let the process go on; return how its work ended."""
    os.kill(process.pid, signal.SIGCONT)
    assert answers.poll(30)
    return answers.recv()[0]


@pytest.mark.parametrize(("prepare", "work"), WRITES.values(), ids=WRITES)
def test_a_request_is_accepted_soon_after_a_process_stopped_in(
    postgresql_url, tmp_path, prepare, work
):
    store = Store(postgresql_url, tmp_path)
    ready = prepare(store)
    process, answers = stopped(store, "commit", lambda own: work(own, ready))
    opened = store.ask("a person", store.now)
    before = store.entries()

    assert opened.claim is not None
    assert goes_on(process, answers) == "failed"
    assert store.entries() == before
    verify(store.log)
    process.join(10)


@pytest.mark.parametrize("work", READS.values(), ids=READS)
def test_a_process_stopped_in_a_long_read_holds_up_nobody(postgresql_url, tmp_path, work):
    store = Store(postgresql_url, tmp_path)
    store.ask("another")
    process, answers = stopped(store, "after_cursor_execute", work)
    assert store.ask("a person").claim is not None

    assert goes_on(process, answers) == "done"
    process.join(10)


def test_the_result_of_a_call_outlives_the_stop_of_its_process(postgresql_url, tmp_path):
    """Its time to record it was over when it went on."""
    store = Store(postgresql_url, tmp_path)
    call = _submitted(store)

    def record(own):
        return record_with_retry(lambda: own.steps.result(call, DONE), (AuditUnavailable,), 0.1)

    process, answers = stopped(store, "commit", record)
    store.ask("a person")
    assert store.queries.show(call.erasure)["state"] == "submitted"

    assert goes_on(process, answers) == "done"
    assert store.queries.show(call.erasure)["state"] == "settling"
    verify(store.log)
    process.join(10)
