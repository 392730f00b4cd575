"""Slips of the pen in an id: invisible characters, blanks at its ends, quotation marks.

The erasure of such an id succeeds, and the person is tracked further. So prompts, forms and files
refuse it with a hint, unless the id is really so; `forget.delay` takes every id as it is.

Pure. A hint names the kind of character and its place, never the id.
"""

from __future__ import annotations

import unicodedata

# They show as nothing or as a blank, and count as printable.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | frozenset(
    map(chr, (*range(0x180B, 0x180E), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)
_NAMED = {
    "\t": "a tab",
    "\r": "a carriage return",
    "\xa0": "a no-break space",
    "\u200b": "a zero-width space",
    "\u200c": "a zero-width non-joiner",
    "\u200d": "a zero-width joiner",
    "\ufeff": "a byte order mark",
}
_KINDS = {"Cc": "a control character", "Cf": "an invisible character", "Zs": "an unusual space"}


def slip(id_: str) -> str:
    """Return what looks like a slip of the pen in an id, without the id; '' if nothing does."""
    # Surrogates have a rule of their own, in `erasure.request`.
    odd = (
        (place, character)
        for place, character in enumerate(id_, 1)
        if character in _INVISIBLE
        or not (character.isprintable() or "\ud800" <= character <= "\udfff")
    )
    if (first := next(odd, None)) is not None:
        place, character = first
        return f"{_name(character)} {_place(place, len(id_))}"
    if id_ != id_.strip(" "):
        return f"a blank {_place(1 if id_.startswith(' ') else len(id_), len(id_))}"
    if len(id_) > 1 and id_[0] == id_[-1] and id_[0] in "'\"`":
        return "quotation marks around it"
    if not unicodedata.is_normalized("NFC", id_):
        return "characters that are not in Unicode's normal form NFC, as typed on another system"
    return ""


def _name(character: str) -> str:
    named = _NAMED.get(character) or _KINDS.get(unicodedata.category(character))
    return f"{named or 'an invisible character'} (U+{ord(character):04X})"


def _place(place: int, length: int) -> str:
    if place in {1, length}:
        return "at its beginning" if place == 1 else "at its end"
    return f"at character {place}"
