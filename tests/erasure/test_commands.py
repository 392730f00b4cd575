"""Commands and queries: requests, their repetition, their end, and their reads."""

from __future__ import annotations

import json

import pytest

from mm_tasks.buffer.records import tag
from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.protocol import IllegalTransition
from mm_tasks.erasure.audit.pseudonyms import Pseudonyms
from mm_tasks.erasure.audit.verification import verify
from mm_tasks.erasure.models import VendorAck
from mm_tasks.erasure.request import ErasureRequest
from mm_tasks.errors import InvalidEvent
from tests.erasure.stores import NOW, USER, VISITOR, after

USER_TAG, VISITOR_TAG = tag("p", "user", USER), tag("p", "anonymous", VISITOR)


def entries(store, kind):
    parsed = map(json.loads, store.entries())
    return [one["details"] for one in parsed if one["entry"] == kind]


def test_a_request_is_stored_with_every_field(store):
    opened = store.ask(
        ticket="GDPR-1093", anonymous_ids=(VISITOR, VISITOR), received_at=after(days=-3)
    )

    shown = store.queries.show(opened.id)
    assert shown["tickets"] == ["GDPR-1093"]
    assert shown["requested_by"] == "dpo"
    assert shown["received_at"] == "2026-01-28T12:00:00.000Z"
    assert shown["accepted_at"] == "2026-01-31T12:00:00.000Z"
    assert shown["due_at"] == "2026-02-28T12:00:00.000Z"
    assert shown["anonymous"] == 1
    assert shown["subject"] == store.session.pseudonyms.of(USER)
    assert shown["passes"] == []
    assert set(store.queries.fences()) == {USER_TAG, VISITOR_TAG}
    assert json.dumps(shown)


def test_no_column_is_shown_but_the_listed_ones(store):
    """The ids of the subject and the state of the workflow stay in the row."""
    opened = store.ask()
    hidden = {"ids", "pseudonym", "round", "lease_until", "token", "warned"}
    shown = set(tables.erasures.columns.keys()) - hidden | {"subject", "is_wiped"}

    assert set(store.queries.show(opened.id)) == shown | {"passes"}
    assert [set(row) for row in store.queries.listed()] == [shown]


def test_a_second_request_for_the_same_person_adds_its_ticket(store):
    first = store.ask(ticket="T-1")
    second = store.ask(ticket="T-2", requested_by="support", now=after(seconds=1))

    assert (second.id, second.is_fenced) == (first.id, False)
    assert second.claim is None, "the first caller is still at the fence"
    assert store.queries.show(first.id)["tickets"] == ["T-1", "T-2"]
    assert [one["ticket"] for one in entries(store, "ticket_added")] == ["T-2"]
    assert len(store.queries.listed()) == 1


def test_a_repeated_request_reports_that_the_fence_is_up(store):
    store.steps.mark_fenced(store.ask().claim, NOW)

    assert store.ask().is_fenced


def test_a_repeated_request_claims_an_erasure_without_a_fence(store):
    store.ask()

    assert store.ask(now=after(minutes=1)).claim is not None


def test_the_earlier_deadline_holds(store):
    opened = store.ask()
    store.ask(received_at=after(days=-20))

    assert store.queries.show(opened.id)["due_at"] == "2026-02-11T12:00:00.000Z"


def test_the_mode_that_refuses_more_events_holds(store):
    opened = store.ask(mode="once")
    store.ask()

    assert store.queries.show(opened.id)["mode"] == "suppress"


def test_known_anonymous_ids_do_not_restart_the_erasure(store):
    claim = store.quiesced(anonymous_ids=(VISITOR,))

    again = store.ask(anonymous_ids=(VISITOR,))

    assert store.queries.show(again.id)["state"] == "quiesced"
    assert store.steps.intent(claim, NOW) is not None


def test_after_the_end_the_same_person_is_another_erasure(store):
    first = store.completed()
    second = store.ask(now=after(days=9))

    assert second.id != first.id
    store.commands.lift(first.id, "dpo", after(days=9))
    assert set(store.queries.fences()) == {USER_TAG}


def test_another_project_does_not_see_the_erasure(store):
    opened = store.ask()
    other = type(store)(store.url, store.folder, "q")

    assert set(other.queries.fences()) == set()
    assert other.ask().id != opened.id


def test_a_key_that_changed_does_not_hide_an_open_erasure(store):
    """Pseudonyms change with their key, tags do not."""
    first = store.ask()
    store.session.pseudonyms = Pseudonyms("the next key, of another epoch", epoch=2)

    assert store.ask(now=after(hours=1)).id == first.id
    verify(store.log)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"requested_by": "jane@example.com"}, "requested_by"),
        ({"requested_by": "Jane Doe"}, "requested_by"),
        ({"requested_by": ""}, "requested_by"),
        ({"requested_by": None}, "requested_by"),
        ({"ticket": "a@b"}, "ticket"),
        ({"ticket": ""}, "ticket"),
        ({"ticket": USER}, "ticket"),
        ({"ticket": f"T-{USER.upper()}"}, "ticket"),
        ({"requested_by": VISITOR, "anonymous_ids": (VISITOR,)}, "requested_by"),
        ({"reason": "they asked"}, "reason"),
        ({"mode": "forever"}, "mode"),
        ({"received_at": after(days=1)}, "received_at"),
        ({"received_at": NOW.replace(tzinfo=None)}, "received_at"),
        ({"user_id": "\ud800"}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"anonymous_ids": ("",)}, "anonymous_ids"),
        ({"anonymous_ids": (None,)}, "anonymous_ids"),
    ],
)
def test_a_field_that_the_log_may_not_hold_is_refused(sqlite_store, fields, named):
    with pytest.raises(InvalidEvent) as refused:
        sqlite_store.ask(**fields)

    assert [problem.field for problem in refused.value.problems] == [named]
    assert USER not in str(refused.value)
    assert sqlite_store.entries() == []


