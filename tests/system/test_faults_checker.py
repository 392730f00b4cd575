"""Each invariant is broken by hand; each cause of a repeat explains no more than it may."""

from __future__ import annotations

from dataclasses import replace

import pytest
from faults_checker import RECORD_S, UNREAD_S, Kill, Planned, Run, check, rate_excess

NOTHING = dict.fromkeys(
    ("accepted", "waiting", "leased", "delivered", "dead", "erased", "discarded", "ambiguous"), 0
)


def row(ids, at=0.0, *, status=202, fault=None, stored=True, took_s=0.1):  # noqa: PLR0913 - a row of the journal
    return {
        "ids": list(ids),
        "at": at,
        "done_at": at + took_s,
        "route": "/v1/batch",
        "status": status,
        "fault": fault,
        "stored": stored,
    }


def run(rows, acknowledged="ab", *, dead=(), ambiguous=0, **more):
    stored = {event_id for row in rows if row["stored"] for event_id in row["ids"]}
    counts = {
        **NOTHING,
        "accepted": len(acknowledged),
        "delivered": len(stored),
        "dead": len(dead),
        "ambiguous": ambiguous,
    }
    found = {"maybe": frozenset(), "poison": frozenset(), **more}
    return Run(frozenset(acknowledged), rows=rows, dead=dead, counts=counts, **found)


def twice(**first):
    """Two requests with the same event; the first may be special."""
    return [row("ab", **first), row("ab", at=5)]


def test_a_run_in_which_all_arrived_is_kept():
    verdict = check(run([row("a"), row("b", at=1)]))

    assert (verdict.code, verdict.broken, verdict.invalid) == (0, [], [])


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        pytest.param(run([row("a")]), "lost: 1", id="acknowledged but not there"),
        pytest.param(run([row("abz")]), "unexpected: 1", id="stored but never reported"),
        pytest.param(run([row("a"), row("b")] * 2), "sent again", id="twice without a cause"),
        pytest.param(
            run([row(["a"]), row(["b"]), *(row([], at=n / 100) for n in range(25))]),
            "over the rate: ",
            id="faster than the quota",
        ),
        pytest.param(run([row("a")], dead=["b"]), "vendor would take", id="good, but dead"),
        pytest.param(
            run([row("ab")], dead=["b"], poison=frozenset("b")), "stored too", id="dead and stored"
        ),
        pytest.param(
            run([row("a")], dead=["b", "b"], poison=frozenset("b")), "twice", id="dead twice"
        ),
        pytest.param(run([row("ab")], poison=frozenset("b")), "poison", id="poison got through"),
        pytest.param(
            run([row("ab")], broken=["outage: 99 requests"]), "99", id="a bound of the scenario"
        ),
    ],
)
def test_a_broken_promise_is_found(broken, text):
    verdict = check(broken)

    assert verdict.code == 1
    assert any(text in line for line in verdict.broken)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"accepted": 3}, id="more accepted than reported"),
        pytest.param({"accepted": 1, "delivered": 1}, id="fewer accepted than acknowledged"),
        pytest.param({"delivered": 1}, id="delivered and not counted"),
        pytest.param({"dead": 1, "accepted": 3}, id="a dead letter that is not there"),
        pytest.param({"erased": 1}, id="places that do not add up"),
    ],
)
def test_counts_that_do_not_add_up_are_found(changed):
    good = run([row("ab")])

    verdict = check(replace(good, counts={**good.counts, **changed}))

    assert any(line.startswith("counts:") for line in verdict.broken)


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_parked_event_may_be_stored_and_is_no_good_event_that_died(is_stored):
    """With `park`, doubt itself is what makes a dead letter."""
    rows = [row("a"), row("b", status=500, fault="status", stored=is_stored)]
    left = run(rows, dead=["b"], parked=frozenset("b"), ambiguous=1)

    verdict = check(replace(left, counts={**left.counts, "delivered": 1}))

    assert verdict.broken == []


