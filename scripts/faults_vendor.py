"""What the vendor, and whatever stands before it, may do to a request: the whole list.

Each fault is a rule of the sandbox with a name of its own. `spread` puts them in an
order that a seed decides, some requests apart, so that successes lie between.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from faults_producer import POISON

if TYPE_CHECKING:
    import random

    Rule = dict[str, Any]

PAGE = "<!doctype html><title>Bad gateway</title>"
# Longer than the request timeout of every scenario.
HANG_S = 8


def poison() -> dict[str, Rule]:
    """Return the refusal of every batch that holds a poison event; must stand first."""
    refusal = {"kind": "status", "status": 400, "body": '{"error":"invalid_payload"}'}
    return {"poison": {**refusal, "poison": True, "event": POISON}}


def throttles() -> dict[str, Rule]:
    """Return a 429 with each kind of `Retry-After`."""
    date = formatdate(time.time() + 12, usegmt=True)
    asked = {"seconds": "2", "date": date, "zero": "0", "negative": "-3", "garbage": "soon, please"}
    body = '{"error":"rate_limited"}'
    rules = {
        f"429 {name}": _status(429, body, headers={"Retry-After": value})
        for name, value in asked.items()
    }
    return {**rules, "429 without": _status(429, body)}


def errors() -> dict[str, Rule]:
    """Return 5xx before and after the rows were stored."""
    return {
        f"{status} {'after' if store else 'before'} storing": _status(status, store=store)
        for status in (500, 502, 503, 504)
        for store in (False, True)
    }


def breaks() -> dict[str, Rule]:
    """Return connections that end too soon, and answers that come too late or never."""
    rules: dict[str, Rule] = {
        "closed before reading": {"kind": "close_before_read"},
        "closed after storing": {"kind": "close_after_store"},
        "slow, but in time": {"kind": "slow", "latency_s": 1.0},
        "drip, in time": {"kind": "drip", "every_s": 0.002},
        "drip, too slow": {"kind": "drip", "every_s": 0.2},
    }
    for kind in ("cut_headers", "cut_body", "hang", "giant"):
        more = {"for_s": HANG_S} if kind == "hang" else {}
        for store in (False, True):
            when = "stored" if store else "not stored"
            rules[f"{kind}, {when}"] = {"kind": kind, "store": store, **more}
    for after_s in (0.2, 4):
        rules[f"504, stored {after_s} s later"] = {"kind": "late_apply", "after_s": after_s}
        rules[f"closed, stored {after_s} s later"] = {
            "kind": "late_apply",
            "after_s": after_s,
            "status": None,
        }
    return rules


def strange(elsewhere: str) -> dict[str, Rule]:
    """Return answers that mean something else than they seem to; `elsewhere` is another host."""
    rules = {
        f"{status} elsewhere": _status(status, "", headers={"Location": f"{elsewhere}/v1/batch"})
        for status in (301, 302, 303, 307, 308)
    }
    for store in (False, True):
        when = "stored" if store else "not stored"
        rules[f"ok:false, {when}"] = _status(202, '{"ok":false}', store=store)
        rules[f"200 page, {when}"] = _status(200, PAGE, store=store)
        rules[f"520 page, {when}"] = _status(520, PAGE, store=store)
    return rules


def refusals() -> dict[str, Rule]:
    """Return refusals of a key and of a body that is in order."""
    return {
        "401": _status(401, '{"error":"invalid_api_key"}'),
        "403": _status(403, '{"error":"insufficient_scope"}'),
        "400 once": _status(400, '{"error":"invalid_payload"}'),
        "413 once": _status(413, '{"error":"payload_too_large"}'),
    }


def everything(elsewhere: str) -> dict[str, Rule]:
    """Return all of them, once each, but for the poison."""
    return {**throttles(), **errors(), **breaks(), **strange(elsewhere), **refusals()}


def spread(rules: dict[str, Rule], chance: random.Random, apart: int) -> dict[str, Rule]:
    """Return the poison, and the rules in random order, each some requests after the last."""
    names = sorted(rules)
    chance.shuffle(names)
    placed = {
        name: {**rules[name], "after": index * apart + chance.randrange(apart)}
        for index, name in enumerate(names)
    }
    return {**poison(), **placed}


def steady() -> dict[str, Rule]:
    """Return faults that come back again and again, so that every step is reached."""
    return {
        **poison(),
        "401": {**refusals()["401"], "times": None, "every": 61},
        "403 of a filter": {**_status(403, PAGE), "times": None, "every": 53},
        "429": {**_status(429, '{"error":"rate_limited"}', headers={"Retry-After": "1"})}
        | {"times": None, "every": 23},
        "503 before storing": {**_status(503), "times": None, "every": 17},
        "500 after storing": {**_status(500, store=True), "times": None, "every": 19},
        "closed after storing": {"kind": "close_after_store", "every": 29},
        **slow(),
    }


def slow() -> dict[str, Rule]:
    """Return answers that take their time, so that whoever dies has requests under way."""
    return {"slow": {"kind": "slow", "latency_s": 0.3, "every": 1}}


def _status(status: int, body: str = '{"error":"internal_error"}', **more: Any) -> Rule:
    return {"kind": "status", "status": status, "body": body, **more}
