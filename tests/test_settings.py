"""Secrets from files, and passwords apart from their URLs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.connection import parse_url
from sqlalchemy.engine import make_url

from mm_tasks.cli.check import masked
from mm_tasks.errors import ConfigurationError
from mm_tasks.settings import SECRETS_DIR, Settings, variable, with_password

KEY = "sk_test_abc_not-a-secret"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(SECRETS_DIR, str(tmp_path))
    return tmp_path


def text(secret):
    return secret.get_secret_value()


@pytest.mark.parametrize("name", ["MILLIMETRIC_KEY", "millimetric_key"])
def test_a_file_named_like_the_variable_holds_its_value(folder, name):
    """Compose prefers lower case, Kubernetes whatever its Secret says."""
    (folder / name).write_text(f"{KEY}\n")

    assert text(Settings.load().millimetric_key) == KEY


@pytest.mark.parametrize(
    ("variable_", "value"),
    [
        ("MM_TASKS_AUDIT_URL", "postgresql://u:p@h/d"),
        ("MM_TASKS_PSEUDONYM_KEY", "a b "),
        ("MM_TASKS_PROJECT", "shop"),
    ],
)
def test_every_variable_may_be_a_file(folder, variable_, value):
    """Spaces at the end belong to the value: only the newline of an editor does not."""
    (folder / variable_).write_text(f"{value}\r\n")

    found = getattr(Settings.load(), variable_.removeprefix("MM_TASKS_").lower())
    assert (found if isinstance(found, str) else text(found)) == value


def test_the_environment_wins_over_a_file_and_what_is_given_over_both(folder, monkeypatch):
    (folder / "MILLIMETRIC_KEY").write_text("sk_file")
    (folder / "MM_TASKS_PROJECT").write_text("file")
    monkeypatch.setenv("MILLIMETRIC_KEY", "sk_environment")
    monkeypatch.setenv("MM_TASKS_PROJECT", "environment")

    found = Settings.load({"project": "given"})
    assert (text(found.millimetric_key), found.project) == ("sk_environment", "given")


def test_an_empty_file_or_variable_is_as_good_as_none(folder, monkeypatch):
    """Compose makes both of a variable that is not set."""
    monkeypatch.setenv("MM_TASKS_PROJECT", "")
    (folder / "MM_TASKS_PROJECT").write_text("file")
    (folder / "MILLIMETRIC_KEY").write_text("\n")

    found = Settings.load()
    assert (found.millimetric_key, found.project) == (None, "file")


def test_files_that_name_no_setting_are_left_alone(folder):
    """Kubernetes keeps folders and links of its own there, other programs their secrets."""
    (folder / "..data").mkdir()
    (folder / "tls.key").write_bytes(b"\xff")
    (folder / "MM_TASKS_SECRETS_DIR").write_text("/elsewhere")

    assert Settings.load() == Settings()


def test_a_folder_that_is_missing_is_refused_without_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv(SECRETS_DIR, str(tmp_path / "nowhere"))

    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    assert str(caught.value) == "MM_TASKS_SECRETS_DIR: must be a directory that exists"


@pytest.mark.parametrize("spoil", ["folder", "bytes"])
def test_a_file_that_cannot_be_read_is_refused_without_its_text(folder, spoil):
    """Going on without it would be going on with a default."""
    path = folder / "mm_tasks_audit_password"
    path.mkdir() if spoil == "folder" else path.write_bytes(b"hunter2\xff")

    with pytest.raises(ConfigurationError, match=r"^MM_TASKS_AUDIT_PASSWORD: ") as caught:
        Settings.load()
    assert "hunter2" not in str(caught.value)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_a_broken_rule_names_the_variable_and_not_what_its_file_holds(folder):
    (folder / "MM_TASKS_PROJECT").write_text("two words")

    with pytest.raises(ConfigurationError, match=r"^MM_TASKS_PROJECT: ") as caught:
        Settings.load()
    assert "two words" not in str(caught.value)


PASSWORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@given(PASSWORDS)
def test_redis_reads_the_password_that_was_put_into_its_url(password):
    """Also of a Unix socket, which has no host that it could stand before."""
    for url in ("redis://h:1/2", "rediss://app@h", "unix:///run/redis.sock?db=1"):
        assert parse_url(with_password(url, password))["password"] == password


@given(PASSWORDS)
def test_postgresql_reads_the_password_that_was_put_into_its_url(password):
    for url in ("postgresql://h/d", "postgresql+psycopg://app@h:5/d", "postgresql:///d?host=/run"):
        found = make_url(with_password(url, password))

        assert found.password == password
        assert (found.host, found.database) == (make_url(url).host, make_url(url).database)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:own@h",
        "redis://app:own@h/0",
        "sqlite:////var/lib/audit.sqlite",
        "sqlite+pysqlite:///audit.sqlite",
        "no url",
        "",
    ],
)
def test_a_url_with_a_password_of_its_own_or_no_place_for_one_stays(url):
    assert with_password(url, "other") == url


def test_passwords_come_into_the_urls_from_files(folder):
    """So that a URL in a compose file holds no secret."""
    (folder / "mm_tasks_redis_password").write_text("r\n")
    (folder / "mm_tasks_audit_password").write_text("a\n")

    found = Settings.load({"audit_url": "postgresql://mm@h/d"})
    assert text(found.redis_url) == "redis://:r@127.0.0.1:6379/0"
    assert text(found.audit_url) == "postgresql://mm:a@h/d"


def test_a_password_alone_makes_no_audit_url(folder):
    (folder / "mm_tasks_audit_password").write_text("a\n")

    assert Settings.load().audit_url is None


def test_check_shows_of_a_secret_nothing_at_all(folder):
    """Not even of one that looks like a URL."""
    for name in Settings.model_fields:
        if name.endswith(("_password", "_url", "_key")):
            assert variable(name).startswith(("MM_TASKS_", "MILLIMETRIC_"))
            form = "redis://hunter2@host/0" if name.endswith("_url") else "https://hunter2@host/x"
            (folder / variable(name)).write_text(form)
    found = Settings.load()

    shown = [masked(name, getattr(found, name)) for name in Settings.model_fields]
    assert not [one for one in shown if "hunter2" in one]
    assert masked("audit_password", found.audit_password) == "…"
