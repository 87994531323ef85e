"""Embeddings that are there become a cache like any other; the wrong ones are refused before anything is written."""

import json
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from clipglot.cache.embeddings import open_embeddings
from clipglot.cache.format import SourceInfo, Status
from clipglot.cache.store import Cache
from clipglot.cli.main import main
from clipglot.distill.export import export_run
from clipglot.distill.settings import ExportSettings

DIM = 16


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def given(tiny_cache: Path) -> tuple[np.ndarray, list[str], list[list[str]]]:
    """Raw embeddings of forty pictures, their paths and captions."""
    cache = Cache(tiny_cache)
    captions = cache.captions()
    owners = cache.caption_image()
    raw = cache.image_emb().astype(np.float32) * cache.norm()[:, None]
    return raw, cache.keys(), [[captions[i] for i in np.flatnonzero(owners == row)] for row in range(len(cache))]


@pytest.fixture
def npy(given: Any, tmp_path: Path) -> Path:
    """An .npy file with rows.jsonl beside it."""
    raw, keys, captions = given
    np.save(tmp_path / "emb.npy", raw)
    write_jsonl(tmp_path / "rows.jsonl", keys, captions)
    return tmp_path / "emb.npy"


def write_jsonl(path: Path, keys: list[str], captions: list[list[str]]) -> None:
    lines = [json.dumps({"image": key, "text": texts}) for key, texts in zip(keys, captions, strict=True)]
    path.write_text("\n".join(lines) + "\n")


def write_folder(folder: Path, given: Any, parts: tuple[int, ...] = (25, 0, 15)) -> Path:
    """What clip-retrieval writes: unit rows in half precision, one caption a picture, parts numbered from 0."""
    raw, keys, captions = given
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    unit = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16)
    start = 0
    for number, size in zip((0, 2, 10), parts, strict=True):
        rows = slice(start, start + size)
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", unit[rows])
        table = {"image_path": keys[rows], "caption": [texts[0] for texts in captions[rows]], "url": ["u"] * size}
        columns = pa.schema([("image_path", pa.string()), ("caption", pa.string()), ("url", pa.string())])
        pq.write_table(pa.table(table, columns), folder / "metadata" / f"metadata_{number}.parquet")
        start += size
    return folder


def tower(tiny_clip: Path) -> list[str]:
    return ["--model", f"local-dir:{tiny_clip}"]


def test_an_npy_file_becomes_a_cache_that_trains_and_exports(
    npy: Path, given: Any, tiny_clip: Path, manifest: Path, make_run: Callable[..., Path], tiny_cache: Path
) -> None:
    out = npy.with_name("c.zarr")
    rows = npy.with_name("rows.jsonl")
    result = run("import", npy, "--captions", rows, "-o", out, *tower(tiny_clip), "--image-root", manifest.parent)
    assert result.exit_code == 0, result.output
    assert "40 of 40 embeddings imported" in result.stdout
    assert "8 pictures embedded again: cosine 1.0000 at least" in result.stdout
    cache, original = Cache(out), Cache(tiny_cache)
    assert cache.verify() == []
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
    assert cache.verify() == []
    again = run("import", folder, "-o", tmp_path / "c.zarr", *tower(tiny_clip))
    assert "not checked whether this tower made them: pass --image-root" in again.stdout


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


def test_rows_that_name_no_picture_are_numbered(npy: Path, given: Any, tiny_clip: Path) -> None:
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
    assert (result.exit_code, "drop --no-keys" in result.stderr) == (2, True)


def test_rows_of_one_picture_become_one_and_bad_rows_have_their_status(
    given: Any, tiny_clip: Path, tmp_path: Path
) -> None:
    raw, keys, captions = given
    order = np.r_[0:40, 3, 3, 7]
    emb = raw[order].copy()
    emb[5], emb[6, 2], emb[8, 0] = 0, np.nan, np.inf
    emb[40:43] = 9  # of rows that repeat a picture
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
    owners = cache.caption_image()
    assert [cache.captions()[i] for i in np.flatnonzero(owners == 3)] == [*captions[3], "again", "again"]
    assert cache.verify() == []


