"""A receipt as a page: plain text, or one HTML file that prints on A4.

The HTML has no script and needs nothing from elsewhere; screen readers find language, headings
and headers of tables.
"""

from __future__ import annotations

from html import escape
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WIDTH = 80

_STYLE = """
@page { size: A4; margin: 15mm 18mm; }
body { font: 9.5pt/1.3 "Liberation Sans", Arial, Helvetica, sans-serif; color: #000;
  background: #fff; max-width: 17cm; margin: 1.5em auto; padding: 0 1em; }
@media print { body { max-width: none; margin: 0; padding: 0; } }
h1 { font-size: 15pt; margin: 0 0 .5em; }
h2 { font-size: 11pt; margin: .8em 0 .25em; border-bottom: .5pt solid #777; break-after: avoid; }
p, ul, dl { margin: .25em 0; }
ul { padding-left: 1.2em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15em 1em; }
dt { font-weight: bold; }
dd { margin: 0; white-space: pre-line; overflow-wrap: anywhere; }
p, li { overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; margin: .4em 0; font-size: 8.5pt; }
th, td { border: .5pt solid #777; padding: .2em .4em; text-align: left; vertical-align: top; }
th { background: #eee; }
tr { break-inside: avoid; }
pre { font-size: 8.5pt; white-space: pre-wrap; overflow-wrap: anywhere; margin: .4em 0; }
"""


class Section(NamedTuple):
    """A part of a page. `key` is the same in every language."""

    key: str
    title: str
    text: Sequence[str] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    points: Sequence[str] = ()
    commands: Sequence[str] = ()


class Page(NamedTuple):
    """A receipt in one language. `fields` are label and value of each line of its head."""

    language: str
    title: str
    fields: Sequence[tuple[str, str]]
    sections: Sequence[Section]

    def as_text(self) -> str:
        """Return the page as plain text, without a newline at the end."""
        label_width = max(len(label) for label, _ in self.fields)
        parts = [f"{self.title}\n{'=' * len(self.title)}"]
        parts.append("\n".join(_field(*field, label_width) for field in self.fields))
        parts += ["\n".join(_section(section)) for section in self.sections]
        return "\n\n".join(parts)

    def as_html(self) -> str:
        """Return the page as one HTML file."""
        title = escape(self.title)
        fields = "\n".join(
            f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in self.fields
        )
        sections = "\n".join("\n".join(_html(section)) for section in self.sections)
        return (
            f'<!DOCTYPE html>\n<html lang="{self.language}">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{title}</h1>\n<dl>\n{fields}\n</dl>\n{sections}\n</main>\n</body>\n</html>\n"
        )


def _field(label: str, value: str, width: int) -> str:
    gap = " " * (width + 3)
    return f"{label + ':':<{width + 3}}" + value.replace("\n", f"\n{gap}")


def _section(section: Section) -> Iterator[str]:
    yield section.title
    yield "-" * len(section.title)
    yield from map(_wrapped, section.text)
    yield from _columns([section.header, *section.rows]) if section.rows else ()
    yield from (_wrapped(point, "- ") for point in section.points)
    yield from (f"    {command}" for command in section.commands)


def _wrapped(text: str, mark: str = "") -> str:
    return fill(
        text,
        _WIDTH,
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()


def _html(section: Section) -> Iterator[str]:
    yield f"<section>\n<h2>{escape(section.title)}</h2>"
    yield from (f"<p>{escape(text)}</p>" for text in section.text)
    if section.rows:
        header = "".join(f'<th scope="col">{escape(name)}</th>' for name in section.header)
        yield f"<table>\n<thead><tr>{header}</tr></thead>\n<tbody>"
        for row in section.rows:
            yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        yield "</tbody>\n</table>"
    if section.points:
        yield "<ul>\n" + "\n".join(f"<li>{escape(text)}</li>" for text in section.points)
        yield "</ul>"
    if section.commands:
        yield "<pre>" + escape("\n".join(section.commands)) + "</pre>"
    yield "</section>"
