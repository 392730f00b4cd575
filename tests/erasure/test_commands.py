"""Commands and queries: requests, their repetition, their end, and their reads."""

import json

import pytest

from mm_tasks.buffer.records import tag
from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.protocol import IllegalTransition
from mm_tasks.erasure.audit.verification import verify
from mm_tasks.erasure.deadlines import one_month_after
from mm_tasks.erasure.models import Opened, VendorAck
from mm_tasks.errors import InvalidEvent
from mm_tasks.timestamps import stamp
from tests.erasure.stores import NOW, USER, VISITOR, after

USER_TAG, VISITOR_TAG = tag("p", "user", USER), tag("p", "anonymous", VISITOR)


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
    shown = set(tables.erasures.columns.keys()) - hidden | {"subject", "is_wiped", "not_before"}

    assert set(store.queries.show(opened.id)) == shown | {"passes"}
    assert [set(row) for row in store.queries.listed()] == [shown]


def test_a_second_request_for_the_same_person_adds_its_ticket(store):
    first = store.ask(ticket="T-1")
    second = store.ask(ticket="T-2", requested_by="support", now=after(seconds=1))

    assert (second.id, second.is_fenced) == (first.id, False)
    assert second.claim is None, "the first caller is still at the fence"
    assert store.queries.show(first.id)["tickets"] == ["T-1", "T-2"]
    assert [entry["details"]["ticket"] for entry in store.parsed("ticket_added")] == ["T-2"]
    assert len(store.queries.listed()) == 1


def test_a_repeated_request_claims_an_erasure_until_the_fence_is_up(store):
    store.ask()
    again = store.ask(now=after(minutes=1))
    assert again.claim is not None
    store.steps.mark_fenced(again.claim, NOW)

    assert store.ask().is_fenced


def test_the_earlier_deadline_and_the_stricter_mode_hold(store):
    opened = store.ask(mode="once")
    store.ask(received_at=after(days=-20))
    shown = store.queries.show(opened.id)

    assert (shown["due_at"], shown["mode"]) == ("2026-02-11T12:00:00.000Z", "suppress")


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("requested_by", "jane@example.com"),
        ("requested_by", ""),
        ("requested_by", None),
        ("ticket", "a@b"),
        ("ticket", USER),
        ("ticket", f"T-{USER.upper()}"),
        ("requested_by", VISITOR),
        ("reason", "they asked"),
        ("mode", "forever"),
        ("received_at", NOW.replace(tzinfo=None)),
        ("user_id", "\ud800"),
        ("user_id", ""),
        ("anonymous_ids", ("",)),
        ("anonymous_ids", (None,)),
    ],
)
def test_a_field_that_the_log_may_not_hold_is_refused(sqlite_store, name, value):
    with pytest.raises(InvalidEvent) as refused:
        sqlite_store.ask(**{"anonymous_ids": (VISITOR,), name: value})

    assert [problem.field for problem in refused.value.problems] == [name]
    assert USER not in str(refused.value)
    assert sqlite_store.entries() == []


def test_a_receipt_in_the_future_means_now(store):
    """The clock of the caller is ahead; refused, a message would fail for ever."""
    id_ = store.ask(received_at=after(hours=1)).id

    assert store.queries.show(id_)["received_at"] == stamp(NOW)
    assert store.queries.show(id_)["due_at"] == stamp(one_month_after(NOW))
    assert store.parsed("received")[0]["details"]["received_at"] == stamp(NOW)


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
    claim, commands = store.quiesced(), store.commands
    store.steps.intent(claim, NOW)
    before = store.entries()

    for command, args, rule in (
        (commands.cancel, (claim.id,), "cancelled may not follow the state submitted"),
        (commands.lift, (claim.id,), "lifted may not follow"),
        (commands.retry, (claim.id,), "retried may not follow"),
        (commands.cancel, ("nothing",), "no such erasure"),
    ):
        with pytest.raises(IllegalTransition, match=rule):
            command(*args, "dpo", NOW)
    with pytest.raises(IllegalTransition, match="no such original"):
        commands.cancel(claim.id, "dpo", NOW, "duplicate_of", original="nothing")
    for command in (commands.cancel, commands.lift, commands.retry):
        for name in ("jane@example.com", f"{USER}-by-phone"):
            with pytest.raises(InvalidEvent, match="requested_by: must") as caught:
                command(claim.id, name, NOW)
            assert name not in str(caught.value)
    assert store.entries() == before
    assert set(store.queries.fences()) == {USER_TAG}


def test_lift_frees_the_tags_that_no_other_erasure_holds(store):
    """Two people of one household share a browser; the tags outlive the wiped ids."""
    first, second = (
        store.completed(user_id=name, anonymous_ids=(VISITOR,)).id for name in ("one", "two")
    )
    tags = {VISITOR_TAG, tag("p", "user", "one"), tag("p", "user", "two")}

    assert set(store.queries.fences()) == tags
    store.commands.lift(first, "dpo", NOW)
    assert set(store.queries.fences()) == tags - {tag("p", "user", "one")}
    store.commands.lift(second, "dpo", NOW)
    assert set(store.queries.fences()) == set()
    verify(store.log)


