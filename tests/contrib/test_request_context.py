"""The fields of a request: only valid ones, whatever the client sent."""

from http.cookies import SimpleCookie
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_tasks import runtime
from mm_tasks.contrib.asgi import ScopeRequest, raw_path
from mm_tasks.contrib.request_context import Request, Visit, VisitOptions, cookie, origin_form
from mm_tasks.contrib.wsgi import raw_target
from mm_tasks.errors import ConfigurationError
from mm_tasks.events.encode import encode_track
from tests.contrib.conftest import dropped_fields


class FakeRequest(Request):
    """A request as a server may describe it."""

    def __init__(self, headers=(), scheme="http", target="/a?b=c"):
        super().__init__({})
        self.headers = dict(headers)
        self.origin = scheme
        self.path, _, self.query = target.partition("?")

    def header(self, name):
        return self.headers.get(name)

    def scheme(self):
        return self.origin

    def target(self):
        return self.path, self.query

    def inner_path(self):
        return self.path


HOST = {"host": "shop.example"}
LONG_COOKIE = {"cookie": "aid=" + "x" * 129}


@pytest.fixture(autouse=True)
def counted(here, redis):  # noqa: ARG001 - `here` lets this process count there
    """Return a function that returns the number of dropped fields."""
    return lambda: dropped_fields(redis)


def fields(headers=(), scheme="http", target="/a?b=c", **options):
    return dict(Visit(VisitOptions(**options), FakeRequest(headers, scheme, target)).fields())


def test_a_visit_has_url_path_referrer_and_anonymous_id_if_the_request_has_them(counted):
    headers = {**HOST, "referer": "https://r.example/x?y", "cookie": "a=b; aid=u_abc"}

    assert fields() == {"path": "/a"}
    expected = {"url": "http://shop.example/a?b=c", "referrer": "https://r.example/x?y"}
    assert fields(headers) == {**expected, "path": "/a", "anonymous_id": "u_abc"}
    assert counted() == 0


ORIGINS = {
    "the default port of http is omitted": ("http", "h:80", (), "http://h/a"),
    "the default port of https is omitted": ("https", "h:443", (), "https://h/a"),
    "another port stays": ("https", "h:80", (), "https://h:80/a"),
    "IPv6": ("http", "[::1]:8000", (), "http://[::1]:8000/a"),
    "a proxy is not trusted": ("http", "h", (), "http://h/a"),
    "the scheme of a trusted proxy": ("http", "h", ("X-Forwarded-Proto",), "https://h/a"),
    "the host of a trusted proxy": ("http", "h", ("x-forwarded-host",), "http://near.example/a"),
    "an odd scheme is http": ("gopher", "h", (), "http://h/a"),
}


@pytest.mark.parametrize(("scheme", "host", "forwarded", "url"), ORIGINS.values(), ids=ORIGINS)
def test_scheme_and_host_are_those_of_the_trusted_source(scheme, host, forwarded, url):
    headers = {"x-forwarded-proto": "http, HTTPS", "x-forwarded-host": "far.example, near.example"}
    headers["host"] = host
    assert fields(headers, scheme, "/a", forwarded=forwarded)["url"] == url


@pytest.mark.parametrize("host", ["", "a b", "a/b", "u@h", "h:x", "[::1", "h\x00", "ä.example"])
def test_without_a_valid_host_there_is_no_url(host, counted):
    assert fields({"host": host.encode().decode("latin-1")}) == {"path": "/a"}
    assert counted() == (1 if host else 0)


def test_fields_that_are_too_long_are_dropped_and_counted_once_and_the_others_kept(counted):
    headers = {**HOST, "referer": "https://r.example/" + "x" * 2048, **LONG_COOKIE}
    visit = Visit(VisitOptions(), FakeRequest(headers, target="/a?" + "x" * 2048))

    assert dict(visit.fields()) == {"path": "/a"}
    assert visit.fields() is visit.fields()
    assert counted() == 3


QUERIES = {
    "all": ("http://shop.example/a?utm_source=x&token=1&gclid=2&%C3=", "https://r/?q=1"),
    "campaign": ("http://shop.example/a?utm_source=x&gclid=2", "https://r/"),
    "none": ("http://shop.example/a", "https://r/"),
}


@pytest.mark.parametrize(("url_query", "expected"), QUERIES.items(), ids=QUERIES.keys())
def test_the_option_url_query_selects_the_part_of_a_query_to_keep(url_query, expected):
    """A query may contain the token that resets a password."""
    target = "/a?utm_source=x&token=1&gclid=2&%C3="
    visit_fields = fields({**HOST, "referer": "https://r/?q=1"}, target=target, url_query=url_query)
    assert (visit_fields["url"], visit_fields["referrer"]) == expected


