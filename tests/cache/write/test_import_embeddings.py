"""Import of embeddings computed elsewhere: the result is a cache like any other, and a killed import resumes."""

import json
import signal
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clipglot.cache.format import SourceInfo, Status
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.sources.embeddings import open_embeddings
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from support.cache_bytes import files
from support.command_line import run
from support.embedding_files import tower, write_folder, write_jsonl

# The process dies as by SIGKILL after its sixth chunk.
DYING = """
import signal
from clipglot.cache.write import import_embeddings
write = import_embeddings.write_plain_view
def write_and_die(cache, rows, *arrays):
    write(cache, rows, *arrays)
    if rows.start >= 5 * cache.info.chunk_rows:
        os.kill(os.getpid(), signal.SIGKILL)
import_embeddings.write_plain_view = write_and_die
"""


def test_an_npy_file_becomes_a_cache_that_trains_and_exports(
    npy: Path, given: Any, tiny_clip: Path, manifest: Path, make_run: Callable[..., Path], tiny_cache: Path
) -> None:
    out = npy.with_name("c.zarr")
    rows = npy.with_name("rows.jsonl")
    result = run("import", npy, "--captions", rows, "-o", out, *tower(tiny_clip), "--image-root", manifest.parent)
    assert result.exit_code == 0, result.output
    assert "40 of 40 embeddings imported" in result.stdout
    assert "8 images embedded again as a check: lowest cosine 1.0000" in result.stdout
    cache, original = Cache(out), Cache(tiny_cache)
    assert verify(cache) == []
    assert (cache.captions(), cache.keys()) == (original.captions(), original.keys())
    assert np.allclose(cache.image_emb(), original.image_emb(), atol=1e-3)
    assert np.allclose(cache.image_emb() * cache.norm()[:, None], given[0], rtol=2e-3, atol=1e-5)
    assert cache.info.encoder.difference(original.info.encoder) is None
    assert (cache.info.encoder.precision, cache.info.source.kind) == ("bf16", "embeddings")
    trained = make_run(out, npy.with_name("run"), epochs=1)
    assert export_run(ExportSettings(run=trained, output=npy.with_name("merged"))).num_probes == 8


