"""Pseudonyms: the audit log names a subject by a pseudonym only.

It is the HMAC-SHA256 of the id, in hex. With the key and an id anyone can compute it:

    printf %s "$id" | openssl dgst -sha256 -hmac "$key"

Without the key nobody can find the person, not even by trying ids. The key is a text of at
least 16 characters, the same on every host: a setting, or generated once into a file. Another
key would give the same person another pseudonym; so the audit store has its fingerprint.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Self

from mm_tasks.erasure.audit.database import create_private_file
from mm_tasks.erasure.audit.seals import Seals
from mm_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

SETTING = "MM_TASKS_PSEUDONYM_KEY"
EPOCH = 1
FILE = "pseudonym.key"
_KEY_CHARACTERS_MIN = 16
_FINGERPRINT_CHARACTERS = 16


@dataclass(frozen=True)
class Pseudonyms:
    """A key and its epoch, the number by which an entry refers to its key."""

    key: str = field(repr=False)
    epoch: int = EPOCH

    def __post_init__(self) -> None:
        """Raise `ConfigurationError` for a key that could be guessed."""
        if len(self.key) < _KEY_CHARACTERS_MIN:
            msg = f"{SETTING}: must have at least {_KEY_CHARACTERS_MIN} characters"
            raise ConfigurationError(msg)

    @classmethod
    def load(cls, key: str | None, state_dir: Path) -> Self:
        """Take this key; None takes that of the state directory, which is created if missing."""
        return cls(_stored_key(state_dir / FILE) if key is None else key)

    def of(self, subject_id: str) -> str:
        """Return the pseudonym of an id."""
        return hmac.new(self.key.encode(), subject_id.encode(), hashlib.sha256).hexdigest()

    @classmethod
    def find(cls, key: str | None, state_dir: Path) -> Self | None:
        """Return what `load` does, but None where it would create a key."""
        if key is None and not (state_dir / FILE).exists():
            return None
        return cls.load(key, state_dir)

    @cached_property
    def seals(self) -> Seals:
        """Return the seals of this key."""
        return Seals(self.key)

    @property
    def fingerprint(self) -> str:
        """Return a text that identifies this key and does not reveal it."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:_FINGERPRINT_CHARACTERS]


def _stored_key(path: Path) -> str:
    try:
        if not path.exists():
            create_private_file(path, f"{secrets.token_hex(32)}\n".encode())
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