def test_a_short_id_may_be_part_of_a_ticket_by_chance(store):
    assert store.ask("109", ticket="GDPR-1093").id


@pytest.mark.parametrize("user_id", ["a\x00b", "'; DROP TABLE mm_store; --", "é" * 256, "\u2028"])
def test_any_id_that_an_event_may_carry_can_be_erased(store, user_id):
    """PostgreSQL holds no NUL in a text."""
    opened = store.ask(user_id)

    assert opened.claim.erasure.user_id == user_id
    assert store.ask(user_id).id == opened.id


def test_cancel_ends_it_before_the_first_call(store):
    claim = store.quiesced(anonymous_ids=(VISITOR,))

    assert set(store.queries.fences()) == {USER_TAG, VISITOR_TAG}

    store.commands.cancel(claim.id, "dpo", NOW)

    assert set(store.queries.fences()) == set()
    assert store.queries.show(claim.id)["state"] == "cancelled"
    assert store.queries.show(claim.id)["is_wiped"]
    assert store.steps.intent(claim, NOW) is None, "its worker may not call any more"
    verify(store.log)


def test_reject_and_duplicate_end_it_as_well(store):
    original, second, third = (store.ask(name).id for name in ("first", "second", "third"))

    store.commands.cancel(second, "dpo", NOW, "rejected", outcome="not_verified")
    store.commands.cancel(third, "dpo", NOW, "duplicate_of", original=original)

    states = [store.queries.show(one)["state"] for one in (second, third)]
    assert states == ["rejected", "duplicate_of"]
    assert store.queries.show(third)["duplicate_of"] == original
    verify(store.log)


def test_an_illegal_command_raises_the_rule_and_changes_nothing(store):
    claim = store.quiesced()
    store.steps.intent(claim, NOW)
    before = store.entries()

    with pytest.raises(IllegalTransition, match="cancelled may not follow the state submitted"):
        store.commands.cancel(claim.id, "dpo", NOW)
    with pytest.raises(IllegalTransition, match="lifted may not follow"):
        store.commands.lift(claim.id, "dpo", NOW)
    with pytest.raises(IllegalTransition, match="retried may not follow"):
        store.commands.retry(claim.id, "dpo", NOW)
    with pytest.raises(IllegalTransition, match="no such erasure"):
        store.commands.cancel("nothing", "dpo", NOW)
    with pytest.raises(IllegalTransition, match="no such original"):
        store.commands.cancel(claim.id, "dpo", NOW, "duplicate_of", original="nothing")
    for ask in (store.commands.cancel, store.commands.lift, store.commands.retry):
        for one in ("jane@example.com", f"{USER}-by-phone"):
            with pytest.raises(InvalidEvent, match="requested_by: must") as caught:
                ask(claim.id, one, NOW)
            assert one not in str(caught.value)
    assert store.entries() == before
    assert set(store.queries.fences()) == {USER_TAG}


def test_lift_frees_the_tags_that_no_other_erasure_holds(store):
    """Two people of one household share a browser."""
    one = store.completed(user_id="one", anonymous_ids=(VISITOR,))
    two = store.completed(user_id="two", anonymous_ids=(VISITOR,))

    store.commands.lift(one.id, "dpo", NOW)
    assert set(store.queries.fences()) == {tag("p", "user", "two"), VISITOR_TAG}
    store.commands.lift(two.id, "dpo", NOW)
    assert set(store.queries.fences()) == set()
    verify(store.log)


def test_the_fence_holds_after_the_ids_were_wiped(store):
    store.completed(anonymous_ids=(VISITOR,))

    assert set(store.queries.fences()) == {USER_TAG, VISITOR_TAG}


def test_a_list_is_newest_first_and_can_be_narrowed(store):
    first, second = store.ask("a"), store.ask("b", after(hours=1))
    store.commands.cancel(first.id, "dpo", after(hours=2))

    assert [one["id"] for one in store.queries.listed()] == [second.id, first.id]
    assert [one["id"] for one in store.queries.listed(["cancelled"])] == [first.id]
    assert [one["id"] for one in store.queries.listed(limit=1)] == [second.id]


def test_each_mark_of_a_deadline_is_returned_once_and_stays_in_the_deadlines(store):
    claim = store.quiesced()
    store.call(claim, VendorAck(401, "unauthorized", "waiting_key", after(days=99)))
    told = {}
    for day in range(32):
        for deadline in store.commands.newly_overdue(after(days=day)):
            told[day] = deadline.mark

    assert told == {14: 50, 23: 80, 28: 100}
    [deadline] = store.queries.deadlines(after(days=31))
    assert (deadline.id, deadline.state, deadline.mark) == (claim.id, "waiting_key", 100)


def test_an_ended_erasure_has_no_deadline(store):
    store.completed()

    assert store.queries.deadlines(after(days=99)) == []


def test_a_request_has_no_id_in_its_repr():
    assert USER not in repr(ErasureRequest(USER, "dpo", anonymous_ids=(VISITOR,)))
