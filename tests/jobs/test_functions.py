"""Commands as Python functions: keyword arguments or settings, from images to a merged CLIP."""

import inspect
import json
from pathlib import Path

import clipglot
import numpy as np
import pytest
from clipglot.distill.errors import DistillError
from clipglot.distill.recipes import RECIPES
from clipglot.jobs.functions import FUNCTIONS
from clipglot.jobs.settings.cache import CacheSettings
from clipglot.jobs.settings.export import ExportSettings


def test_the_whole_way_in_python(manifest: Path, tiny_clip: Path, tmp_path: Path) -> None:
    model = f"local-dir:{tiny_clip}"
    made = clipglot.cache_images(str(manifest), output=str(tmp_path / "c.zarr"), model=model, num_workers=1)
    assert made.cache.info.counts == {"embedded": 40}
    small = {"width": 16, "heads": 2, "layers": 1, "vocab_size": 300, "context_length": 24, "batch_size": 8}
    clipglot.train(tmp_path / "c.zarr", output=tmp_path / "run", epochs=1, device="cpu", progress=False, **small)
    exported = clipglot.export(tmp_path / "run", output=tmp_path / "merged")
    assert exported.formats[0].loaded_by == "open_clip"
    clip = clipglot.load(tmp_path / "merged", device="cpu")
    cache = clipglot.open_cache(tmp_path / "c.zarr")
    row = int(np.flatnonzero(cache.is_embedded)[0])
    assert clip.search(cache, manifest.parent / cache.keys[row], k=1)[0].row == row
    report = clipglot.evaluate_retrieval(tmp_path / "merged", cache=tmp_path / "c.zarr")
    assert report.text_to_image.num_candidates == 40
    assert not clipglot.verify_cache(tmp_path / "c.zarr").faults


def test_settings_may_be_given_whole(manifest: Path, tiny_clip: Path, tmp_path: Path) -> None:
    settings = CacheSettings(source=manifest, output=tmp_path / "c", model=f"local-dir:{tiny_clip}", num_workers=1)
    assert len(clipglot.cache_images(settings).cache) == 40


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_those_of_the_settings(name: str) -> None:
    function = getattr(clipglot, name)
    assert name in clipglot.__all__
    assert "progress" in inspect.signature(function).parameters
    assert (function.__name__, bool(function.__doc__)) == (name, True)


def test_mistakes_in_arguments_are_named(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"cache_images\(\) needs output"):
        clipglot.cache_images(manifest)
    with pytest.raises(TypeError, match=r"has no setting 'batchsize'; known are .*batch_size"):
        clipglot.cache_images(manifest, output=tmp_path / "c", model="m", batchsize=3)
    with pytest.raises(DistillError):
        clipglot.cache_images(manifest, output=tmp_path / "c", model="m", batch_size=0)


def test_training_takes_recipes_and_resumes_as_the_command_does(tiny_cache: Path, tmp_path: Path) -> None:
    small = {"width": 16, "heads": 2, "layers": 1, "vocab_size": 300, "device": "cpu", "progress": False}
    clipglot.train(tiny_cache, output=tmp_path / "few", epochs=1, batch_size=8, recipe="few", **small)
    kept = json.loads((tmp_path / "few" / "run.json").read_text())["settings"]
    assert (kept["dropout"], kept["epochs"]) == (RECIPES["few"]["dropout"], 1)
    again = clipglot.train(tiny_cache, output=tmp_path / "few", resume=True, progress=False)
    assert again.step == again.num_steps == 5
    with pytest.raises(DistillError, match="known are auto, few, many"):
        clipglot.train(tiny_cache, output=tmp_path / "x", recipe="fast")


def test_choices_are_checked_and_nothing_is_dropped(tiny_run: Path, tiny_cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "x"
    for wrong in ({"format": "ONNX"}, {"step": "Best"}, {"quantize": "int4"}, {"format": ["open_clip", "h5"]}):
        with pytest.raises(TypeError, match="expected one of"):
            clipglot.export(tiny_run, output=output, **wrong)
    with pytest.raises(TypeError, match="expected one of"):
        clipglot.train(tiny_cache, output=output, loss="nonsense", recipe="none")
    settings = ExportSettings(run=tiny_run, output=output)
    with pytest.raises(TypeError, match="got settings and 'format' besides"):
        clipglot.export(settings, format="onnx")
    with pytest.raises(TypeError, match="got run twice"):
        clipglot.export(tiny_run, run=tiny_run, output=output)
    assert clipglot.export(tiny_run, output=output, language=None).formats[0].format == "open_clip"
