"""Erasures in Django's admin, through the test client and all of Django's middleware."""

import logging
import re
from pathlib import Path

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connections
from django.test import Client
from django.test.utils import override_settings
from django.urls import path

from mm_tasks import erasures, forget, runtime, track
from mm_tasks.contrib.django import checks
from mm_tasks.erasure.models import VendorAck
from tests.contrib.django_project import configure
from tests.erasure.stores import USER, VISITOR

HOME = "/admin/mm_tasks/erasures/"
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]


class Urls:
    """A module of URLs."""

    urlpatterns = ()


@pytest.fixture(scope="module", autouse=True)
def project():
    configure()
    from django.contrib import admin  # not without settings

    Urls.urlpatterns = [path("admin/", admin.site.urls)]
    call_command("migrate", verbosity=0)
    with override_settings(MIDDLEWARE=MIDDLEWARE, ROOT_URLCONF=Urls):
        yield
    connections.close_all()


@pytest.fixture(autouse=True)
def here(redis, redis_url, fresh, tmp_path):  # noqa: ARG001 - `redis` empties the server
    """Let this process use this Redis and an audit database of the test's own."""
    fresh(MM_TASKS_REDIS_URL=redis_url, MM_TASKS_STATE_DIR=str(tmp_path))


@pytest.fixture
def client():
    """A superuser's browser, which sends the token that a page gave it."""
    users = get_user_model().objects
    users.all().delete()
    client = Client(enforce_csrf_checks=True)
    client.force_login(users.create_superuser("anna", "anna@example.org"))
    return client


def staff(name="bert"):
    client = Client()
    client.force_login(get_user_model().objects.create_user(name, is_staff=True))
    return client


def post(client, url, **fields):
    """Open a page with a form, and send its form with these fields."""
    page = client.get(url)
    assert page.status_code == 200
    *_, token = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', text(page))
    return client.post(url, {**fields, "csrfmiddlewaretoken": token})


def asked(**fields):
    return {"user_id": USER, "requested_by": "staff-1", "mode": "suppress", **fields}


def text(response):
    return response.content.decode()


def test_an_officer_requests_follows_cancels_and_hands_over_a_receipt(client):
    index = client.get("/admin/")
    assert HOME in text(index)
    form = client.get(HOME + "request/")
    assert f'value="staff-{get_user_model().objects.get().pk}"' in text(form)
    confirm = post(client, HOME + "request/", **asked(ticket="GDPR-1", anonymous_ids=VISITOR))
    assert USER in text(confirm)
    assert erasures.list() == ()
    fields = asked(ticket="GDPR-1", anonymous_ids=VISITOR, confirmed="yes")
    done = post(client, HOME + "request/", **fields)

    [erasure] = erasures.list()
    assert done.headers["Location"] == f"{HOME}{erasure.id}/"
    assert (erasure.tickets, erasure.anonymous, erasure.state) == (("GDPR-1",), 1, "fenced")
    one = client.get(done.headers["Location"])
    assert "events of the person are refused" in text(one)
    assert "Accepted: events of this person are refused" in text(one)
    act = post(client, f"{HOME}{erasure.id}/cancel/", requested_by="staff-1")
    assert act.status_code == 302
    assert erasures.get(erasure.id).state == "cancelled"
    receipt = client.get(f"{HOME}{erasure.id}/receipt/")
    assert "Record of a request for erasure" in text(receipt)


def test_a_receipt_is_shown_and_downloaded_for_each_reader_and_language(client, fresh):
    fresh(MM_TASKS_CONTROLLER="Example Ltd, Exampletown")
    url = f"{HOME}{forget.delay(USER, 'dpo').id}/receipt/"

    german = client.get(f"{url}?audience=person&language=de")
    assert "Bestätigung" in text(german)
    page = client.get(f"{url}?audience=person&language=de&form=html")
    assert text(page).lower().startswith("<!doctype html>")
    assert '-person-de.html"' in page.headers["Content-Disposition"]
    facts = client.get(f"{url}?form=json").json()
    assert (facts["receipt"], facts["lang"]) == ("authority", "en")
    assert (
        client.get(f"{url}?form=text&audience=nobody").headers["Content-Type"].startswith("text/")
    )


