"""Caches in one HDF5 file: format, readers, and errors that name damage."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from clipglot.cache.errors import CacheError
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.write.convert import convert
from clipglot.distill.data.image_embeddings import open_images
from clipglot.distill.errors import DistillError
from clipglot.distill.train_settings import EmbeddingSettings
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from support.command_line import run
from support.run_logs import logged
from support.runs import settings

CPU = torch.device("cpu")
AGAIN = "convert it again from the cache that this is a copy of"


def test_the_file_follows_the_documented_format(with_tokens: Path, h5: Path) -> None:
    with h5py.File(h5, locking=False) as file:
        assert json.loads(file.attrs["clipglot"]) == Cache(with_tokens).arrays.root.attrs["clipglot"]
        names: list[str] = []
        file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
        assert sorted(names) == sorted(Cache(with_tokens).arrays.nodes()[1])
        for name in names:
            array = Cache(with_tokens).arrays.array(name)
            found = file[name].shape, file[name].dtype, file[name].chunks, file[name].fletcher32
            assert found == (array.shape, array.dtype, array.chunks, True)
            assert np.array_equal(file[name][...], array[...])


def test_it_reads_like_the_zarr_cache(with_tokens: Path, h5: Path) -> None:
    ours, theirs = Cache(h5), Cache(with_tokens)
    assert (ours.info, len(ours), list(ours.failures())) == (theirs.info, len(theirs), [])
    assert (ours.captions(), ours.keys(3, 9), ours.missing_chunks()) == (theirs.captions(), theirs.keys(3, 9), [])
    rows = np.array([39, 0, 39, 7])
    for read in (Cache.image_emb, Cache.norm, Cache.status, Cache.caption_image, lambda c: c.emb_rows(rows)):
        assert np.array_equal(read(ours), read(theirs))


def test_threads_read_it_concurrently(h5: Path, with_tokens: Path) -> None:
    cache, expected = Cache(h5), Cache(with_tokens).image_emb()
    wanted = [np.random.default_rng(i).integers(0, 40, 16) for i in range(64)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(cache.emb_rows, wanted))
    assert all(np.array_equal(f, expected[rows]) for f, rows in zip(found, wanted, strict=True))


def test_every_reading_command_accepts_it(h5: Path, with_tokens: Path, merged: Path, tmp_path: Path) -> None:
    def printed(*arguments: object) -> Any:
        result = run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert printed("inspect", h5) == printed("inspect", with_tokens) | {"path": str(h5)}
    checked = printed("verify", h5)
    assert (checked["state"], checked["faults"], checked["probes"]["num"]) == ("sealed", [], 16)
    assert printed("eval", "retrieval", merged, h5) == printed("eval", "retrieval", merged, with_tokens)
    assert printed("tokenizer", h5, "-o", tmp_path / "tokenizer", "--vocab-size", 300)
    said = printed("convert", h5, tmp_path / "back.zarr")
    assert (said["output"], said["num_pictures"], said["num_arrays"]) == (
        str(tmp_path / "back.zarr"),
        40,
        len(Cache(h5).arrays.nodes()[1]),
    )
    assert "every checksum of" in run("convert", h5, tmp_path / "twice.zarr").output


@pytest.mark.parametrize("where", ["chunks", "device", "auto"])
def test_training_equals_that_on_the_zarr_cache(where: str, h5: Path, tiny_cache: Path, tmp_path: Path) -> None:
    chunk_bytes = 2 * Cache(h5).info.chunk_rows * Cache(h5).info.encoder.dim
    buffer = {"buffer_gb": 3.5 * chunk_bytes / 1e9, "batch_size": 4} if where == "chunks" else {}
    for cache, name in ((tiny_cache, "near"), (h5, "far")):
        train(settings(cache, tmp_path / name, val=cache, epochs=2, embeddings=where, **buffer))
    assert logged(tmp_path / "far") == logged(tmp_path / "near")
    ours, theirs = (load_final(RunFolder(tmp_path / name)).tower.state_dict() for name in ("far", "near"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    if where == "auto":
        result = run("export", tmp_path / "far", "-o", tmp_path / "merged", "--json")
        assert json.loads(result.stdout)["num_probes"] == 8


def test_operations_that_need_a_folder_are_refused_with_a_remedy(
    h5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        CacheError, match=r"mapped only from a Zarr cache: .*clipglot convert .*own.h5 OUT.zarr.*chunks"
    ):
        open_images(Cache(h5), EmbeddingSettings(embeddings="mapped"), CPU)
    with pytest.raises(CacheError, match="in an HDF5 file is only read: work on a Zarr one and convert that"):
        Cache(h5, read_only=False)
    with pytest.raises(CacheError, match="no such cache: make one with `clipglot convert CACHE"):
        Cache(tmp_path / "none.h5")
    monkeypatch.setattr("clipglot.distill.data.image_embeddings.free_bytes", lambda device: 1000)
    with pytest.raises(DistillError, match=r"more than half .* --embeddings chunks"):
        open_images(Cache(h5), EmbeddingSettings(), CPU)


def test_a_cache_pass_into_an_hdf5_file_is_refused(manifest: Path, tmp_path: Path) -> None:
    result = run("cache", manifest, "-o", tmp_path / "train.h5", "--model", "none")
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert f"-o {tmp_path / 'train.zarr'}" in result.stderr
    assert f"clipglot convert {tmp_path / 'train.zarr'} {tmp_path / 'train.h5'}" in result.stderr.replace("\n", " ")


def flipped(h5: Path, copy: Path, at: int) -> Path:
    content = bytearray(h5.read_bytes())
    content[at] ^= 0xFF
    copy.write_bytes(content)
    return copy


@pytest.mark.parametrize("name", ["images/emb", "images/status", "captions/text/bytes", "captions/image", "tokens"])
def test_a_flipped_byte_in_a_chunk_is_named(name: str, h5: Path, tmp_path: Path) -> None:
    name = name if name != "tokens" else next(n for n in Cache(h5).arrays.nodes()[1] if n.endswith("/ids"))
    with h5py.File(h5, locking=False) as file:
        chunk = file[name].id.get_chunk_info(file[name].id.get_num_chunks() - 1)
        index = [start // size for start, size in zip(chunk.chunk_offset, file[name].chunks, strict=True)]
    broken = flipped(h5, tmp_path / "broken.h5", chunk.byte_offset + 3)
    key = f"{name}/c/{'/'.join(map(str, index))}"
    (fault,) = map(str, verify(Cache(broken)))
    assert fault.startswith(f"{key}: damaged (")
    assert fault.endswith(AGAIN)
    assert run("verify", broken).exit_code == 1
    with pytest.raises(CacheError, match=rf"broken.h5: damaged chunk {key} \(.*\): {AGAIN}"):
        convert(Cache(broken), tmp_path / "back.zarr")
    assert sorted(tmp_path.iterdir()) == [broken]


def test_a_flipped_byte_anywhere_is_detected_or_harmless(h5: Path, tmp_path: Path) -> None:
    def content(path: Path) -> Any:
        cache = Cache(path)
        return cache.info, [cache.arrays.array(name)[...].tobytes() for name in cache.arrays.nodes()[1]]

    expected, size, num_found = content(h5), h5.stat().st_size, 0
    for num_flipped, at in enumerate(np.random.default_rng(0).integers(0, size, 150).tolist()):
        broken = flipped(h5, tmp_path / f"{num_flipped}.h5", at)
        try:
            faults = [*map(str, verify(Cache(broken)))]
        except CacheError as error:
            faults = [str(error)]
        num_found += bool(faults)
        assert faults or content(broken) == expected, at
        assert all("\n" not in fault for fault in faults)
    assert num_found > 50


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "other", "encoding", "absent chunk", "metadata"])
def test_an_incomplete_or_foreign_file_is_refused_in_one_line(how: str, h5: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(h5, tmp_path / "x.h5"))
    if how == "truncated":
        path.write_bytes(h5.read_bytes()[:-1])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("hello")
    elif how == "other":
        h5py.File(path, "w").close()
    with h5py.File(path, "a") if how in ("encoding", "absent chunk", "metadata") else open(path) as file:
        if how == "encoding":
            del file["images/norm"]
            file["images/norm"] = np.zeros((1, 40), np.float32)
        elif how == "absent chunk":
            room = file["images/status"].chunks, file["images/status"].shape
            del file["images/status"]
            file.create_dataset("images/status", room[1], "u1", chunks=room[0], fletcher32=True)
        elif how == "metadata":
            file.attrs["clipglot"] = np.bytes_(bytes(file.attrs["clipglot"]).replace(b"sealed", b"SEALED"))
    result = run("verify", path)
    assert result.exit_code == 1
    said = (result.stderr or result.stdout).strip().splitlines()
    if how == "absent chunk":
        assert said[0] == f"images/status/c/0: absent: {AGAIN}"
    else:
        assert len(said) == 1
        assert said[0].startswith(f"Error: {path} is no whole HDF5 cache (")
        assert AGAIN in said[0]


def test_a_file_that_was_not_closed_is_refused(h5: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(h5, tmp_path / "x.h5"))
    script = f"import h5py, os; f = h5py.File({str(path)!r}, 'a'); f.attrs['a'] = 1; f.flush(); os._exit(1)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 1
    with pytest.raises(CacheError, match="is no whole HDF5 cache"):
        Cache(path)
