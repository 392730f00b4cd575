"""The steps: the erasures that are due, their claims, and the effect of each result.

Sabotages that turn this file red, each tried on a copy:

- `claim` ignores the lease or `next_at`; new ids leave the old claim in place;
- a late answer counts for the pass; a repeated one is written twice;
- pass 2 is due counted from quiesce and not from the answer;
- a repeated outcome adds an entry, or a changed one adds none.
"""

from datetime import timedelta

import pytest
from sqlalchemy import event

from mm_tasks.buffer import records
from mm_tasks.erasure.audit.protocol import ACKNOWLEDGED, BLOCKED, IllegalTransition
from mm_tasks.erasure.audit.verification import verify
from mm_tasks.erasure.models import VendorAck
from mm_tasks.erasure.request import ErasureRequest
from tests.erasure.stores import DONE, NOW, PASSES_S, USER, VISITOR, Store, after

LATER = timedelta(hours=1)


def taken_over(store):
    """Return the claim and the attempt of a worker that died, and the claim of the next one."""
    claim = store.quiesced()
    lost = store.steps.intent(claim, NOW)
    return claim, lost, store.steps.claim(claim.id, after(minutes=5), 60)


def test_a_worker_that_died_is_taken_over(store):
    claim, lost, second = taken_over(store)
    steps, now = store.steps, after(minutes=5)
    again = steps.intent(second, now)

    assert (again.n, again.attempt) == (lost.n, lost.attempt + 1)
    assert steps.intent(claim, now) is None
    assert steps.mark_fenced(claim, now) is None
    assert steps.mark_purged(claim, {}, now) is None
    assert steps.mark_quiesced(claim, (0,), now) is None
    assert steps.complete(claim, now) is None
    assert not steps.extend(claim, now, 60)
    steps.release(claim)
    assert steps.claim(claim.id, now, 60) is None


def test_a_late_answer_is_in_the_log_and_does_not_count_twice(store):
    """The call was made, so it is evidence; the pass belongs to the newer attempt."""
    _, lost, second = taken_over(store)
    again = store.steps.intent(second, after(minutes=5))

    assert store.steps.result(lost, DONE, after(minutes=6)).state == "submitted"
    assert store.steps.result(again, DONE, after(minutes=6)).acknowledged == 1
    before = store.entries()
    repeated = VendorAck(500, "ambiguous", "retrying", 0)
    assert store.steps.result(again, repeated, NOW).acknowledged == 1
    assert store.entries() == before
    assert store.kinds()[-3:] == ["result", "result", "settling"]
    verify(store.log)


def test_an_answer_after_the_end_is_still_recorded(store):
    _, lost, claim = taken_over(store)
    store.complete(claim, after(days=1))

    assert store.steps.result(lost, DONE, after(days=3)).state == "completed"
    verify(store.log)


def test_an_erasure_goes_from_request_to_completed(store):
    """Each step by a worker that finds it due, as after the loss of every message."""
    opened = store.ask(anonymous_ids=(VISITOR,))
    store.steps.release(opened.claim)
    steps, now = [], NOW
    while store.steps.due(60, now := now + LATER):
        claim = store.steps.claim(opened.id, now, 60)
        steps.append(claim.erasure.step)
        match claim.erasure.step:
            case "fence":
                claim = store.steps.mark_fenced(claim, now)
            case "purge":
                claim = store.steps.mark_purged(claim, {"dead": 1}, now)
            case "quiesce":
                claim = store.steps.mark_quiesced(claim, (0, 1, 2), now)
            case "call":
                store.call(claim, now=now)
            case "complete":
                store.steps.complete(claim, now)
        store.steps.release(claim)

    assert steps == ["fence", "purge", "quiesce", "call", "call", "call", "complete"]
    shown = store.queries.show(opened.id)
    passes = [(row["n"], row["status"], row["outcome"]) for row in shown["passes"]]
    assert shown["state"] == "completed"
    assert shown["removed"] == {"dead": 1}
    assert passes == [(n, 200, "acknowledged") for n in (1, 2, 3)]
    assert verify(store.log).erasures == {"completed": 1}


