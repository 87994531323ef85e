"""Export: plain open_clip loads it and reproduces the outputs of the merged towers."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from clipglot.cache.read.cache import Cache
from clipglot.cache.write.image_decode import ResizeCrop, decode
from clipglot.distill.errors import DistillError
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.image_tower import load_image_tower
from clipglot.encoders.tokenizer import CaptionTokenizer
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from support.drawings import draw_images
from support.launcher import Launcher, Process
from support.model_cards import cosine, run_card

CAPTIONS = ["красный шум", "", "шум " * 50, "конец<eos>нет", "  ½ &amp; 🐈 고양이 桌上的猫\n"]

# What somebody runs who has the folder and open_clip, and never heard of clipglot.
OPEN_CLIP_SCRIPT = """
import sys
import numpy as np, open_clip, torch
from PIL import Image

folders, (image, *captions) = sys.argv[1:3], sys.argv[3:]
for number, folder in enumerate(folders):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.inference_mode():
        pixels = preprocess(Image.open(image))[None]
        ids = tokenizer(captions)
        np.savez(
            f"{number}.npz", pixels=pixels, image=model.encode_image(pixels), ids=ids, text=model.encode_text(ids),
            logit_scale=model.logit_scale.exp(),
        )
assert not [name for name in sys.modules if name.startswith("clipglot")]
"""


@pytest.fixture(scope="module")
def timm_run(
    manifest: Path,
    make_cache: Callable[..., Any],
    make_run: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished run on the cache of a timm ViT with random weights."""
    folder = tmp_path_factory.mktemp("timm_run")
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), folder / "vit.safetensors")
    make_cache(manifest, folder / "c.zarr", model="timm/test_vit", pretrained=str(folder / "vit.safetensors"), limit=16)
    return make_run(folder / "c.zarr", folder / "run")


