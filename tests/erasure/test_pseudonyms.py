"""Pseudonyms: one key for all hosts, made up once, never shown."""

from __future__ import annotations

import subprocess
import threading

import pytest

from mm_tasks.erasure.audit.pseudonyms import FILE, Pseudonyms
from mm_tasks.erasure.audit.session import AuditSession
from mm_tasks.errors import ConfigurationError
from tests.erasure.stores import KEY, Store


def test_openssl_makes_the_same_pseudonym():
    """Whoever has key and id finds a person's entries without our code."""
    command = ["openssl", "dgst", "-sha256", "-hmac", KEY]
    found = subprocess.run(command, input=b"user_42", capture_output=True, check=True)

    assert found.stdout.decode().split()[-1] == Pseudonyms(KEY).of("user_42")


def test_a_key_is_made_up_once_and_for_its_owner_only(tmp_path):
    folder = tmp_path / "new" / "state"

    first, second = (Pseudonyms.load(None, folder) for _ in range(2))

    assert first == second
    assert (folder / FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_the_content_of_the_file_can_be_given_to_other_hosts(tmp_path):
    made = Pseudonyms.load(None, tmp_path)

    assert Pseudonyms.load((tmp_path / FILE).read_text().strip(), tmp_path / "b") == made


def test_of_many_that_start_at_once_all_have_the_same_key(tmp_path):
    found, start = [], threading.Barrier(8)

    def load():
        start.wait()
        found.append(Pseudonyms.load(None, tmp_path).key)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_key_that_others_may_read_is_refused(tmp_path):
    Pseudonyms.load(None, tmp_path)
    (tmp_path / FILE).chmod(0o640)

    with pytest.raises(ConfigurationError, match="MM_TASKS_PSEUDONYM_KEY"):
        Pseudonyms.load(None, tmp_path)


@pytest.mark.parametrize("key", ["", "short"])
def test_a_key_that_could_be_guessed_is_refused(key, tmp_path):
    """An empty variable is a mistake as well, not a wish for a generated key."""
    with pytest.raises(ConfigurationError, match="at least 16"):
        Pseudonyms.load(key, tmp_path)


def test_the_key_is_in_no_repr():
    assert KEY not in repr(Pseudonyms(KEY))


def test_another_key_than_the_store_was_made_with_is_refused(store):
    """The same person would get another name, and the log could not be searched."""
    store.ask()
    other = AuditSession(store.log, Pseudonyms("another key of the right length"), "p")

    with pytest.raises(ConfigurationError, match=Pseudonyms(KEY).fingerprint) as refused:
        _ = other.store_id

    assert KEY not in str(refused.value)


def test_a_store_keeps_its_id(store):
    assert store.session.store_id == Store(store.url, store.folder).session.store_id
