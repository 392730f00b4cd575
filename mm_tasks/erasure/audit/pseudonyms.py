"""Pseudonyms: the only name by which the audit log knows a subject.

The HMAC-SHA256 of the id, in hex. Whoever holds key and id finds a person's entries:

    printf %s "$id" | openssl dgst -sha256 -hmac "$key"

Whoever lacks the key cannot tell whose they are, nor try ids. The key is a text of at
least 16 characters, the same on every host: given, or made up once in a file. With another
key the same person would get another name; so the audit store keeps the key's fingerprint.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from mm_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

SETTING = "MM_TASKS_PSEUDONYM_KEY"
EPOCH = 1
FILE = "pseudonym.key"
_KEY_CHARACTERS_MIN = 16
_FINGERPRINT_CHARACTERS = 16


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """A key and its epoch: the number that says which of several keys an entry used."""

    key: str = field(repr=False)
    epoch: int = EPOCH

    def __post_init__(self) -> None:
        """Refuse a key that could be guessed."""
        if len(self.key) < _KEY_CHARACTERS_MIN:
            msg = f"{SETTING}: must have at least {_KEY_CHARACTERS_MIN} characters"
            raise ConfigurationError(msg)

    @classmethod
    def load(cls, given: str | None, state_dir: Path) -> Self:
        """Take the key given, else that of the state directory, made up at first."""
        return cls(_kept(state_dir / FILE) if given is None else given)

    def of(self, subject_id: str) -> str:
        """Return the pseudonym of an id."""
        return hmac.new(self.key.encode(), subject_id.encode(), hashlib.sha256).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Return what tells this key from another and does not give it away."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:_FINGERPRINT_CHARACTERS]


def _kept(path: Path) -> str:
    try:
        if not path.exists():
            _make(path)
        is_open = path.stat().st_mode & 0o077
        key = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        failure = type(error).__name__
    else:
        if not is_open:
            return key
        failure = "others may read it; chmod 600"
    msg = f"{SETTING}: not set, and {FILE} is of no use: {failure}"
    raise ConfigurationError(msg)


def _make(path: Path) -> None:
    """Write a new key, whole or not at all. Of two processes that do, the first one's stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, f"{secrets.token_hex(32)}\n".encode())
        os.fsync(file)
    finally:
        os.close(file)
    try:
        # Unlike a rename, a link never replaces.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
