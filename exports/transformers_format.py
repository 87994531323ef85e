"""The transformers format: a folder of a model class that transformers has, with its processor.

Which class that is depends on both towers; a pair that none of them computes is refused.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from ..cache.write.image_decode import ResizeCrop
from ..encoders.image_tower import ImageTower
from ..encoders.loading.language_models import quiet_transformers
from ..encoders.merged_clip import MergedClip
from ..encoders.text_lm import LMTower
from ..encoders.text_scratch import ScratchTower
from .errors import ExportError
from .formats import Written
from .hf_tokenizer import spells_special_tokens, write_tokenizer
from .probes import Probes
from .text_normalizers import CLEANING_NOTE

OTHERS = "pass --format sentence-transformers, onnx or open_clip"
IMAGE_NOTE = (
    "Images are resized by Pillow through timm's transforms (`TimmWrapperImageProcessor`, needs timm and torchvision), "
    'as when the embeddings were cached; pass RGB images (`image.convert("RGB")`).'
)
# Those of CLIP and ChineseCLIP load an image processor of their own in transformers 4, this one that of the folder.
PROCESSOR = "VisionTextDualEncoderProcessor"
_CODE = """import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{folder}").eval()
processor = AutoProcessor.from_pretrained("{folder}")
inputs = processor(
    text=["a caption"], images=[Image.new("RGB", (640, 480))], padding=True, truncation=True, return_tensors="pt"
)
with torch.inference_mode():
    outputs = model(**inputs)
outputs.text_embeds, outputs.image_embeds  # [1, D] each, unit norm"""


def write(folder: Path, clip: MergedClip) -> Written:
    """Write a CLIP as a folder that transformers loads, and load it again.

    Args:
        folder: exists and is empty.
        clip: on the CPU.

    Raises:
        ExportError: transformers has no class for this pair of towers, or computes something else.
    """
    model = write_model(folder, clip)
    probes = Probes(clip)
    by = f"transformers {transformers.__version__} ({type(model).__name__})"
    text, image = probes.require_close(by, *_features(folder, probes))
    notes = [minimum(model), *text_notes(clip), IMAGE_NOTE, *bias_notes(clip)]
    notes.append(
        f"transformers cuts texts of more than {clip.context_length} tokens only if told so (`truncation=True`, as "
        "above). Its zero-shot pipeline does not, and fails at a longer label; it cuts after "
        "`pipe.tokenizer = functools.partial(pipe.tokenizer, truncation=True)`."
    )
    return Written(loaded_by=by, code=_CODE, text_difference=text, image_difference=image, notes=notes)


def write_model(folder: Path, clip: MergedClip) -> Any:
    """Write weights, configuration and processor; gives the model.

    Raises:
        ExportError: transformers has no class for this pair of towers.
    """
    with quiet_transformers():
        model = _build(clip)
        model.save_pretrained(str(folder))
    write_tokenizer(folder, clip.tokenizer, clip.context_length, swap_bos_eos=_swaps(clip))
    write_preprocessing(folder, clip.image_tower, with_tokenizer=True)
    return model


def minimum(model: Any) -> str:
    """A note on versions."""
    if isinstance(model, transformers.VisionTextDualEncoderModel):
        return "Needs transformers 5 or later: version 4 hands its text tower arguments that it does not take."
    return f"Written and loaded with transformers {transformers.__version__}; 4.57 loads it, too."


def text_notes(clip: MergedClip) -> list[str]:
    """Notes on the exported tokenizer."""
    spelled = "" if spells_special_tokens(clip.tokenizer) else " A special token that a text spells out counts as it."
    return [CLEANING_NOTE + spelled]


def bias_notes(clip: MergedClip) -> list[str]:
    """A note on the bias of a sigmoid loss."""
    if clip.logit_bias is None:
        return []
    return [
        f"The embeddings are exact, but the bias of the sigmoid loss has no place here: a probability is "
        f"sigmoid({clip.logit_scale:.6g} × cosine + {clip.logit_bias:.6g}), and a softmax over texts needs no bias. "
        "The open_clip format holds it."
    ]


def write_preprocessing(folder: Path, tower: ImageTower, *, with_tokenizer: bool = False) -> None:
    """Write the preprocessing of images: timm's, the same operations of Pillow as open_clip's.

    Args:
        folder: holds a config.json, where this image processor looks.
        tower: of the images.
        with_tokenizer: unite it with the folder's tokenizer.

    Raises:
        ExportError: a preprocessing that timm has no form of.
    """
    # transformers reads timm's preprocessing from this file alone.
    described = {"image_processor_type": "TimmWrapperImageProcessor", "pretrained_cfg": timm_preprocessing(tower)}
    _add(folder / "config.json", described)
    if with_tokenizer:
        for name in ("config.json", "tokenizer_config.json"):
            _add(folder / name, {"processor_class": PROCESSOR})


