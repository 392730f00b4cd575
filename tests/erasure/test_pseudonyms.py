"""Pseudonyms: one key for all hosts, made up once, never shown."""

import subprocess

import pytest

from mm_tasks.erasure.audit.pseudonyms import FILE, Pseudonyms
from mm_tasks.erasure.audit.session import AuditSession
from mm_tasks.errors import ConfigurationError
from tests.erasure.stores import KEY, Store, at_once


def test_openssl_makes_the_same_pseudonym():
    """An auditor with the key and an id finds a person's entries without our code."""
    command = ["openssl", "dgst", "-sha256", "-hmac", KEY]
    done = subprocess.run(command, input=b"user_42", capture_output=True, check=True)

    assert done.stdout.decode().split()[-1] == Pseudonyms(KEY).of("user_42")
    assert KEY not in repr(Pseudonyms(KEY))


def test_a_key_is_generated_once_for_its_owner_and_can_be_copied_to_other_hosts(tmp_path):
    folder = tmp_path / "new" / "state"
    first, second = (Pseudonyms.load(None, folder) for _ in range(2))

    assert first == second == Pseudonyms.load((folder / FILE).read_text().strip(), tmp_path / "b")
    assert (folder / FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.iterdir()] == [FILE]
    (folder / FILE).chmod(0o640)
    with pytest.raises(ConfigurationError, match="MM_TASKS_PSEUDONYM_KEY"):
        Pseudonyms.load(None, folder)


def test_of_many_that_start_at_once_all_have_the_same_key(tmp_path):
    keys = at_once(lambda: Pseudonyms.load(None, tmp_path).key)

    assert len(keys) == 8
    assert len(set(keys)) == 1


@pytest.mark.parametrize("key", ["", "short"])
def test_a_key_that_could_be_guessed_is_refused(key, tmp_path):
    """An empty variable is a mistake as well, not a wish for a generated key."""
    with pytest.raises(ConfigurationError, match="at least 16"):
        Pseudonyms.load(key, tmp_path)


def test_another_key_than_the_store_was_made_with_is_refused(store):
    """The same person would get another name, and the log could not be searched."""
    store.ask()
    other = AuditSession(store.log, Pseudonyms("another key of the right length"), "p")

    with pytest.raises(ConfigurationError, match=Pseudonyms(KEY).fingerprint) as refused:
        _ = other.store_id

    assert KEY not in str(refused.value)


def test_a_store_keeps_its_id(store):
    assert store.session.store_id == Store(store.url, store.folder).session.store_id
