"""The vendor's rates: a bucket for each project and route."""

import time

import pytest

from mm_tasks.sandbox.quota import Bucket, over_rate

BATCH = {"events": [{"event": "e"}]}


def test_a_batch_above_the_burst_of_20_is_told_when_to_retry_and_accepted_then(sandbox):
    statuses = [sandbox.post("batch", BATCH).status for _ in range(20)]
    limited = sandbox.post("batch", BATCH)

    assert statuses == [202] * 20
    assert limited.status == 429
    assert limited.json == {"error": "rate_limited", "retry_after_s": 1}
    assert limited.headers["Retry-After"] == "1"
    assert len(sandbox.lines("rows")) == 20
    time.sleep(1)
    assert sandbox.post("batch", BATCH).status == 202


def test_buckets_are_apart_by_project_and_route_but_not_by_kind_of_key(sandbox):
    while sandbox.post("batch", BATCH, "sk_test_abc_a").status == 202:
        pass

    assert sandbox.post("batch", BATCH, "pk_test_abc_b_c").status == 429
    assert sandbox.post("batch", BATCH, "sk_live_abc_a").status == 202
    assert sandbox.post("track", {"event": "e"}, "sk_test_abc_a").status == 202


def test_identify_forget_and_a_sandbox_without_limits_are_never_throttled(sandbox, start):
    ids = {"anonymous_id": "a", "user_id": "u"}

    assert {sandbox.post("identify", ids).status for _ in range(210)} == {200}
    assert {sandbox.post("forget", {"user_id": "u"}).status for _ in range(210)} == {200}
    unlimited = start(limited=False)
    assert {unlimited.post("batch", BATCH).status for _ in range(60)} == {202}


@pytest.mark.parametrize(("rate", "burst"), [(5, 20), (50, 200)])
def test_no_window_ever_passes_more_than_burst_and_rate(rate, burst):
    bucket = Bucket(rate, burst)
    passed = [now for now in (tick / 1000 for tick in range(10_000)) if bucket.take(now) == 0]

    assert burst + rate * 10 - 1 <= len(passed) <= burst + rate * 10
    assert over_rate(passed, rate, burst) <= 1
    assert over_rate([*passed, 10.0, 10.0, 10.0], rate, burst) > 1
