"""`mm_tasks.erasures`: values without ids, from the store of this process."""

import re
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

import mm_tasks
from mm_tasks import erasures, forget, runtime
from mm_tasks.erasure.audit import protocol
from mm_tasks.erasure.models import VendorAck
from mm_tasks.erasure.timeline import SENTENCES, sentence
from mm_tasks.errors import ConfigurationError, ErasureStateError, InvalidEvent
from tests.erasure.conftest import postgresql, postgresql_url, sqlite_url, url
from tests.erasure.stores import USER, VISITOR

__all__ = ["postgresql", "postgresql_url", "sqlite_url", "url"]

PASSES_S = (0, 0.001)


@pytest.fixture(autouse=True)
def here(redis, redis_url, fresh, tmp_path, url):  # noqa: ARG001 - `redis` empties the server
    """Let this process use this Redis and this audit database."""
    fresh(
        MM_TASKS_REDIS_URL=redis_url,
        MM_TASKS_AUDIT_URL=url,
        MM_TASKS_STATE_DIR=str(tmp_path),
        MM_TASKS_PSEUDONYM_KEY="a key for tests, of no use elsewhere",
    )


def ask(user_id=USER, **details):
    return forget.delay(user_id, "dpo", **details).id


def called(erasure, *answers):
    """Take the steps of a worker until these answers of the vendor are recorded."""
    steps = runtime.current().audit_store.steps
    claim = steps.claim(erasure, 60)
    claim = steps.mark_purged(claim, {"track:waiting": 2, "dead": 1})
    claim = steps.mark_quiesced(claim, PASSES_S)
    for answer in answers:
        steps.result(steps.intent(claim), answer)
        claim = steps.claim(erasure, 60) or claim
    return claim


def completed(**details):
    erasure = ask(**details)
    claim = called(erasure, *[VendorAck(200, protocol.ACKNOWLEDGED)] * len(PASSES_S))
    runtime.current().audit_store.steps.complete(claim)
    return erasure


def test_an_erasure_is_followed_from_its_request_to_its_receipt():
    erasure = completed(anonymous_ids=[VISITOR], ticket="GDPR-1")

    found = erasures.get(erasure)
    assert (found.state, found.tickets, found.anonymous) == ("completed", ("GDPR-1",), 1)
    assert found.removed == {"track:waiting": 2, "dead": 1}
    assert [(one.n, one.status, one.attempts) for one in found.passes] == [(1, 200, 1), (2, 200, 1)]
    assert timedelta() < found.due_at - datetime.now(UTC) < timedelta(days=32)
    assert not found.is_open
    assert found.is_wiped
    texts = [entry.text for entry in erasures.timeline(erasure)]
    assert "Events removed from our own copies: 3." in texts
    assert "Call 2 ended: the vendor acknowledged it (200)." in texts
    assert erasure in erasures.receipt(erasure)
    german = erasures.receipt(erasure, language="de", form="html")
    assert 'lang="de"' in german
    with pytest.raises(ConfigurationError, match="MM_TASKS_CONTROLLER"):
        erasures.receipt(erasure, audience="person")


def test_erasures_are_found_by_person_ticket_state_and_time_the_newest_first():
    mine, other = completed(ticket="GDPR-1"), ask("somebody else", ticket="GDPR-2")
    again = ask(ticket="GDPR-1")
    now = datetime.now(UTC)

    def ids(found):
        return [one.id for one in found]

    assert ids(erasures.list()) == [again, other, mine]
    assert ids(erasures.list(limit=1, offset=1)) == [other]
    assert ids(erasures.list(ticket="GDPR-1")) == ids(erasures.find(USER)) == [again, mine]
    assert ids(erasures.list(state="completed")) == [mine]
    assert ids(erasures.list(state=("completed", "fenced"), ticket="GDPR-2")) == [other]
    assert erasures.list(since=now + timedelta(hours=1)) == erasures.find("nobody") == ()
    assert len(erasures.list(since=now - timedelta(hours=1))) == 3


def test_a_state_allows_the_actions_that_it_names():
    open_one, done = ask(ticket="GDPR-1"), completed(user_id="another")
    blocked = ask("a third")
    called(blocked, VendorAck(401, "unauthorized:key", "waiting_key", 60))

    actions = {one.id: one.actions for one in erasures.list()}
    assert actions == {open_one: ("cancel",), done: ("lift",), blocked: ("retry",)}
    for erasure, (action,) in actions.items():
        getattr(erasures, action)(erasure, requested_by="dpo")
    states = [erasures.get(one).state for one in actions]
    assert sorted(states) == ["cancelled", "lifted", "waiting_key"]
    assert not mm_tasks.track.delay("bought", user_id="a third").accepted
    assert mm_tasks.track.delay("bought", user_id="another").accepted
    for action in ("cancel", "lift", "retry"):
        with pytest.raises(ErasureStateError):
            getattr(erasures, action)(open_one, requested_by="dpo")


@pytest.mark.parametrize("name", ["timeline", "receipt"])
def test_an_unknown_erasure_is_an_error_and_get_returns_none(name):
    assert erasures.get("unknown") is None
    with pytest.raises(ErasureStateError, match="no such erasure"):
        getattr(erasures, name)("unknown")
    with pytest.raises(ErasureStateError, match="no such erasure"):
        erasures.cancel("unknown", requested_by="dpo")


def test_a_requester_that_is_no_reference_is_refused():
    erasure = ask()
    for requested_by in ("anna@example.org", USER):
        with pytest.raises(InvalidEvent, match="requested_by"):
            erasures.cancel(erasure, requested_by=requested_by)
    assert erasures.get(erasure).state == "fenced"


def test_no_value_holds_an_id_or_a_pseudonym():
    erasure = completed(anonymous_ids=[VISITOR])
    pseudonym = runtime.current().audit_store.queries.show(erasure)["subject"]

    shown = repr((erasures.get(erasure), erasures.timeline(erasure), erasures.list()))
    assert not re.search(f"{USER}|{VISITOR}|{pseudonym}", shown)


def test_the_states_and_the_sentences_are_those_of_the_protocol():
    assert set(get_args(erasures.State)) == protocol.STATES
    assert set(protocol.ENTRIES) <= set(SENTENCES)
    assert sentence("of a later release", {"at": "then"}) == "of a later release"
