"""SECURITY.md promises nothing that no test holds."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_promise_names_a_test_that_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    _, trusted, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    assert trusted.startswith("Trusted\n")
    assert len(sections) == 6
    for section in sections:
        promises = re.split(r"^- ", section, flags=re.MULTILINE)[1:]
        assert promises
        for promise in promises:
            (named,) = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promise)
            file, test = named
            assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), promise
