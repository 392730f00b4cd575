"""One URL, parsed: what each form means, and what is refused without showing any of it."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection
from pydantic import SecretStr

from mm_tasks.connections.redis_client import broker
from mm_tasks.connections.url import Login, parse
from mm_tasks.errors import ConfigurationError
from mm_tasks.settings import Settings

VERIFIED = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
UNVERIFIED = {"ssl_cert_reqs": "none", "ssl_check_hostname": False}


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis://shop", {"hosts": (("shop", 6379),), "db": 0, "tls": None}),
        ("REDIS://u:p@shop:1/2", {"hosts": (("shop", 1),), "db": 2, "login": Login("u", "p")}),
        ("redis://:p%40%2F%3A@shop", {"login": Login(None, "p@/:")}),
        ("redis://[::1]:7/1", {"hosts": (("::1", 7),), "db": 1, "is_local": True}),
        ("redis://127.0.0.2", {"is_local": True}),
        ("redis://localhost", {"is_local": True}),
        ("redis://localhost.shop", {"is_local": False}),
        ("rediss://shop", {"tls": VERIFIED}),
        ("rediss://shop?ssl_ca_certs=/ca", {"tls": {**VERIFIED, "ssl_ca_certs": "/ca"}}),
        ("rediss://shop?ssl_cert_reqs=none", {"tls": UNVERIFIED}),
        ("unix:///a%20b.sock", {"path": "/a b.sock", "db": 0, "is_local": True, "hosts": ()}),
        ("unix://u:p@/s?db=3", {"path": "/s", "db": 3, "login": Login("u", "p")}),
        (
            "sentinel://u:p,q@a,b:1,[::1]/4?master_name=m&sentinel_password=a%26b+c",
            {
                "hosts": (("a", 26379), ("b", 1), ("::1", 26379)),
                "db": 4,
                "login": Login("u", "p,q"),
                "sentinel_login": Login(None, "a&b+c"),
                "master_name": "m",
                "tls": None,
            },
        ),
        ("sentinel://127.0.0.1?master_name=m", {"is_local": False}),
        ("sentinels://a?master_name=m", {"tls": VERIFIED}),
    ],
)
def test_each_form_means_what_it_says(url, found):
    address = parse(url)
    assert {name: getattr(address, name) for name in found} == found


REFUSED = """
    shop:6379 http://secret redis:// redis:///1 redis://a,secret redis://secret:99999
    redis://secret:x redis://[secret redis://a/secret redis://a/1/2 redis://a/-1 redis://a?db=1
    redis://a?ssl_cert_reqs=none redis://u:se#cret@a redis://u:se@cret@a redis://u:se/cret@a
    redis://u:se?cret@a rediss://a?ssl_cert_reqs=secret rediss://a?ssl_check_hostname=secret
    rediss://a?ssl_cert_reqs=none&ssl_check_hostname=true rediss://a?ssl_ca_certs=
    rediss://a?ssl_ca_certs=secret&ssl_ca_certs=b rediss://a?ssl_ca_cert=secret unix://secret/s
    unix:// unix:///s?db=secret sentinel://secret sentinel://a?master_name=
    sentinel://a,,b?master_name=secret sentinel://a;sentinel://secret?master_name=m
    sentinel://a?master_name=m&ssl_ca_certs=secret
"""


@pytest.mark.parametrize("url", ["", *REFUSED.split()])
def test_anything_else_is_refused_by_its_rule_alone(url):
    """A slip in an option would otherwise be no option; errors are printed and logged."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.load({"redis_url": SecretStr(url)})

    assert str(caught.value).startswith(("MM_TASKS_REDIS_URL: must ", "MM_TASKS_REDIS_URL: has "))
    assert "cret" not in str(caught.value)


def test_the_brokers_url_is_ours_or_celerys():
    """Where it looks like one of our forms, it is held to it."""
    settings = Settings.load({"broker_url": SecretStr("amqp://guest@rabbit//")})
    assert settings.broker_address == "amqp://guest@rabbit//"
    with pytest.raises(ConfigurationError, match=r"^MM_TASKS_BROKER_URL: must have the option"):
        Settings.load({"broker_url": SecretStr("sentinel://a")})


def test_an_address_shows_no_secret():
    url = "sentinels://u:secret@a?master_name=m&sentinel_password=secret&ssl_keyfile=secret"
    assert "secret" not in repr(parse(url))


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@given(TEXT, TEXT)
def test_kombu_reads_user_and_password_as_they_were_meant(username, password):
    """Both may hold whatever separates the parts of a URL."""
    at = f"{quote(username, safe='')}:{quote(password, safe='')}@"
    for url in (f"redis://{at}a", f"sentinel://{at}a,b?master_name=m"):
        address = parse(url)
        connection = Connection(broker(address).url)

        assert address.login == Login(username, password)
        assert (connection.userid, connection.password) == (username, password)