COOKIES = {
    "alone": ("aid=u", "u"),
    "among others": ("a=1;aid=u ; b=2", "u"),
    "the first of several": ("aid=u; aid=v", "u"),
    "an empty one is skipped": ("aid=; aid=v", "v"),
    "quoted": ('aid="u v"', "u v"),
    "escaped as Python does": (r'aid="u\054\"v"', 'u,"v'),
    "with an equals sign": ("aid=u=v", "u=v"),
    "of a longer name": ("xaid=u; aidx=v", None),
    "without a value": ("aid", None),
    "half a quote": ('aid="', '"'),
}


@pytest.mark.parametrize(("header", "value"), COOKIES.values(), ids=COOKIES.keys())
def test_the_first_cookie_with_a_value_is_read(header, value):
    assert cookie(header, "aid") == value


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_a_cookie_written_by_python_is_read_unchanged(value):
    jar = SimpleCookie({"aid": value})
    assert cookie("x=y; " + jar.output(header="").strip(), "aid") == value


def test_a_header_wins_over_the_cookie_unless_it_is_invalid(counted):
    headers = {"cookie": "aid=c", "x-visitor": "h"}

    assert fields(headers, header="X-Visitor")["anonymous_id"] == "h"
    assert fields({**headers, "x-visitor": "x" * 129}, header="X-Visitor")["anonymous_id"] == "c"
    assert counted() == 1


def test_ids_with_non_ascii_characters_are_read_as_utf_8(counted):
    assert fields({"cookie": "aid=" + "ä€".encode().decode("latin-1")})["anonymous_id"] == "ä€"
    assert "anonymous_id" not in fields({"cookie": "aid=\xff"})
    assert counted() == 1


@pytest.mark.parametrize(("scheme", "secure"), [("https", "; Secure"), ("http", "")])
def test_only_a_visitor_without_an_id_gets_a_cookie_with_the_id_of_the_event(scheme, secure):
    options = VisitOptions(issue_cookie=True, cookie_max_age_s=60)
    visit = Visit(options, FakeRequest({**HOST, "cookie": "aid="}, scheme))

    assert visit.fields()["anonymous_id"] == visit.issued
    attributes = f"Max-Age=60; Path=/; SameSite=Lax{secure}"
    assert dict(visit.added([]))["Set-Cookie"] == f"aid={visit.issued}; {attributes}"
    assert Visit(options, FakeRequest({"cookie": "aid=u"})).added([]) == []


PRIVATE = ("Cache-Control", "private")
RESPONSES = {
    "no rule": ([("Expires", "0")], ["Set-Cookie", "Cache-Control"]),
    "private": ([("Cache-Control", "Private, max-age=9")], ["Set-Cookie"]),
    "private, in two lines": ([("cache-control", "max-age=9"), PRIVATE], ["Set-Cookie"]),
    "not stored": ([("cache-control", "no-store")], ["Set-Cookie"]),
    "for anyone": ([("Cache-Control", "max-age=9")], []),
    "for anyone, after revalidation": ([("Cache-Control", "no-cache")], []),
    "set by the application": ([PRIVATE, ("set-cookie", "aid=x")], []),
    "another cookie": ([PRIVATE, ("Set-Cookie", "aidx=x")], ["Set-Cookie"]),
}


@pytest.mark.parametrize(("headers", "added"), RESPONSES.values(), ids=RESPONSES.keys())
def test_a_response_that_a_shared_cache_may_store_has_no_cookie(headers, added):
    """A cache that revalidates a page still serves the cookie stored with it."""
    visit = Visit(VisitOptions(issue_cookie=True), FakeRequest())
    assert [name for name, _ in visit.added(headers)] == added


WRONG = {
    "cookie": {"cookie": "a b"},
    "header": {"header": ""},
    "issue_cookie": {"cookie": None, "issue_cookie": True},
    "cookie_max_age_s": {"cookie_max_age_s": 0},
    "forwarded": {"forwarded": "x-forwarded-proto"},
    "url_query": {"url_query": "some"},
    "skip": {"skip": "("},
}


@pytest.mark.parametrize(("name", "options"), WRONG.items(), ids=WRONG.keys())
def test_a_wrong_option_is_named_at_start(name, options):
    with pytest.raises(ConfigurationError, match=f"^{name}: "):
        VisitOptions(**options)


def test_only_health_checks_are_skipped():
    options = VisitOptions()

    assert all(map(options.skips, ["/healthz", "/health/", "/metrics", "/ready"]))
    assert not any(map(options.skips, ["/", "/healthzy", "/a/healthz", "", "/health/me"]))
    assert not VisitOptions(skip=None).skips("/healthz")


