"""Events and Django's transactions, its middleware and its system checks, in this process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json

import django
import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import transaction
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncRequestFactory, RequestFactory
from django.test.utils import override_settings

from mm_tasks import context, identify, track
from mm_tasks.contrib.django import checks
from mm_tasks.contrib.django.commit import apply_async_on_commit, delay_on_commit
from mm_tasks.errors import BufferUnavailable, InvalidEvent
from mm_tasks.events import IdentifyEvent, TrackEvent
from tests.web.conftest import left_out, stored

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module", autouse=True)
def project():
    settings.configure(
        ALLOWED_HOSTS=["testserver"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=["mm_tasks.contrib.django"],
        USE_TZ=True,
    )
    django.setup()
    yield
    transaction.get_connection().close()


def names(redis):
    return [event["event"] for event in stored(redis)]


def test_an_event_is_stored_when_the_outermost_transaction_commits(redis):
    with transaction.atomic():
        with transaction.atomic():
            planned = delay_on_commit(track, "noted", user_id="u")
        assert names(redis) == []

    [event] = stored(redis)
    assert event["event_id"] == planned.id


def test_what_was_rolled_back_is_not_stored_and_what_goes_on_is(redis):
    with transaction.atomic():
        delay_on_commit(track, "outer", user_id="u")
        with contextlib.suppress(LookupError), transaction.atomic():
            delay_on_commit(track, "inner", user_id="u")
            raise LookupError

    assert names(redis) == ["outer"]


def test_outside_of_a_transaction_it_is_stored_at_once(redis):
    delay_on_commit(track, event="noted", user_id="u")
    delay_on_commit(identify, "a", "u", {"plan": "pro"})

    assert names(redis) == ["noted"]
    assert redis.llen("{mm:default}:identify:waiting") == 1


def test_an_invalid_event_raises_in_the_caller_and_not_at_the_commit(redis):
    with transaction.atomic():
        with pytest.raises(InvalidEvent):
            delay_on_commit(track, "noted", user_id=7)
        with pytest.raises(InvalidEvent):
            apply_async_on_commit(track, ("noted",), {"user_id": 7}, countdown=60)

    assert names(redis) == []


def test_the_event_has_what_was_around_the_call_and_not_around_the_commit(redis):
    around = context(anonymous_id="inner", url="https://i/")
    with transaction.atomic(), context(anonymous_id="outer"), around:
        delay_on_commit(track, "direct")
        apply_async_on_commit(track, ("plain",))
        apply_async_on_commit(track, ("later",), countdown=60)

    assert [event["anonymous_id"] for event in stored(redis)] == ["inner", "inner"]
    [message] = redis.lrange("mm.deliver", 0, -1)
    fields = json.loads(base64.b64decode(json.loads(message)["body"]))[1]
    assert fields == {"anonymous_id": "inner", "url": "https://i/"}


def test_a_redis_that_is_away_raises_out_of_the_transaction_unless_robust(fresh, redis_url):
    """Django's own rule: then the later callbacks do not run, although all is committed."""
    fresh(MM_TASKS_REDIS_URL="redis://127.0.0.1:1/0")
    ran = []

    def commit():
        with transaction.atomic():
            delay_on_commit(track, "noted", user_id="u")
            transaction.on_commit(lambda: ran.append("not reached"))

    with pytest.raises(BufferUnavailable):
        commit()
    with transaction.atomic():
        delay_on_commit(track, "noted", user_id="u", robust=True)
        transaction.on_commit(lambda: ran.append("reached"))

    assert ran == ["reached"]
    fresh(MM_TASKS_REDIS_URL=redis_url)


def test_the_options_are_no_fields_of_events():
    """Else an event could not give them."""
    assert not {"using", "robust", "task"} & {*TrackEvent.model_fields, *IdentifyEvent.model_fields}


def middleware(view):
    from mm_tasks.contrib.django.middleware import VisitMiddleware  # noqa: PLC0415 - reads settings

    return VisitMiddleware(view)


def page(_request):
    track.delay("seen")
    return HttpResponse("x")