def timm_preprocessing(tower: ImageTower) -> dict[str, Any]:
    """The `pretrained_cfg` of timm that gives the same pixels.

    Raises:
        ExportError: there is none.
    """
    geometry = ResizeCrop.from_preprocess(tower.preprocess)
    square = geometry.height == geometry.width
    if geometry.resize_mode == "longest" or not (square or geometry.resize_mode == "squash"):
        raise ExportError(
            f"transformers has no preprocessing with resize_mode={geometry.resize_mode!r} to "
            f"{geometry.width} × {geometry.height} pixels: pass --format open_clip or onnx"
        )
    return {
        "input_size": [3, geometry.height, geometry.width],
        "interpolation": geometry.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "squash" if geometry.resize_mode == "squash" else "center",
        "mean": list(tower.preprocess["mean"]),
        "std": list(tower.preprocess["std"]),
    }


def clip_vision(tower: ImageTower) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
    """Configuration, tensors and projection `[D, W]` of an open_clip ViT as transformers' CLIP has them.

    Raises:
        ExportError: no such ViT.
    """
    visual: Any = tower.visual
    if not isinstance(visual, VisionTransformer):
        raise ExportError(
            f"transformers has no image tower of the kind of {tower.model}: pass --format onnx or open_clip"
        )
    (height, width), (patch, other) = visual.image_size, visual.patch_size
    plain = visual.pool_type == "tok" and visual.attn_pool is None and not isinstance(visual.patch_dropout, nn.Dropout)
    if not plain or height != width or patch != other or visual.proj is None:
        raise ExportError(f"transformers' CLIP has no ViT like that of {tower.model}: pass --format onnx or open_clip")
    blocks = visual.transformer.resblocks
    state = dict(visual.state_dict())
    tensors = {
        "embeddings.class_embedding": state.pop("class_embedding"),
        "embeddings.patch_embedding.weight": state.pop("conv1.weight"),
        "embeddings.position_embedding.weight": state.pop("positional_embedding"),
    }
    projection = state.pop("proj").T
    tensors |= _renamed(state, {"ln_pre.": "pre_layrnorm.", "ln_post.": "post_layernorm."})
    config = {
        "hidden_size": visual.conv1.out_channels,
        "intermediate_size": blocks[0].mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "image_size": height,
        "patch_size": patch,
        "hidden_act": _activation(tower.quick_gelu),
        "layer_norm_eps": blocks[0].ln_1.eps,
        "projection_dim": tower.dim,
    }
    return config, tensors, projection


