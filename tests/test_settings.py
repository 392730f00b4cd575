"""Secrets from files, and passwords apart from their URLs."""

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


@pytest.mark.parametrize(
    ("file", "written", "value"),
    [
        # Compose prefers lower case; Kubernetes uses the names of its Secret.
        ("MILLIMETRIC_KEY", f"{KEY}\n", KEY),
        ("millimetric_key", f"{KEY}\n", KEY),
        ("MM_TASKS_AUDIT_URL", "postgresql://u:p@h/d\r\n", "postgresql://u:p@h/d"),
        # Spaces at the end belong to the value; only the newline of an editor does not.
        ("MM_TASKS_PSEUDONYM_KEY", "a b \r\n", "a b "),
        ("MM_TASKS_PROJECT", "shop\r\n", "shop"),
    ],
)
def test_a_file_named_like_a_variable_holds_its_value(folder, file, written, value):
    (folder / file).write_text(written)

    loaded = getattr(Settings.load(), file.lower().removeprefix("mm_tasks_"))
    assert (loaded if isinstance(loaded, str) else text(loaded)) == value


def test_the_environment_wins_over_a_file_and_an_argument_over_both(folder, monkeypatch):
    (folder / "MILLIMETRIC_KEY").write_text("sk_file")
    (folder / "MM_TASKS_PROJECT").write_text("file")
    monkeypatch.setenv("MILLIMETRIC_KEY", "sk_environment")
    monkeypatch.setenv("MM_TASKS_PROJECT", "environment")

    settings = Settings.load({"project": "given"})
    assert (text(settings.millimetric_key), settings.project) == ("sk_environment", "given")


def test_an_empty_file_or_variable_counts_as_unset(folder, monkeypatch):
    """Compose turns an unset variable into either."""
    monkeypatch.setenv("MM_TASKS_PROJECT", "")
    (folder / "MM_TASKS_PROJECT").write_text("file")
    (folder / "MILLIMETRIC_KEY").write_text("\n")

    settings = Settings.load()
    assert (settings.millimetric_key, settings.project) == (None, "file")


def test_files_that_name_no_setting_are_ignored(folder):
    """Kubernetes keeps folders and links there, other programs their secrets."""
    (folder / "..data").mkdir()
    (folder / "tls.key").write_bytes(b"\xff")
    (folder / "MM_TASKS_SECRETS_DIR").write_text("/elsewhere")

    assert Settings.load() == Settings()


def test_a_folder_that_is_missing_is_refused_without_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv(SECRETS_DIR, str(tmp_path / "nowhere"))

    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    assert str(caught.value) == "MM_TASKS_SECRETS_DIR: must be a directory that exists"


UNREADABLE = {
    "a folder": ("mm_tasks_audit_password", lambda path: path.mkdir()),
    "not UTF-8": ("mm_tasks_audit_password", lambda path: path.write_bytes(b"hunter2\xff")),
    "a broken rule": ("MM_TASKS_PROJECT", lambda path: path.write_text("hunter2 x")),
}


@pytest.mark.parametrize(("name", "spoil"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_bad_file_is_refused_by_its_variable_without_its_text(folder, name, spoil):
    """Ignoring the file would mean using a default."""
    spoil(folder / name)

    with pytest.raises(ConfigurationError, match=rf"^{name.upper()}: ") as caught:
        Settings.load()
    assert "hunter2" not in str(caught.value)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


PASSWORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@given(PASSWORDS)
def test_redis_reads_the_password_from_its_url(password):
    """Also for a Unix socket, whose URL has no host to put it before."""
    for url in ("redis://h:1/2", "rediss://app@h", "unix:///run/redis.sock?db=1"):
        assert parse_url(with_password(url, password))["password"] == password


@given(PASSWORDS)
def test_postgresql_reads_the_password_from_its_url(password):
    for url in ("postgresql://h/d", "postgresql+psycopg://app@h:5/d", "postgresql:///d?host=/run"):
        changed = make_url(with_password(url, password))

        assert changed.password == password
        assert (changed.host, changed.database) == (make_url(url).host, make_url(url).database)


WITHOUT_PLACE = ["sqlite:////var/lib/audit.sqlite", "sqlite+pysqlite:///audit.sqlite", "no url", ""]


@pytest.mark.parametrize("url", ["redis://:own@h", "redis://app:own@h/0", *WITHOUT_PLACE])
def test_a_url_that_has_or_cannot_have_a_password_stays_unchanged(url):
    assert with_password(url, "other") == url


def test_passwords_from_files_are_added_to_the_urls_that_are_set(folder):
    """A URL in a compose file then contains no secret."""
    (folder / "mm_tasks_redis_password").write_text("r\n")
    (folder / "mm_tasks_audit_password").write_text("a\n")

    settings = Settings.load({"audit_url": "postgresql://mm@h/d"})
    assert text(settings.redis_url) == "redis://:r@127.0.0.1:6379/0"
    assert text(settings.audit_url) == "postgresql://mm:a@h/d"
    assert Settings.load().audit_url is None


def test_the_waits_of_an_erasure_need_not_grow():
    """Each is counted from the call before it."""
    settings = Settings.load({"erasure_passes_s": "60,60,0"})

    assert settings.erasure_passes_s == (60, 60, 0)


def test_check_masks_secrets_completely(folder):
    """Even a secret that looks like a URL."""
    for name in Settings.model_fields:
        if name.endswith(("_password", "_url", "_key")):
            assert variable(name).startswith(("MM_TASKS_", "MILLIMETRIC_"))
            scheme = "http" if name in {"proxy_url", "timestamp_url"} else "redis"
            form = f"{scheme}://hunter2@host" if name.endswith("_url") else "https://hunter2@host/x"
            (folder / variable(name)).write_text(form)
    settings = Settings.load()

    shown = [masked(name, getattr(settings, name)) for name in Settings.model_fields]
    assert not [value for value in shown if "hunter2" in value]
    assert masked("audit_password", settings.audit_password) == "…"