def test_a_receipt_for_a_person_needs_the_controller(client):
    url = f"{HOME}{forget.delay(USER, 'dpo').id}/receipt/"
    refused = client.get(f"{url}?audience=person")

    assert refused.status_code == 503
    assert "MM_TASKS_CONTROLLER" in text(refused)


def test_no_page_but_the_confirmation_and_no_log_has_an_id_of_a_person(client, caplog):
    caplog.set_level(logging.DEBUG)
    post(client, HOME + "request/", **asked(anonymous_ids=VISITOR, confirmed="yes"))
    [erasure] = erasures.list()
    found = post(client, HOME + "find/", user_id=USER)

    assert erasure.id in text(found)
    assert not found.has_header("Location")
    pages = ("", f"{erasure.id}/", f"{erasure.id}/receipt/", f"{erasure.id}/cancel/", "find/")
    shown = "".join(text(client.get(HOME + page)) for page in pages) + caplog.text
    assert not re.search(f"{USER}|{VISITOR}", shown)


def test_the_confirmation_says_how_many_events_wait_before_anything_is_done(client, fresh):
    none = post(client, HOME + "request/", **asked())
    track.delay("bought", user_id=USER)
    track.delay("seen", anonymous_id=VISITOR)
    some = post(client, HOME + "request/", **asked(anonymous_ids=VISITOR))
    fresh(MM_TASKS_REDIS_URL="redis://127.0.0.1:1/0")
    away = post(client, HOME + "request/", **asked())

    assert "Nothing is waiting here" in text(none)
    assert "Waiting events of this person: 2." in text(some)
    assert "Redis does not answer" in text(away)
    assert erasures.list() == ()


def test_a_search_in_the_url_finds_nothing(client):
    """A URL is in the browser's history, and in the logs of servers and proxies."""
    erasure = forget.delay(USER, "dpo").id

    assert erasure not in text(client.get(f"{HOME}find/?user_id={USER}"))


@pytest.mark.parametrize("id_", ["u ", "u\t", "\u00a0u", "u\u200b", "u\u200bv"], ids=ascii)
def test_an_id_with_a_character_that_nobody_sees_is_refused_unless_meant(client, id_):
    refused = post(client, HOME + "request/", **asked(user_id=id_, confirmed="yes"))
    assert "check “exactly as typed”" in text(refused)
    assert erasures.list() == ()

    post(client, HOME + "request/", **asked(user_id=id_, exact="on", confirmed="yes"))
    assert len(erasures.find(id_)) == 1


def test_a_wrong_field_is_named_at_the_form_and_nothing_is_accepted(client):
    fields = asked(requested_by="anna@example.org", ticket=f"T-{USER}", confirmed="yes")
    refused = post(client, HOME + "request/", **fields)

    assert text(refused).count("must be an opaque reference") == 1
    assert text(refused).count("must not hold an id of the subject") == 1
    assert erasures.list() == ()


def test_the_list_is_filtered_and_has_pages_the_newest_first(client):
    ids = [forget.delay(f"user {n}", "dpo", ticket=f"T-{n % 2}").id for n in range(52)]
    erasures.cancel(ids[3], requested_by="dpo")

    def shown(query):
        return re.findall(r"erasures/([0-9a-f-]{36})/", text(client.get(HOME + query)))

    assert shown("") == ids[:1:-1]
    assert shown("?page=2") == ids[1::-1]
    assert shown("?ticket=T-1") == ids[51::-2]
    assert shown("?state=cancelled") == [ids[3]]
    assert shown("?state=cancelled&ticket=T-0") == shown("?page=99999999&ticket=none") == []


