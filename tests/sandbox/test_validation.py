"""Refused bodies, each beside an accepted one; a batch is all or nothing."""

import gzip
import json

import pytest

BOTH = {"anonymous_id": "a", "user_id": "u"}
NAMED = {"event": "order_completed", "event_id": "id-1", "timestamp": "2026-02-28T23:59:59.999Z"}
FULL = {
    **NAMED,
    **BOTH,
    "session_id": "s",
    "path": "/a",
    "url": "https://shop.example/a?utm_source=x",
    "referrer": "anything",
    "properties": {"amount_cents": 1, "currency": "EUR"},
}
LENGTHS = dict.fromkeys(["event", "event_id", "anonymous_id", "session_id"], 128)
LENGTHS |= {"user_id": 256, "path": 2048, "referrer": 2048}


def sized(size):
    """Properties of so many bytes."""
    return {"p": "x" * (size - len('{"p":""}'))}


ONES = (8192 - len('{"p":[]}') + 1) // 2
GOOD = {
    "the name alone": {"event": "e"},
    "every field": FULL,
    **{f"{name} as long as it may be": {**FULL, name: "x" * n} for name, n in LENGTHS.items()},
    "an emoji counts twice": {"event": "😀" * 64},
    "a field that the server sets": {**FULL, "country": "DE", "source": 7},
    "a system event": {"event": "$pageview"},
    "properties of 8 KB": {**FULL, "properties": sized(8192)},
    # 1.0 is "1" there, and 4 characters with its comma less 2.
    "numbers printed as ECMA-262 does": {**FULL, "properties": {"p": [1.0] * ONES}},
    "the 29th of February of a leap year": {**FULL, "timestamp": "2024-02-29T00:00:00.000Z"},
}
BAD = {
    "no name": ({"user_id": "u"}, "event"),
    "null for an optional field": ({**FULL, "user_id": None}, "user_id"),
    "a number as an id": ({**FULL, "user_id": 7}, "user_id"),
    **{f"an empty {name}": ({**FULL, name: ""}, name) for name in LENGTHS},
    **{f"{name} too long": ({**FULL, name: "x" * (n + 1)}, name) for name, n in LENGTHS.items()},
    "an emoji too many": ({"event": "😀" * 64 + "x"}, "event"),
    "an unknown field": ({**FULL, "plan": "free"}, "plan"),
    "+00:00": ({**FULL, "timestamp": "2026-01-14T12:00:00.000+00:00"}, "timestamp"),
    "a naive time": ({**FULL, "timestamp": "2026-01-14T12:00:00.000"}, "timestamp"),
    "no milliseconds": ({**FULL, "timestamp": "2026-01-14T12:00:00Z"}, "timestamp"),
    "a day that is none": ({**FULL, "timestamp": "2026-02-29T00:00:00.000Z"}, "timestamp"),
    "epoch seconds": ({**FULL, "timestamp": 1768392000}, "timestamp"),
    "a relative url": ({**FULL, "url": "/a"}, "url"),
    "a url too long": ({**FULL, "url": "https://a.example/" + "x" * 2031}, "url"),
    "properties that are a list": ({**FULL, "properties": []}, "properties"),
    "properties above 8 KB": ({**FULL, "properties": sized(8193)}, "properties"),
    "bytes, not characters": ({**FULL, "properties": {"p": "ä" * 4093}}, "properties"),
    "numbers that grow": ({**FULL, "properties": {"p": [1e20] * 400}}, "properties"),
    "small numbers that grow": ({**FULL, "properties": {"p": [1e-6] * 920}}, "properties"),
}
NO_JSON = {
    "nothing": b"",
    "a cut object": b'{"event":"e"',
    "something after it": b'{"event":"e"} x',
    "two values": b'{"event":"e"}{"event":"e"}',
    "the same key twice": b'{"event":"a","event":"b"}',
    "the same key twice, further in": b'{"event":"a","properties":{"x":{"y":1,"y":1}}}',
    "NaN": b'{"event":"a","properties":{"x":NaN}}',
    "Infinity": b'{"event":"a","properties":{"x":-Infinity}}',
    "a number that is infinite": b'{"event":"a","properties":{"x":1e999}}',
    "invalid UTF-8": b'{"event":"\xff"}',
    "UTF-16": '{"event":"e"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"event":"e"}',
    "a lone surrogate": b'{"event":"\\ud800"}',
    "a lone surrogate as a key": b'{"event":"e","properties":{"\\uDFFF":1}}',
    "a control character": b'{"event":"a\nb"}',
    "without end": b'{"event":"e","properties":' + b"[" * 50_000,
    "a list": b"[]",
    "a text": b'"e"',
    "null": b"null",
    "gzip": b"\x1f\x8b\x08\x00",
}


