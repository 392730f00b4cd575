"""Classify an HTTP response: status, headers and body become an `Outcome`."""

from __future__ import annotations

import json
import re
import time
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

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
    from collections.abc import Mapping

_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
# "Errors" of the vendor's API reference: the code is the contract, the text is not.
_VENDOR_CODES = {
    *("invalid_payload", "rate_limited", "internal_error", "forget_failed", "upstream_failed"),
    *("missing_bearer_token", "malformed_api_key", "invalid_api_key", "key_kind_mismatch"),
    *("origin_not_allowed", "insufficient_scope", "forget_requires_secret_key"),
}


def classify(status: int, headers: Mapping[str, str], body: bytes | None) -> Outcome:
    """Return the outcome of a response; `body` is None when it could not be read to its end."""
    fields = _json_object(body)
    code = fields.get("error")
    answer = Response(status, code if isinstance(code, str) and _CODE.fullmatch(code) else "-")
    if status in {200, 202}:
        return _success(status, fields, body)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Throttled(answer, _retry_after_s(headers, fields))
    if status in {400, 413, 422}:
        return Rejected(answer)
    if status // 100 not in {3, 4} or status == HTTPStatus.REQUEST_TIMEOUT:
        return Ambiguous(str(status), status, answer.code)
    if status >= HTTPStatus.BAD_REQUEST and answer.code not in _VENDOR_CODES:
        return Filtered(answer)
    return _refusal_of_call(answer)


def classify_forget(status: int, headers: Mapping[str, str], body: bytes | None) -> Outcome:
    """As `classify`, for `/v1/forget`: a success also has `queued`.

    A filter's refusal counts as one of the key or the host: the body holds nothing but an id.
    """
    outcome = classify(status, headers, body)
    if isinstance(outcome, Filtered):
        return _refusal_of_call(outcome.answer)
    if not isinstance(outcome, Delivered):
        return outcome
    is_queued = status == HTTPStatus.OK and _json_object(body).get("queued") is True
    return outcome if is_queued else Ambiguous("unusable", status)


def _refusal_of_call(answer: Response) -> Outcome:
    return Unauthorized(answer) if answer.status in {401, 403} else Misdirected(answer)


def _success(status: int, fields: dict[str, Any], body: bytes | None) -> Outcome:
    if fields.get("ok") is not True:
        return Ambiguous("cut" if body in {None, b""} else "unusable", status)
    count = fields.get("count")
    return Delivered(count if type(count) is int else None)


def _json_object(body: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(body or b"")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _retry_after_s(headers: Mapping[str, str], fields: dict[str, Any]) -> float | None:
    """Return the requested wait: `Retry-After` (RFC 9110, 10.2.3), or the field of the body."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"-?\d{1,9}(\.\d+)?", text):
        return max(0.0, float(text))
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        wait_s = fields.get("retry_after_s")
    if isinstance(wait_s, bool) or not isinstance(wait_s, int | float):
        return None
    return max(0.0, float(wait_s))