def test_a_pass_is_due_its_interval_after_the_acknowledged_one_before_it(store):
    """After an outage of three days the three calls came within a hundredth of a second."""
    claim = store.quiesced()
    erasure = store.call(claim, now=after(days=3))

    assert erasure.state == "settling"
    assert erasure.next_at == after(days=3, seconds=900)
    store.steps.release(claim)
    assert store.steps.due(60, after(days=3, seconds=899)) == []
    assert store.steps.due(60, after(days=3, seconds=900)) == [claim.id]
    claim = store.steps.claim(claim.id, after(days=5), 60)
    assert store.call(claim, now=after(days=5)).next_at == after(days=6)
    due = [one["due_at"] for one in store.queries.show(claim.id)["passes"]]
    assert due == ["2026-01-31T12:00:00.000Z", "2026-02-03T12:15:00.000Z"]


def test_a_failed_call_of_a_later_pass_leaves_its_planned_time(store):
    claim = store.quiesced()
    store.call(claim)
    for seconds in (900, 960):
        store.call(claim, VendorAck(503, "unavailable", "retrying", 60), after(seconds=seconds))
    erasure = store.call(claim, now=after(seconds=1020))

    assert erasure.next_at == after(days=1, seconds=1020)
    due = [one["due_at"] for one in store.queries.show(claim.id)["passes"]]
    assert due == ["2026-01-31T12:00:00.000Z", "2026-01-31T12:15:00.000Z"]


def test_calls_with_the_same_outcome_are_counted_and_add_no_entry(store):
    """60 erasures and a revoked key wrote 1 515 entries in 24 seconds."""
    claim = store.quiesced()
    refused = VendorAck(503, "ambiguous:503", "retrying", 1)
    for n in range(9):
        erasure = store.call(claim, refused, after(seconds=n))
        assert erasure.next_at == after(seconds=n + 1)
    assert store.kinds()[4:] == ["intent", "result", "retrying", "intent"]
    [shown] = store.queries.show(claim.id)["passes"]
    assert (shown["attempts"], shown["outcome"]) == (9, "ambiguous:503")
    store.call(claim, VendorAck(404, "misdirected:-", "attention", 1), after(seconds=9))
    store.call(claim, now=after(seconds=10))

    assert store.kinds()[8:] == ["result", "attention", "intent", "result", "settling"]
    calls = [one["details"].get("calls", 1) for one in store.parsed("result")]
    assert calls == [1, 9, 1]
    assert store.queries.show(claim.id)["passes"][0]["attempts"] == 11
    verify(store.log)


def test_a_call_after_one_without_a_result_has_an_intent_of_its_own(store):
    """The lost one may still be answered, and that answer is evidence."""
    claim = store.quiesced()
    refused = VendorAck(503, "ambiguous:503", "retrying", 1)
    store.call(claim, refused)
    store.call(claim, refused, after(seconds=1))
    lost = store.steps.intent(claim, after(seconds=2))
    store.steps.release(claim)
    claim = store.steps.claim(claim.id, after(seconds=3), 60)
    assert (lost.attempt, lost.calls) == (2, 2)
    again = store.steps.intent(claim, after(seconds=3))
    assert (again.attempt, again.calls) == (3, 1)
    assert store.steps.result(lost, DONE, after(seconds=4)).state == "retrying"
    assert store.steps.result(again, refused, after(seconds=5)).state == "retrying"
    before = store.entries()
    assert store.steps.result(again, DONE, after(seconds=6)).state == "retrying"

    assert store.entries() == before
    late = [one["details"].get("calls") for one in store.parsed("result")]
    assert late == [None, 2, None]
    verify(store.log)


def test_a_step_costs_the_same_after_many_calls(sqlite_store):
    """Each step read all calls of its erasure, which may be thousands."""
    store, work = sqlite_store, []

    def count(raw, _):
        raw.set_progress_handler(lambda: work.append(1) or 0, 10)

    event.listen(store.database._engine, "connect", count)  # noqa: SLF001 - counts SQLite's work
    claim = store.quiesced()
    costs = []
    for n in range(120):
        work.clear()
        outcome = VendorAck(500 + n % 2, f"ambiguous:{500 + n % 2}", "retrying", 1)
        store.call(claim, outcome, after(seconds=n))
        costs.append(len(work))

    assert max(costs[-10:]) < 1.2 * max(costs[10:20])


def test_an_erasure_waits_for_the_key_without_a_call_and_with_one_entry(store):
    claim = store.quiesced()
    store.steps.wait_for_key(claim)
    for _ in range(3):
        store.steps.wait_for_key(store.steps.claim(claim.id, NOW, 60))

    assert store.kinds()[4:] == ["waiting_key"]
    assert store.parsed("waiting_key")[0]["details"] == {"next_at": None}
    assert store.steps.due(60, NOW) == [claim.id]
    claim = store.steps.claim(claim.id, after(days=9), 60)
    assert store.call(claim, now=after(days=9)).next_at == after(days=9, seconds=900)
    verify(store.log)


