"""Seals: opened by their key for their row alone; a sum is not read without it."""

from hypothesis import given
from hypothesis import strategies as st

from mm_tasks.erasure.audit.seals import Seals, add
from tests.erasure.stores import KEY

SEALS = Seals(KEY)
TAGS = st.binary(min_size=16, max_size=16)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


@given(TAGS, TEXTS, TEXTS, TEXTS)
def test_a_seal_opens_to_its_tag_and_its_weight(tag, project, erasure, kind):
    sealed = SEALS.seal(tag, project, erasure, kind)

    assert SEALS.open(sealed.text, project, erasure, kind) == (tag, sealed.weight)
    assert tag.hex() not in sealed.text


@given(TAGS)
def test_a_seal_opens_for_nothing_else(tag):
    text = SEALS.seal(tag, "p", "e", "user").text

    assert SEALS.open(text, "q", "e", "user") is None
    assert SEALS.open(text, "p", "f", "user") is None
    assert SEALS.open(text, "p", "e", "anonymous") is None
    assert Seals("another key of this length").open(text, "p", "e", "user") is None


@given(st.text(max_size=80) | st.binary(max_size=40).map(bytes.hex))
def test_no_other_text_opens(text):
    assert SEALS.open(text, "p", "e", "user") is None


@given(st.integers(0, 2**256 - 1), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_masked_sum_is_read_with_its_line_alone(sum_, line):
    masked = SEALS.mask(sum_, line)

    assert SEALS.unmask(masked, line) == sum_
    assert SEALS.unmask(masked, f"{line} ") != sum_


def test_a_row_that_is_added_and_removed_leaves_the_sum():
    weight = SEALS.seal(bytes(16), "p", "e", "user").weight

    assert add(add(7, weight), -weight) == 7
