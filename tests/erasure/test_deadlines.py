"""Stamps and the calendar month."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_tasks.erasure.deadlines import mark, one_month_after
from mm_tasks.timestamps import STAMP, moment, stamp

MOMENTS = st.datetimes(
    datetime(1971, 1, 1),  # noqa: DTZ001 - the strategy adds the zone
    datetime(9998, 12, 31),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=13)), timezone(-timedelta(hours=9))]),
)


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@given(MOMENTS, MOMENTS)
def test_the_order_of_stamps_is_the_order_of_time(one, other):
    """The databases compare them as text."""
    assert (stamp(one) <= stamp(other)) >= (one <= other)
    assert STAMP.fullmatch(stamp(one))
    assert timedelta(0) <= one - moment(stamp(one)) < timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("received", "due"),
    [
        ("2026-01-15T10:00", "2026-02-15T10:00"),
        ("2026-01-31T23:59", "2026-02-28T23:59"),
        ("2028-01-31T00:00", "2028-02-29T00:00"),
        ("2026-12-31T10:00", "2027-01-31T10:00"),
        ("2026-02-28T10:00", "2026-03-28T10:00"),
        ("2026-03-31T10:00", "2026-04-30T10:00"),
    ],
)
def test_an_erasure_is_due_one_calendar_month_after_receipt(received, due):
    assert one_month_after(at(received)) == at(due)


@given(MOMENTS)
def test_a_month_is_the_same_day_of_the_next_month_or_its_last(received):
    due = one_month_after(received)

    start = received.astimezone(UTC)
    assert (due.year * 12 + due.month) - (start.year * 12 + start.month) == 1
    assert due.timetz() == start.timetz()
    assert due.day == start.day or (due.day < start.day and (due + timedelta(days=1)).day == 1)


@pytest.mark.parametrize(
    ("percent", "reached"),
    [(0, 0), (49.9, 0), (50, 50), (79.9, 50), (80, 80), (100, 100), (300, 100)],
)
def test_marks_are_reached_and_not_passed_over(percent, reached):
    start, due = at("2026-01-31T00:00"), at("2026-02-28T00:00")

    assert mark(start, due, start + (due - start) * percent / 100) == reached
