"""Who may call what: the errors of keys, routes and methods."""

import pytest

from tests.sandbox.conftest import PUBLIC, READ, SECRET

EVENT = {"event": "signed_up"}
BODIES = {
    "track": EVENT,
    "batch": {"events": [EVENT]},
    "identify": {"anonymous_id": "a", "user_id": "u"},
    "forget": {"user_id": "u"},
}

HEADERS = {
    "no header": (None, 401, "missing_bearer_token"),
    "another scheme": (f"Basic {SECRET}", 401, "missing_bearer_token"),
    "nothing after Bearer": ("Bearer ", 401, "missing_bearer_token"),
    "unknown kind": ("Bearer xk_test_abc_not-a-real_secret", 401, "malformed_api_key"),
    "three parts": ("Bearer sk_test_abc", 401, "malformed_api_key"),
    "an empty part": ("Bearer sk__abc_secret", 401, "malformed_api_key"),
    "unknown key": ("Bearer sk_test_abc_other", 401, "invalid_api_key"),
    "kind of another key": ("Bearer pk_test_abc_not-a-real_secret", 401, "key_kind_mismatch"),
    "the valid one": (f"Bearer {SECRET}", 202, None),
}


@pytest.mark.parametrize(("header", "status", "code"), HEADERS.values(), ids=HEADERS.keys())
def test_a_key_that_is_not_known_is_refused_with_its_code(start, header, status, code):
    sandbox = start(keys=(SECRET,))
    headers = {"Authorization": header} if header else {}
    reply = sandbox.request("POST", "/v1/track", b'{"event":"a"}', headers)

    assert (reply.status, reply.json.get("error")) == (status, code)


ROUTES = ("track", "batch", "identify", "forget", "query", "stats")
ADMITTED = {"sk": ROUTES[:5], "pk": ROUTES[:3], "rk": ROUTES[4:], "ak": ()}


@pytest.mark.parametrize("kind", ADMITTED)
@pytest.mark.parametrize("route", ROUTES)
def test_a_kind_of_key_makes_only_its_own_calls(sandbox, kind, route):
    key = f"{kind}_test_abc_x"
    reply = sandbox.post(route, BODIES[route], key) if route in BODIES else sandbox.get(route, key)
    is_public_forget = (kind, route) == ("pk", "forget")
    code = "forget_requires_secret_key" if is_public_forget else "insufficient_scope"

    if route in ADMITTED[kind]:
        assert reply.status in {200, 202}
    else:
        assert (reply.status, reply.json["error"]) == (403, code)


def test_a_public_key_from_a_strange_page_is_refused(start):
    sandbox = start(origins=("https://shop.example",))
    seen = [
        sandbox.post("track", EVENT, PUBLIC, Origin="https://shop.example").status,
        sandbox.post("track", EVENT, PUBLIC, Origin="https://other.example").json["error"],
        sandbox.post("track", EVENT, SECRET, Origin="https://other.example").status,
    ]

    assert seen == [202, "origin_not_allowed", 202]


NO_CALLS = {
    **dict.fromkeys(["GET /v1/batch", "PUT /v1/track", "POST /v1/query", "HEAD /v1/query"], 405),
    **dict.fromkeys(["POST /v1/batch/", "POST /v2/batch", "POST /"], 404),
}


@pytest.mark.parametrize(("call", "status"), NO_CALLS.items(), ids=NO_CALLS)
def test_another_method_or_path_is_no_call(sandbox, call, status):
    reply = sandbox.request(*call.split(), None, {"Authorization": f"Bearer {SECRET}"})
    assert reply.status == status


def test_a_revoked_key_is_refused_from_the_next_request_on(sandbox):
    assert sandbox.post("track", EVENT).status == 202
    assert sandbox.switch("keys", ["sk_test_abc_another"]).status == 200
    revoked = sandbox.post("track", EVENT)
    assert sandbox.switch("keys", []).status == 200

    assert (revoked.status, revoked.json) == (401, {"error": "invalid_api_key"})
    assert sandbox.post("track", EVENT).status == 202


@pytest.mark.parametrize("value", [["sk_test"], "sk_test_abc_x", {"a": 1}, [7]])
def test_a_malformed_list_of_keys_changes_nothing(sandbox, value):
    sandbox.switch("keys", [SECRET])

    assert sandbox.switch("keys", value).status == 400
    assert sandbox.post("track", EVENT).status == 202
    assert sandbox.post("track", EVENT, "sk_test_abc_x").status == 401


def test_the_keys_of_one_project_see_its_rows_and_no_others(sandbox):
    sandbox.post("track", {"event": "ours"}, SECRET)
    sandbox.post("track", {"event": "live"}, "sk_live_abc_x")
    sandbox.post("track", {"event": "other"}, "sk_test_abd_x")

    assert [row["event_name"] for row in sandbox.get("query", READ).json["rows"]] == ["ours"]
