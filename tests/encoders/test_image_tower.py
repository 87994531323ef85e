"""Frozen image towers: equal to what open_clip and timm compute themselves, and strict about what they load."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import open_clip
import pytest
import timm
import torch
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.image_tower import ImageTower, exact_float32, load_image_tower
from clipglot.encoders.loading.clips import hash_tensors
from PIL import Image
from safetensors.torch import load_file, save_file


def pixels_for(tower: ImageTower, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *tower.visual.image_size, 3), np.uint8)


@pytest.fixture(scope="module")
def tiny_config(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tiny CLIP known to open_clip by name, `clipglot-tiny`, and with QuickGELU as `clipglot-tiny-quick`."""
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"]
    folder = tmp_path_factory.mktemp("configs")
    (folder / "clipglot-tiny.json").write_text(json.dumps(config))
    (folder / "clipglot-tiny-quick.json").write_text(json.dumps(config | {"quick_gelu": True}))
    open_clip.add_model_config(folder)
    return config


def weights(folder: Path) -> str:
    return str(folder / "open_clip_model.safetensors")


@pytest.fixture(scope="module")
def timm_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`timm_weights(name)`: a file with random weights of a timm model, classifier included."""

    def save(name: str) -> Path:
        torch.manual_seed(0)
        file = tmp_path_factory.mktemp("timm") / f"{name}.safetensors"
        save_file(timm.create_model(name).state_dict(), file)
        return file

    return save


def test_an_open_clip_tower_is_open_clips_own_forward_on_its_own_preprocessing(tiny_clip: Path) -> None:
    tower = load_image_tower(f"local-dir:{tiny_clip}", None)
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    pixels = pixels_for(tower)
    batch = torch.stack([preprocess(Image.fromarray(p)) for p in pixels])
    with torch.inference_mode():
        assert np.array_equal(tower.encode(pixels), clip.eval().encode_image(batch).numpy())
    assert not any(p.requires_grad for p in tower.visual.parameters())
    assert tower.preprocess["mean"] == [0.5, 0.4, 0.3]


def test_weights_are_the_same_by_file_and_by_folder(tiny_clip: Path, tiny_config: dict[str, Any]) -> None:
    by_folder = load_image_tower(f"local-dir:{tiny_clip}", None)
    by_file = load_image_tower("clipglot-tiny", weights(tiny_clip))
    assert by_file.weights_sha256 == by_folder.weights_sha256
    assert by_file.vision_cfg == by_folder.vision_cfg


def test_one_changed_weight_changes_the_hash(tiny_clip: Path) -> None:
    tensors = load_file(weights(tiny_clip))
    before = hash_tensors(tensors)
    tensors["visual.proj"][0, 0] += 1e-6
    assert hash_tensors(tensors) != before


def test_names_and_types_and_shapes_are_in_the_hash_and_order_is_not() -> None:
    a, b = torch.zeros(4), torch.ones(2, 2)
    assert hash_tensors({"a": a, "b": b}) == hash_tensors({"b": b, "a": a})
    others = ({"a": b, "b": a}, {"a": a, "b": b.view(4)}, {"a": a.int(), "b": b}, {"a": a})
    assert len({hash_tensors(tensors) for tensors in ({"a": a, "b": b}, *others)}) == 5


def test_quick_gelu_of_the_config_reaches_the_tower(tiny_clip: Path, tiny_config: dict[str, Any]) -> None:
    plain, quick = (load_image_tower(name, weights(tiny_clip)) for name in ("clipglot-tiny", "clipglot-tiny-quick"))
    assert (plain.quick_gelu, quick.quick_gelu) == (False, True)
    assert not np.allclose(plain.encode(pixels_for(plain)), quick.encode(pixels_for(plain)), atol=1e-6)


def test_a_tag_trained_with_quick_gelu_brings_it_where_open_clip_only_warns(
    tiny_clip: Path, tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = {"url": "https://example.invalid/weights", "quick_gelu": True, "mean": (0.1, 0.2, 0.3)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "clipglot-tiny", {"v1": tag})
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda cfg, **_: weights(tiny_clip))  # the network
    tower = load_image_tower("clipglot-tiny", "v1")
    quick = load_image_tower("clipglot-tiny-quick", weights(tiny_clip))
    assert tower.quick_gelu
    assert tuple(tower.preprocess["mean"]) == tag["mean"]
    x = tower.normalize(pixels_for(tower))
    with torch.inference_mode():
        assert torch.equal(tower.visual(x), quick.visual(x))


def test_slashes_in_names_read_as_open_clip_reads_them(tiny_clip: Path, tiny_config: dict[str, Any]) -> None:
    assert load_image_tower("clipglot/tiny", weights(tiny_clip)).dim == 16


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3"])  # class token, average, attention pooling
def test_a_timm_vit_gives_its_own_pooled_feature(name: str, timm_weights: Callable[[str], Path]) -> None:
    file = timm_weights(name)
    tower = load_image_tower(f"timm/{name}", str(file))
    own = timm.create_model(name, num_classes=0).eval()
    own.load_state_dict({k: v for k, v in load_file(file).items() if not k.startswith("head.")})
    pixels = pixels_for(tower)
    normalize = timm.data.create_transform(**timm.data.resolve_model_data_config(own), is_training=False).transforms[-1]
    batch = torch.stack([normalize(torch.from_numpy(p).permute(2, 0, 1) / 255) for p in pixels])
    with torch.inference_mode():
        np.testing.assert_allclose(tower.encode(pixels), own(batch).numpy(), atol=1e-6)
    assert tower.dim == own.num_features


def test_the_real_deit_tiny_gives_timms_feature(shared_data: Path) -> None:
    file = shared_data / "deit_tiny" / "model.safetensors"
    tower = load_image_tower("timm/deit_tiny_patch16_224", str(file))
    own = timm.create_model("deit_tiny_patch16_224", num_classes=0).eval()
    own.load_state_dict({k: v for k, v in load_file(file).items() if not k.startswith("head.")})
    image = Image.open(sorted((shared_data / "flickr8k" / "images").iterdir())[0])  # 224 x 224: no resize, no crop
    mean, std = (torch.tensor(own.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        assert np.array_equal(tower.encode(np.asarray(image)[None]), own((x - mean) / std).numpy())


def test_half_precision_changes_rounding_alone(tiny_clip: Path) -> None:
    full, half = (load_image_tower(f"local-dir:{tiny_clip}", None, precision=p) for p in ("fp32", "bf16"))
    a, b = full.encode(pixels_for(full)), half.encode(pixels_for(full))
    assert not np.array_equal(a, b)
    assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(a)
    assert full.weights_sha256 == half.weights_sha256


@pytest.mark.parametrize("before", ["tf32", "ieee", "none"])
def test_float32_is_exact_inside_the_block_alone(before: str) -> None:
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    found = conv.fp32_precision, matmul.fp32_precision
    try:
        conv.fp32_precision = matmul.fp32_precision = before
        set_to = conv.fp32_precision, matmul.fp32_precision
        with suppress(ZeroDivisionError), exact_float32():
            with exact_float32():
                assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee")
            assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee")
            raise ZeroDivisionError
        assert (conv.fp32_precision, matmul.fp32_precision) == set_to
    finally:
        conv.fp32_precision, matmul.fp32_precision = found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float32_on_a_gpu_is_the_cpus(tiny_clip: Path) -> None:
    cpu, cuda = (load_image_tower(f"local-dir:{tiny_clip}", None, device=device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(cuda.encode(pixels_for(cpu, 16)), cpu.encode(pixels_for(cpu, 16)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-33", None, r"not an open_clip model \(did you mean ViT-B-32\?\); see open_clip.list_models"),
        ("ViT-B-32", None, r"needs weights: pass --pretrained FILE or a tag \(openai, "),
        ("ViT-B-32", "no/such.pt", "no such file, and no tag of ViT-B-32; its tags are: openai, "),
        ("ViT-B-32", ".", "no such file, and no tag"),
        ("local-dir:no/such", None, "open_clip_config.json.*pass the folder"),
        ("local-dir:", None, "pass the folder"),
        ("local-dir:x", "openai", "brings its own weights: drop --pretrained openai"),
        ("timm/no_such_vit", None, r"timm has no model 'no_such_vit'; see timm.list_models"),
        ("timm/test_vit", "no/such.pt", "no such file"),
        ("timm/test_vit", ".", "no such file"),
        ("timm/test_vit.no_such_tag", None, "Invalid pretrained tag"),
    ],
)
def test_what_is_not_there_is_named_with_a_remedy(model: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(EncoderError, match=message) as error:
        load_image_tower(model, pretrained)
    assert "None" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "pretrained"),
    [("timm/test_vit", None), ("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-B-32", "openai")],  # hub, hub, web server
)
def test_weights_that_cannot_be_fetched_are_asked_for_as_a_file(
    model: str, pretrained: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)  # the network; the hub is offline already
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(EncoderError, match=r"not on this machine and cannot be fetched \(.+\): pass --pretrained FILE"):
        load_image_tower(model, pretrained)


def test_weights_of_another_model_are_refused_in_a_few_lines(
    tiny_clip: Path, tiny_config: dict[str, Any], timm_weights: Callable[[str], Path]
) -> None:
    for model, file in (("timm/test_vit", weights(tiny_clip)), ("clipglot-tiny", timm_weights("test_vit"))):
        with pytest.raises(EncoderError, match="belong to another model") as error:
            load_image_tower(model, str(file))
        assert len(str(error.value)) < 800


def test_a_convolutional_network_is_no_vit(timm_weights: Callable[[str], Path]) -> None:
    with pytest.raises(EncoderError, match="not a ViT with a pooled output"):
        load_image_tower("timm/test_efficientnet", str(timm_weights("test_efficientnet")))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("model", ["clipglot-tiny", "timm/test_vit"])
def test_a_file_that_holds_no_weights_is_named_as_damaged(
    model: str, suffix: str, tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    damaged = tmp_path / f"page{suffix}"
    damaged.write_text("<html>hello, this is the login page that came instead of the weights</html>")
    with pytest.raises(EncoderError, match=r"page\.\w+: the file is damaged.*: fetch it again"):
        load_image_tower(model, str(damaged))


def test_a_folder_without_weights_is_refused(tiny_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((tiny_clip / "open_clip_config.json").read_bytes())
    with pytest.raises(EncoderError, match="could not be loaded"):
        load_image_tower(f"local-dir:{tmp_path}", None)
