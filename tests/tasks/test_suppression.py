"""`is_erased`, and the receipt's `seen`: the two questions a program may ask about a person."""

import asyncio

import pytest

from mm_tasks import aclose, ais_erased, forget, is_erased, track
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import tag
from mm_tasks.errors import BufferUnavailable, ConfigurationError, InvalidEvent
from mm_tasks.testing import record
from tests.conftest import load_fences

KEYS = ProjectKeys("default")


def ais(*ids, **named):
    async def ask():
        try:
            return await ais_erased(*ids, **named)
        finally:
            await aclose()

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [is_erased, ais], ids=["sync", "async"])


@both
def test_each_id_of_a_fenced_person_is_erased_and_no_other(redis, stored, ask):  # noqa: ARG001 - sets the variables
    redis.sadd(KEYS.fence, tag("default", "user", "u"), tag("default", "anonymous", "a"))
    load_fences(redis, "default")

    assert ask("u")
    assert ask(anonymous_id="a")
    assert ask("other", anonymous_id="a")
    assert not ask("other")
    assert not ask("a")


@both
def test_an_unknown_is_never_a_no(redis, stored, fresh, ask):  # noqa: ARG001 - sets the variables
    redis.sadd(KEYS.fence, tag("default", "user", "u"))
    with pytest.raises(ConfigurationError, match="fences are not loaded"):
        ask("other")
    fresh(MM_TASKS_REDIS_URL="redis://127.0.0.1:1/0")
    with pytest.raises(BufferUnavailable) as away:
        ask("someone-secret")
    assert "someone" not in str(away.value)
    assert away.value.__cause__ is away.value.__context__ is None


@both
def test_somebody_must_be_named(stored, ask):  # noqa: ARG001 - sets the variables
    with pytest.raises(InvalidEvent, match="user_id: is required"):
        ask()


@both
def test_a_recorder_answers_for_its_own_requests(ask):
    with record():
        forget.delay("u", "dpo", anonymous_ids=["a"])

        assert ask("u")
        assert ask(anonymous_id="a")
        assert not ask("other")


@pytest.fixture
def erasing(stored, redis_url, fresh, tmp_path):  # noqa: ARG001 - sets its own variables first
    fresh(MM_TASKS_STATE_DIR=str(tmp_path), MM_TASKS_REDIS_URL=redis_url)


@pytest.mark.usefixtures("erasing")
def test_a_receipt_says_whether_there_was_a_trace_of_the_person():
    """An id that nobody has is acknowledged as any other: a slip of the pen looks like success."""
    track.delay("e", user_id="waits")
    track.delay("e", anonymous_id="visits")
    track.apply_async(("e",), {"user_id": "later"}, countdown=600)

    assert forget.delay("waits", "dpo").seen
    assert forget.delay("later", "dpo").seen
    assert forget.delay("nobody", "dpo", anonymous_ids=["visits"]).seen
    assert forget.delay("nobody ", "dpo").seen is False
    assert forget.delay("nobody ", "dpo").seen, "the erasure before"


@pytest.mark.usefixtures("erasing")
def test_a_large_buffer_is_not_searched_in_the_call():
    for _ in range(3):
        track.delay_many([{"event": "e", "user_id": "other"}] * 700)

    assert forget.delay("nobody", "dpo").seen is None


@pytest.mark.usefixtures("erasing")
def test_without_redis_nobody_knows(fresh):
    fresh(MM_TASKS_REDIS_URL="redis://127.0.0.1:1/0")

    assert forget.delay("nobody", "dpo").seen is None


@pytest.mark.usefixtures("erasing")
def test_the_setting_of_a_grace_holds_unless_the_call_states_another(fresh):
    from mm_tasks import runtime

    fresh(MM_TASKS_ERASURE_GRACE_S="600")
    ids = [forget.delay("a", "dpo").id, forget.delay("b", "dpo", grace_s=0).id]
    shown = [runtime.current().audit_store.queries.show(id_) for id_ in ids]

    assert [row["call_after"] is None for row in shown] == [False, True]
