"""Forget: queued, late, by user and project, and no tombstone."""

import time

import pytest

from tests.sandbox.conftest import READ

OURS = "sk_test_abc_x"
THEIRS = "sk_live_abc_x"
LAG_S = 0.3


def forget(sandbox):
    """Forget user u; return the reply once the lag has passed."""
    reply = sandbox.post("forget", {"user_id": "u"}, OURS)
    time.sleep(LAG_S + 0.1)
    return reply


def track(sandbox, event, key=OURS, **fields):
    sandbox.post("track", {"event": event, "user_id": "u", **fields}, key)


def queried(sandbox):
    return sorted(row["event_name"] for row in sandbox.get("query", READ).json["rows"])


def users(sandbox):
    return sorted((row["event"], row["user_id"]) for row in sandbox.lines("rows"))


@pytest.fixture
def sandbox(start):
    return start(forget_lag_s=LAG_S)


def test_every_row_of_the_user_goes_after_the_lag_and_not_before(sandbox):
    """Track, batch and `$identify` rows; a row without the user_id stays."""
    track(sandbox, "a")
    events = [{"event": "b", "user_id": "u"}, {"event": "c", "user_id": "v"}]
    sandbox.post("batch", {"events": events}, OURS)
    sandbox.post("identify", {"anonymous_id": "x", "user_id": "u"}, OURS)
    sandbox.post("track", {"event": "d", "anonymous_id": "x"}, OURS)
    reply = sandbox.post("forget", {"user_id": "u"}, OURS)
    at_once = queried(sandbox)
    time.sleep(LAG_S + 0.1)

    assert (reply.status, reply.json) == (200, {"ok": True, "queued": True})
    assert at_once == ["$identify", "a", "b", "c", "d"]
    assert queried(sandbox) == ["c", "d"]


def test_rows_that_arrive_after_the_call_are_kept(sandbox):
    """It is no tombstone, neither while it is queued nor once it ran."""
    track(sandbox, "before")
    sandbox.post("forget", {"user_id": "u"}, OURS)
    track(sandbox, "queued")
    time.sleep(LAG_S + 0.1)
    track(sandbox, "ran")

    assert users(sandbox) == [("queued", "u"), ("ran", "u")]


def test_another_project_keeps_its_rows_of_the_same_user(sandbox):
    for key in (OURS, THEIRS):
        track(sandbox, key[3:7], key)
    forget(sandbox)

    assert users(sandbox) == [("live", "u")]


def test_the_call_is_on_record_and_the_journal_still_knows_the_rows(sandbox):
    track(sandbox, "a", event_id="id-1")
    began = time.time()
    forget(sandbox)
    (call,) = sandbox.seen("forgets")

    assert (call["project"], call["user_id"]) == ("test_abc", "u")
    assert began <= call["at"] < call["due_at"] - LAG_S < began + 2
    assert sandbox.lines("rows") == []
    assert sandbox.lines("journal")[0]["ids"] == ["id-1"]
    assert sandbox.seen("ids") == ["id-1"]
    assert sandbox.seen("summary")["forgotten"] == 1


def test_a_forget_that_fails_takes_nothing(sandbox):
    track(sandbox, "a")
    body = '{"error":"forget_failed"}'
    sandbox.fault(kind="status", status=500, body=body, route="/v1/forget")
    reply = forget(sandbox)

    assert (reply.status, reply.json) == (500, {"error": "forget_failed"})
    assert users(sandbox) == [("a", "u")]
    assert sandbox.seen("forgets") == []


@pytest.mark.parametrize(
    "body", [{}, {"user_id": ""}, {"user_id": 7}, {"user_id": "u", "x": 1}, {"anonymous_id": "a"}]
)
def test_a_forget_names_one_user_and_nothing_else(sandbox, body):
    reply = sandbox.post("forget", body, OURS)
    assert (reply.status, reply.json["error"]) == (400, "invalid_payload")
