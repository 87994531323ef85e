"""Generator of tables in every form that programs write: format, dialect, encoding, byte order mark, line ends, gzip.

A table is drawn as records first, and its bytes are written by the standard library or by hand. So the records are
known without reading the bytes.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hypothesis import assume
from hypothesis import strategies as st

Record = tuple[str, list[str | None]]


class OddTable(NamedTuple):
    """A table.

    Attributes:
        suffix: of its file.
        content: of its file.
        encoding: that has to be given.
        records: key and captions of each.
    """

    suffix: str
    content: bytes
    encoding: str
    records: list[Record]

    @property
    def expected(self) -> list[tuple[str, list[str]]]:
        """Key and captions of each record as they have to be read: without null."""
        return [(key, [text for text in texts if text is not None]) for key, texts in self.records]


# How a file is encoded, and the encoding that has to be given.
ENCODINGS = {"utf-8": "utf-8", "utf-8-sig": "utf-8", "utf-16": "utf-16", "utf-16-be": "UTF-16BE", "gb18030": "gb18030"}
letters = st.sampled_from([*"ab 4,;'\\{[", "é", "猫", "кот", "🐈", "\ufeff", "“"])
plain_texts = st.lists(letters | st.just('"'), min_size=1, max_size=8).map("".join)
any_texts = st.lists(letters | st.sampled_from(['"', '""', "\t", "\n", "\r\n", '"\n']), min_size=1, max_size=8).map(
    "".join
)
keys = st.lists(st.sampled_from([*"abc/_- ", "猫", "."]), min_size=1, max_size=5).map(
    lambda parts: "".join(parts) + ".jpg"
)


def as_csv(records: Sequence[Record], **how: Any) -> str:
    """As the csv module writes it, and pandas, which uses that."""
    file = io.StringIO()
    writer = csv.writer(file, **how)
    writer.writerow(["image", "text"])
    writer.writerows([key, text] for key, (text,) in records)
    return file.getvalue()


def as_lines(records: Sequence[Record], line_end: str) -> str:
    """Fields between tabs, as they are."""
    return "".join(f"{key}\t{text}{line_end}" for key, text in [("image", "text"), *((k, t) for k, (t,) in records)])


def as_objects(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [
        {"image": key, "text": texts if len(texts) != 1 else texts[0], "n": i} for i, (key, texts) in enumerate(records)
    ]


@st.composite
def odd_tables(draw: Callable[[st.SearchStrategy[Any]], Any]) -> OddTable:
    """A table in one of these forms."""
    form = draw(st.sampled_from(["jsonl", "array", "csv", "quoted tsv", "plain tsv"]))
    line_end = draw(st.sampled_from(["\n", "\r\n"]))
    texts = plain_texts if form == "plain tsv" else any_texts
    several = st.lists(texts | st.none(), max_size=3) if form in ("jsonl", "array") else texts.map(lambda text: [text])
    names = draw(st.lists(keys, min_size=1, max_size=5, unique=True))
    records: list[Record] = [(name, draw(several)) for name in names]
    if form == "jsonl":
        lines = [json.dumps(each, ensure_ascii=draw(st.booleans())) for each in as_objects(records)]
        text, suffix = line_end.join(lines), draw(st.sampled_from([".jsonl", ".ndjson"]))
    elif form == "array":
        indent, suffix = draw(st.sampled_from([None, 1])), draw(st.sampled_from([".json", ".jsonl"]))
        text = json.dumps(as_objects(records), ensure_ascii=False, indent=indent)
    elif form == "csv":
        text, suffix = as_csv(records, lineterminator=line_end), ".csv"
    elif form == "quoted tsv":
        quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        text, suffix = as_csv(records, delimiter="\t", lineterminator=line_end, quoting=quoting), ".tsv"
        lines_fit = all(line.count("\t") == 1 for line in text.split("\n")[:-1])
        assume(
            '"' not in text or '""' in text or not lines_fit or quoting == csv.QUOTE_ALL
        )  # else it is a plain one, too
        swallowed = (line for _, (t,) in records for line in (t or "").split("\n")[1:])
        assume(quoting == csv.QUOTE_ALL or not any("\t" in line for line in swallowed))  # likewise
    else:
        assume(not any('""' in (t or "") for _, (t,) in records))
        text, suffix = as_lines(records, line_end), ".tsv"
    encoding = draw(st.sampled_from(sorted(ENCODINGS)))
    content = text.encode(encoding)
    if draw(st.booleans()):
        content, suffix = gzip.compress(content, mtime=0), f"{suffix}.gz"
    return OddTable(suffix, content, ENCODINGS[encoding], records)
