"""The table *Outcomes*, row by row."""

import json
from typing import NamedTuple

import pytest

from mm_tasks.client.outcome import (
    Ambiguous,
    Delivered,
    Filtered,
    Misdirected,
    Rejected,
    Response,
    Throttled,
    Unauthorized,
    Unavailable,
)
from mm_tasks.delivery.retry import Ack, Bisect, Bury, Pause, Retry, Throttle, decide, lifts, signal

REFUSED = Response(400, "invalid_payload")


class Try(NamedTuple):
    """An attempt as the decisions see it."""

    attempt: int = 1
    in_a_row: int = 1
    paused: str = ""


FIRST, PAUSED = Try(), Try(paused="rejected")
TABLE = {
    "a success is acknowledged": (Delivered(3), FIRST, Ack),
    "a refused batch is bisected": (Rejected(REFUSED), FIRST, Bisect),
    "a batch that a filter refuses is bisected": (Filtered(Response(404)), FIRST, Bisect),
    "a throttled batch is kept": (Throttled(Response(429), 1.0), FIRST, Retry),
    "a refused key keeps the data": (Unauthorized(Response(401)), FIRST, Retry),
    "a wrong host keeps the data": (Misdirected(Response(301)), FIRST, Retry),
    "an unreachable host keeps the data": (Unavailable("refused"), FIRST, Retry),
    "doubt is repeated": (Ambiguous("timeout"), FIRST, Retry),
    "while everything is refused nothing is buried": (Rejected(REFUSED), PAUSED, Retry),
}


@pytest.mark.parametrize(("outcome", "attempt", "expected"), TABLE.values(), ids=TABLE.keys())
def test_the_outcome_decides_about_the_batch(outcome, attempt, expected):
    decision = decide(outcome, attempt, park=False, random_s=lambda below: below)

    assert isinstance(decision, expected)


def test_doubt_can_be_parked_for_a_person():
    decision = decide(Ambiguous("502", 502), FIRST, park=True, random_s=lambda _: 0)

    assert isinstance(decision, Bury)
    assert json.loads(decision.why)["kind"] == "502"


LIFTS = {
    "a key, by a success": ("unauthorized", Delivered(1), True),
    "a key, by a refused event": ("unauthorized", Rejected(REFUSED), True),
    "a key, by a 5xx": ("unauthorized", Ambiguous("502", 502), True),
    "a key, not by silence": ("unauthorized", Ambiguous("timeout"), False),
    "a key, not by a dead host": ("unauthorized", Unavailable("refused"), False),
    "a key, not by another refusal": ("unauthorized", Misdirected(Response(301)), False),
    "a key, not by a filter": ("unauthorized", Filtered(Response(403)), False),
    "a filter, by a success": ("filtered", Delivered(1), True),
    "a filter, by a refused event": ("filtered", Rejected(REFUSED), True),
    "a filter, not by its refusal": ("filtered", Filtered(Response(404)), False),
    "a filter, not by a 5xx": ("filtered", Ambiguous("502", 502), False),
    "a new rule, not by a filter": ("rejected", Filtered(Response(404)), False),
    "a host, by a success": ("misdirected", Delivered(1), True),
    "an outage, by a success": ("unavailable", Delivered(1), True),
    "an outage, by a 429": ("unavailable", Throttled(Response(429)), True),
    "an outage, not by a 5xx": ("unavailable", Ambiguous("502", 502), False),
    "a new rule, by a success": ("rejected", Delivered(1), True),
    "a new rule, not by a refusal": ("rejected", Rejected(REFUSED), False),
    "a new rule, not by a 429": ("rejected", Throttled(Response(429)), False),
    "nothing where nothing is paused": ("", Delivered(1), False),
}


@pytest.mark.parametrize(("paused", "outcome", "expected"), LIFTS.values(), ids=LIFTS.keys())
def test_a_pause_ends_by_these_outcomes_only(paused, outcome, expected):
    assert lifts(paused, outcome) is expected


@pytest.mark.parametrize(("seconds", "wait_s"), [(0, 1.0), (3, 3.0), (100_000, 900.0), (None, 4.0)])
def test_the_wait_of_a_429_is_clamped(seconds, wait_s):
    assert signal(Throttled(Response(429), seconds), Try(9, 3), lambda _: 0) == Throttle(wait_s)


def test_a_refused_key_pauses_at_once_and_an_outage_after_several():
    key = signal(Unauthorized(Response(401, "invalid_api_key")), FIRST, lambda _: 0)
    outage = signal(Unavailable("refused"), FIRST, lambda _: 0)

    assert key == Pause("unauthorized", Response(401, "invalid_api_key"))
    assert outage.failures_max > 1


@pytest.mark.parametrize("attempt", [1, 2, 7, 1000])
def test_a_backoff_never_exceeds_a_minute(attempt):
    outcome = Unavailable("dns")
    decision = decide(outcome, Try(99, attempt), park=False, random_s=lambda below: below)

    assert decision.wait_s == min(60, 2 ** min(attempt - 1, 10))