def test_what_may_be_stored_may_arrive_or_not():
    """A caller whose call failed half-way was told that nobody knows."""
    arrived = run([row("abc")], maybe=frozenset("cd"))
    arrived = replace(arrived, counts={**arrived.counts, "accepted": 3})

    assert check(arrived).code == 0


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        pytest.param(500, "status", id="an error after storing"),
        pytest.param(200, "status", id="a page instead of an answer"),
        pytest.param(None, "close_after_store", id="broken off"),
        pytest.param(202, "giant", id="an answer that nobody can read"),
        pytest.param(504, "late_apply", id="stored later"),
        pytest.param(None, None, id="the client had gone"),
    ],
)
def test_an_answer_that_leaves_doubt_explains_a_repeat(status, fault):
    verdict = check(run(twice(status=status, fault=fault), ambiguous=1))

    assert verdict.code == 0


@pytest.mark.parametrize("fault", [None, "slow"])
def test_a_success_explains_no_repeat(fault):
    verdict = check(run(twice(fault=fault), ambiguous=1))

    assert any(line.startswith("sent again") for line in verdict.broken)


def test_a_doubtful_answer_explains_one_repeat_only():
    """The clean success in the middle ends the doubt."""
    rows = [row("ab", status=500, fault="status"), row("ab", at=5), row("ab", at=9)]

    verdict = check(run(rows, ambiguous=2))

    assert any(line.startswith("sent again") for line in verdict.broken)


def test_a_repeat_that_was_not_counted_as_ambiguous_is_found():
    verdict = check(run(twice(status=500, fault="status"), ambiguous=0))

    assert any("0 ambiguous" in line for line in verdict.broken)


@pytest.mark.parametrize(
    ("kill_at", "code"),
    [
        pytest.param(-0.1 - UNREAD_S, 1, id="before the request was sent"),
        pytest.param(-UNREAD_S, 0, id="before the request was read"),
        pytest.param(0.05, 0, id="during the request"),
        pytest.param(0.1 + RECORD_S, 0, id="before its record was made"),
        pytest.param(0.2 + RECORD_S, 1, id="long after"),
    ],
)
def test_a_kill_explains_a_repeat_only_in_its_time(kill_at, code):
    verdict = check(run(twice(), ambiguous=1, kills=[Kill(kill_at, 1)]))

    assert verdict.code == code


@pytest.mark.parametrize(("capacity", "code"), [(1, 1), (2, 0)])
def test_a_kill_explains_no_more_requests_than_were_under_way(capacity, code):
    """Otherwise a bug that repeats everything would hide behind many kills."""
    rows = [row("a"), row("b"), row("a", at=5), row("b", at=5)]

    verdict = check(run(rows, ambiguous=2, kills=[Kill(0.2, capacity)]))

    assert verdict.code == code


def test_kills_are_given_to_the_requests_that_can_wait_least():
    """The first kill must take the request that the second comes too late for."""
    rows = [row("a"), row("b", at=1.5), row("a", at=9), row("b", at=9)]

    verdict = check(run(rows, ambiguous=2, kills=[Kill(1.9, 1), Kill(3, 1)]))

    assert verdict.code == 0


@pytest.mark.parametrize(
    ("outage", "code"),
    [
        pytest.param((0.05, 0.5), 0, id="it ended while Redis was away"),
        pytest.param((20, 21), 1, id="Redis was there"),
    ],
)
def test_an_outage_of_redis_explains_a_repeat_only_in_its_time(outage, code):
    verdict = check(run(twice(), ambiguous=1, outages=[outage]))

    assert verdict.code == code


def test_a_run_whose_fault_did_not_happen_is_invalid():
    """It proves nothing: the fault may be one that nothing survives."""
    verdict = check(run([row("ab")], planned={"429": Planned(0, 1)}))

    assert verdict.code == 2


def test_a_run_that_did_not_drain_is_invalid_and_nothing_counts_as_lost():
    left = run([row("a")])

    verdict = check(replace(left, counts={**left.counts, "waiting": 1}))

    assert (verdict.code, verdict.broken) == (2, [])


def test_a_broken_promise_outweighs_an_invalid_run():
    verdict = check(run([row("a")], planned={"429": Planned(0, 1)}))

    assert verdict.code == 1


def test_the_fullest_window_is_found_wherever_it_lies():
    """A burst in the middle of a quiet hour is as bad as one at the start."""
    quiet, burst = [float(n) for n in range(100)], [50 + n / 1000 for n in range(31)]

    assert rate_excess(quiet) < 0
    assert rate_excess(quiet + burst) == pytest.approx(31 + 1 - 5 * 0.03 - 20)