@pytest.mark.parametrize("event", GOOD.values(), ids=GOOD.keys())
def test_a_good_event_is_stored(sandbox, event):
    """Strict must not mean wrong: an event that the table allows is never refused."""
    reply = sandbox.post("track", json.dumps(event, separators=(",", ":")).encode())
    assert reply.json == {"ok": True, "event_id": event.get("event_id")}
    assert reply.status == 202


@pytest.mark.parametrize(("event", "field"), BAD.values(), ids=BAD.keys())
def test_a_bad_event_is_refused_by_its_field_and_its_batch_without_it(sandbox, event, field):
    """A batch is all or nothing, and no index is named: the sender must bisect."""
    alone = sandbox.post("track", event)
    batch = sandbox.post("batch", {"events": [{"event": "good"}, event, {"event": "good"}]})

    assert (alone.status, batch.status) == (400, 400)
    assert alone.json["error"] == "invalid_payload"
    assert list(alone.json["details"]["fieldErrors"]) == [field]
    details = {"fieldErrors": {"events": ["Required"]}}
    assert batch.json == {"error": "invalid_payload", "details": details}
    assert sandbox.lines("rows") == []


@pytest.mark.parametrize("route", ["track", "batch", "identify", "forget"])
@pytest.mark.parametrize("raw", NO_JSON.values(), ids=NO_JSON.keys())
def test_a_body_that_is_no_strict_json_object_is_refused(sandbox, route, raw):
    reply = sandbox.post(route, b'{"events":[' + raw + b"]}" if route == "batch" else raw)
    assert reply.status == 400
    assert reply.json["error"] == "invalid_payload"


BATCHES = {
    "none": ([], 400),
    "one": ([{"event": "e"}], 202),
    "500": ([{"event": "e"}] * 500, 202),
    "501": ([{"event": "e"}] * 501, 400),
    "no list": ({"event": "e"}, 400),
    "a batch within": ([[{"event": "e"}]], 400),
}


@pytest.mark.parametrize(("events", "status"), BATCHES.values(), ids=BATCHES.keys())
def test_a_batch_holds_1_to_500_events(sandbox, events, status):
    reply = sandbox.post("batch", {"events": events})
    assert reply.status == status
    assert len(sandbox.lines("rows")) == (len(events) if status == 202 else 0)


def test_a_body_above_256_000_bytes_is_refused(sandbox):
    def padded(size):
        return b'{"events":[{"event":"e"}]}'.ljust(size)

    assert sandbox.post("batch", padded(256_000)).status == 202
    assert sandbox.post("batch", padded(256_001)).status == 413


IDENTIFIES = {
    "both ids": (BOTH, 200),
    "traits": ({**BOTH, "traits": {"plan": "free"}}, 200),
    "no user": ({"anonymous_id": "a"}, 400),
    "no visitor": ({"user_id": "u"}, 400),
    "an empty id": ({**BOTH, "anonymous_id": ""}, 400),
    "a number as an id": ({**BOTH, "user_id": 7}, 400),
    "traits that are null": ({**BOTH, "traits": None}, 400),
    "traits that are a list": ({**BOTH, "traits": []}, 400),
    "an unknown field": ({**BOTH, "plan": "free"}, 400),
}


@pytest.mark.parametrize(("body", "status"), IDENTIFIES.values(), ids=IDENTIFIES.keys())
def test_an_identify_needs_both_ids(sandbox, body, status):
    assert sandbox.post("identify", body).status == status


def test_a_repeated_event_is_two_rows(sandbox):
    """event_id is called an idempotency key, but the server does not deduplicate."""
    for _ in range(2):
        sandbox.post("track", {"event": "e", "event_id": "same"})
    sandbox.post("batch", {"events": [{"event": "e", "event_id": "same"}] * 2})

    assert [row["event_id"] for row in sandbox.lines("rows")] == ["same"] * 4
    assert sandbox.seen("summary")["duplicates"] == 3


def test_odd_headers_are_counted_and_not_refused_but_a_compressed_body_is(sandbox):
    """No page of the vendor documents that it unpacks a body."""
    odd = sandbox.post("track", {"event": "e"}, **{"Content-Type": "text/plain"})
    assert sandbox.seen("summary")["violations"] == {"content_type": 1, "user_agent": 1}
    packed = gzip.compress(b'{"event":"e"}')
    compressed = sandbox.post("track", packed, **{"Content-Encoding": "gzip"})

    assert (odd.status, compressed.status) == (202, 400)
