"""Calls that a type checker must refuse, one in each marked line. Checked, never run."""

from mm_tasks import context, erasures, forget, identify, track
from mm_tasks.testing import record

track.delay()  # refused
track.delay("signup", "second")  # refused
track.delay(1)  # refused
track.delay("signup", usr_id="u")  # refused
track.delay("signup", user_id=42)  # refused
track.delay("signup", properties=[1])  # refused
track.delay("signup", timestamp=1_700_000_000)  # refused
track.delay("signup", country="DE")  # refused
track.delay("signup", event="twice")  # refused
track.delay(user_id="u")  # refused
track.delay_many([{"event": "e"}], on_error="ignore")  # refused
track.delay_many(["signup"])  # refused
track.apply_async(("signup",), {"usr_id": "u"})  # refused
track.apply_async((1,))  # refused
track.s("signup", usr_id="u")  # refused
track.si(user_id="u")  # refused
track.delay_on_commit("signup", usr_id="u")  # refused
identify.delay_on_commit(anonymous_id="a", plan="pro")  # refused
identify.delay("a", "u", "traits")  # refused
identify.delay(anonymous_id="a", user_id=1)  # refused
identify.delay(anonymous_id="a", plan="pro")  # refused
forget.delay(user_id="u")  # refused
forget.delay("u")  # refused
forget.delay(user_id="u", requested_by="dpo", reason="because")  # refused
forget.delay(user_id="u", requested_by="dpo", mode="later")  # refused
forget.delay(user_id=1, requested_by="dpo")  # refused
erasures.get(7)  # refused
erasures.list(state="later")  # refused
erasures.list("GDPR-1093")  # refused
erasures.cancel("id")  # refused
erasures.receipt("id", language="fr")  # refused
state = erasures.get("id").state  # refused
context(plan="pro")  # refused
fenced = track.delay("signup").fenced  # refused
error = forget.delay("u", "dpo").error  # refused
with record() as events:
    events.assert_tracked("signup", "second")  # refused
    events.fail_with("full")  # refused