def timm_vision(tower: ImageTower) -> tuple[Any, dict[str, Tensor], Tensor]:
    """Configuration, tensors and projection `[D, W]` of a timm ViT as transformers' wrapper has them.

    Raises:
        ExportError: it has a head of another kind than a linear one.
    """
    visual: Any = tower.visual
    head = list(visual.head.children())
    linear = len(head) == 1 and isinstance(head[0], nn.Linear) and head[0].bias is None
    if head and not linear:
        raise ExportError(f"transformers has no place for the head of {tower.model}: pass --format onnx or open_clip")
    width = visual.trunk.num_features
    config = transformers.TimmWrapperConfig(
        architecture=tower.vision_cfg["timm_model_name"],
        model_args={"global_pool": tower.vision_cfg.get("timm_pool", "avg"), "img_size": list(visual.image_size)},
        num_labels=0,
        hidden_size=width,
        num_features=width,
    )
    tensors = {f"timm_model.{name}": tensor for name, tensor in visual.trunk.state_dict().items()}
    return config, tensors, head[0].weight if head else torch.eye(width)


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors into a module that must have all of them and no others.

    Raises:
        ExportError: a tower of another form than the module's.
    """
    try:
        module.load_state_dict({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ExportError(
            f"{type(module).__name__} of transformers has another form than this tower ({reason}): {OTHERS}"
        ) from error


def _add(file: Path, values: Mapping[str, Any]) -> None:
    """Add values to a file of JSON."""
    content = json.loads(file.read_text(encoding="utf-8")) | dict(values)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _build(clip: MergedClip) -> Any:
    """The model with its weights.

    Raises:
        ExportError: transformers has no class for this pair of towers.
    """
    text, visual = clip.text_tower, clip.image_tower.visual
    if isinstance(text, ScratchTower):
        return _dual_encoder(clip, text) if isinstance(visual, TimmModel) else _clip(clip, text)
    assert isinstance(text, LMTower), "no other kind is exported"
    config = text.config
    if config.family != "bert" or config.pooler != "cls" or config.head != "linear" or config.layers:
        raise ExportError(
            f"transformers has no CLIP with a {config.family} language model, {config.pooled_layers} and a "
            f"{config.head_form} head (only bert, cls and linear, in ChineseCLIPModel): {OTHERS}"
        )
    if isinstance(visual, TimmModel):
        raise ExportError(
            f"transformers has no CLIP with a bert language model pooled at its first token and a timm ViT: {OTHERS}"
        )
    return _chinese_clip(clip, text)


def _clip(clip: MergedClip, text: ScratchTower) -> Any:
    vision, tensors, projection = clip_vision(clip.image_tower)
    text_config, text_tensors, text_projection = _clip_text(clip, text)
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=text_config,
            vision_config=vision,
            projection_dim=clip.dim,
            logit_scale_init_value=math.log(clip.logit_scale),
        )
    )
    _fill(model, clip, tensors, projection, text_tensors, text_projection)
    return model


def _dual_encoder(clip: MergedClip, text: ScratchTower) -> Any:
    vision, tensors, projection = timm_vision(clip.image_tower)
    text_config, text_tensors, text_projection = _clip_text(clip, text)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        vision,
        transformers.CLIPTextConfig(**text_config),
        projection_dim=clip.dim,
        logit_scale_init_value=math.log(clip.logit_scale),
    )
    model = transformers.VisionTextDualEncoderModel(config)
    _fill(model, clip, tensors, projection, text_tensors, text_projection)
    return model


def _chinese_clip(clip: MergedClip, text: LMTower) -> Any:
    vision, tensors, projection = clip_vision(clip.image_tower)
    model = transformers.ChineseCLIPModel(
        transformers.ChineseCLIPConfig(
            text_config=text.config.model | {"model_type": "chinese_clip_text_model"},
            vision_config=vision,
            projection_dim=clip.dim,
            logit_scale_init_value=math.log(clip.logit_scale),
        )
    )
    lm, head = text.text["transformer"], text.text["proj"]
    assert isinstance(head, nn.Linear), "a linear head, as was asked above"
    _fill(model, clip, tensors, projection, lm.state_dict(), head.weight)
    return model


def _fill(
    model: Any,
    clip: MergedClip,
    vision: Mapping[str, Tensor],
    visual_projection: Tensor,
    text: Mapping[str, Tensor],
    text_projection: Tensor,
) -> None:
    """Load all tensors of a model of two towers."""
    tensors = {f"vision_model.{name}": tensor for name, tensor in vision.items()}
    tensors |= {f"text_model.{name}": tensor for name, tensor in text.items()}
    tensors["visual_projection.weight"], tensors["text_projection.weight"] = visual_projection, text_projection
    tensors["logit_scale"] = torch.tensor(math.log(clip.logit_scale))
    load_strictly(model, tensors)
    model.eval()


def _clip_text(clip: MergedClip, tower: ScratchTower) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
    """Configuration, tensors and projection `[D, W]` of a scratch tower as transformers' CLIP has them."""
    config, tokenizer = tower.config, clip.tokenizer
    bos, eos = tokenizer.bos_id, config.eos_id
    state = {name: tensor for name, tensor in tower.text.state_dict().items() if name != "attn_mask"}
    tokens = state.pop("token_embedding.weight")
    if _swaps(clip):
        tokens = tokens.clone()
        tokens[[bos, eos]] = tokens[[eos, bos]]
        bos, eos = eos, bos
    tensors = {
        "embeddings.token_embedding.weight": tokens,
        "embeddings.position_embedding.weight": state.pop("positional_embedding"),
    }
    projection = state.pop("text_projection").T
    tensors |= _renamed(state, {"ln_final.": "final_layer_norm."})
    described = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": tower.text.transformer.resblocks[0].mlp.c_fc.out_features,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.context_length,
        "hidden_act": _activation(config.quick_gelu),
        "projection_dim": config.embed_dim,
        "pad_token_id": config.pad_id,
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    return described, tensors, projection


def _swaps(clip: MergedClip) -> bool:
    """Whether BOS and EOS must change places: transformers' CLIP pools an EOS of id 2 at the highest id of a text."""
    return isinstance(clip.text_tower, ScratchTower) and clip.text_tower.config.eos_id == 2


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors of open_clip's blocks and of what stands around them by transformers' names."""
    names = {
        **names,
        "transformer.resblocks.": "encoder.layers.",
        ".attn.out_proj.": ".self_attn.out_proj.",
        ".ln_1.": ".layer_norm1.",
        ".ln_2.": ".layer_norm2.",
        ".mlp.c_fc.": ".mlp.fc1.",
        ".mlp.c_proj.": ".mlp.fc2.",
    }
    result = {}
    for name, tensor in state.items():
        for theirs, others in names.items():
            name = name.replace(theirs, others)
        if ".attn.in_proj_" in name:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                result[name.replace(".attn.in_proj_", f".self_attn.{part}_proj.")] = third
        else:
            result[name] = tensor
    return result


def _activation(quick_gelu: bool) -> str:
    return "quick_gelu" if quick_gelu else "gelu"


@torch.inference_mode()
def _features(folder: Path, probes: Probes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features of the probes by the folder alone."""
    with quiet_transformers():
        model = transformers.AutoModel.from_pretrained(str(folder)).eval()
        processor = transformers.AutoProcessor.from_pretrained(str(folder))
    options: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
    outputs = model(**processor(text=probes.captions, images=probes.images, **options))
    return outputs.text_embeds.numpy(), outputs.image_embeds.numpy()