def test_the_last_pass_of_an_erasure_that_waited_for_the_key_completes_it(store):
    claim = store.quiesced()
    for wait_s in PASSES_S[:-1]:
        store.call(claim, now=after(seconds=wait_s))
    store.steps.wait_for_key(claim)
    claim = store.steps.claim(claim.id, after(days=9), 60)

    erasure = store.call(claim, now=after(days=9))

    assert (erasure.state, erasure.step, erasure.is_due) == ("submitted", "complete", True)
    verify(store.log)


def test_a_late_answer_of_an_earlier_round_does_not_count_while_the_key_is_waited_for(store):
    claim = store.quiesced()
    lost = store.steps.intent(claim, NOW)
    claim = store.ask(anonymous_ids=(VISITOR,)).claim
    claim = store.steps.mark_fenced(claim, NOW)
    claim = store.steps.mark_purged(claim, {}, NOW)
    store.steps.wait_for_key(store.steps.mark_quiesced(claim, PASSES_S, NOW))

    assert store.steps.result(lost, DONE, NOW).acknowledged == 0
    assert store.queries.show(claim.id)["state"] == "waiting_key"
    verify(store.log)


def test_an_erasure_that_waited_for_the_key_before_its_first_call_can_be_cancelled(store):
    store.steps.wait_for_key(store.quiesced())
    claim = store.steps.claim(store.queries.listed()[0]["id"], NOW, 60)
    store.commands.cancel(claim.id, "dpo", NOW)

    assert store.queries.show(claim.id)["state"] == "cancelled"
    verify(store.log)


@pytest.mark.parametrize("state", sorted(BLOCKED))
def test_a_call_without_success_blocks_and_is_made_again(store, state):
    claim = store.quiesced()
    erasure = store.call(claim, VendorAck(503, "unavailable", state, 60))
    store.steps.release(claim)

    assert (erasure.state, erasure.step) == (state, "call")
    # The project's pause tells when one that waits for the key may call.
    assert store.steps.due(60, after(seconds=59)) == ([claim.id] if state == "waiting_key" else [])
    claim = store.steps.claim(claim.id, after(minutes=1), 60)
    assert store.call(claim, now=after(minutes=1)).state == "settling"
    [shown] = store.queries.show(claim.id)["passes"]
    assert (shown["attempts"], shown["status"]) == (2, 200)


def test_a_pass_that_waits_for_a_person_is_due_once_they_ask(store):
    claim = store.quiesced()
    store.call(claim, VendorAck(404, "misdirected", "attention", None))
    store.steps.release(claim)
    assert store.steps.due(60, after(days=300)) == []
    assert store.steps.claim(claim.id, after(days=300), 60) is None

    store.commands.retry(claim.id, "dpo", after(days=1))

    assert store.steps.due(60, after(days=1)) == [claim.id]


def test_an_outcome_in_free_text_is_refused_and_leaves_the_call_without_an_answer(store):
    attempt = store.steps.intent(store.quiesced(), NOW)
    before = store.entries()

    with pytest.raises(IllegalTransition, match="outcome"):
        store.steps.result(attempt, VendorAck(500, "Oh no: user_42", "retrying", 0), NOW)
    assert store.entries() == before
    [shown] = store.queries.show(attempt.erasure)["passes"]
    assert shown["sent_at"] == "2026-01-31T12:00:00.000Z"
    assert shown["status"] is shown["outcome"] is None
    assert store.steps.result(attempt, DONE, NOW).acknowledged == 1


def test_new_ids_take_the_erasure_from_its_worker(store):
    """What the worker fenced and purged lacks them."""
    claim = store.quiesced()

    again = store.ask(anonymous_ids=(VISITOR,))

    assert (again.id, again.is_fenced) == (claim.id, False)
    assert again.claim.erasure.state == "received"
    assert records.tag("p", "anonymous", VISITOR) in again.claim.erasure.tags
    assert store.steps.intent(claim, NOW) is None
    claim = store.steps.mark_fenced(again.claim, NOW)
    claim = store.steps.mark_purged(claim, {"track:waiting": 3, "identify:waiting": 1}, NOW)
    assert claim.erasure.removed == {"track:waiting": 5, "dead": 0, "identify:waiting": 1}
    verify(store.log)


