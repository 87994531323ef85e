"""Text files of users: lines, byte order marks, and files that are absent, endless or in another encoding."""

from pathlib import Path

import pytest
from clipglot.cache.sources.text_files import split_lines
from clipglot.inference.errors import InputError
from clipglot.inference.text_files import read_lines, read_text
from hypothesis import given
from hypothesis import strategies as st


def test_lines_of_windows_and_macs_without_blank_ones(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_bytes("\ufeffкрасный\r\n\r\n  \nb\u2028c\rd\x0be\x85\n".encode())
    assert read_lines(file) == ["красный", "b\u2028c", "d\x0be\x85"]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n"), min_size=1)), st.sampled_from(["\n", "\r\n", "\r"]))
def test_lines_are_those_that_were_joined(lines: list[str], end: str) -> None:
    assert split_lines("".join(line + end for line in lines)) == lines
    assert split_lines(end.join(lines)) == lines


def test_an_endless_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipglot.inference.text_files.MAX_BYTES", 1000)
    with pytest.raises(InputError, match=r"/dev/zero has more than 1,000 bytes: pass a JSON file"):
        read_text(Path("/dev/zero"), "a JSON file")


def test_absent_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"c\.txt: No such file"):
        read_lines(tmp_path / "c.txt")
    with pytest.raises(InputError, match="directory"):
        read_lines(tmp_path)
    (tmp_path / "c.txt").write_bytes("кошка".encode("koi8-r"))
    with pytest.raises(InputError, match=r"c\.txt is not UTF-8"):
        read_lines(tmp_path / "c.txt")