def test_another_tower_is_refused_by_its_pictures(npy: Path, other_clip: Path, tiny_clip: Path, manifest: Path) -> None:
    rows, out = npy.with_name("rows.jsonl"), npy.with_name("c.zarr")
    command = ["import", npy, "--captions", rows, "-o", out]
    result = run(*command, *tower(other_clip), "--image-root", manifest.parent)
    assert result.exit_code == 1
    assert f"local-dir:{other_clip} embeds images/0000.png to another vector than row 0 of {npy}" in result.stderr
    assert not out.exists()
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join(lines[1:] + lines[:1]) + "\n")  # the right tower, but another order
    result = run(*command, *tower(tiny_clip), "--image-root", manifest.parent)
    assert "captions in the order of their rows" in result.stderr
    result = run(*command, *tower(tiny_clip), "--image-root", npy.parent)
    assert "no picture could be read below" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("short captions", "rows.jsonl has 39 rows, {npy} has 40: row i of one"),
        ("long captions", "rows.jsonl has more than 40 rows, {npy} has 40: row i of one"),
        ("width", "emb.npy has 8 features, local-dir:{clip} gives 16: pass the --model"),
        ("integers", "emb.npy holds int64 of shape (40, 16), expected floating-point rows [N, D]"),
        ("flat", "emb.npy holds float32 of shape (640,), expected"),
        ("truncated", "emb.npy cannot be read ("),
        ("pickle", "emb.npy cannot be read ("),
        ("nan", "every row is NaN, infinite or zero"),
        ("absent", "no such file or folder"),
        ("no captions", "pass --captions FILE"),
        ("absent captions", "none.jsonl: no such file"),
        ("kind", "rows.txt: no known kind of table"),
        ("other kind", "emb.bin: no known kind of embeddings"),
        ("folder", "no img_emb/img_emb_0.npy as clip-retrieval writes it"),
        ("parquet", "rows.parquet cannot be read ("),
        ("empty", "emb.npy holds no rows"),
        ("cache", "is a cache already"),
        ("hdf5", "import into a Zarr folder, then `clipglot convert` it"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_sentence(
    change: str, message: str, npy: Path, given: Any, tiny_clip: Path, tiny_cache: Path
) -> None:
    raw, source, rows, out = given[0], npy, npy.with_name("rows.jsonl"), npy.with_name("c.zarr")
    lines = rows.read_text().splitlines()
    match change:
        case "short captions":
            rows.write_text("\n".join(lines[:-1]))
        case "long captions":
            rows.write_text("\n".join(lines * 2))
        case "width":
            np.save(npy, raw[:, :8])
        case "integers":
            np.save(npy, np.ones((40, 16), np.int64))
        case "flat":
            np.save(npy, raw.ravel())
        case "truncated":
            npy.write_bytes(npy.read_bytes()[:-5])
        case "pickle":
            np.save(npy, np.array([[{}]], object), allow_pickle=True)
        case "nan":
            np.save(npy, raw * np.nan)
        case "absent":
            source = npy.with_name("none.npy")
        case "absent captions":
            rows = npy.with_name("none.jsonl")
        case "kind":
            rows = rows.rename(npy.with_name("rows.txt"))
        case "other kind":
            source = npy.rename(npy.with_name("emb.bin"))
        case "folder":
            source = npy.parent
        case "parquet":
            rows = rows.rename(npy.with_name("rows.parquet"))
        case "empty":
            np.save(npy, raw[:0])
            rows.write_text("")
        case "cache":
            source = npy.with_name("x.h5")
            assert run("convert", tiny_cache, source).exit_code == 0
        case "hdf5":
            out = npy.with_name("out.h5")
    captions = [] if change in ("folder", "no captions") else ["--captions", rows]
    result = run("import", source, *captions, "-o", out, *tower(tiny_clip))
    assert result.exit_code == (2 if change == "hdf5" else 1), result.output
    assert message.format(npy=npy, clip=tiny_clip) in result.stderr.replace("\n", " ")
    assert result.stderr.count("Error") == 1
    assert out.exists() == (change == "nan")


def test_a_part_without_captions_or_of_another_length_is_named(given: Any, tiny_clip: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "laion", given)
    metadata = folder / "metadata" / "metadata_10.parquet"
    pq.write_table(pq.read_table(metadata).slice(1), metadata)
    result = run("import", folder, "-o", tmp_path / "c.zarr", *tower(tiny_clip))
    assert f"{metadata} has 14 rows, {folder}/img_emb/img_emb_10.npy has 15" in result.stderr
    metadata.unlink()
    result = run("import", folder, "-o", tmp_path / "c.zarr", *tower(tiny_clip))
    assert f"{folder}/img_emb/img_emb_10.npy has no captions: {metadata} is absent" in result.stderr


def test_killed_and_run_again_it_has_the_bytes_of_an_undisturbed_import(
    given: Any, tiny_clip: Path, tmp_path: Path
) -> None:
    raw, keys, captions = given
    np.save(tmp_path / "emb.npy", np.tile(raw, (60, 1)))
    write_jsonl(tmp_path / "rows.jsonl", [f"{i}/{key}" for i in range(60) for key in keys], captions * 60)
    command = ["import", str(tmp_path / "emb.npy"), "--captions", str(tmp_path / "rows.jsonl"), *tower(tiny_clip)]
    script = (
        "import os, signal, sys\nfrom clipglot.cli.main import main\nimport clipglot.cache.importing as it\n"
        "write = it.write_chunk\n"
        "def dying(cache, rows, *arrays):\n    write(cache, rows, *arrays)\n"
        "    if rows.start >= 5 * cache.info.chunk_rows: os.kill(os.getpid(), signal.SIGKILL)\n"
        "it.write_chunk = dying\nmain(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", script, *command, "-o", str(tmp_path / "a.zarr")], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert len(Cache(tmp_path / "a.zarr").missing_chunks()) > 5
    for name in ("a.zarr", "b.zarr"):
        assert run(*command, "-o", tmp_path / name).exit_code == 0
    contents = [
        {f.relative_to(tmp_path / name): f.read_bytes() for f in (tmp_path / name).rglob("*") if f.is_file()}
        for name in ("a.zarr", "b.zarr")
    ]
    assert contents[0] == contents[1]
    np.save(tmp_path / "emb.npy", np.tile(raw, (60, 1)) * 2)
    result = run(*command, "-o", tmp_path / "a.zarr")
    assert "a.zarr was made from another source: sha256 was" in result.stderr


def test_memory_is_flat(tmp_path: Path) -> None:
    np.save(tmp_path / "emb.npy", np.ones((200_000, DIM), np.float32))
    (tmp_path / "rows.csv").write_text("image,text\n")
    info = SourceInfo(path=str(tmp_path / "emb.npy"), sha256="", image_root="", image_field="", text_fields=[])
    source = open_embeddings(info, captions=tmp_path / "rows.csv")
    tracemalloc.start()
    assert source.read(np.arange(5, 200_000, 1000)).shape == (200, DIM)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8192 * DIM * 4 * 3
