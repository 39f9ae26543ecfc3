"""What a reader sees of a page, without a browser: its sections, sentences and tables."""

import re
from html.parser import HTMLParser
from typing import Any

_SILENT = {"script", "style", "svg", "title", "option"}
_BLOCKS = {"p", "div", "li", "dt", "dd", "h1", "h2", "h3", "td", "th", "tr", "pre", "figcaption", "summary", "article"}


class Page(HTMLParser):
    """The visible texts of a page.

    `blocks` has the text of each paragraph, cell or other block; `tables` has the rows of each table as lists of cells.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.blocks: list[str] = [""]
        self.tables: list[list[list[str]]] = []
        self._silent, self._in_cell = 0, False
        self.feed(html)
        self.blocks = [block for text in self.blocks if (block := " ".join(text.split()))]
        self.tables = [[[" ".join(cell.split()) for cell in row] for row in table] for table in self.tables]

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._silent += tag in _SILENT
        if tag in _BLOCKS:
            self.blocks.append("")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in _SILENT
        self._in_cell = self._in_cell and tag not in ("td", "th")
        if tag in _BLOCKS:
            self.blocks.append("")

    def handle_data(self, data: str) -> None:
        if self._silent:
            return
        self.blocks[-1] += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data

    def table(self, *columns: str) -> dict[str, dict[str, str]]:
        """The only table with these columns: first cell of a row -> column -> cell."""
        (found,) = [table for table in self.tables if table and set(columns) <= set(table[0])]
        return {row[0]: dict(zip(found[0], row, strict=True)) for row in found[1:]}

    def answer(self, pattern: str) -> str:
        """The only block that matches a pattern."""
        (found,) = {block for block in self.blocks if re.search(pattern, block)}
        return found
