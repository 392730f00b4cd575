"""Which column of a CSV file becomes which field, and how its text becomes a value.

    --map user_id=Customer              a column, by its name in the header
    --map properties.cents:int=Amount   into `properties`, as a number
    --map timestamp:epoch_s=Created     seconds since 1970, in UTC
    --set event=purchased               the same for every row

Columns that are named like a field, or `properties.<name>`, need no mapping. An empty cell
is "not given". Types: text (of all fields, unless said otherwise), and for properties int,
float, bool and json; for `timestamp` epoch_s and epoch_ms; for `properties` as a whole json.

A message names a field or the number of a column, never a name from the file: a file
without a header has persons there.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from mm_tasks.errors import ImportRefused, InvalidEvent, Problem
from mm_tasks.events.models import TRACK_FIELDS
from mm_tasks.imports.reader import CellError, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

FIELDS = tuple(TRACK_FIELDS)
_FREE = "properties"
_PREFIX = f"{_FREE}."
_INTEGER = re.compile(r"[+-]?\d{1,30}", re.ASCII)
_NUMBER = re.compile(
    r"[+-]?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})(?:[eE][+-]?\d{1,4})?", re.ASCII
)
_SECONDS = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?", re.ASCII)
_MILLISECONDS = re.compile(r"-?\d{1,15}", re.ASCII)
_BOOLS = {"true": True, "false": False, "1": True, "0": False}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Source(NamedTuple):
    """Where one field, or one property, comes from: a column's name, or the same for all rows."""

    field: str
    key: str  # of `properties`; '' for a field itself
    type: str
    given: str  # the column's name, or the constant's text

    @property
    def target(self) -> tuple[str, str]:
        """Return what is filled; no two sources may fill the same."""
        return self.field, self.key


class Cell(NamedTuple):
    """One column that is read: its place, what is filled, and how the text is read."""

    place: int
    field: str
    key: str
    read: Callable[[str], object] | None


class Mapping:
    """Turns the cells of a row into the fields of `track.delay`."""

    def __init__(self, cells: Sequence[Cell], constants: dict[str, Any]) -> None:
        """Take what `mapping` found out."""
        self._cells = cells
        self._properties = constants.pop(_FREE, {})
        self._constants = constants

    def __call__(self, row: list[str]) -> dict[str, Any]:
        """Return the fields of one row; raise `InvalidEvent` naming each column that is amiss."""
        fields = dict(self._constants)
        properties = dict(self._properties)
        problems: list[Problem] = []
        for place, field, key, read in self._cells:
            text = row[place]
            if not text:
                continue
            value: Any = text
            if read is not None:
                try:
                    value = read(text)
                except CellError as unfit:
                    problems.append(Problem(field, f"{unfit} (column {place + 1})"))
            if key:
                properties[key] = value
            else:
                fields[field] = value
        if problems:
            raise InvalidEvent(problems)
        if properties:
            fields[_FREE] = properties
        return fields


def source(option: str, words: str) -> Source:
    """Read `FIELD[:TYPE]=TEXT`, the words of an option; raise `ImportRefused` if they are not."""
    left, equals, given = words.partition("=")
    name, colon, type_ = left.rpartition(":")
    if not colon:
        name, type_ = left, ""
    if not equals or not name or not given:
        msg = f"{option}: must read like FIELD=… or FIELD:TYPE=…"
        raise ImportRefused(msg)
    found = _source(name, type_, given)
    if found is None:
        msg = f"{option} {name}: is not a field; fields are {', '.join(FIELDS)}, properties.NAME"
        raise ImportRefused(msg)
    if found.type not in _types(found):
        msg = f"{option} {name}: its type must be one of {', '.join(_types(found))}"
        raise ImportRefused(msg)
    return found


def mapping(
    header: Sequence[str],
    maps: Sequence[Source],
    sets: Sequence[Source],
    *,
    ignore_unmapped: bool = False,
) -> Mapping:
    """Return the mapping of a file with this header.

    What is mapped or set on purpose wins over a column's own name. Raises `ImportRefused` for a
    column that is no field and not mapped, a name twice in the header, a column that is not
    there, a field with two sources, and where nothing gives `event`.
    """
    places = _places(header)
    chosen = [*maps, *sets]
    _check_once(chosen)
    filled = {one.target for one in chosen}
    mapped = {one.given for one in maps}
    own = [
        found
        for name in header
        if name not in mapped and (found := _source(name)) and found.target not in filled
    ]
    if not ignore_unmapped:
        _check_all_used(header, mapped | {one.given for one in own})
    _check_once([*chosen, *own])
    if ("event", "") not in filled | {one.target for one in own}:
        msg = "no column gives `event`: use --map event=COLUMN or --set event=NAME"
        raise ImportRefused(msg)
    cells = [
        Cell(_place(places, one), one.field, one.key, _READ[one.type]) for one in (*maps, *own)
    ]
    return Mapping(cells, _constants(sets))


