"""A resumed pass: the same bytes; other settings are refused, moved images recorded."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.write.embed import embed_missing
from clipglot.cache.write.image_reader import reader_of
from clipglot.cli.main import main
from clipglot.distill.errors import DistillError
from clipglot.distill.provenance import content_of, run_provenance
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from PIL import Image
from support.cache_bytes import cache_files, delete_chunks
from support.drawings import draw_images
from support.metadata_edits import edit, make_older


def test_resuming_embeds_only_the_missing_chunks_and_gives_the_same_bytes(
    tiny_cache: Path, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    whole = cache_files(cache)
    delete_chunks(cache, 0, 3)
    (cache / "images" / "emb" / "c" / ".0.0123.partial").write_bytes(b"half")
    result = make_cache(manifest, cache, num_workers=2)
    assert result.resumed
    assert result.report.num_pictures == 2 * result.cache.info.chunk_rows
    assert cache_files(cache) == whole
    assert make_cache(manifest, cache).report.num_pictures == 0
    assert cache_files(cache) == whole


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text_field": ("text", "image")}, "text_fields was .*'text'.*, now .*'image'"),
        ({"limit": 7}, "limit was None, now 7"),
        ({"batch_size": 4}, "batch_size was 8, now 4"),
        ({"chunk_rows": 16}, "chunk_rows was 8, now 16"),
        ({"max_pixels": 999}, "max_pixels was 100000000, now 999"),
        ({"decoding": "scaled"}, "decoding was 'exact', now 'scaled'"),
    ],
)
def test_other_settings_are_refused_by_name_on_resuming(
    changed: dict[str, Any], message: str, tiny_cache: Path, manifest: Path, make_cache: Callable[..., Any]
) -> None:
    with pytest.raises(DistillError, match=message):
        make_cache(manifest, tiny_cache, **changed)


def test_a_resumed_pass_keeps_the_planned_limit_of_pixels(
    tiny_cache: Path, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    with Image.open(manifest.parent / "images/0000.png") as image:
        limit = image.width * image.height - 1
    with pytest.raises(CacheError, match="not one image could be embedded"):
        make_cache(manifest, tmp_path / "cache.zarr", max_pixels=limit)
    cache = Cache(tmp_path / "cache.zarr", read_only=False)
    assert cache.info.max_pixels == limit
    with pytest.raises(CacheError, match=r"\(40 too large\)"):
        embed_missing(cache, lambda x: x[:, 0, 0, :1].repeat(16, 1), reader=reader_of(cache), num_workers=1)


def test_a_cache_without_max_pixels_was_made_with_the_default(tiny_cache: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    make_older(cache, "max_pixels")
    assert Cache(cache).info.max_pixels == 100_000_000


def test_a_changed_manifest_or_another_tower_is_refused_on_resuming(
    tiny_cache: Path, tiny_clip: Path, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    changed = Path(shutil.copy(manifest, tmp_path))
    changed.write_text(changed.read_text() + '{"image": "new.png", "text": "new"}\n')
    with pytest.raises(DistillError, match=r"pairs\.jsonl has changed since .* \(its sha256 was [0-9a-f]{12}…, now"):
        make_cache(changed, tiny_cache, image_root=manifest.parent)
    other = Path(shutil.copytree(tiny_clip, tmp_path / "other"))
    weights = open_clip.create_model(f"local-dir:{other}").state_dict()
    from safetensors.torch import save_file

    weights["visual.proj"] = weights["visual.proj"] + 1e-3
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, other / "open_clip_model.safetensors")
    with pytest.raises(DistillError, match=r"local-dir:.*other.*expected local-dir:.*weights_sha256 is"):
        make_cache(manifest, tiny_cache, model=f"local-dir:{other}")


def test_an_unfinished_cache_is_not_trained_on(tiny_cache: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    edit(cache, state="planned")
    delete_chunks(cache, 1, 4)
    with pytest.raises(CacheError, match=r"not complete \(2 of its chunks are still to be embedded\): run the same"):
        Cache(cache).require_sealed()
    assert Cache(cache).count_status() == {Status.PENDING: 16, Status.EMBEDDED: 24}
    assert verify(Cache(cache)) == []


def test_an_absent_image_root_is_refused(
    manifest: Path, tiny_cache: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    delete_chunks(cache, 0)
    with pytest.raises(CacheError, match="absent: no such folder: pass --image-root"):
        make_cache(manifest, cache, image_root=tmp_path / "absent")


def test_a_wrong_image_root_is_an_error_and_can_be_corrected(
    manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(CacheError, match=r"not one image could be embedded \(40 missing\).*--image-root"):
        make_cache(manifest, tmp_path / "cache.zarr", image_root=tmp_path / "elsewhere")
    assert make_cache(manifest, tmp_path / "cache.zarr").cache.info.counts == {"embedded": 40}


def test_control_c_before_the_first_image_says_what_is_kept(
    tiny_cache: Path, manifest: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    delete_chunks(cache, 1)
    monkeypatch.setattr("clipglot.jobs.cache.load_towers", interrupted)
    again = "run the same command again"
    begun = f"32 of 40 images are embedded and kept; {again} to resume"
    for output, kept in ((cache, begun), (tmp_path / "new.zarr", f"no image was embedded yet; {again}")):
        command = ["cache", str(manifest), "-o", str(output), "--model", f"local-dir:{tiny_clip}"]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 130
        assert result.stderr.endswith(f"stopped: {kept}\n")


def test_a_resumed_pass_records_where_the_images_are_now(
    make_cache: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    before = draw_images(tmp_path / "before", 20).parent
    cache, run = tmp_path / "cache.zarr", tmp_path / "run"
    make_cache(before / "pairs.jsonl", cache)
    make_run(cache, run, epochs=1)
    content = content_of(run_provenance(Cache(cache)))
    after = before.rename(tmp_path / "after")
    delete_chunks(cache, 1)
    with pytest.raises(CacheError, match="absent: no such folder: pass --image-root"):
        make_cache(after / "pairs.jsonl", cache, image_root=tmp_path / "absent")
    assert Cache(cache).info.source.image_root == str(before)
    make_cache(after / "pairs.jsonl", cache)
    source = Cache(cache).info.source
    assert (source.image_root, source.path) == (str(after), str(after / "pairs.jsonl"))
    assert export_run(ExportSettings(run=run, output=tmp_path / "merged")).num_probes == 8
    assert content_of(run_provenance(Cache(cache))) == content
