"""Seals: what the pseudonym key vouches for in the audit store.

    line   its `mac` is the HMAC-SHA256 of the canonical line without `mac`
    tag    `mm_suppressions.sealed`: encrypted, and bound to its project, erasure and kind
    rows   each line's `fences` is the sum of the weights of all rows that are in force after it

A seal is a synthetic IV and the encrypted tag, 32 bytes in hex. The IV is the first half of the
HMAC-SHA256 of project, erasure, kind and tag. The weight of a row is the whole HMAC as a number;
its second half is stored nowhere. The sum is modulo 2^256, and masked by an HMAC of the line, so
that a reader of the log does not learn weights, from which rows with the same sum could be chosen.

Each use has a subkey of its own: HMAC-SHA512 of a fixed label, cut to 32 bytes. Pseudonyms are
HMAC-SHA256 of ids with the key itself, so a pseudonym is never a subkey. Pure.
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

_SUM = 1 << 256
_TAG_BYTES = 16
_SEAL_CHARACTERS = 64


class Sealed(NamedTuple):
    """A sealed tag: the text to store, and the weight of its row."""

    text: str
    weight: int


class OpenedSeal(NamedTuple):
    """An opened seal: the tag, and the weight of its row."""

    tag: bytes
    weight: int


class Seals:
    """The subkeys of one pseudonym key."""

    def __init__(self, key: str) -> None:
        """Derive the subkeys."""
        master = key.encode()
        labels = (b"line", b"fences", b"weight", b"tag")
        keys = (hmac.digest(master, b"mm_tasks audit " + label, "sha512")[:32] for label in labels)
        self._line, self._fences, self._weight, self._tag = keys

    def mac(self, line: str) -> str:
        """Return the MAC of a canonical line that has no `mac`."""
        return hmac.digest(self._line, line.encode(), "sha256").hex()

    def mask(self, fences: int, line: str) -> str:
        """Return the `fences` of a line; `line` is the canonical one without that and `mac`."""
        return f"{(fences + self._mask(line)) % _SUM:064x}"

    def unmask(self, fences: str, line: str) -> int:
        """Return the sum of the weights, see `mask`."""
        return (int(fences, 16) - self._mask(line)) % _SUM

    def seal(self, tag: bytes, project: str, erasure: str, kind: str) -> Sealed:
        """Return the seal of a tag, the same each time."""
        digest = hmac.digest(self._weight, _bound(tag, project, erasure, kind), "sha256")
        iv = digest[:_TAG_BYTES]
        return Sealed((iv + self._crypt(iv, tag)).hex(), int.from_bytes(digest))

    def open(self, text: str, project: str, erasure: str, kind: str) -> OpenedSeal | None:
        """Return the tag of a seal; None if it was not sealed with this key for this row."""
        try:
            raw = bytes.fromhex(text)
        except ValueError:
            return None
        iv, tag = raw[:_TAG_BYTES], self._crypt(raw[:_TAG_BYTES], raw[_TAG_BYTES:])
        digest = hmac.digest(self._weight, _bound(tag, project, erasure, kind), "sha256")
        holds = len(text) == _SEAL_CHARACTERS and hmac.compare_digest(digest[:_TAG_BYTES], iv)
        return OpenedSeal(tag, int.from_bytes(digest)) if holds else None

    def _crypt(self, iv: bytes, data: bytes) -> bytes:
        stream = hmac.digest(self._tag, iv, "sha256")[: len(data)]
        number = int.from_bytes(data[: len(stream)]) ^ int.from_bytes(stream)
        return number.to_bytes(len(stream))

    def _mask(self, line: str) -> int:
        return int.from_bytes(hmac.digest(self._fences, line.encode(), "sha256"))


def add(sum_: int, change: int) -> int:
    """Return a sum of weights after a change."""
    return (sum_ + change) % _SUM


def _bound(tag: bytes, project: str, erasure: str, kind: str) -> bytes:
    # None of the three has a NUL, and the tag has a fixed length.
    return b"\0".join((project.encode(), erasure.encode(), kind.encode(), tag))
