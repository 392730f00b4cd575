"""Columns into fields: by name, by --map and --set, with types; no message shows a name.

Sabotages that turn this file red, each tried on a copy:

- an empty cell is sent as '';
- a column that nothing reads is dropped without `--ignore-unmapped`;
- `float` reads `nan` and `1_0`, `int` reads `٣`, as Python's do;
- epoch seconds before 1970 round the other way, or fractions are floats.
"""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_tasks.errors import ImportRefused, InvalidEvent
from mm_tasks.imports.columns import mapping, source


def mapped(header, row, maps=(), sets=(), *, ignore_unmapped=False):
    maps = [source("--map", words) for words in maps]
    sets = [source("--set", words) for words in sets]
    return mapping(header, maps, sets, ignore_unmapped=ignore_unmapped)(row)


def test_columns_named_like_fields_need_no_mapping():
    header = ["event", "user_id", "properties.plan", "properties.a.b"]

    assert mapped(header, ["e", "u", "free", "x"]) == {
        "event": "e",
        "user_id": "u",
        "properties": {"plan": "free", "a.b": "x"},
    }


def test_an_empty_cell_is_not_given():
    """An empty `user_id` would be refused, and an empty property is a value nobody meant."""
    assert mapped(["event", "user_id", "properties.plan"], ["e", "", ""]) == {"event": "e"}


def test_map_and_set_win_over_a_column_of_that_name():
    header, row = ["Name", "Amount", "user_id", "event"], ["n", "5", "u", "e"]
    maps = ["user_id=Name", "properties.cents:int=Amount", "properties.again=Name"]
    sets = ["event=bought", "properties.vip:bool=true"]
    properties = {"cents": 5, "vip": True, "again": "n"}

    fields = mapped(header, row, maps, sets, ignore_unmapped=True)
    assert fields == {"event": "bought", "user_id": "n", "properties": properties}


TYPES = {
    "text": ("properties.x=A", "007", "007"),
    "text by name": ("properties.x:text=A", " a ", " a "),
    "int": ("properties.x:int=A", "-12", -12),
    "float": ("properties.x:float=A", "1.5e3", 1500.0),
    "float without a point": ("properties.x:float=A", "2", 2.0),
    "bool": ("properties.x:bool=A", "True", True),
    "bool as a digit": ("properties.x:bool=A", "0", False),
    "json": ("properties.x:json=A", '{"a": [1]}', {"a": [1]}),
}


@pytest.mark.parametrize(("words", "text", "value"), TYPES.values(), ids=TYPES.keys())
def test_a_cell_becomes(words, text, value):
    converted = mapped(["event", "A"], ["e", text], [words])["properties"]["x"]

    assert (converted, type(converted)) == (value, type(value))


TIMES = {
    "seconds": ("epoch_s", "0", (1970, 1, 1)),
    "a fraction": ("epoch_s", "1.2345", (1970, 1, 1, 0, 0, 1, 234_000)),
    "a fraction before 1970": ("epoch_s", "-0.5", (1969, 12, 31, 23, 59, 59, 500_000)),
    "milliseconds": ("epoch_ms", "1700000000123", (2023, 11, 14, 22, 13, 20, 123_000)),
}


@pytest.mark.parametrize(("type_", "text", "when"), TIMES.values(), ids=TIMES.keys())
def test_an_epoch_becomes_an_instant_in_utc(type_, text, when):
    fields = mapped(["event", "T"], ["e", text], [f"timestamp:{type_}=T"])

    assert fields["timestamp"] == datetime(*when, tzinfo=UTC)


UNREADABLE = {
    "int": ("properties.x:int=A", ["1.0", "anna", " 1", "1_0", "\u0663"]),
    "float": ("properties.x:float=A", ["anna", "nan", "inf", "1_0", "0x1", "1e", "."]),
    "bool": ("properties.x:bool=A", ["anna", "yes", "2"]),
    "json": ("properties.x:json=A", ["anna", "{", "NaN", '{"a": 1, "a": 2}']),
    "epoch_s": ("timestamp:epoch_s=A", ["2026-01-01", "1e9", "999999999999"]),
    "epoch_ms": ("timestamp:epoch_ms=A", ["1.5", "999999999999999"]),
}


@pytest.mark.parametrize(("words", "texts"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_an_unreadable_cell_is_refused_by_field_and_column(words, texts):
    for text in texts:
        with pytest.raises(InvalidEvent) as caught:
            mapped(["event", "A"], ["e", text], [words])

        assert str(caught.value).endswith("(column 2)")
        assert "anna" not in str(caught.value)


GIVEN_TWICE = "properties: is given twice"
REFUSED = {
    "a column that is no field": (["event", "anna@example.com"], [], [], "column 2"),
    "two of them": (["event", "x", "y"], [], [], "columns 2, 3"),
    "a name twice": (["event", "user_id", "user_id"], [], [], "columns 2 and 3"),
    "a column that is not there": (["event"], ["user_id=Anna"], [], "--map user_id"),
    "a field mapped twice": (["event", "A", "B"], ["user_id=A", "user_id=B"], [], "user_id: is"),
    "a field mapped and set": (["event", "A"], ["user_id=A"], ["user_id=u"], "user_id: is given"),
    "whole and in part": (["event", "properties", "properties.a"], [], [], "properties: is given"),
    "nothing gives event": (["user_id"], [], [], "no column gives `event`"),
    "no header": (["u_1", "2026-01-01"], [], ["event=e"], "columns 1, 2"),
    "a constant that is no number": (["event"], [], ["properties.x:int=a"], "--set properties"),
    "a constant that is no object": (["event"], [], ["properties=[1]"], "--set properties"),
}


@pytest.mark.parametrize(
    ("header", "maps", "sets", "message"), REFUSED.values(), ids=REFUSED.keys()
)
def test_a_header_that_does_not_fit_is_refused_before_any_row(header, maps, sets, message):
    """No message shows a name from the file: without a header its first row is personal data."""
    with pytest.raises(ImportRefused) as caught:
        mapped(header, ["e"] * len(header), maps, sets)

    assert message in str(caught.value)
    assert "anna" not in str(caught.value).lower()


@pytest.mark.parametrize(
    "words",
    ["user_id", "=A", "user_id=", "userid=A", "user_id:int=A", "properties.=A", "properties.x:s=A"],
)
def test_an_option_that_is_no_mapping_is_refused(words):
    with pytest.raises(ImportRefused, match="--map"):
        source("--map", words)


def test_a_name_of_a_property_may_have_a_colon():
    fields = mapped(["event", "A"], ["e", "x"], ["properties.utm:source:text=A"])

    assert fields["properties"] == {"utm:source": "x"}


WORDS = st.text(max_size=12)


@given(st.lists(WORDS, max_size=4), st.lists(WORDS, max_size=3), st.lists(WORDS, max_size=4))
def test_any_header_raises_only_our_errors(names, options, row):
    header = ["event", *names]
    try:
        mapped(header, (row + [""] * 5)[: len(header)], [f"properties.{w}" for w in options])
    except (ImportRefused, InvalidEvent):
        return


@given(st.text(), st.sampled_from(["int", "float", "bool", "json"]))
def test_any_cell_raises_only_our_errors(text, type_):
    try:
        fields = mapped(["event", "A"], ["e", text], [f"properties.x:{type_}=A"])
    except InvalidEvent:
        return

    assert json.dumps(fields)
