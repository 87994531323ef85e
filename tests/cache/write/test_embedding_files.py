"""Embeddings as .npy, .parquet and .safetensors hold the rows of the cache, as other libraries read them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.read.cache import Cache
from clipglot.cache.write.embedding_files import write_embedding_files
from clipglot.cli.main import main
from safetensors.numpy import load_file
from support.drawings import draw_images


@pytest.fixture(scope="module")
def cache(make_cache: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 20 images in chunks of 8, of which rows 3 and 9 were not embedded."""
    folder = tmp_path_factory.mktemp("embeddings")
    manifest = draw_images(folder, 20)
    images = [folder / json.loads(line)["image"] for line in manifest.read_text().splitlines()]
    images[3].write_bytes(b"no image")
    images[9].unlink()
    make_cache(manifest, folder / "c.zarr", chunk_rows=8)
    return folder / "c.zarr"


def read_emb(file: Path) -> Any:
    if file.suffix.lower() == ".npy":
        return np.load(file)
    if file.suffix == ".safetensors":
        return load_file(file)["image_emb"]
    return np.stack(pq.read_table(file)["image_emb"].to_pylist())


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".safetensors", ".NPY", ".PARQUET"])
def test_other_libraries_read_the_rows_of_the_cache(suffix: str, cache: Path, tmp_path: Path) -> None:
    output = tmp_path / f"emb{suffix}"
    done = CliRunner().invoke(main, ["convert", str(cache), str(output), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["num_embedded"], told["num_left_out"], told["num_pictures"]) == (18, 2, 20)
    opened, rows = Cache(cache), [row for row in range(20) if row not in (3, 9)]
    np.testing.assert_array_equal(np.asarray(read_emb(output), np.float16), opened.image_emb()[rows])
    is_table = suffix.lower() == ".parquet"
    table = pq.read_table(output if is_table else tmp_path / "emb.parquet")
    assert table["row"].to_pylist() == rows
    assert table["key"].to_pylist() == [opened.keys()[row] for row in rows]
    image, texts = opened.caption_image().tolist(), opened.captions()
    expected = [[text for row_of, text in zip(image, texts, strict=True) if row_of == row] for row in rows]
    assert table["captions"].to_pylist() == expected
    assert [int(start) % 64 for start in [output.read_bytes().find(opened.image_emb()[0].tobytes())]] == [0] or is_table


def test_nothing_is_overwritten_and_nothing_is_left_of_a_failure(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").touch()
    for name in ("a.parquet", "a.npy"):
        with pytest.raises(CacheError, match=r"a\.parquet"):
            write_embedding_files(Cache(cache), tmp_path / name)

    def fail(*_: Any) -> Any:
        raise CacheError("damaged")

    monkeypatch.setattr(Cache, "emb_rows", fail)
    with pytest.raises(CacheError, match="damaged"):
        write_embedding_files(Cache(cache), tmp_path / "b.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet"]
