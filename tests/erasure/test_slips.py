"""Slips of the pen in an id: each is found, and its hint never quotes the id."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_tasks.erasure.slips import slip

NOT_NFC = "characters that are not in Unicode's normal form NFC, as typed on another system"
FOUND = {
    " user": "a blank at its beginning",
    "user ": "a blank at its end",
    " ": "a blank at its beginning",
    "us\ter": "a tab (U+0009) at character 3",
    "user\r": "a carriage return (U+000D) at its end",
    "user\x00": "a control character (U+0000) at its end",
    "us\u2009er": "an unusual space (U+2009) at character 3",
    "us\u00ader": "an invisible character (U+00AD) at character 3",
    "us\u200der": "a zero-width joiner (U+200D) at character 3",
    "us\u202eer": "an invisible character (U+202E) at character 3",
    "user\ufe0f": "an invisible character (U+FE0F) at its end",
    "\u3164": "an invisible character (U+3164) at its beginning",
    "us\u2028er": "an invisible character (U+2028) at character 3",
    '"user"': "quotation marks around it",
    "cafe\u0301": NOT_NFC,
}


@pytest.mark.parametrize(("id_", "hint"), FOUND.items(), ids=ascii)
def test_a_slip_is_named_with_its_place(id_, hint):
    assert slip(id_) == hint


@pytest.mark.parametrize(
    "id_", ["user_42", "Ada Lovelace", "a@b.example", "caf\xe9", "\u738b", "'", "o'neil", "\ud800"]
)
def test_an_id_as_people_have_them_is_taken(id_):
    assert slip(id_) == ""


@given(st.text(min_size=1))
def test_printable_text_without_blanks_at_its_ends_is_the_only_kind_taken(id_):
    if not slip(id_):
        assert id_ == id_.strip()
        assert all(c.isprintable() or unicodedata.category(c) == "Cs" for c in id_)
        assert unicodedata.is_normalized("NFC", id_)
