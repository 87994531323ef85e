"""Row writer: equals a plain dict, wherever batches end and whatever lines hold."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from clipglot.cache.format import CAPTION_IMAGE, KEY, LANGUAGE, LOCATOR, TEACHER_TEXT, TEXT
from clipglot.cache.sources.reader import Locator
from clipglot.cache.sources.source import SourceRow, batched
from clipglot.cache.storage import ragged
from clipglot.cache.storage.digests import first_lines
from clipglot.cache.storage.encoding import open_array
from clipglot.cache.storage.ragged import RaggedReader
from clipglot.cache.storage.ragged_bytes import RaggedBytes
from clipglot.cache.write.row_writer import RowWriter
from hypothesis import given, settings
from hypothesis import strategies as st

captions = st.lists(
    st.tuples(st.sampled_from(["x", "", "猫", "я" * 50, "\ud83d"]), st.sampled_from(["", "ru", "zh"])), max_size=3
)
lines = st.lists(st.tuples(st.sampled_from("abcdé猫"), captions), min_size=1, max_size=12)


def to_rows(
    given: list[tuple[str, list[tuple[str, str]]]], located: bool, tagged: bool, translated: bool
) -> list[SourceRow]:
    return [
        SourceRow(
            line,
            key,
            [f"{text}{line}" if text.strip() else text for text, _ in captions],
            [f"en {text}" for text, _ in captions] if translated else (),
            [tag for _, tag in captions] if tagged else (),
            Locator(0, line, 1) if located else None,
        )
        for line, (key, captions) in enumerate(given)
    ]


def kept(row: SourceRow) -> Iterator[tuple[str, str, str]]:
    """The captions that are kept, with translation and tag."""
    translations, tags = row.translations or [""] * len(row.captions), row.languages or [""] * len(row.captions)
    for caption, translation, tag in zip(row.captions, translations, tags, strict=True):
        if caption and "\ud83d" not in caption:
            yield caption, translation.replace("\ud83d", "?"), tag


any_lines = given(
    given=lines,
    borders=st.lists(st.integers(0, 12)),
    limit=st.none() | st.integers(1, 4),
    located=st.booleans(),
    tagged=st.booleans(),
    translated=st.booleans(),
)


@settings(deadline=None, max_examples=40)
@any_lines
def test_lines_of_an_image_are_merged_as_in_a_dict(**case: Any) -> None:
    check_merge(**case)


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@any_lines
def test_lines_of_an_image_are_merged_as_in_a_dict_in_many_cases(**case: Any) -> None:
    check_merge(**case)


def check_merge(
    given: list[tuple[str, list[tuple[str, str]]]],
    borders: list[int],
    limit: int | None,
    located: bool,
    tagged: bool,
    translated: bool,
) -> None:
    rows = to_rows(given, located, tagged, translated)
    expected: dict[str, tuple[Locator | None, list[tuple[str, str, str]]]] = {}
    root = zarr.create_group({}, zarr_format=3)
    writer = RowWriter(root, has_text_targets=translated, limit=limit)
    cuts = [0, *sorted(border for border in borders if border < len(rows)), len(rows)]
    for start, stop in pairwise(cuts):
        for batch in batched(rows[start:stop]):
            if not writer.append(batch):
                break
    for row in rows:  # the model has no batches: it reads to the end, and leaves out what is beyond the limit
        if row.key in expected or limit is None or len(expected) < limit:
            expected.setdefault(row.key, (row.locator, []))[1].extend(kept(row))
    num, num_captions = writer.close()

    image_index = np.asarray(open_array(root, CAPTION_IMAGE)[:])
    kept_captions = [text for _, captions in expected.values() for text in captions]
    assert RaggedReader(root, KEY).read() == list(expected)
    assert RaggedReader(root, TEXT).read() == [caption for caption, _, _ in kept_captions]
    assert image_index.tolist() == [row for row, (_, captions) in enumerate(expected.values()) for _ in captions]
    assert (num, num_captions) == (len(expected), len(kept_captions))
    if translated:
        assert RaggedReader(root, TEACHER_TEXT).read() == [translation for _, translation, _ in kept_captions]
    if LANGUAGE in root:
        codes, names = np.asarray(open_array(root, LANGUAGE)[:]), list(writer.codes)
        assert [names[code] for code in codes] == [tag for _, _, tag in kept_captions]
    else:
        assert not any(tag for _, _, tag in kept_captions)
    assert (LOCATOR in root) == located
    if located:
        locators = np.asarray(open_array(root, LOCATOR)[:])
        assert [Locator(*row) for row in locators.tolist()] == [locator for locator, _ in expected.values()]
    assert set(root["images"].group_keys()) | set(root["captions"].group_keys()) == {"key", "text"}  # type: ignore[union-attr]


@settings(deadline=None)
@given(order=st.permutations(range(20)), num=st.integers(0, 20), piece=st.integers(1, 100), block=st.integers(1, 100))
def test_texts_are_gathered_in_any_order_from_any_blocks(order: list[int], num: int, piece: int, block: int) -> None:
    texts = [f"{i}" * i for i in range(20)]
    root = zarr.create_group({}, zarr_format=3)
    writer = ragged.RaggedWriter(root, "texts")
    writer.append(RaggedBytes.of([text.encode() for text in texts]))
    writer.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "PIECE_BYTES", piece)
        patch.setattr(ragged, "CHUNK_BYTES", block)
        reader = RaggedReader(root, "texts")
        gathered = [text.decode() for part in reader.gathered(np.array(order[:num], np.int64)) for text in part.split()]
        assert gathered == [texts[i] for i in order[:num]]
        assert [text.decode() for part in reader.blocks() for text in part.split()] == texts


@settings(deadline=None)
@given(texts=st.lists(st.binary(max_size=4)), data=st.data())
def test_texts_are_taken_by_row_even_more_than_once(texts: list[bytes], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1))) if texts else []
    taken = RaggedBytes.of(texts).take(np.array(rows, np.int64))
    assert taken.split() == [texts[row] for row in rows]
    assert (taken.offsets[0], taken.offsets[-1]) == (0, len(taken.raw))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2))))
def test_first_lines_are_those_of_a_dict(digests: list[tuple[int, int]]) -> None:
    seen: dict[tuple[int, int], int] = {}
    expected = [seen.setdefault(digest, line) for line, digest in enumerate(digests)]
    assert first_lines(np.array(digests, np.uint64).reshape(-1, 2)).tolist() == expected


def test_a_merge_of_distant_lines_holds_few_texts_in_memory(tmp_path: Path) -> None:
    """Five lines an image, each pass over all images: every caption moves."""
    root = zarr.create_group(tmp_path / "c.zarr", zarr_format=3)
    writer = RowWriter(root, has_text_targets=False)
    for turn in range(5):
        for batch in batched(SourceRow(i, f"{i:04d}", [f"{i} {turn} " + "я" * 40]) for i in range(2000)):
            writer.append(batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "PIECE_BYTES", 10_000)
        taken: list[int] = []
        joined = RaggedBytes.joined
        patch.setattr(
            RaggedBytes, "joined", lambda parts: taken.append(sum(len(part.raw) for part in parts)) or joined(parts)
        )
        assert writer.close() == (2000, 10_000)
    assert RaggedReader(root, TEXT).read(5, 10) == [f"1 {turn} " + "я" * 40 for turn in range(5)]
    assert 1 < max(taken) <= 10_000
