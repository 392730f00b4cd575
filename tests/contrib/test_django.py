"""Events and Django's transactions, its middleware and its system checks, in this process."""

import asyncio
import contextlib
import io

import pytest
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.core.management import call_command
from django.db import connections, transaction
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, AsyncRequestFactory, Client, RequestFactory
from django.test.utils import override_settings
from django.urls import clear_url_caches, path
from django.views.decorators.cache import cache_control

from mm_tasks import context, identify, track
from mm_tasks.contrib.django import checks
from mm_tasks.errors import BufferUnavailable, InvalidEvent
from mm_tasks.events.event_fields import IDENTIFY_FIELDS, TRACK_FIELDS
from tests.conftest import waiting_events as stored
from tests.contrib.conftest import dropped_fields
from tests.contrib.django_project import configure

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module", autouse=True)
def project():
    configure()
    with override_settings(MIDDLEWARE=[OURS], ROOT_URLCONF=Pages):
        yield
    connections.close_all()


class Pages:
    """A module of URLs."""

    urlpatterns = ()


@pytest.fixture
def visit(monkeypatch):
    """Return a function that requests a view through all layers of Django."""

    def request(view, target="/a", **headers):
        monkeypatch.setattr(Pages, "urlpatterns", [path(target.lstrip("/"), view)])
        clear_url_caches()
        if iscoroutinefunction(view):
            client = AsyncClient(raise_request_exception=False)
            return asyncio.run(client.get(target, headers=headers))
        return Client(raise_request_exception=False).get(target, headers=headers)

    return request


def names(redis):
    return [event["event"] for event in stored(redis)]


def noted(redis):
    return [(event["event"], event.get("anonymous_id")) for event in stored(redis)]


def fail(event):
    """Track an event in the current transaction and fail."""
    track.delay_on_commit(event)
    raise LookupError


def test_an_event_is_stored_when_the_outermost_transaction_commits(redis):
    with transaction.atomic():
        with transaction.atomic():
            planned = track.delay_on_commit("noted", user_id="u")
        with contextlib.suppress(LookupError), transaction.atomic():
            fail("in a rolled back savepoint")
        assert names(redis) == []

    [event] = stored(redis)
    assert event["event_id"] == planned.id


def test_outside_a_transaction_an_event_is_stored_at_once(redis):
    track.delay_on_commit(event="noted", user_id="u")
    identify.delay_on_commit("a", "u", {"plan": "pro"})

    assert names(redis) == ["noted"]
    assert redis.llen("{mm:default}:identify:waiting") == 1


def test_each_database_has_its_own_transaction(redis):
    with contextlib.suppress(LookupError), transaction.atomic(using="other"):
        track.delay_on_commit("rolled back", user_id="u", using="other")
        fail("of default")
    with transaction.atomic(), transaction.atomic(using="other"):
        track.delay_on_commit("of other", user_id="u", using="other")
        with contextlib.suppress(LookupError), transaction.atomic():
            raise LookupError

    assert names(redis) == ["of default", "of other"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_view_in_djangos_transaction_tracks_at_its_commit(redis, visit, monkeypatch, fails):
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)

    def view(_request):
        track.delay_on_commit("ordered")
        assert names(redis) == []
        if fails:
            raise LookupError
        return HttpResponse("x")

    assert visit(view, cookie="aid=u").status_code == (500 if fails else 200)
    assert noted(redis) == ([] if fails else [("ordered", "u")])


def test_an_asynchronous_view_has_its_transaction_in_a_synchronous_function(redis, visit):
    """Django has no transactions for coroutines, and raises an error."""

    async def view(_request):
        with pytest.raises(SynchronousOnlyOperation):
            track.delay_on_commit("refused")
        await sync_to_async(transaction.atomic(track.delay_on_commit))("ordered")
        with contextlib.suppress(LookupError):
            await sync_to_async(transaction.atomic(fail))("failed")
        await sync_to_async(connections.close_all)()
        return HttpResponse("x")

    assert visit(view, cookie="aid=u").status_code == 200
    assert noted(redis) == [("ordered", "u")]


