"""Captions are kept or dropped as by the rules applied one by one."""

import numpy as np
import pytest
from clipglot.cache.sources.captions import MAX_CAPTION_BYTES, encode_caption, keep_captions
from clipglot.cache.sources.source import RowBatch, SourceRow, batched
from clipglot.cache.storage.ragged_bytes import RaggedBytes
from hypothesis import given, settings
from hypothesis import strategies as st

SPACES = [" ", "\t", "\x1c", "\x85", "\xa0", "\u1680", "\u2003", "\u205f", "\u3000"]
ODD = ["\ufeff", "\u200b", "\0", "\ud83d", "\udc00", "\ud7ff", "\ue000", "м" * (MAX_CAPTION_BYTES // 2)]
PIECES = ["a", "é", "猫", "한", "🐈", *SPACES, *ODD]


def reason_to_drop(caption: str) -> str:
    if not caption.strip():
        return "empty"
    if "\0" in caption:
        return "holds NUL"
    try:
        return "too long" if len(caption.encode()) > MAX_CAPTION_BYTES else ""
    except UnicodeEncodeError:
        return "not unicode"


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=3).map("".join), max_size=8))
def test_each_caption_is_kept_or_dropped_by_its_first_reason(captions: list[str]) -> None:
    kept, dropped = keep_captions(RaggedBytes.of([encode_caption(caption) for caption in captions]))
    reasons = [reason_to_drop(caption) for caption in captions]
    assert kept.tolist() == [i for i, reason in enumerate(reasons) if not reason]
    by_index = {i: reason for reason, indices in dropped.items() for i in indices.tolist()}
    assert by_index == {i: reason for i, reason in enumerate(reasons) if reason}


def test_every_character_of_white_space_alone_is_empty() -> None:
    spaces = [character for character in map(chr, range(0x110000)) if character.isspace()]
    captions = RaggedBytes.of([space.encode() for space in spaces] + [f"{space}x".encode() for space in spaces])
    kept, dropped = keep_captions(captions)
    assert kept.tolist() == [*range(len(spaces), 2 * len(spaces))]
    assert dropped["empty"].tolist() == [*range(len(spaces))]


def test_translation_and_language_of_a_dropped_caption_are_dropped() -> None:
    rows = [
        SourceRow(1, "a", ["x", " ", "y"], ["X", "", "Y"], ["ru", "zh", "en"]),
        SourceRow(2, "b", ["\0"], ["Z"], ["de"]),
        SourceRow(3, "c", ["z"], ["Z"], ["fr"]),
    ]
    (batch,) = batched(rows)
    expected = ([b"x", b"y", b"z"], [0, 0, 2], [b"X", b"Y", b"Z"], ["ru", "en", "fr"])

    def columns(batch: RowBatch) -> tuple[object, ...]:
        assert batch.translations is not None
        return batch.captions.split(), batch.image_index.tolist(), batch.translations.split(), batch.languages

    assert columns(batch) == expected
    assert {reason: indices.tolist() for reason, indices in batch.dropped.items()} == {"empty": [0], "holds NUL": [1]}
    last = batch.take(np.array([False, True, True]))
    assert columns(last) == ([b"z"], [1], [b"Z"], ["fr"])
    assert {reason: indices.tolist() for reason, indices in last.dropped.items()} == {"empty": [], "holds NUL": [0]}


def test_rows_with_and_without_languages_do_not_mix() -> None:
    with pytest.raises(AssertionError, match="every caption of a row"):
        list(batched([SourceRow(1, "a", ["x", "y"], (), ["ru"])]))
