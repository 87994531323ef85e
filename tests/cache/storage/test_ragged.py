"""Ragged arrays of texts: round trip for any split into chunks."""

from pathlib import Path

import clipglot.cache.storage.ragged as ragged
import pytest
import zarr
from clipglot.cache.storage.ragged import RaggedReader, RaggedWriter
from clipglot.cache.storage.ragged_bytes import RaggedBytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore, MemoryStore

unicode = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)  # Cs: halves of surrogate pairs
SCRIPTS = ["", "cat", "кошка", "猫が座る", "고양이", "قطة", "बिल्ली", "🐈‍⬛👩🏽‍🚀", "\0", "e\u0301", "\ufeff", "a\nb\t"]


def stored(group: zarr.Group, batches: list[list[str]]) -> RaggedReader:
    writer = RaggedWriter(group, "text")
    for batch in batches:
        writer.append(RaggedBytes.of([text.encode() for text in batch]))
    writer.close()
    return RaggedReader(group, "text")


@pytest.mark.parametrize("chunk_bytes", [8, 24, 2**24])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(unicode | st.sampled_from(SCRIPTS), max_size=9), max_size=4), data=st.data())
def test_texts_round_trip_for_any_batches_and_chunks(
    chunk_bytes: int, batches: list[list[str]], data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ragged, "CHUNK_BYTES", chunk_bytes)
    reader, texts = stored(zarr.group(MemoryStore()), batches), [text for batch in batches for text in batch]
    assert len(reader) == len(texts)
    assert reader.read() == texts
    start = data.draw(st.integers(0, len(texts)))
    stop = data.draw(st.integers(0, len(texts) + 2))
    assert reader.read(start, stop) == texts[start:stop]


@pytest.mark.parametrize("texts", [[], [""] * 50, ["\0" * 50]], ids=["none", "empty", "zeros"])
def test_chunks_of_zeros_are_written(texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise they would look like lost chunks."""
    monkeypatch.setattr(ragged, "CHUNK_BYTES", 64)
    group = zarr.group(LocalStore(tmp_path))
    assert stored(group, [texts]).read() == texts
    for name in ("bytes", "offsets"):
        (num_chunks,) = group[f"text/{name}"].cdata_shape
        assert len(list((tmp_path / "text" / name / "c").glob("*"))) == num_chunks


def test_chunks_have_the_documented_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "CHUNK_BYTES", 64)
    group = zarr.group(LocalStore(tmp_path))
    stored(group, [["x" * 100], ["y" * 31]])
    assert [group[f"text/{name}"].chunks for name in ("bytes", "offsets")] == [(64,), (3,)]
    assert group["text/bytes"].shape == (131,)