def test_an_invalid_event_raises_in_the_caller_and_not_at_the_commit(redis):
    with transaction.atomic():
        with pytest.raises(InvalidEvent):
            track.delay_on_commit("noted", user_id=7)
        with pytest.raises(InvalidEvent):
            track.apply_async_on_commit(("noted",), {"user_id": 7}, countdown=60)
        with pytest.raises(InvalidEvent):
            track.apply_async_on_commit(("noted",), {"user_id": "7"}, countdown="60")

    assert names(redis) == []


def test_the_event_has_the_context_of_the_call_and_not_of_the_commit(redis):
    around = context(anonymous_id="inner", url="https://i/")
    with transaction.atomic(), context(anonymous_id="outer"), around:
        track.delay_on_commit("direct")
        track.apply_async_on_commit(("plain",))
        track.apply_async_on_commit(("later",), countdown=60)

    assert [event["anonymous_id"] for event in stored(redis)] == ["inner", "inner"]
    [member] = redis.zrange("{mm:default}:track:scheduled", 0, -1)
    assert b'"anonymous_id":"inner"' in member
    assert b'"url":"https://i/"' in member
    assert redis.llen("mm.deliver") == 0


def test_a_redis_that_is_away_raises_out_of_the_transaction_only_if_told_to(fresh, redis_url):
    """By Django's rule the later callbacks do not run then, although all is committed."""
    fresh(MM_TASKS_REDIS_URL="redis://127.0.0.1:1/0")
    ran = []

    def commit():
        with transaction.atomic():
            track.delay_on_commit("noted", user_id="u", robust=False)
            transaction.on_commit(lambda: ran.append("not reached"))

    with pytest.raises(BufferUnavailable):
        commit()
    with transaction.atomic():
        track.delay_on_commit("noted", user_id="u")
        track.apply_async_on_commit(("noted",), {"user_id": "u"})
        transaction.on_commit(lambda: ran.append("reached"))

    assert ran == ["reached"]
    fresh(MM_TASKS_REDIS_URL=redis_url)


def test_no_option_of_on_commit_is_a_field_of_events():
    """Otherwise an event could not have the field."""
    assert not {"using", "robust", "task"} & {*TRACK_FIELDS, *IDENTIFY_FIELDS}


def middleware(view):
    from mm_tasks.contrib.django.middleware import VisitMiddleware

    return VisitMiddleware(view)


def page(_request):
    track.delay("seen")
    return HttpResponse("x")


@override_settings(MM_TASKS_VISIT={"best_effort": True})
def test_with_best_effort_no_event_of_a_page_or_its_stream_raises(fresh, redis_url):
    fresh(MM_TASKS_REDIS_URL="redis://127.0.0.1:1/0")

    def stream(request):
        page(request)
        return StreamingHttpResponse(str(track.delay("streamed").reason) for _ in range(2))

    response = middleware(stream)(RequestFactory().get("/"))

    assert list(response) == [b"unavailable"] * 2
    with pytest.raises(BufferUnavailable):
        track.delay("after")
    fresh(MM_TASKS_REDIS_URL=redis_url)


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

    assert noted(redis) == [("seen", "u"), ("between", None), ("streamed", "u"), ("after", None)]
    assert {event.get("url") for event in stored(redis)} == {"http://testserver/a/b?c=d", None}


def test_the_middleware_works_for_asynchronous_views(redis):
    async def parts():
        yield b"x"
        track.delay("streamed")

    async def view(_request):
        track.delay("seen")
        return StreamingHttpResponse(parts())

    async def main():
        request = AsyncRequestFactory().get("/a?c=ä", headers={"cookie": "aid=u"})
        response = await middleware(view)(request)
        assert [part async for part in response] == [b"x"]
        track.delay("after")

    asyncio.run(main())
    assert noted(redis) == [("seen", "u"), ("streamed", "u"), ("after", None)]
    assert stored(redis)[0]["url"] == "http://testserver/a?c=%C3%A4"


TRUSTED = {"SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https")}
PROXIED = {"host": "testserver", "x-forwarded-proto": "https"}
EVIL, MOUNT = {"host": "evil.example"}, {"FORCE_SCRIPT_NAME": "/shop"}
URLS = {
    "a host that is not allowed": (RequestFactory, {}, EVIL, None),
    "a host that is not allowed, ASGI": (AsyncRequestFactory, {}, EVIL, None),
    "trusted headers of a proxy": (RequestFactory, TRUSTED, PROXIED, "https://testserver/a"),
    "a mount point": (RequestFactory, MOUNT, {}, "http://testserver/shop/a"),
    "a mount point, ASGI": (AsyncRequestFactory, MOUNT, {}, "http://testserver/shop/a"),
}


