"""Each invariant is broken by hand; each cause of a repeat explains no more than it may."""

import re
from dataclasses import replace

import pytest
from faults_checker import RECORD_S, UNREAD_S, Kill, Planned, Run, check, rate_excess

NOTHING = dict.fromkeys(
    (
        *("accepted", "scheduled", "waiting", "leased", "delivered", "dead", "erased"),
        *("discarded", "ambiguous"),
    ),
    0,
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
    events = {"maybe": frozenset(), "poison": frozenset(), **more}
    return Run(frozenset(acknowledged), rows=rows, dead=dead, counts=counts, **events)


def twice(ambiguous=1, **first):
    """Two requests with the same events; the first may be special."""
    return {"rows": [row("ab", **first), row("ab", at=5)], "ambiguous": ambiguous}


def with_counts(run, **counts):
    return replace(run, counts={**run.counts, **counts})


POISON = {"poison": frozenset("b")}
FAST = [row(["a"]), row(["b"]), *(row([], at=n / 100) for n in range(25))]
BROKEN = {
    "acknowledged but not there": (run([row("a")]), "lost: 1"),
    "stored but never reported": (run([row("abz")]), "unexpected: 1"),
    "twice without a cause": (run([row("a"), row("b")] * 2), "sent again"),
    "faster than the quota": (run(FAST), "over the rate: "),
    "good, but dead": (run([row("a")], dead=["b"]), "vendor would take"),
    "dead and stored": (run([row("ab")], dead=["b"], **POISON), "stored too"),
    "dead twice": (run([row("a")], dead=["b", "b"], **POISON), "twice"),
    "poison got through": (run([row("ab")], **POISON), "poison"),
    "a bound of the scenario": (run([row("ab")], broken=["outage: 99 requests"]), "99"),
    "not counted as ambiguous": (
        run(**twice(status=500, fault="status", ambiguous=0)),
        "0 ambiguous",
    ),
}
MISCOUNTED = {
    "more accepted than reported": {"accepted": 3},
    "fewer accepted than acknowledged": {"accepted": 1, "delivered": 1},
    "delivered and not counted": {"delivered": 1},
    "a dead letter that is not there": {"dead": 1, "accepted": 3},
    "places that do not add up": {"erased": 1},
}
UNEXPLAINED = {
    "a success": twice(),
    "a slow success": twice(fault="slow"),
    # The clean success in the middle ends the doubt.
    "a doubtful answer, for the second repeat": {
        "rows": [row("ab", status=500, fault="status"), row("ab", at=5), row("ab", at=9)],
        "ambiguous": 2,
    },
    "a kill before the request was sent": {**twice(), "kills": [Kill(-0.1 - UNREAD_S, 1)]},
    "a kill long after": {**twice(), "kills": [Kill(0.2 + RECORD_S, 1)]},
    # Otherwise a bug that repeats everything would hide behind many kills.
    "a kill with one request under way, for two repeats": {
        "rows": [row("a"), row("b"), row("a", at=5), row("b", at=5)],
        "ambiguous": 2,
        "kills": [Kill(0.2, 1)],
    },
    "an outage at another time": {**twice(), "outages": [(20, 21)]},
}
for name, counts in MISCOUNTED.items():
    BROKEN[name] = with_counts(run([row("ab")]), **counts), "^counts:"
for name, fields in UNEXPLAINED.items():
    BROKEN[f"repeated without a cause: {name}"] = run(**fields), "^sent again"


@pytest.mark.parametrize(("broken", "text"), BROKEN.values(), ids=BROKEN)
def test_a_broken_promise_is_found(broken, text):
    verdict = check(broken)

    assert verdict.code == 1
    assert any(re.search(text, line) for line in verdict.broken)


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_parked_event_may_be_stored_and_is_no_good_event_that_died(is_stored):
    """With `park`, doubt itself makes a dead letter."""
    rows = [row("a"), row("b", status=500, fault="status", stored=is_stored)]
    parked = run(rows, dead=["b"], parked=frozenset("b"), ambiguous=1)

    assert check(with_counts(parked, delivered=1)).broken == []


def test_an_event_that_may_be_stored_may_arrive_or_not():
    """A caller whose call failed half-way was told that the result is unknown."""
    arrived = run([row("abc")], maybe=frozenset("cd"))

    assert check(with_counts(arrived, accepted=3)).code == 0


EXPLAINED = {
    "all arrived once": {"rows": [row("a"), row("b", at=1)]},
    "an error after storing": twice(status=500, fault="status"),
    "a page instead of an answer": twice(status=200, fault="status"),
    "broken off": twice(status=None, fault="close_after_store"),
    "an answer that nobody can read": twice(fault="giant"),
    "stored later": twice(status=504, fault="late_apply"),
    "the client had gone": twice(status=None),
    "a kill before the request was read": {**twice(), "kills": [Kill(-UNREAD_S, 1)]},
    "a kill during the request": {**twice(), "kills": [Kill(0.05, 1)]},
    "a kill before its record was made": {**twice(), "kills": [Kill(0.1 + RECORD_S, 1)]},
    "a kill with both requests under way": {
        "rows": [row("a"), row("b"), row("a", at=5), row("b", at=5)],
        "ambiguous": 2,
        "kills": [Kill(0.2, 2)],
    },
    # The second kill comes too late for one request, which the first must explain.
    "kills, each assigned to the request that can wait least": {
        "rows": [row("a"), row("b", at=1.5), row("a", at=9), row("b", at=9)],
        "ambiguous": 2,
        "kills": [Kill(1.9, 1), Kill(3, 1)],
    },
    "the request ended while Redis was away": {**twice(), "outages": [(0.05, 0.5)]},
}


@pytest.mark.parametrize("fields", EXPLAINED.values(), ids=EXPLAINED)
def test_a_run_with_a_cause_for_each_repeat_is_kept(fields):
    verdict = check(run(**fields))

    assert (verdict.code, verdict.broken, verdict.invalid) == (0, [], [])


@pytest.mark.parametrize(("ids", "code"), [("ab", 2), ("a", 1)], ids=["kept", "broken"])
def test_a_run_whose_fault_did_not_happen_is_invalid_unless_it_broke_a_promise(ids, code):
    """It proves nothing: that very fault may break a promise."""
    verdict = check(run([row(ids)], planned={"429": Planned(0, 1)}))

    assert verdict.code == code


def test_a_run_that_did_not_drain_is_invalid_and_nothing_counts_as_lost():
    verdict = check(with_counts(run([row("a")]), waiting=1))

    assert (verdict.code, verdict.broken) == (2, [])


def test_the_fullest_window_is_found_wherever_it_lies():
    """A burst in the middle of a quiet hour is as bad as one at the start."""
    quiet, burst = [float(n) for n in range(100)], [50 + n / 1000 for n in range(31)]

    assert rate_excess(quiet) < 0
    assert rate_excess(quiet + burst) == pytest.approx(31 + 1 - 5 * 0.03 - 20)
