"""`/v1/query` and `/v1/stats`: which checks of arrival are possible."""

import json

import pytest

FIELDS = {
    *("timestamp", "event_name", "anonymous_id", "user_id", "source", "medium", "campaign"),
    *("source_confidence", "referrer", "url", "path", "country", "device_type", "properties"),
}
URL = "https://shop.example/cart?utm_source=mail&utm_medium=email"
CART = {"url": URL, "properties": {"n": 1}, "event_id": "id-1"}
EVENTS = [
    {"event": "a", "user_id": "u", "anonymous_id": "x", "timestamp": "2026-01-14T10:00:00.000Z"},
    {"event": "b", "user_id": "v", "anonymous_id": "x", "timestamp": "2026-01-14T11:00:00.000Z"},
    {"event": "a", "anonymous_id": "y", "timestamp": "2026-01-15T10:30:00.000Z", **CART},
]


@pytest.fixture
def filled(sandbox):
    assert sandbox.post("batch", {"events": EVENTS}).status == 202
    return sandbox


def test_a_row_has_the_documented_fields_and_no_event_id(filled):
    newest = filled.get("query").json["rows"][0]

    assert newest.keys() == FIELDS
    assert json.loads(newest["properties"]) == {"n": 1}
    assert isinstance(newest["properties"], str)
    assert (newest["event_name"], newest["source"], newest["medium"]) == ("a", "mail", "email")
    assert newest["path"] == "/cart"


FILTERS = {
    **dict.fromkeys(["", "limit=1000"], 3),
    **dict.fromkeys(["event=a", "limit=2"], 2),
    **dict.fromkeys(["from=2026-01-14T11:00:00Z", "to=2026-01-14T11:00:00Z"], 2),
    **dict.fromkeys(["user_id=u", "source=mail", "medium=email", "from=2026-01-15"], 1),
    "from=2026-01-14T10:30:00.000Z&to=2026-01-14T11:30:00.000Z": 1,
    "event=b&user_id=u": 0,
}


@pytest.mark.parametrize(("report", "rows"), FILTERS.items(), ids=FILTERS.keys())
def test_a_query_is_narrowed_by_time_names_and_limit(filled, report, rows):
    assert len(filled.get(f"query?{report}").json["rows"]) == rows


REFUSED = """
    query?limit=1001 query?limit=0 query?limit=x query?from=yesterday query?event_id=id-1
    query?event=a&event=b stats?metric=sum stats?group_by=event_id stats?interval=second
    stats?user_id=u
"""


@pytest.mark.parametrize("report", REFUSED.split())
def test_a_report_that_is_not_documented_is_refused(filled, report):
    """A check of arrival by event_id cannot be built: there is no such filter."""
    reply = filled.get(report)
    assert (reply.status, reply.json["error"]) == (400, "invalid_payload")


BY_DAY = [{"interval": "2026-01-14", "value": 2}, {"interval": "2026-01-15", "value": 1}]
STATS = {
    "": ("count", [{"value": 3}]),
    "metric=uniques": ("uniques", [{"value": 2}]),
    "event=b": ("count", [{"value": 1}]),
    "group_by=event": ("count", [{"event": "a", "value": 2}, {"event": "b", "value": 1}]),
    "interval=day": ("count", BY_DAY),
    "group_by=event&limit=1": ("count", [{"event": "a", "value": 2}]),
    "from=2027-01-01": ("count", []),
}


@pytest.mark.parametrize(("report", "expected"), STATS.items(), ids=STATS.keys())
def test_stats_count_rows_or_visitors(filled, report, expected):
    reply = filled.get(f"stats?{report}").json
    assert (reply["metric"], reply["rows"]) == expected


def test_an_identify_is_a_row_of_its_own(sandbox):
    body = {"anonymous_id": "a", "user_id": "u", "traits": {"plan": "free"}}
    for _ in range(2):
        sandbox.post("identify", body)
    rows = sandbox.get("query?event=$identify&user_id=u").json["rows"]

    assert [row["properties"] for row in rows] == ['{"plan":"free"}'] * 2


def test_an_event_without_a_visitor_is_given_one_of_its_own(sandbox):
    """The link to the visitor is lost: two such events are two visitors."""
    sandbox.post("batch", {"events": [{"event": "a"}, {"event": "a"}]})
    assert sandbox.get("stats?metric=uniques").json["rows"] == [{"value": 2}]