def test_new_ids_during_the_last_call_start_another_round(store):
    """Its answer is noted, and every pass is made again once the new ids are fenced."""
    claim = store.quiesced()
    for wait_s in PASSES_S[:-1]:
        store.call(claim, now=after(seconds=wait_s))
    attempt = store.steps.intent(claim, after(days=2))
    again = store.ask(anonymous_ids=(VISITOR,))

    assert store.steps.result(attempt, DONE, NOW).state == "received"
    claim = store.steps.mark_fenced(again.claim, NOW)
    claim = store.steps.mark_purged(claim, {}, NOW)
    claim = store.steps.mark_quiesced(claim, PASSES_S, NOW)
    assert claim.erasure.step == "call"
    assert store.complete(claim).state == "completed"
    rounds = [(one["round"], one["n"]) for one in store.queries.show(claim.id)["passes"]]
    assert rounds == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    verify(store.log)


def test_a_claim_can_be_kept_and_put_off(store):
    opened = store.ask()
    assert store.steps.extend(opened.claim, NOW, 60)
    assert store.steps.due(60, after(seconds=59)) == []

    store.steps.release(opened.claim, 30)

    assert store.steps.due(60, after(seconds=88)) == []
    assert store.steps.due(60, after(seconds=89)) == [opened.id]


def test_a_claim_ends_at_once_if_the_clock_was_set_back(store):
    """A database that moved to a host with another time, or whose host was corrected."""
    claim = store.steps.claim(store.ask(now=after(hours=-2)).id, after(hours=1), 60)
    assert store.steps.due(60, NOW) == [claim.id]

    assert store.steps.claim(claim.id, NOW, 60)
    assert store.steps.due(60, after(seconds=59)) == []
    assert store.steps.claim(claim.id, after(seconds=59), 60) is None


def test_a_step_beyond_the_longest_wait_of_its_state_is_due(store):
    to_fence = store.ask("to fence").claim
    store.steps.release(to_fence, after(minutes=2), 1)
    blocked = store.quiesced()
    store.call(blocked, VendorAck(503, "unavailable", "retrying", 900), after(days=1))
    store.steps.release(blocked)
    settling = store.quiesced(user_id="settling")
    store.call(settling)
    store.steps.release(settling)

    assert store.steps.due(60, NOW) == [to_fence.id, blocked.id]
    assert [store.steps.claim(one, NOW, 60).id for one in store.steps.due(60, NOW)] == [
        to_fence.id,
        blocked.id,
    ]


def test_due_erasures_are_of_this_project_and_the_longest_due_first(url, tmp_path):
    mine, other = Store(url, tmp_path, "p"), Store(url, tmp_path, "q")
    late, early = mine.ask("b", after(hours=1)), mine.ask("a")
    theirs = other.ask("a")

    assert mine.steps.due(60, after(days=1)) == [early.id, late.id]
    assert mine.steps.due(60, after(days=1), limit=1) == [early.id]
    assert mine.steps.claim(theirs.id, after(days=1), 60) is None
    assert mine.queries.show(theirs.id) is None
    verify(mine.log)


def test_the_result_of_the_aof_rewrite_is_recorded_once_after_the_end(store):
    first, second = store.completed().id, store.completed(user_id="another").id
    assert store.steps.without_aof(9) == {first: "", second: ""}
    store.steps.await_aof([first], "server")
    assert store.steps.without_aof(9) == {first: "server", second: ""}
    for _ in range(2):
        store.steps.record_aof([first], "rewritten")
        store.steps.await_aof([first], "server")

    assert store.kinds().count("aof_rewritten") == 1
    assert store.steps.without_aof(9) == {second: ""}
    verify(store.log)


def test_mode_once_lifts_the_fence_at_the_end(store):
    erasure = store.completed(mode="once")

    assert erasure.state == "lifted"
    assert set(store.queries.fences()) == set()
    verify(store.log)


def test_no_id_of_a_subject_is_in_a_repr(store):
    """A repr may be logged."""
    request = ErasureRequest(USER, "dpo", anonymous_ids=(VISITOR,))
    text = repr(request) + repr(store.commands.open_request(request, NOW))

    assert USER not in text
    assert VISITOR not in text


def test_no_worker_calls_before_the_pass_is_due(store):
    """The answer to an earlier call came while another worker had taken over."""
    claim = store.quiesced()
    attempt = store.steps.intent(claim, NOW)
    another = store.steps.claim(claim.id, after(hours=1), 60)
    store.steps.result(attempt, VendorAck(200, ACKNOWLEDGED), after(hours=1))

    assert another is not None
    assert store.steps.intent(another, NOW) is None
    verify(store.log)
