"""What a reader of a report's HTML sees: its text, tables and images, by html.parser alone."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "br", "link", "input", "hr"}


@dataclass
class Table:
    """Rows of cells, as text."""

    rows: list[list[str]] = field(default_factory=list)


class Page(HTMLParser):
    """A parsed page; nesting is checked.

    Attributes:
        text: of the body, with single spaces.
        tables: in order.
        tags: names of all elements.
        attributes: all pairs of name and value.
        images: sources of `img` elements.
        ids: of all elements.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[Table] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.images: list[str] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self._pieces: list[str] = []
        self._cell: list[str] | None = None
        self.feed(html)
        self.close()
        assert self._open == [], self._open
        self.text = " ".join("".join(self._pieces).replace("\u00a0", " ").split())

    @classmethod
    def read(cls, file: Path) -> "Page":
        """Parse a file."""
        return cls(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        pairs = [(name, value or "") for name, value in attrs]
        self.attributes += pairs
        self.ids += [value for name, value in pairs if name == "id"]
        if tag == "img":
            self.images.append(dict(pairs)["src"])
        if tag == "table":
            self.tables.append(Table())
        if tag == "tr":
            self.tables[-1].rows.append([])
        if tag in ("td", "th"):
            self._cell = []
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1:] == [tag], self._open[-5:]
        self._open.pop()
        if tag in ("td", "th"):
            assert self._cell is not None
            self.tables[-1].rows[-1].append(" ".join("".join(self._cell).replace("\u00a0", " ").split()))
            self._cell = None
        if tag in ("td", "th", "li", "p", "dt", "dd", "h1", "h2", "h3", "div"):
            self._pieces.append(" ")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("style", "title"):
            return
        self._pieces.append(data)
        if self._cell is not None:
            self._cell.append(data)

    def table_with(self, heading: str) -> Table:
        """The first table with a cell of this text."""
        return next(table for table in self.tables if any(heading in row for row in table.rows))