@pytest.mark.parametrize(("factory", "values", "headers", "url"), URLS.values(), ids=URLS)
def test_the_url_follows_djangos_settings_or_is_dropped(redis, values, headers, url, factory):
    with override_settings(**values):
        middleware(page)(factory().get("/a", headers=headers))

    [event] = stored(redis)
    assert event.get("url") == url
    assert dropped_fields(redis) == (url is None)


def test_a_file_is_not_wrapped():
    file = io.BytesIO(b"x")
    response = middleware(lambda _: FileResponse(file))(RequestFactory().get("/a"))

    assert response.file_to_stream is file
    response.close()


@override_settings(MM_TASKS_VISIT={"issue_cookie": True})
def test_the_cookie_is_set_in_private_responses_only(redis, visit):
    def own(request):
        response = page(request)
        response.set_cookie("aid", "own")
        return response

    first, own_one = visit(page), visit(own)

    assert first.cookies["aid"].value == stored(redis)[0]["anonymous_id"]
    assert first.cookies["aid"]["samesite"] == "Lax"
    assert first["Cache-Control"] == "private"
    assert own_one.cookies["aid"].value == "own"
    assert not visit(page, cookie="aid=u").cookies
    assert not visit(page, target="/healthz").cookies
    assert not visit(cache_control(public=True)(page)).cookies


FROM_CACHE = "django.middleware.cache.FetchFromCacheMiddleware"
INTO_CACHE = "django.middleware.cache.UpdateCacheMiddleware"
OURS = "mm_tasks.contrib.django.middleware.VisitMiddleware"
ORDERS = {"inside": [INTO_CACHE, OURS, FROM_CACHE], "around": [OURS, INTO_CACHE, FROM_CACHE]}


@override_settings(MM_TASKS_VISIT={"issue_cookie": True})
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_djangos_cache_gives_no_visitors_cookie_to_others(redis, visit, order):
    caches["default"].clear()
    with override_settings(MIDDLEWARE=order):
        answers = [visit(page), visit(page, cookie="aid=u"), visit(page), visit(page)]

    issued = [answer.cookies["aid"].value for answer in answers if answer.cookies]
    assert len(set(issued)) == len(issued)
    assert len(names(redis)) < len(answers)  # the cache was in use


ISSUE = {"issue_cookie": True}
WRONG_SETTINGS = {
    "nothing wrong": ({}, []),
    "a bad value": ({"MM_TASKS_LEASE_S": 3}, ["E001"]),
    "a misspelt name": ({"MM_TASKS_REDIS": "x"}, ["E002"]),
    "a bad option": ({"MM_TASKS_VISIT": {"skip": "("}}, ["E003"]),
    "an unknown option": ({"MM_TASKS_VISIT": {"cookies": "x"}}, ["E003"]),
    "proxies elsewhere": ({"MM_TASKS_VISIT": {"forwarded": ()}}, ["E003"]),
    "no options": ({"MM_TASKS_VISIT": None}, ["E003"]),
    "no middleware": ({"MM_TASKS_VISIT": ISSUE, "MIDDLEWARE": []}, ["W001"]),
    "with middleware": ({"MM_TASKS_VISIT": ISSUE, "MIDDLEWARE": [OURS]}, []),
}


@pytest.mark.parametrize(("values", "numbers"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS.keys())
def test_the_system_checks_report_wrong_settings(values, numbers):
    with override_settings(**values):
        messages = [*checks.settings_are_sound(None), *checks.visits_are_sound(None)]

    assert [message.id for message in messages] == [f"mm_tasks.{number}" for number in numbers]


@override_settings(MM_TASKS_VISIT={"skip": "("})
def test_a_bad_option_stops_the_start():
    with pytest.raises(ImproperlyConfigured, match="skip"):
        middleware(page)


def test_call_command_runs_the_command(capsys):
    with pytest.raises(SystemExit) as ended:
        call_command("mm_tasks", "status", "--json")

    assert ended.value.code == 0
    assert '"project": "default"' in capsys.readouterr().out