def test_the_middleware_ends_with_the_request_and_lasts_through_its_stream(redis):
    def parts():
        track.delay("streamed")
        yield b"x"

    def view(request):
        page(request)
        return StreamingHttpResponse(parts())

    request = RequestFactory().get("/a%2Fb?c=d", headers={"cookie": "aid=u"})
    response = middleware(view)(request)
    track.delay("between")
    assert b"".join(response.streaming_content) == b"x"
    response.close()
    track.delay("after")

    found = [(event["event"], event.get("anonymous_id")) for event in stored(redis)]
    assert found == [("seen", "u"), ("between", None), ("streamed", "u"), ("after", None)]
    assert {event.get("url") for event in stored(redis)} == {"http://testserver/a/b?c=d", None}


def test_the_middleware_works_for_asynchronous_views(redis):
    async def parts():
        yield b"x"
        track.delay("streamed")

    async def view(_request):
        track.delay("seen")
        return StreamingHttpResponse(parts())

    async def main():
        request = AsyncRequestFactory().get("/a?c=d", headers={"cookie": "aid=u"})
        response = await middleware(view)(request)
        assert [part async for part in response] == [b"x"]
        track.delay("after")

    asyncio.run(main())
    found = [(event["event"], event.get("anonymous_id")) for event in stored(redis)]
    assert found == [("seen", "u"), ("streamed", "u"), ("after", None)]


def test_a_host_that_is_not_allowed_is_left_out_and_counted(redis):
    middleware(page)(RequestFactory().get("/a", headers={"host": "evil.example"}))

    [event] = stored(redis)
    assert "url" not in event
    assert left_out(redis) == 1


@override_settings(SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"))
def test_djangos_own_settings_say_what_a_proxy_is_believed(redis):
    headers = {"host": "testserver", "x-forwarded-proto": "https"}
    middleware(page)(RequestFactory().get("/a", headers=headers))

    assert stored(redis)[0]["url"] == "https://testserver/a"


@override_settings(MM_TASKS_VISIT={"issue_cookie": True})
def test_the_cookie_is_issued_and_caches_are_told():
    served = middleware(page)
    first = served(RequestFactory().get("/a"))
    again = served(RequestFactory().get("/a", headers={"cookie": "aid=u"}))
    skipped = served(RequestFactory().get("/healthz"))

    assert first.cookies["aid"]["samesite"] == "Lax"
    assert first["Vary"] == "Cookie"
    assert "aid" not in again.cookies
    assert "aid" not in skipped.cookies


OURS = "mm_tasks.contrib.django.middleware.VisitMiddleware"
CACHE = "django.middleware.cache.UpdateCacheMiddleware"
ISSUE = {"issue_cookie": True}
FOUND = {
    "nothing wrong": ({}, []),
    "a bad value": ({"MM_TASKS_LEASE_S": 3}, ["E001"]),
    "a misspelt name": ({"MM_TASKS_REDIS": "x"}, ["E002"]),
    "a bad option": ({"MM_TASKS_VISIT": {"skip": "("}}, ["E003"]),
    "an unknown option": ({"MM_TASKS_VISIT": {"cookies": "x"}}, ["E003"]),
    "proxies elsewhere": ({"MM_TASKS_VISIT": {"forwarded": ()}}, ["E003"]),
    "no middleware": ({"MM_TASKS_VISIT": ISSUE, "MIDDLEWARE": []}, ["W001"]),
    "inside a cache": ({"MM_TASKS_VISIT": ISSUE, "MIDDLEWARE": [CACHE, OURS]}, ["W002"]),
    "around a cache": ({"MM_TASKS_VISIT": ISSUE, "MIDDLEWARE": [OURS, CACHE]}, []),
}


@pytest.mark.parametrize(("given", "ids"), FOUND.values(), ids=FOUND.keys())
def test_the_system_checks_find_what_is_wrong(given, ids):
    with override_settings(**given):
        found = [*checks.settings_are_sound(None), *checks.visits_are_sound(None)]

    assert [message.id for message in found] == [f"mm_tasks.{one}" for one in ids]


@override_settings(MM_TASKS_VISIT={"skip": "("})
def test_a_bad_option_stops_the_start():
    with pytest.raises(ImproperlyConfigured, match="skip"):
        middleware(page)


def test_call_command_runs_the_command(capsys):
    with pytest.raises(SystemExit) as ended:
        call_command("mm_tasks", "status", "--json")

    assert ended.value.code == 0
    assert '"project": "default"' in capsys.readouterr().out
