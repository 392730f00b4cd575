"""Calls that a type checker must accept. Checked by `test_types`, never run."""

import asyncio
from datetime import UTC, datetime
from typing import Any, assert_type

from celery import Celery, chain

import mm_tasks
from mm_tasks import ErasureReceipt, Receipt, erasures, forget, identify, track
from mm_tasks.erasures import Checkpoint, Erasure, ErasurePass, TimelineEntry
from mm_tasks.events.typed_dicts import TrackItem
from mm_tasks.testing import Recorded, Recorder, Sandbox, record, serve_sandbox

assert_type(track.delay("signup"), Receipt)
assert_type(track.delay(event="signup", user_id="user_42"), Receipt)
track.delay(
    "signup",
    event_id="e1",
    timestamp=datetime.now(UTC),
    anonymous_id="u_abc",
    user_id=None,
    session_id="s",
    url="https://example.com",
    path="/",
    referrer="https://example.org",
    properties={"plan": "free", "items": [1, 2.5, None]},
)
track.delay("signup", timestamp="2026-01-01T00:00:00Z")

items: list[TrackItem] = [{"event": "purchase", "user_id": "u"}]
assert_type(track.delay_many(items), list[Receipt])
track.delay_many([{"event": "purchase", "properties": {"sum": 3}}], on_error="skip")
track.delay_many({"event": "purchase", "user_id": f"u{n}"} for n in range(3))
track.delay(**items[0])
rows: list[dict[str, Any]] = [{"event": "read from a file"}]
track.delay_many(rows)
track.delay(**rows[0])

assert_type(track.apply_async(("signup",), {"user_id": "u"}), Receipt)
assert_type(track.apply_async(("signup",), {"user_id": "u"}, countdown=5), Receipt)
assert_type(track.apply_async(("signup",), eta=datetime(2026, 1, 31, tzinfo=UTC)), Receipt)
sent: str = track.apply_async(("signup",), {"user_id": "u"}, queue="mm.deliver").id
track.apply_async(kwargs={"event": "signup"}, countdown=5, queue="mm.deliver")
chain(track.s("signup", user_id="u"), track.si("signup"), track.s(user_id="u"))

planned: str = track.delay_on_commit("signup", user_id="u", using="orders", robust=True).id
identify.delay_on_commit(anonymous_id="u_abc", user_id="user_42")
assert_type(identify.delay("u_abc", "user_42"), Receipt)
identify.delay("u_abc", "user_42", {"plan": "pro"})
identify.delay(anonymous_id="u_abc", user_id="user_42", traits={"plan": "pro"})
with mm_tasks.context(anonymous_id="u_abc"):
    identify.delay(user_id="user_42")
with mm_tasks.best_effort(), mm_tasks.best_effort(enabled=False):
    reason: str | None = track.delay("page_viewed").reason
identify.s(anonymous_id="u_abc", user_id="user_42")

assert_type(forget.delay(user_id="u", requested_by="dpo"), ErasureReceipt)
forget.delay("u", "dpo", ticket="GDPR-1093")
forget.delay("u", requested_by="dpo", reason="ccpa", mode="once")
forget.delay(
    user_id="u", requested_by="dpo", received_at=datetime.now(UTC), anonymous_ids={"u_abc"}
)
forget.s(user_id="u", requested_by="dpo")

assert_type(erasures.get("id"), Erasure | None)
assert_type(erasures.find(user_id="u"), tuple[Erasure, ...])
for erasure in erasures.list(
    ticket="GDPR-1093", state="attention", since=datetime.now(UTC), limit=10, offset=10
):
    due: datetime = erasure.due_at
    passes: tuple[ErasurePass, ...] | None = erasure.passes
    assert_type(erasures.timeline(erasure.id), tuple[TimelineEntry, ...])
    assert_type(erasures.receipt(erasure.id), str)
    erasures.receipt(erasure.id, audience="person", form="html", language="de")
    if "cancel" in erasure.actions:
        erasures.cancel(erasure.id, requested_by="dpo")
erasures.list(state=("retrying", "attention"))
erasures.lift("id", requested_by="dpo")
erasures.retry("id", requested_by="dpo")


def hook(checkpoint: Checkpoint) -> None:
    """Keep a checkpoint, as `MM_TASKS_CHECKPOINT_HOOK` does."""
    assert_type(checkpoint.size, int)
    assert_type(checkpoint.head, str)


with record() as events:
    assert_type(events, Recorder)
    assert_type(events.assert_tracked("signup", user_id="u"), Recorded)
with serve_sandbox() as sandbox:
    assert_type(sandbox, Sandbox)


async def main() -> None:
    """Call what is awaited."""
    assert_type(await track.adelay("signup", user_id="u"), Receipt)
    assert_type(await track.adelay(event="signup"), Receipt)
    assert_type(await track.adelay_many(items), list[Receipt])
    assert_type(await identify.adelay("u_abc", "user_42"), Receipt)
    await mm_tasks.aclose()


asyncio.run(main())
mm_tasks.install(Celery("host"))
