"""The protocol as a table: what may follow what, and what an entry may say."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_tasks.erasure.audit.protocol import (
    BLOCKED,
    ENTRIES,
    OPEN,
    STATES,
    ErasureState,
    IllegalTransition,
    step,
)

TIME = "2026-01-31T12:00:00.000Z"
REQUEST = {"requested_by": "dpo", "ticket": None, "reason": "ccpa", "received_at": TIME}
DETAILS = {
    "received": {
        **REQUEST,
        "project": "p",
        "mode": "suppress",
        "anonymous": 0,
        "due_at": TIME,
        "via": "call",
    },
    "started": {},
    "ticket_added": {**REQUEST, "ticket": "T-1", "mode": "suppress", "via": "message"},
    "anonymous_added": {"anonymous": 1},
    "purged": {"removed": {"track:waiting": 1}},
    "quiesced": {"passes": 2},
    "settling": {"next_at": TIME},
    "retrying": {"next_at": TIME},
    "waiting_key": {"next_at": TIME},
    "attention": {"next_at": None},
    "retried": {"requested_by": "dpo"},
    "completed": {"acknowledged": 2},
    "cancelled": {"requested_by": "dpo"},
    "rejected": {"requested_by": "dpo", "outcome": "not_verified"},
    "duplicate_of": {"requested_by": "dpo", "original": "another"},
    "lifted": {"requested_by": "dpo"},
    "aof_rewritten": {"outcome": "started"},
}


def intent(n, attempt):
    return "intent", {"pass": n, "attempt": attempt}


def result(n, attempt, outcome="acknowledged"):
    return "result", {"pass": n, "attempt": attempt, "status": 200, "outcome": outcome}


def run(*steps):
    progress = None
    for one in steps:
        kind, details = one if isinstance(one, tuple) else (one, DETAILS.get(one, {}))
        progress = step(progress, kind, details, "this")
    return progress


LATER = ("received", {**DETAILS["received"], "not_before": TIME})
START = ("received", "fenced", "purged", "quiesced")
PASS_1 = (intent(1, 1), result(1, 1))
REFUSED = (intent(1, 1), result(1, 1, "no"), "retrying")
# The third call ended in another way than the two before.
CALLS = ("result", {**result(1, 2, "else")[1], "calls": 2})
DONE = (*START, *PASS_1, "settling", intent(2, 2), result(2, 2), "completed")


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        (("received",), "received"),
        (START, "quiesced"),
        ((*START, intent(1, 1)), "submitted"),
        ((*START, *PASS_1, "settling"), "settling"),
        ((*START, intent(1, 1), result(1, 1, "unavailable"), "retrying"), "retrying"),
        ((*START, intent(1, 1), result(1, 1, "no"), "waiting_key", "retried"), "waiting_key"),
        ((*START, intent(1, 1), result(1, 1, "no"), "attention", intent(1, 2)), "attention"),
        ((*START, "waiting_key", intent(1, 1)), "waiting_key"),
        ((*START, "waiting_key", intent(1, 1), result(1, 1)), "submitted"),
        ((*START, *PASS_1, "settling", "waiting_key", "retried"), "waiting_key"),
        ((*START, "waiting_key", "cancelled", "wiped"), "cancelled"),
        ((*START, intent(1, 1), "waiting_key", result(1, 1), "settling"), "settling"),
        ((*START, *REFUSED, intent(1, 2), CALLS, "attention"), "attention"),
        ((*START, intent(1, 1), intent(1, 2), result(1, 2), "settling", result(1, 1)), "settling"),
        (DONE, "completed"),
        ((*DONE, "wiped", "aof_rewritten", "lifted"), "lifted"),
        (("received", "cancelled", "wiped"), "cancelled"),
        ((*START, "rejected"), "rejected"),
        ((*START, "duplicate_of"), "duplicate_of"),
        ((*START, "ticket_added", "anonymous_added"), "received"),
        ((LATER, "ticket_added", "anonymous_added"), "scheduled"),
        ((LATER, ("ticket_added", {**DETAILS["ticket_added"], "not_before": TIME})), "scheduled"),
        ((LATER, "started", *START[1:]), "quiesced"),
        ((LATER, "cancelled", "wiped"), "cancelled"),
        ((*START, intent(1, 1), "anonymous_added", result(1, 1), *START[1:]), "quiesced"),
    ],
)
def test_legal(steps, state):
    assert run(*steps).state == state


@pytest.mark.parametrize(
    ("steps", "rule"),
    [
        (("fenced",), "before received"),
        (("received", "received"), "may not follow"),
        ((LATER, "fenced"), "may not follow"),
        ((LATER, intent(1, 1)), "may not follow"),
        ((LATER, "started", "started"), "may not follow"),
        (("received", "started"), "may not follow"),
        ((("received", {**DETAILS["received"], "not_before": None}),), "not_before"),
        (("received", "purged"), "may not follow"),
        (("received", intent(1, 1)), "may not follow"),
        ((*START, intent(2, 1)), "first pass"),
        ((*START, intent(1, 2)), "without a gap"),
        ((*START, result(1, 1)), "its intent"),
        ((*START, intent(1, 1), result(2, 1)), "its intent"),
        ((*START, *PASS_1, result(1, 1)), "only one result"),
        ((*START, intent(1, 1), "settling"), "not acknowledged"),
        ((*START, intent(1, 1), result(1, 1, "no"), "settling"), "not acknowledged"),
        ((*START, intent(1, 1), "retrying"), "no success"),
        ((*START, *PASS_1, "retrying"), "no success"),
        ((*START, *PASS_1, "waiting_key"), "pass that was not acknowledged"),
        ((*START, *REFUSED, intent(1, 2), "attention"), "no success"),
        ((*START, *REFUSED, ("result", {**result(1, 1)[1], "calls": "2"})), "calls"),
        ((*START, *PASS_1, "completed"), "not every pass"),
        ((*DONE[:-2], "completed"), "not every pass"),
        ((*DONE[:-1], ("completed", {"acknowledged": 1})), "not every pass"),
        ((*DONE[:-1], intent(3, 3)), "first pass"),
        ((*START, intent(1, 1), "cancelled"), "may not follow"),
        ((*START, intent(1, 1), "anonymous_added", "cancelled"), "called already"),
        ((*START, intent(1, 1), "anonymous_added", *START[1:], "rejected"), "called already"),
        (("received", "duplicate_of", "lifted"), "may not follow"),
        (("received", ("duplicate_of", {"requested_by": "d", "original": "this"})), "itself"),
        ((*DONE, "wiped", "wiped"), "wiped before"),
        ((*DONE, "lifted", "lifted"), "may not follow"),
        (("received", "wiped"), "may not follow"),
        ((*START[:-1], ("quiesced", {"passes": 0})), "at least one"),
        (("received", "deleted"), "not one of the protocol's"),
        (("received", ("fenced", {"note": "x"})), "details"),
    ],
)
def test_illegal(steps, rule):
    run(*steps[:-1])

    with pytest.raises(IllegalTransition, match=re.escape(rule)):
        run(*steps)


def test_an_answer_to_an_earlier_round_does_not_count_for_this_one():
    """It was called before the new ids were fenced."""
    late = (*START, intent(1, 1), "anonymous_added", *START[1:], intent(1, 2), result(1, 1))

    assert run(*late).acknowledged == 0


@pytest.mark.parametrize(
    "value", ["a@b.example", "two words", "line\nbreak", "", "x" * 129, 5, "\ud800", "tab\t", True]
)
def test_a_reference_is_never_free_text(value):
    details = {**DETAILS["received"], "ticket": value}

    with pytest.raises(IllegalTransition, match="ticket") as refused:
        step(None, "received", details)
    assert str(value) not in str(refused.value) or not str(value)


@pytest.mark.parametrize("value", [{"a b": 1}, {"a": -1}, {"a": 1.5}, {"a": True}, [], "x", None])
def test_removed_has_counts_by_place_only(value):
    with pytest.raises(IllegalTransition, match="removed"):
        step(ErasureState("fenced"), "purged", {"removed": value})


def test_every_entry_has_its_row_in_these_tests():
    free = {"fenced", "wiped", "intent", "result"}

    assert DETAILS.keys() | free == ENTRIES.keys()


def candidates(progress):
    """Every entry that could be tried next, a success and a failure of each open attempt."""
    yield from DETAILS.items()
    yield from (("fenced", {}), ("wiped", {}))
    yield intent(progress.acknowledged + 1, progress.attempts + 1)
    for attempt, n in progress.waiting.items():
        yield result(n, attempt)
        yield result(n, attempt, "unavailable")


def legal(progress):
    for kind, details in candidates(progress):
        try:
            yield kind, details, step(progress, kind, details, "this")
        except IllegalTransition:
            continue


@given(st.lists(st.integers(0, 1 << 16), max_size=80))
def test_no_walk_ends_an_erasure_that_was_called_without_all_its_passes(choices):
    """Whatever order is tried: completed has a success for each pass of its last round."""
    progress, passed = run("received"), []
    for choice in choices:
        moves = list(legal(progress))
        if not moves:
            break
        kind, _, after = moves[choice % len(moves)]
        if kind == "quiesced":
            passed = []
        if after.acknowledged > progress.acknowledged:
            passed.append(after.acknowledged)
        progress = after
        assert progress.state in STATES
        assert progress.state not in {"completed", "lifted"} or passed == [1, 2]
        never_called = {"cancelled", "rejected", "duplicate_of"}
        assert progress.state not in never_called or not progress.attempts


def test_blocked_states_are_open():
    """The fence stays while the vendor cannot be told."""
    assert BLOCKED < OPEN