def test_a_blocked_erasure_offers_a_retry_and_a_completed_one_the_lift(client):
    steps = runtime.current().audit_store.steps
    blocked, done = forget.delay(USER, "dpo").id, forget.delay("another", "dpo").id
    answers = {blocked: VendorAck(401, "unauthorized:key", "waiting_key", 60)}
    for erasure in (blocked, done):
        claim = steps.mark_purged(steps.claim(erasure, 60), {})
        claim = steps.mark_quiesced(claim, (0,))
        steps.result(steps.intent(claim), answers.get(erasure, VendorAck(200, "acknowledged")))
        steps.complete(claim) if erasure == done else steps.release(claim)

    for erasure, action in ((blocked, "retry"), (done, "lift")):
        page = text(client.get(f"{HOME}{erasure}/"))
        assert erasures.get(erasure).actions == (action,)
        assert f"{erasure}/{action}/" in page
        assert f"{erasure}/cancel/" not in page
        post(client, f"{HOME}{erasure}/{action}/", requested_by="staff-1")
    assert erasures.timeline(blocked)[-1].entry == "retried"
    assert erasures.get(done).state == "lifted"
    again = post(client, f"{HOME}{done}/lift/", requested_by="staff-1")
    assert again.status_code == 302
    assert "Refused: lifted may not follow the state lifted." in text(client.get(f"{HOME}{done}/"))


def test_without_the_token_of_a_page_nothing_is_done(client):
    erasure = forget.delay(USER, "dpo").id

    for url, fields in ((f"{erasure}/cancel/", {}), ("request/", asked(confirmed="yes"))):
        assert client.post(HOME + url, {"requested_by": "x", **fields}).status_code == 403
    assert erasures.get(erasure).state == "fenced"
    assert len(erasures.list()) == 1


def may_view(_user, action):
    return action == "view"


def test_only_superusers_see_erasures_unless_a_function_of_the_host_says_so(client):
    erasure = forget.delay(USER, "dpo").id
    pages = ("", "find/", "request/", f"{erasure}/", f"{erasure}/receipt/", f"{erasure}/cancel/")
    colleague = staff()

    assert HOME not in text(colleague.get("/admin/"))
    assert {colleague.get(HOME + page).status_code for page in pages} == {403}
    with override_settings(MM_TASKS_ERASURES_ALLOWED=f"{__name__}.may_view"):
        assert HOME in text(colleague.get("/admin/"))
        codes = [colleague.get(HOME + page).status_code for page in pages]
        assert codes == [200, 200, 403, 200, 200, 403]
        assert "cancel/" not in text(colleague.get(f"{HOME}{erasure}/"))
    assert Client().get(HOME).headers["Location"].startswith("/admin/login/")
    assert client.get(f"{HOME}{erasure}/erase/").status_code == 404
    assert client.get(f"{HOME}0197c2a4-0000-7000-8000-000000000000/").status_code == 404


@pytest.mark.parametrize("function", ["nothing.there", 7])
def test_a_function_that_is_none_is_reported_by_the_system_check(function):
    with override_settings(MM_TASKS_ERASURES_ALLOWED=function):
        assert [one.id for one in checks.allowed_is_sound(None)] == ["mm_tasks.E004"]
        assert checks.settings_are_sound(None) == []


def test_an_audit_database_that_is_away_is_said_in_words(client, fresh):
    fresh(MM_TASKS_AUDIT_URL="postgresql://127.0.0.1:1/nothing")

    page = client.get(HOME)
    assert page.status_code == 503
    assert "audit database error" in text(page)


def test_the_pages_bring_no_migration_no_content_type_and_no_script():
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)

    content_types = apps.get_model("contenttypes", "ContentType").objects
    assert not content_types.filter(app_label="mm_tasks")
    pages = "".join(page.read_text() for page in Path(checks.__file__).parent.rglob("*.html"))
    assert "<form" in pages
    assert not re.search(r"<script|<style| style=| on\w+=", pages)
