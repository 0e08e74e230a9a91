"""A report as a program reads it: tags, tables with the numbers behind their cells, and the packed blocks."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any


@dataclass
class Cell:
    """One cell: attributes, what is shown, and classes of what is inside with their text and attributes."""

    tag: str
    attrs: dict[str, str]
    text: str = ""
    inside: list[tuple[dict[str, str], str]] = field(default_factory=list)

    def part(self, name: str) -> tuple[dict[str, str], str] | None:
        """The first element inside of class `name`: its attributes and text."""
        return next(((a, t) for a, t in self.inside if name in a.get("class", "").split()), None)


@dataclass
class Table:
    """One table: attributes, head rows, body rows (attributes, cells)."""

    attrs: dict[str, str]
    head: list[list[Cell]] = field(default_factory=list)
    rows: list[tuple[dict[str, str], list[Cell]]] = field(default_factory=list)
    caption: str = ""

    def columns(self) -> list[str]:
        """Name of each column; one below a common heading is `heading/name`."""
        below = list(self.head[1]) if len(self.head) > 1 else []
        out = []
        for cell in self.head[0]:
            span = int(cell.attrs.get("colspan", 1))
            if cell.attrs.get("scope") == "colgroup":
                out += [f"{cell.text}/{below.pop(0).text}" for _ in range(span)]
            else:
                out.append(cell.text)
        return out


class Page(HTMLParser):
    """Everything tests ask of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.tables: list[Table] = []
        self.data: list[tuple[str, str]] = []
        self.blocks: dict[str, str] = {}
        self.table: Table | None = None
        self.cell: Cell | None = None
        self.open: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Note it, and open what it opens."""
        found = {k: v or "" for k, v in attrs}
        self.tags.append((tag, found))
        if tag not in ("img", "br", "meta", "link", "input", "wbr"):
            self.open.append((tag, found))
        if tag == "table":
            self.table = Table(found)
            self.tables.append(self.table)
        elif self.table and tag == "tr":
            if any(t == "thead" for t, _ in self.open):
                self.table.head.append([])
            else:
                self.table.rows.append((found, []))
        elif self.table and tag in ("td", "th"):
            self.cell = Cell(tag, found)
            (self.table.head[-1] if any(t == "thead" for t, _ in self.open) else self.table.rows[-1][1]).append(self.cell)
        elif self.cell:
            self.cell.inside.append((found, ""))
        if tag == "data":
            self.data.append((found["value"], ""))

    def handle_endtag(self, tag: str) -> None:
        """Close it."""
        while self.open and self.open.pop()[0] != tag:
            pass
        if tag == "table":
            self.table = None
        elif tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data: str) -> None:
        """Text goes to the page, its cell, its caption, its block."""
        self.words.append(data)
        tag, attrs = self.open[-1] if self.open else ("", {})
        if self.cell:
            self.cell.text += data
            if tag not in ("td", "th") and self.cell.inside:
                known, before = self.cell.inside[-1]
                self.cell.inside[-1] = (known, before + data)
        elif self.table and tag == "caption":
            self.table.caption += data
        if tag == "data":
            self.data[-1] = (self.data[-1][0], self.data[-1][1] + data)
        if tag == "script" and "id" in attrs:
            self.blocks[attrs["id"]] = data

    def block(self, name: str) -> Any:
        """What a packed block holds."""
        return json.loads(zlib.decompress(base64.b64decode(self.blocks[name])))

    def levels(self) -> list[int]:
        """Levels of the headings, in order."""
        return [int(t[1]) for t, _ in self.tags if re.fullmatch("h[1-6]", t)]