TARGETS = {
    "as browsers send it": ("/a/%C3%A4?x=%20", ("/a/%C3%A4", "x=%20")),
    "as proxies send it": ("http://h/a?x", ("/a", "x")),
    "without a path": ("http://h", ("", "")),
    "two slashes": ("//h/a", ("//h/a", "")),
    "with a fragment": ("/a?x#y", ("/a", "x")),
    "a url in the query": ("/a?u=http://b/c", ("/a", "u=http://b/c")),
    "OPTIONS": ("*", ("*", "")),
}


@pytest.mark.parametrize(("target", "parts"), TARGETS.values(), ids=TARGETS.keys())
def test_a_target_is_split(target, parts):
    assert origin_form(target) == parts


SCOPES = {
    "raw": ({"path": "/ä", "raw_path": b"/%C3%A4"}, "/%C3%A4", "/ä"),
    "no raw path": ({"path": "/ä b", "raw_path": None}, "/%C3%A4%20b", "/ä b"),
    "mounted": ({"path": "/m/x", "raw_path": b"/m/x", "root_path": "/m"}, "/m/x", "/x"),
    "cut off": ({"path": "/x", "raw_path": b"/x", "root_path": "/m"}, "/m/x", "/x"),
    "alike": ({"path": "/mx", "raw_path": b"/mx", "root_path": "/m"}, "/m/mx", "/mx"),
    "as UTF-8": ({"path": "/ä/x", "raw_path": b"/%C3%A4/x", "root_path": "/ä/"}, "/%C3%A4/x", "/x"),
}


@pytest.mark.parametrize(("scope", "path", "inner"), SCOPES.values(), ids=SCOPES.keys())
def test_the_path_of_an_asgi_request_is_as_the_client_sent_it(scope, path, inner):
    assert raw_path(scope) == path
    assert ScopeRequest(scope).inner_path() == inner


ENVIRONS = {
    "gunicorn": ({"RAW_URI": "/%C3%A4?x=%41", "PATH_INFO": "/\xc3\xa4"}, ("/%C3%A4", "x=%41")),
    "uWSGI": ({"REQUEST_URI": "/a?x"}, ("/a", "x")),
    "neither": ({"PATH_INFO": "/\xc3\xa4 b", "QUERY_STRING": "x=%41"}, ("/%C3%A4%20b", "x=%41")),
    "mounted": ({"RAW_URI": "/m/x", "SCRIPT_NAME": "/m", "PATH_INFO": "/x"}, ("/m/x", "")),
    "cut off": ({"RAW_URI": "/x", "SCRIPT_NAME": "/m", "PATH_INFO": "/x"}, ("/m/x", "")),
    "mounted, no raw": ({"SCRIPT_NAME": "/m", "PATH_INFO": "/x"}, ("/m/x", "")),
}


@pytest.mark.parametrize(("environ", "target"), ENVIRONS.values(), ids=ENVIRONS.keys())
def test_the_target_of_a_wsgi_request_is_as_the_client_sent_it(environ, target):
    assert raw_target(environ) == target


wild = st.text(max_size=60) | st.binary(max_size=60).map(lambda b: b.decode("latin-1"))
names = ("host", "referer", "cookie", "x-visitor", "x-forwarded-proto", "x-forwarded-host")
options = st.builds(
    VisitOptions,
    header=st.just("x-visitor"),
    issue_cookie=st.booleans(),
    forwarded=st.sampled_from([(), ("x-forwarded-proto", "x-forwarded-host")]),
    url_query=st.sampled_from(["all", "campaign", "none"]),
)


@given(options, st.dictionaries(st.sampled_from(names), wild | wild.map("aid=".__add__)), wild)
def test_reading_never_raises_and_all_fields_are_valid(options, headers, target):
    """Whatever bytes a client or a server sends."""
    visit_fields = Visit(options, FakeRequest(headers, target=target)).fields()
    encode_track({"event": "e", **visit_fields})


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126)), st.booleans())
def test_path_and_query_are_kept_byte_for_byte(text, has_query):
    # Not `/ready` and its like, which are no visits.
    target = "/a" + text.replace("?", "").replace("#", "") + ("?" + text if has_query else "")
    visit_fields = fields(HOST, target=target)

    path, _, query = target.partition("?")
    assert visit_fields["path"] == path
    assert visit_fields["url"] == f"http://shop.example{target if query else path}"
    assert urlsplit(visit_fields["url"]).netloc == "shop.example"


def test_invalid_settings_raise_no_error_in_a_request(fresh, caplog):
    fresh(MM_TASKS_LINGER_S="never")

    assert fields(LONG_COOKIE) == {"path": "/a"}
    assert [record.message for record in caplog.records] == ["dropped_fields_not_counted"]
    assert runtime._process.runtime is None  # noqa: SLF001 - the settings were read
