"""Refused imports: embeddings of another shape or of another tower. Nothing is written."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.command_line import run
from support.embedding_files import tower, write_folder


def test_another_tower_is_refused_by_its_images(npy: Path, other_clip: Path, tiny_clip: Path, manifest: Path) -> None:
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
    assert "no image could be read below" in result.stderr
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
        ("archive", "emb.npy cannot be read ("),
        ("damaged archive", "it is damaged, or not a .npy file: write it again"),
        ("complex", "emb.npy holds complex64 of shape (40, 16), expected"),
        ("nan", "every row is NaN, infinite or zero"),
        ("absent", "no such file or folder"),
        ("no captions", "pass --captions FILE"),
        ("absent captions", "none.jsonl: no such file"),
        ("kind", "rows.txt: no known kind of table"),
        ("other kind", "emb.bin: no known kind of embeddings"),
        ("folder", "no img_emb/img_emb_0.npy as clip-retrieval writes it"),
        ("parquet", "rows.parquet: not readable ("),
        ("pictures", "'image' holds images, expected their names: pass --image-field NAME, or --no-keys"),
        ("empty", "emb.npy holds no rows"),
        ("cache", "is a cache already"),
        ("hdf5", "import into a Zarr folder"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(
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
        case "archive" | "damaged archive":
            np.savez(npy.with_suffix(""), raw)
            content = npy.with_suffix(".npz").read_bytes()
            npy.write_bytes(content if change == "archive" else content[:-50])
        case "complex":
            np.save(npy, raw.astype(np.complex64))
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
        case "pictures":
            rows = rows.with_suffix(".parquet")
            pq.write_table(pa.table({"image": [b"png"] * 40, "text": ["a"] * 40}), rows)
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