def _source(name: str, type_: str = "", given: str = "") -> Source | None:
    if name.startswith(_PREFIX) and name != _PREFIX:
        return Source(_FREE, name.removeprefix(_PREFIX), type_ or "text", given or name)
    if name in FIELDS:
        usual = "json" if name == _FREE else "text"
        return Source(name, "", type_ or usual, given or name)
    return None


def _types(one: Source) -> tuple[str, ...]:
    if one.key:
        return ("text", "int", "float", "bool", "json")
    if one.field == _FREE:
        return ("json",)
    return ("text", "epoch_s", "epoch_ms") if one.field == "timestamp" else ("text",)


def _places(header: Sequence[str]) -> dict[str, int]:
    places: dict[str, int] = {}
    for place, name in enumerate(header):
        if name in places:
            msg = f"columns {places[name] + 1} and {place + 1} of the header have the same name"
            raise ImportRefused(msg)
        places[name] = place
    return places


def _place(places: dict[str, int], one: Source) -> int:
    if one.given not in places:
        msg = f"--map {one.field}: the header has no column of the name that was given"
        raise ImportRefused(msg)
    return places[one.given]


def _check_once(sources: Iterable[Source]) -> None:
    seen: set[tuple[str, str]] = set()
    for one in sources:
        # All of `properties` and a part of it cannot both be given.
        rivals = {target for target in seen if target[0] == _FREE}
        is_whole = one.target == (_FREE, "")
        if one.target in seen or (one.key and (_FREE, "") in seen) or (is_whole and rivals):
            msg = f"{one.field}: is given twice"
            raise ImportRefused(msg)
        seen.add(one.target)


def _check_all_used(header: Sequence[str], used: set[str]) -> None:
    unused = [str(place) for place, name in enumerate(header, 1) if name not in used]
    if unused:
        msg = (
            f"of the header, {'column' if len(unused) == 1 else 'columns'} {', '.join(unused)} "
            "would be lost: no field has that name. Use --map FIELD=COLUMN or --ignore-unmapped"
        )
        raise ImportRefused(msg)


def _constants(sets: Sequence[Source]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for one in sets:
        read = _READ[one.type]
        try:
            value = one.given if read is None else read(one.given)
        except CellError as unfit:
            msg = f"--set {one.field}: {unfit}"
            raise ImportRefused(msg) from None
        if one.key:
            fields.setdefault(_FREE, {})[one.key] = value
        else:
            fields[one.field] = value
    if type(fields.get(_FREE, {})) is not dict:
        msg = f"--set {_FREE}: must be a JSON object"
        raise ImportRefused(msg)
    return fields


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        rule = "must be a whole number"
        raise CellError(rule)
    return int(text)


def _float(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        rule = "must be a number"
        raise CellError(rule)
    return float(text)


def _bool(text: str) -> bool:
    value = _BOOLS.get(text.lower())
    if value is None:
        rule = "must be true, false, 1 or 0"
        raise CellError(rule)
    return value


def _epoch_s(text: str) -> datetime:
    found = _SECONDS.fullmatch(text)
    if not found:
        rule = "must be seconds since 1970"
        raise CellError(rule)
    sign, seconds, fraction = found.groups()
    ms = int(seconds) * 1000 + int((fraction or "").ljust(3, "0")[:3])
    return _instant(-ms if sign else ms)


def _epoch_ms(text: str) -> datetime:
    if not _MILLISECONDS.fullmatch(text):
        rule = "must be milliseconds since 1970"
        raise CellError(rule)
    return _instant(int(text))


def _instant(ms: int) -> datetime:
    try:
        return _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        rule = "must be between the years 1 and 9999 in UTC"
    raise CellError(rule)


_READ: dict[str, Callable[[str], object] | None] = {
    "text": None,
    "int": _integer,
    "float": _float,
    "bool": _bool,
    "json": decode,
    "epoch_s": _epoch_s,
    "epoch_ms": _epoch_ms,
}
