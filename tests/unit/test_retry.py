"""The table *Outcomes*, row by row."""

from __future__ import annotations

import pytest

from mm_tasks.outcome import (
    Ambiguous,
    Answer,
    Delivered,
    Misdirected,
    Rejected,
    Throttled,
    Unauthorized,
    Unavailable,
)
from mm_tasks.retry import Ack, Bury, Pause, Retry, Split, Throttle, decide, signal

REFUSED = Answer(400, "invalid_payload")

TABLE = {
    "a success is acknowledged": (Delivered(3), 3, Ack),
    "a refused batch is split": (Rejected(REFUSED), 2, Split),
    "a refused event is buried": (Rejected(REFUSED), 1, Bury),
    "a throttled batch is kept": (Throttled(Answer(429), 1.0), 3, Retry),
    "a refused key keeps the data": (Unauthorized(Answer(401)), 3, Retry),
    "a wrong host keeps the data": (Misdirected(Answer(404)), 3, Retry),
    "an unreachable host keeps the data": (Unavailable("refused"), 3, Retry),
    "doubt is repeated": (Ambiguous("timeout"), 3, Retry),
}


@pytest.mark.parametrize(("outcome", "events", "expected"), TABLE.values(), ids=TABLE.keys())
def test_what_happens_to_the_batch(outcome, events, expected):
    decision = decide(outcome, 1, events, park=False, random_s=lambda below: below)

    assert isinstance(decision, expected)


def test_doubt_can_be_parked_for_a_person():
    decision = decide(Ambiguous("502", 502), 1, 3, park=True, random_s=lambda _: 0)

    assert isinstance(decision, Bury)
    assert decision.ambiguous == "502"


@pytest.mark.parametrize(("asked", "obeyed"), [(0, 1.0), (3, 3.0), (100_000, 900.0), (None, 4.0)])
def test_the_wait_of_a_429_is_clamped(asked, obeyed):
    assert signal(Throttled(Answer(429), asked), 3, lambda _: 0) == Throttle(obeyed)


def test_a_refused_key_pauses_at_once_and_an_outage_after_several():
    key = signal(Unauthorized(Answer(401, "invalid_api_key")), 1, lambda _: 0)
    outage = signal(Unavailable("refused"), 1, lambda _: 0)

    assert key == Pause("unauthorized", Answer(401, "invalid_api_key"))
    assert outage.failures_max > 1


@pytest.mark.parametrize("attempt", [1, 2, 7, 1000])
def test_a_backoff_never_exceeds_a_minute(attempt):
    decision = decide(Unavailable("dns"), attempt, 1, park=False, random_s=lambda below: below)

    assert decision.wait_s == min(60, 2 ** min(attempt - 1, 10))
