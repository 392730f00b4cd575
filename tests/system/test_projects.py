"""Two projects on one Redis, each with a worker, a beat, a key and a vendor of its own."""

import json

import pytest

from tests.system.processes import FAST, Stack, run

CALLS = """
from mm_tasks import app, forget, identify, track

for n in range(20):
    track.delay("plain", user_id="{0}")
    track.apply_async(("later",), {{"user_id": "{0}"}}, countdown=1)
    (track.s("chained", user_id="{0}") | identify.si("visitor", "{0}")).apply_async()
app.send_task("mm_tasks.track", ("by_name",), {{"user_id": "{0}"}})
track.apply_async(("strayed",), {{"user_id": "{0}"}}, queue="mm.{1}.deliver")
forget.delay(user_id="gone-{0}", requested_by="dpo")
forget.s(user_id="gone-{0}-too", requested_by="dpo").apply_async(countdown=1)
"""
EACH = {"plain": 20, "later": 20, "chained": 20, "by_name": 1, "strayed": 1}


@pytest.fixture
def projects(redis, redis_url, tmp_path):  # noqa: ARG001 - `redis` empties the server
    stacks = {}
    for name in ("left", "right"):
        folder = tmp_path / name
        folder.mkdir()
        stacks[name] = stack = Stack(redis_url, folder)
        stack.env |= {
            "MM_TASKS_PROJECT": name,
            "MILLIMETRIC_KEY": f"sk_test_{name}_not-a-real-secret",
            "MM_TASKS_ERASURE_PASSES_S": "0",
        }
    yield stacks
    for stack in stacks.values():
        stack.end()


def events(stack):
    bodies = [json.loads(body) for _, body in stack.get("bodies")]
    return [event for body in bodies for event in body.get("events", ())]


def test_nothing_crosses_over(projects):
    """Of 20 countdown events of one, 15 were delivered with the other's key to its vendor."""
    for name, stack in projects.items():
        stack.sandbox("--key", stack.env["MILLIMETRIC_KEY"])
        stack.worker("-B", "-P", "threads", *FAST)
        other = next(iter(projects.keys() - {name}))
        stack.produce(CALLS.format(name, other))
    for name, stack in projects.items():
        gone = {f"gone-{name}", f"gone-{name}-too"}
        stack.wait(lambda stack=stack: len(events(stack)) >= sum(EACH.values()), 40)
        stack.wait(lambda stack=stack: stack.get("summary")["identifies"] >= 20, 20)
        stack.wait(
            lambda stack=stack, gone=gone: {f["user_id"] for f in stack.get("forgets")} == gone, 20
        )

        found = events(stack)
        assert {event["user_id"] for event in found} == {name}
        assert {n: [e["event"] for e in found].count(n) for n in EACH} == EACH
        assert stack.get("summary")["identifies"] == 20
        report = run(stack.env, "health").stdout
        assert f"on this server too: {next(iter(projects.keys() - {name}))}" in report
        assert "problem" not in report
        assert stack.read(stack.processes[1]).count("message_of_another_project") == 1
