"""Classify an HTTP answer: status, headers and body become an `Outcome`. Never raises."""

from __future__ import annotations

import json
import math
import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from mm_tasks.client.backoff import THROTTLE_MAX_S
from mm_tasks.client.outcome import (
    Ambiguous,
    Delivered,
    Filtered,
    Misdirected,
    Outcome,
    Rejected,
    Response,
    Throttled,
    Unauthorized,
)

if TYPE_CHECKING:
    from mm_tasks.client.http1 import Answer

_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?")
# Any integer with as many digits fits into 64 bits; Python refuses to parse one with 4301.
_INTEGER_DIGITS_MAX = 18
# No request holds more events.
_COUNT_MAX = 1_000_000
# "Errors" of the vendor's API reference: the code is the contract, the text is not.
_VENDOR_CODES = {
    *("invalid_payload", "rate_limited", "internal_error", "forget_failed", "upstream_failed"),
    *("missing_bearer_token", "malformed_api_key", "invalid_api_key", "key_kind_mismatch"),
    *("origin_not_allowed", "insufficient_scope", "forget_requires_secret_key"),
}


def classify(answer: Answer) -> Outcome:
    """Return the outcome of an answer. An unreadable body leaves doubt only after a success."""
    status, fields = answer.status, _json_object(answer.body)
    code = fields.get("error")
    response = Response(status, code if isinstance(code, str) and _CODE.fullmatch(code) else "-")
    if status in {200, 202}:
        return _success(answer, fields)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Throttled(response, _retry_after_s(answer, fields))
    if status in {400, 413, 422}:
        return Rejected(response)
    if status // 100 not in {3, 4} or status == HTTPStatus.REQUEST_TIMEOUT:
        return Ambiguous(str(status), status, response.code)
    if status >= HTTPStatus.BAD_REQUEST and response.code not in _VENDOR_CODES:
        return Filtered(response)
    return _refusal_of_call(response)


def classify_forget(answer: Answer) -> Outcome:
    """As `classify`, for `/v1/forget`: a success also has `queued`.

    A filter's refusal counts as one of the key or the host: the body holds nothing but an id.
    """
    outcome = classify(answer)
    if isinstance(outcome, Filtered):
        return _refusal_of_call(outcome.answer)
    if isinstance(outcome, Ambiguous) and outcome.kind == "unusable":
        # A page of a hop says nothing; an object of JSON says something else than expected.
        says_nothing = not _json_object(answer.body)
        return Ambiguous("unreadable", answer.status) if says_nothing else outcome
    if not isinstance(outcome, Delivered):
        return outcome
    is_queued = _json_object(answer.body).get("queued") is True
    if is_queued and answer.status == HTTPStatus.OK:
        return outcome
    return Ambiguous("unusable", answer.status)


def _refusal_of_call(response: Response) -> Outcome:
    return Unauthorized(response) if response.status in {401, 403} else Misdirected(response)


def _success(answer: Answer, fields: dict[str, Any]) -> Outcome:
    if fields.get("ok") is not True:
        flaw = answer.flaw or ("unusable" if answer.body else "cut")
        return Ambiguous(flaw, answer.status)
    count = fields.get("count")
    return Delivered(count if type(count) is int and 0 <= count <= _COUNT_MAX else None)


def _json_object(body: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(body or b"", parse_int=_number)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(text: str) -> float:
    return int(text) if len(text) <= _INTEGER_DIGITS_MAX else float(text)


def _retry_after_s(answer: Answer, fields: dict[str, Any]) -> float | None:
    """Return the requested wait: `Retry-After` (RFC 9110, 10.2.3), or the field of the body."""
    text = answer.value("retry-after")
    wait_s: Any = fields.get("retry_after_s")
    if _NUMBER.fullmatch(text):
        wait_s = float(text)
    elif (until_s := _instant_s(text)) is not None:
        # By the clock that wrote the date, if it wrote its own time too.
        now_s = _instant_s(answer.value("date"))
        wait_s = until_s - (time.time() if now_s is None else now_s)
    if type(wait_s) not in {int, float} or math.isnan(wait_s):
        return None
    return max(0.0, min(THROTTLE_MAX_S, float(wait_s)))


def _instant_s(text: str) -> float | None:
    """Return the instant of a date in any form of HTTP; one without a zone is UTC."""
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
