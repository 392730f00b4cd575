"""The layout of a stored record; see `keys`."""

from __future__ import annotations

import hashlib

HEADER_BYTES = 46
STAMP_BYTES = 14
TAG_BYTES = 16
NO_TAG = bytes(TAG_BYTES)


def tag(project: str, kind: str, subject_id: str) -> bytes:
    """Return the 16 bytes that identify a subject in scripts, the same in every process.

    `kind` is `user` or `anonymous`. A tag depends on no secret key, so that the audit store
    alone suffices to load the fence. The separator cannot be part of a project's name, so no
    two triples share their text.
    """
    text = f"{project}\0{kind}\0{subject_id}"
    return hashlib.sha256(text.encode()).digest()[:TAG_BYTES]


def record(project: str, body: bytes, user_id: str | None, anonymous_id: str | None) -> bytes:
    """Return a record without its first 14 bytes."""
    user = NO_TAG if user_id is None else tag(project, "user", user_id)
    anonymous = NO_TAG if anonymous_id is None else tag(project, "anonymous", anonymous_id)
    return user + anonymous + body