def test_a_scheduled_erasure_is_stored_and_begins_at_its_time(store):
    """Nothing is fenced until then, and no worker takes a step of it."""
    opened = store.ask(anonymous_ids=(VISITOR,), delay_s=3600)
    assert opened == Opened(opened.id, is_fenced=False, claim=None)
    shown = store.queries.show(opened.id)
    assert (shown["state"], shown["not_before"]) == ("scheduled", "2026-01-31T13:00:00.000Z")
    assert shown["due_at"] == "2026-02-28T12:00:00.000Z"
    assert store.parsed()[0]["details"]["not_before"] == shown["not_before"]
    assert set(store.queries.fences()) == set()
    assert store.steps.due(60, after(seconds=3599)) == []
    assert store.steps.claim(opened.id, after(seconds=3599), 60) is None

    claim = store.steps.start(store.steps.claim(opened.id, after(hours=1), 60), after(hours=1))
    assert (claim.erasure.state, claim.erasure.step) == ("received", "fence")
    assert set(store.queries.fences()) == {USER_TAG, VISITOR_TAG}
    assert store.kinds() == ["received", "started"]
    assert store.queries.show(opened.id)["not_before"] is None
    verify(store.log)


def test_a_request_without_a_delay_starts_the_scheduled_erasure(store):
    """The person who wants it now must not wait for somebody's next month."""
    opened = store.ask(ticket="T-1", delay_s=86_400)
    again = store.ask(ticket="T-2", anonymous_ids=(VISITOR,))

    assert (again.id, again.claim.erasure.state) == (opened.id, "received")
    assert store.kinds() == ["received", "ticket_added", "anonymous_added", "started"]
    assert set(store.queries.fences()) == {USER_TAG, VISITOR_TAG}
    assert store.steps.due(60, after(seconds=11)) == [opened.id]
    verify(store.log)


def test_a_worker_that_starts_it_at_the_same_time_goes_on(store):
    opened = store.ask(delay_s=60)
    claim = store.steps.claim(opened.id, after(seconds=60), 60)
    again = store.ask(now=after(seconds=60))

    assert again.claim is None, "the worker raises the fence"
    assert store.steps.start(claim, after(seconds=60)).erasure.step == "fence"
    assert store.kinds() == ["received", "ticket_added", "started"]


@pytest.mark.parametrize(("delays_s", "begins_s"), [((60, 3600), 60), ((3600, 60), 60)])
def test_of_two_scheduled_requests_the_earlier_time_holds(store, delays_s, begins_s):
    first, second = (store.ask(anonymous_ids=(f"v{n}",), delay_s=n) for n in delays_s)

    assert (second.id, second.claim) == (first.id, None)
    assert store.queries.show(first.id)["state"] == "scheduled"
    assert store.queries.show(first.id)["anonymous"] == 2
    assert set(store.queries.fences()) == set()
    assert store.steps.due(60, after(seconds=begins_s - 1)) == []
    assert store.steps.due(60, after(seconds=begins_s)) == [first.id]
    verify(store.log)


def test_a_scheduled_request_is_done_with_the_erasure_that_is_open(store):
    claim = store.quiesced()
    again = store.ask(ticket="T-2", delay_s=3600)

    assert again == Opened(claim.id, is_fenced=True, claim=None)
    assert store.queries.show(claim.id)["state"] == "quiesced"
    assert "not_before" in store.parsed("ticket_added")[0]["details"]
    verify(store.log)


def test_a_scheduled_erasure_can_be_cancelled(store):
    opened = store.ask(delay_s=3600)
    store.commands.cancel(opened.id, "dpo", after(seconds=1))

    assert store.steps.due(60, after(days=1)) == []
    assert store.queries.show(opened.id)["is_wiped"]
    assert set(store.queries.fences()) == set()
    assert store.ask().id != opened.id
    verify(store.log)


def test_an_erasure_is_not_scheduled_for_a_time_after_its_deadline(store):
    """28 days after the 31st of January, and 8 of a request that was received 20 days ago."""
    for days, received_at in ((28, NOW), (11, after(days=-20))):
        with pytest.raises(InvalidEvent, match=r"countdown: .* before the erasure is due"):
            store.ask(received_at=received_at, delay_s=days * 86_400)
    assert store.entries() == []
    assert store.ask(delay_s=28 * 86_400 - 1).id


def test_a_list_is_newest_first_and_can_be_narrowed(store):
    first, second = store.ask("a").id, store.ask("b", after(hours=1)).id
    store.commands.cancel(first, "dpo", after(hours=2))

    def ids(*states, **limit):
        return [row["id"] for row in store.queries.listed(*states, **limit)]

    assert ids() == [second, first]
    assert ids(["cancelled"]) == [first]
    assert ids(limit=1) == [second]


def test_each_mark_of_a_deadline_is_returned_once_and_stays_in_the_deadlines(store):
    store.completed(user_id="an ended erasure has none")
    claim = store.quiesced()
    store.call(claim, VendorAck(401, "unauthorized", "waiting_key", 60))
    marks = [
        (day, deadline.mark)
        for day in range(32)
        for deadline in store.commands.newly_overdue(after(days=day))
    ]

    assert marks == [(14, 50), (23, 80), (28, 100)]
    [deadline] = store.queries.deadlines(after(days=31))
    assert (deadline.id, deadline.state, deadline.mark) == (claim.id, "waiting_key", 100)