@pytest.fixture(scope="module")
def timm_merged(timm_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(ExportSettings(run=timm_run, output=tmp_path_factory.mktemp("timm_export") / "merged")).folder


@pytest.fixture(scope="module")
def open_clip_outputs(
    merged: Path, timm_merged: Path, manifest: Path, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What open_clip alone computes, in its own process: 0.npz of the open_clip tower's export, 1.npz of timm's."""
    out = tmp_path_factory.mktemp("open_clip")
    launcher.run(OPEN_CLIP_SCRIPT, merged, timm_merged, manifest.parent / "images" / "0000.png", *CAPTIONS, folder=out)
    return out


@pytest.mark.parametrize(("number", "name"), [(0, "tiny_run"), (1, "timm_run")])
def test_plain_open_clip_reproduces_the_merged_outputs(
    number: int, name: str, open_clip_outputs: Path, manifest: Path, request: pytest.FixtureRequest
) -> None:
    run, theirs = RunFolder(request.getfixturevalue(name)), np.load(open_clip_outputs / f"{number}.npz")
    encoder = run.provenance()["encoder"]
    tower = load_image_tower(encoder["model"], encoder["pretrained"])
    pixels = decode(manifest.parent / "images" / "0000.png", ResizeCrop.from_preprocess(tower.preprocess))[None]
    assert np.array_equal(theirs["pixels"], tower.normalize(pixels).numpy())
    assert np.array_equal(theirs["image"], tower.encode(pixels))

    text_tower, logit_scale, _ = load_final(run)
    ids = CaptionTokenizer.load(run.tokenizer).encode(CAPTIONS, theirs["ids"].shape[1])
    for ours, row in zip(ids, theirs["ids"].tolist(), strict=True):
        assert ours + [0] * (len(row) - len(ours)) == row
    with torch.inference_mode():
        np.testing.assert_allclose(theirs["text"], text_tower.encode(ids).numpy(), rtol=1e-4, atol=1e-5)
    assert theirs["logit_scale"] == pytest.approx(logit_scale)


def test_a_sigmoid_loss_exports_its_bias(tiny_cache: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tiny_cache, tmp_path / "run", loss="siglip")
    folder = export_run(ExportSettings(run=run, output=tmp_path / "merged")).folder
    clip, final = open_clip.create_model(f"local-dir:{folder}"), load_final(RunFolder(run))
    assert clip.logit_bias.item() == pytest.approx(final.logit_bias)
    assert clip.logit_bias.item() != -10.0  # it learned
    assert clip.logit_scale.exp().item() == pytest.approx(final.logit_scale)


def test_the_merged_image_tower_equals_that_of_the_cache(merged: Path, timm_merged: Path, tiny_cache: Path) -> None:
    assert load_image_tower(f"local-dir:{merged}", None).weights_sha256 == Cache(tiny_cache).info.encoder.weights_sha256
    provenance = json.loads((timm_merged / "open_clip_config.json").read_text())["clipglot"]
    again = load_image_tower(f"local-dir:{timm_merged}", None)
    assert again.weights_sha256 == provenance["encoder"]["weights_sha256"]
    assert again.preprocess == provenance["encoder"]["preprocess"]


def test_model_card_and_config_have_the_provenance(merged: Path, tiny_cache: Path, tiny_run: Path) -> None:
    provenance = json.loads((merged / "open_clip_config.json").read_text())["clipglot"]
    info = Cache(tiny_cache).info
    assert provenance["encoder"]["weights_sha256"] == info.encoder.weights_sha256
    assert provenance["source"] == {"name": "pairs.jsonl", "sha256": info.source.sha256}
    assert provenance["num_captions"] == info.num_captions
    card = (merged / "README.md").read_text(encoding="utf-8")
    recall = RunFolder(tiny_run).best_validation()
    assert recall is not None
    for part in (info.encoder.weights_sha256, f"R@1 {recall['r_at_1']:.1%}", 'get_tokenizer("local-dir:merged")'):
        assert part in card


def test_the_cards_code_gives_the_same_twice(merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(merged.parent)
    encode = run_card((merged / "README.md").read_text())
    assert cosine(encode(CAPTIONS[0]), encode(CAPTIONS[0])) == 1


def test_the_card_counts_images_that_were_embedded(
    make_cache: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = draw_images(tmp_path, 24)
    (tmp_path / "images" / "0003.png").unlink()
    make_cache(manifest, tmp_path / "cache.zarr")
    run = make_run(tmp_path / "cache.zarr", tmp_path / "run", epochs=1)
    folder = export_run(ExportSettings(run=run, output=tmp_path / "merged")).folder
    assert "| trained on | 23 images; the cache has 24, of which 1 could not be embedded" in (
        (folder / "README.md").read_text()
    )
    config = json.loads((folder / "open_clip_config.json").read_text())
    assert config["clipglot"]["num_embedded"] == 23


@pytest.mark.parametrize("folder", ["merged", "timm_merged"])
def test_an_export_has_no_local_paths(folder: str, request: pytest.FixtureRequest) -> None:
    merged: Path = request.getfixturevalue(folder)
    private = {str(path).encode() for path in (merged.parents[2], Path.home(), Path.cwd()) if len(path.parts) > 1}
    leaks = {file.name for file in merged.rglob("*") if file.is_file() and any(p in file.read_bytes() for p in private)}
    assert not leaks


def test_a_tower_with_other_weights_is_refused_by_name(tiny_run: Path, other_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=rf"{other_clip.name}.*expected.*weights_sha256 is"):
        export_run(ExportSettings(run=tiny_run, output=tmp_path / "merged", model=f"local-dir:{other_clip}"))
    assert list(tmp_path.iterdir()) == []


def test_a_moved_tower_is_loaded_from_the_given_place(tiny_run: Path, tiny_clip: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_clip, tmp_path / "moved")
    result = export_run(ExportSettings(run=tiny_run, output=tmp_path / "merged", model=f"local-dir:{moved}"))
    assert result.num_probes == 8
    assert result.min_cosine is not None
    assert result.min_cosine > 0.9999


def test_an_existing_output_is_never_overwritten(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for output in (tmp_path, tmp_path / "mine", tmp_path / "link"):
        with pytest.raises(DistillError, match="exists: choose another -o"):
            export_run(ExportSettings(run=tiny_run, output=output))
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_missing_or_unfinished_run_is_refused_with_the_remedy(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="no run here: make one with `clipglot train"):
        export_run(ExportSettings(run=tmp_path / "none", output=tmp_path / "merged"))
    unfinished = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(unfinished / "final")
    with pytest.raises(DistillError, match=r"has not finished: go on with `clipglot train .* --resume`"):
        export_run(ExportSettings(run=unfinished, output=tmp_path / "merged"))


@pytest.fixture
def own_run(
    make_cache: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path
) -> tuple[Path, Path, ExportSettings]:
    """Images, cache and run that a test may damage, and the settings of their export."""
    manifest = draw_images(tmp_path / "pictures", 10)
    make_cache(manifest, tmp_path / "c.zarr")
    run = make_run(tmp_path / "c.zarr", tmp_path / "run", epochs=1)
    return manifest.parent, tmp_path / "c.zarr", ExportSettings(run=run, output=tmp_path / "merged")


def test_export_works_without_images_or_cache_and_reports_missing_checks(
    own_run: tuple[Path, Path, ExportSettings], tmp_path: Path
) -> None:
    images, cache, settings = own_run
    (images / "images" / "0000.png").unlink()
    assert export_run(settings).num_probes == 7  # of eight
    shutil.rmtree(images)
    result = export_run(ExportSettings(run=settings.run, output=tmp_path / "without_pictures"))
    assert (result.num_probes, result.why_no_probes) == (0, f"the images are not below {images} any more")
    shutil.rmtree(cache)
    result = export_run(ExportSettings(run=settings.run, output=tmp_path / "without_cache"))
    assert result.why_no_probes == f"there is no cache at {cache} any more"


@pytest.mark.parametrize("other", ["tower", "width", "source", "damaged", "run"])
def test_another_file_at_the_path_of_the_cache_only_skips_the_probes(
    other: str,
    own_run: tuple[Path, Path, ExportSettings],
    other_clip: Path,
    tiny_run: Path,
    make_cache: Callable[..., Any],
    tmp_path: Path,
) -> None:
    images, cache, settings = own_run
    reason = f"another cache stands at {cache}"
    if other == "damaged":
        chunk = next(file for file in (cache / "images/emb/c").rglob("*") if file.is_file())
        chunk.write_bytes(chunk.read_bytes()[:-1])
        reason = f"damaged chunk {chunk.relative_to(cache)}"
    else:
        shutil.rmtree(cache)
    if other == "tower":
        make_cache(images / "pairs.jsonl", cache, model=f"local-dir:{other_clip}")
    elif other == "width":
        torch.manual_seed(0)
        save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
        weights = str(tmp_path / "vit.safetensors")
        make_cache(images / "pairs.jsonl", cache, model="timm/test_vit", pretrained=weights)
    elif other == "source":
        make_cache(draw_images(tmp_path / "others", 11), cache, image_root=images, limit=10)
    elif other == "run":
        shutil.copytree(tiny_run, cache)
        reason = f"{cache} holds a run, expected a cache"
    result = export_run(settings)
    assert result.num_probes == 0
    assert result.why_no_probes is not None
    assert reason in result.why_no_probes


def test_an_image_changed_after_caching_stops_the_export(own_run: tuple[Path, Path, ExportSettings]) -> None:
    images, _, settings = own_run
    shutil.copy(images / "images" / "0001.png", images / "images" / "0000.png")
    with pytest.raises(DistillError, match=r"images/0000\.png embeds to another vector .* the image changed"):
        export_run(settings)
    assert not settings.output.exists()


def test_a_missing_weights_file_is_named(timm_run: Path, tmp_path: Path) -> None:
    settings = ExportSettings(run=timm_run, output=tmp_path / "merged", pretrained=str(tmp_path / "gone.safetensors"))
    with pytest.raises(EncoderError, match=r"gone\.safetensors: no such file"):
        export_run(settings)


def test_a_killed_export_leaves_nothing_under_the_final_name(
    start_command: Callable[..., Process], tiny_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "merged"
    process = start_command("export", tiny_run, "-o", output)
    process.until(lambda: any(tmp_path.iterdir()))
    process.signal_all(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was writing, and had not finished
    assert not output.exists()
    assert export_run(ExportSettings(run=tiny_run, output=output)).folder == output


def test_the_card_has_the_languages_of_the_cache_unless_told(
    manifest: Path, make_cache: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    make_cache(manifest, tmp_path / "tagged.zarr", language=("zh-Hans",))
    run = make_run(tmp_path / "tagged.zarr", tmp_path / "run")

    def languages(folder: Path) -> Any:
        return ModelCard.load(folder / "README.md").data.language

    export_run(ExportSettings(run=run, output=tmp_path / "merged"))
    assert languages(tmp_path / "merged") == ["zh"]
    formats: Any = ("transformers",)
    export_run(ExportSettings(run=tmp_path / "merged", output=tmp_path / "again", format=formats))
    assert languages(tmp_path / "again") == ["zh"], "of the merged folder's record"
    export_run(ExportSettings(run=run, output=tmp_path / "told", language=("ru", "en")))
    assert languages(tmp_path / "told") == ["ru", "en"]
    shutil.rmtree(tmp_path / "tagged.zarr")
    export_run(ExportSettings(run=run, output=tmp_path / "both", format=("open_clip", "onnx")))
    assert languages(tmp_path / "both") == languages(tmp_path / "both" / "onnx") == ["zh"], "as the source declared"
