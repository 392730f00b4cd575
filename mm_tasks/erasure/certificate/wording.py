"""The words of one language: sentences, dates, numbers, plural forms.

`en.toml` and `de.toml` have the same keys and the same placeholders.
"""

from __future__ import annotations

import tomllib
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_tasks.timestamps import moment

if TYPE_CHECKING:
    from datetime import datetime


class Language(StrEnum):
    """The languages of receipts."""

    EN = "en"
    DE = "de"


class Wording:
    """The words of one language. A key is a path: `person.asked`."""

    def __init__(self, language: Language) -> None:
        """Read the file of the language."""
        self.language = language
        self._words = sentences(language)

    def __call__(self, key: str, **values: object) -> str:
        """Return the sentence of a key with its values, whose texts are taken as they are."""
        return str(self._at(key)).format_map(values)

    def count(self, key: str, number: int, **values: object) -> str:
        """Return the sentence of a key in the plural form of a number; `none` may be absent."""
        forms = self._at(key)
        none = forms.get("none", forms["other"])
        form = {0: none, 1: forms["one"]}.get(number, forms["other"])
        return str(form).format_map({**values, "n": self.number(number)})

    def word(self, table: str, word: str | None, **values: object) -> str:
        """Return a fixed word of the log as a phrase; an unknown word stands in quotes.

        None, for a detail that nobody stated, has the phrase `unstated`.
        """
        phrases = self._at(table)
        unknown = phrases.get("other", "\u201c{word}\u201d")
        phrase = phrases.get("unstated" if word is None else word, unknown)
        return str(phrase).format_map({**values, "word": word})

    def list(self, key: str) -> list[str]:
        """Return the sentences of a list."""
        return list(self._at(key))

    def number(self, number: int) -> str:
        """Return a whole number, its thousands apart."""
        return f"{number:,}".replace(",", self("dates.thousands"))

    def day(self, at: str) -> str:
        """Return the day of a stamp, in UTC."""
        return self._dated("dates.day", at)

    def time(self, at: str) -> str:
        """Return day and minute of a stamp, with UTC named."""
        return self._dated("dates.time", at)

    def precise(self, at: str) -> str:
        """Return a stamp to the millisecond, with UTC named."""
        return self._dated("dates.precise", at)

    def exact(self, at: str) -> str:
        """Return a stamp to the millisecond, short, for a column that names UTC."""
        return self._dated("dates.exact", at)

    def _dated(self, key: str, at: str) -> str:
        then: datetime = moment(at)
        month = self._at("dates.months")[then.month - 1]
        return str(self._at(key)).format(then, month=month, ms=then.microsecond // 1000)

    def _at(self, key: str) -> Any:
        found: Any = self._words
        for name in key.split("."):
            found = found[name]
        return found


@cache
def sentences(language: Language) -> dict[str, Any]:
    """Return the file of a language."""
    return tomllib.loads(Path(__file__).with_name(f"{language}.toml").read_text("utf-8"))