def test_a_folder_of_clip_retrieval_becomes_a_cache(given: Any, tiny_clip: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "laion", given)
    result = run("import", folder, "-o", tmp_path / "c.zarr", *tower(tiny_clip), "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["num_pictures"], said["num_captions"], said["num_probes"], said["min_cosine"]) == (40, 40, 0, None)
    cache = Cache(tmp_path / "c.zarr")
    assert cache.keys() == given[1]  # part 10 comes after part 2
    assert cache.captions() == [texts[0] for texts in given[2]]
    assert np.allclose(cache.norm(), 1, atol=1e-3)
    assert verify(cache) == []
    again = run("import", folder, "-o", tmp_path / "c.zarr", *tower(tiny_clip))
    assert "unchecked: pass --image-root" in again.stdout


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_an_hdf5_dataset_and_a_parquet_table(kind: str, given: Any, tiny_clip: Path, tmp_path: Path) -> None:
    raw, keys, captions = given
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["deep/emb"] = raw.astype(kind)
        file["deep/other"] = raw[:3]
    table = pa.table({"path": keys, "zh": captions, "en": [None, *keys[1:]]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=7)
    command = ["import", tmp_path / "e.h5", "-o", tmp_path / "c.zarr", *tower(tiny_clip)]
    command += ["--captions", tmp_path / "rows.parquet", "--image-field", "path"]
    result = run(*command)
    assert (result.exit_code, "--dataset NAME" in result.stderr, "deep/emb, deep/other" in result.stderr) == (
        1,
        True,
        True,
    )
    result = run(*command, "--dataset", "deep/emb")
    assert "no column 'text' (found: path, zh, en): pass --text-field NAME" in result.stderr
    result = run(*command, "--dataset", "deep/emb", "--text-field", "zh", "--text-field", "en")
    assert result.exit_code == 0, result.output
    cache = Cache(tmp_path / "c.zarr")
    assert np.allclose(cache.image_emb() * cache.norm()[:, None], raw, rtol=4e-3, atol=1e-4)
    assert cache.captions() == captions[0] + [
        t for key, texts in zip(keys[1:], captions[1:], strict=True) for t in (*texts, key)
    ]


def test_a_damaged_chunk_is_imported_again_as_verify_says(npy: Path, tiny_clip: Path) -> None:
    out, rows = npy.with_name("c.zarr"), npy.with_name("rows.jsonl")
    given = ["import", npy, "--captions", rows, "-o", out, *tower(tiny_clip)]
    assert run(*given).exit_code == 0
    before = files(out)
    (out / "images/emb/c/0/0/0").write_bytes(b"damaged")
    said = run("verify", out).stdout
    assert "delete images/status/c/0 and run its `clipglot import` command again" in said
    (out / "images/status/c/0").unlink()
    assert run(*given).exit_code == 0
    assert files(out) == before


def test_rows_without_names_of_images_are_numbered(npy: Path, given: Any, tiny_clip: Path) -> None:
    npy.with_name("rows.csv").write_text("text\n" + "\n".join(f"caption {i}" for i in range(40)) + "\n")
    out, rows = npy.with_name("c.zarr"), npy.with_name("rows.csv")
    result = run("import", npy, "--captions", rows, "-o", out, *tower(tiny_clip))
    assert "no field 'image'" in result.stderr
    assert not out.exists()
    assert run("import", npy, "--captions", rows, "-o", out, *tower(tiny_clip), "--no-keys").exit_code == 0
    assert Cache(out).keys() == [str(i) for i in range(40)]
    result = run(
        "import", npy, "--captions", rows, "-o", out, *tower(tiny_clip), "--no-keys", "--image-root", npy.parent
    )
    assert (result.exit_code, "leave out --no-keys" in result.stderr) == (2, True)


def test_rows_of_one_image_are_merged_and_bad_rows_have_their_status(
    given: Any, tiny_clip: Path, tmp_path: Path
) -> None:
    raw, keys, captions = given
    order = np.r_[0:40, 3, 3, 7]
    emb = raw[order].copy()
    emb[5], emb[6, 2], emb[8, 0] = 0, np.nan, np.inf
    emb[40:43] = 9  # of rows that repeat an image
    np.save(tmp_path / "emb.npy", np.asfortranarray(emb))
    write_jsonl(
        tmp_path / "rows.jsonl",
        [keys[i] for i in order],
        [captions[i] if n < 40 else ["again"] for n, i in enumerate(order)],
    )
    out = tmp_path / "c.zarr"
    result = run("import", tmp_path / "emb.npy", "--captions", tmp_path / "rows.jsonl", "-o", out, *tower(tiny_clip))
    assert "37 of 40 embeddings imported" in result.stdout
    cache = Cache(out)
    assert cache.keys() == keys
    assert np.flatnonzero(cache.status() == Status.NOT_FINITE).tolist() == [5, 6, 8]
    assert not cache.image_emb()[[5, 6, 8]].any()
    assert not cache.norm()[[5, 6, 8]].any()
    good = cache.status() == Status.EMBEDDED
    assert np.allclose((cache.image_emb() * cache.norm()[:, None])[good], raw[good], rtol=2e-3, atol=1e-5)
    image_index = cache.caption_image()
    assert [cache.captions()[i] for i in np.flatnonzero(image_index == 3)] == [*captions[3], "again", "again"]
    assert verify(cache) == []


def test_an_import_killed_and_resumed_has_the_bytes_of_an_undisturbed_one(
    given: Any, tiny_clip: Path, start_command: Any, tmp_path: Path
) -> None:
    raw, keys, captions = given
    np.save(tmp_path / "emb.npy", np.tile(raw, (60, 1)))
    write_jsonl(tmp_path / "rows.jsonl", [f"{i}/{key}" for i in range(60) for key in keys], captions * 60)
    command = ["import", tmp_path / "emb.npy", "--captions", tmp_path / "rows.jsonl", *tower(tiny_clip)]
    killed = start_command(*command, "-o", tmp_path / "a.zarr", script=DYING)
    assert killed.wait() == -signal.SIGKILL
    assert len(Cache(tmp_path / "a.zarr").missing_chunks()) > 5
    for name in ("a.zarr", "b.zarr"):
        assert run(*command, "-o", tmp_path / name).exit_code == 0
    assert files(tmp_path / "a.zarr") == files(tmp_path / "b.zarr")
    cache = Cache(tmp_path / "b.zarr", read_only=False)
    cache.arrays.write_info(replace(cache.info, appended=[replace(cache.info.source, first_row=len(cache))]))
    assert "b.zarr was appended to since: run its" in run(*command, "-o", tmp_path / "b.zarr").stderr
    np.save(tmp_path / "emb.npy", np.tile(raw, (60, 1)) * 2)
    result = run(*command, "-o", tmp_path / "a.zarr")
    assert "a.zarr was made from another source: sha256 was" in result.stderr


def test_memory_is_flat(tmp_path: Path) -> None:
    np.save(tmp_path / "emb.npy", np.ones((200_000, 16), np.float32))
    (tmp_path / "rows.csv").write_text("image,text\n")
    info = SourceInfo(path=str(tmp_path / "emb.npy"), sha256="", image_root="", image_field="", text_fields=[])
    source = open_embeddings(info, captions=tmp_path / "rows.csv")
    tracemalloc.start()
    assert source.read(np.arange(5, 200_000, 1000)).shape == (200, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8192 * 16 * 4 * 3
