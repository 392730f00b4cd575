"""The hook of the host: each failure is counted, and no hook holds up the fence or a caller."""

import threading
import time

import pytest

from mm_tasks.buffer.audit_state import AuditState
from mm_tasks.erasure.audit import checkpoint_hook
from mm_tasks.erasure.audit.checkpoint_hook import WAIT_S, CheckpointHook
from mm_tasks.erasure.audit.checkpoints import Checkpoint

ONE, TWO, THREE = (Checkpoint(size, "a" * 64, "2026-01-31T12:00:00.000Z") for size in (1, 2, 3))


class Hook:
    """A hook that hangs until it is let go on, from its second call on without a pause."""

    def __init__(self):
        self.told = []
        self.threads = set()
        self.go_on = threading.Event()

    def __call__(self, checkpoint):
        self.told.append(checkpoint)
        self.threads.add(threading.current_thread())
        assert self.go_on.wait(30)


@pytest.fixture
def slow():
    hook = Hook()
    yield hook
    hook.go_on.set()


def test_a_caller_waits_two_seconds_once_and_the_newest_checkpoint_follows(slow):
    """A hook that hangs would otherwise cost two seconds at each step of each erasure."""
    hook, began_s = CheckpointHook(slow), time.monotonic()
    hook.offer(ONE)
    waited_s = time.monotonic() - began_s
    hook.offer(TWO)
    hook.offer(THREE)
    waited_again_s = time.monotonic() - began_s - waited_s
    slow.go_on.set()

    assert hook.wait(10)
    assert slow.told == [ONE, THREE]
    assert len(slow.threads) == 1
    assert waited_s >= WAIT_S
    assert waited_again_s < WAIT_S


def test_a_hook_that_hangs_for_a_minute_counts_as_failed_once(slow, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint_hook, "_HANGS_S", 0)
    failed = []
    hook = CheckpointHook(slow, lambda: failed.append(1))
    for checkpoint in (ONE, TWO, THREE):
        hook.offer(checkpoint)

    assert failed == [1]
    assert [one.kind for one in caplog.records] == ["TimeoutError"]


def test_each_failure_is_counted_and_one_a_minute_is_logged(caplog):
    told, failed = [], []

    def call(checkpoint):
        told.append(checkpoint)
        raise SystemExit if checkpoint is TWO else LookupError("user_42")

    hook = CheckpointHook(call, lambda: failed.append(1))
    for checkpoint in (ONE, TWO, THREE):
        hook.offer(checkpoint)

    assert told == [ONE, TWO, THREE]
    assert len(failed) == 3
    assert [(one.message, one.kind) for one in caplog.records] == [
        ("checkpoint_hook_failed", "LookupError")
    ]


def test_a_failure_that_cannot_be_counted_is_logged(caplog):
    hook = CheckpointHook(lambda _: 1 / 0, [].pop)
    hook.offer(ONE)

    assert [one.kind for one in caplog.records] == ["ZeroDivisionError, IndexError"]


def test_a_hook_that_adds_to_the_log_does_not_wait_for_itself():
    told, waited_s = [], []

    def call(checkpoint):
        told.append(checkpoint)
        if checkpoint is ONE:
            began_s = time.monotonic()
            hook.offer(TWO)
            waited_s.append(time.monotonic() - began_s)

    hook = CheckpointHook(call)
    hook.offer(ONE)

    assert told == [ONE, TWO]
    assert waited_s[0] < WAIT_S


def test_failures_are_counted_for_all_processes_with_the_time_of_the_last(redis):
    state = AuditState(redis, "p")
    assert not state.read().has_hook_failed
    state.note_hook_failure()
    state.note_hook_failure()

    found = state.read()
    assert found.fields["hook_failures"] == "2"
    assert found.has_hook_failed
