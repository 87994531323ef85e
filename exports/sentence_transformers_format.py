"""The sentence-transformers format: a folder of its own modules, so that `encode` takes texts and images.

A CLIP that transformers has a class for is that folder with two files more. Any other text tower stands beside the
image tower, and a router chooses between them.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from open_clip.timm_model import TimmModel
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..encoders.loading.language_models import quiet_transformers
from ..encoders.merged_clip import MergedClip
from ..encoders.text_heads import OPEN_CLIP_HEADS
from ..encoders.text_lm import LMTower
from ..encoders.tokenizer import FILES
from .errors import ExportError
from .formats import Written
from .hf_tokenizer import write_tokenizer
from .probes import Probes
from .transformers_format import (
    IMAGE_NOTE,
    bias_notes,
    clip_vision,
    load_strictly,
    text_notes,
    timm_vision,
    write_model,
    write_preprocessing,
)

MINIMUM = "Needs sentence-transformers 5.5 or later, whose `Transformer` module computes images, too"
POOLING = {"mean": "mean", "cls": "cls", "eos": "lasttoken"}
_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
_NORMALIZE = "sentence_transformers.sentence_transformer.modules.normalize.Normalize"
_POOLED = {"method": "forward", "method_output_name": "pooler_output"}
_CODE = """from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{folder}")
texts = model.encode(["a caption"])  # [1, D], unit norm
images = model.encode([Image.new("RGB", (640, 480))])  # [1, D], unit norm
model.similarity(texts, images)"""


def write(folder: Path, clip: MergedClip) -> Written:
    """Write a CLIP as a folder that sentence-transformers loads, and load it again.

    Args:
        folder: exists and is empty.
        clip: on the CPU.

    Raises:
        ExportError: sentence-transformers is absent, has no place for one of the towers, or computes something else.
    """
    try:
        import sentence_transformers
    except ImportError as error:
        raise ExportError(
            f"sentence-transformers does not load ({error}): pip install 'sentence-transformers>=5.5'"
        ) from error
    if isinstance(clip.text_tower, LMTower):
        first = "sentence_transformers.base.modules.router.Router"
        _write_router(folder, clip, clip.text_tower)
    else:
        first = _TRANSFORMER
        write_model(folder, clip)
        outputs = {name: {"method": f"get_{name}_features", "method_output_name": "pooler_output"} for name in _KINDS}
        _write_transformer(folder, outputs)
    modules = [(first, ""), (_NORMALIZE, "1_Normalize")]
    (folder / "1_Normalize").mkdir()
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(modules)]
    _write_json(folder / "modules.json", listed)
    _write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    with quiet_transformers():
        model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    probes = Probes(clip)
    text, image = (
        model.encode(given, convert_to_numpy=True, show_progress_bar=False)
        for given in (probes.captions, probes.images)
    )
    by = f"sentence-transformers {version('sentence-transformers')} ({first.rpartition('.')[2]})"
    differences = probes.require_close(by, text, image)
    notes = [
        f"{MINIMUM}, and transformers 5.",
        "One call of `encode` takes texts or images, not both; longer texts are cut.",
        *text_notes(clip),
        IMAGE_NOTE,
        *bias_notes(clip),
        f"`model.similarity` gives cosines; times {clip.logit_scale:.6g} they are the logits of the training.",
    ]
    return Written(
        loaded_by=by,
        code=_CODE,
        text_difference=differences[0],
        image_difference=differences[1],
        notes=notes,
        tags=["sentence-similarity"],
    )


_KINDS = ("text", "image")


def _write_router(folder: Path, clip: MergedClip, tower: LMTower) -> None:
    """Write a language model and an image tower, each with what follows it, and the router between them."""
    routes = {"text": _write_text(folder, clip, tower), "image": _write_image(folder, clip)}
    types = {name: kind for route in routes.values() for name, kind in route.items()}
    structure = {name: list(route) for name, route in routes.items()}
    parameters = {"default_route": "text", "allow_empty_key": True, "route_mappings": {}}
    described = {"types": types, "structure": structure, "parameters": parameters}
    _write_json(folder / "router_config.json", described)


def _write_text(folder: Path, clip: MergedClip, tower: LMTower) -> dict[str, str]:
    """Write the language model, its pooling and its head; gives the modules by folder."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    config = tower.config
    if config.layers or config.residual or config.head not in OPEN_CLIP_HEADS:
        raise ExportError(
            f"sentence-transformers has no modules for {config.pooled_layers} and a {config.head_form} head: pass "
            "--format onnx, or open_clip for a folder that clipglot.load reads"
        )
    plain: Any = tower.plain()
    lm, head = plain.text["transformer"], plain.text["proj"]
    path = folder / "text_0_Transformer"
    path.mkdir()
    with quiet_transformers():
        _whole(lm).save_pretrained(str(path))
    write_tokenizer(path, clip.tokenizer, clip.context_length)
    _require_loaded_as_written(path, config.family)
    _write_transformer(
        path, {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}, "token_embeddings"
    )
    pooling = Pooling(lm.config.hidden_size, pooling_mode=POOLING[tower.config.pooler])
    modules = {path.name: _TRANSFORMER} | _save(folder / "text_1_Pooling", pooling)
    layers = [head] if isinstance(head, nn.Linear) else [head[0], head[2]]
    for number, layer in enumerate(layers):
        activation = nn.Identity() if number == len(layers) - 1 else nn.GELU()
        modules |= _write_dense(folder / f"text_{number + 2}_Dense", layer.weight, activation)
    return modules


def _require_loaded_as_written(folder: Path, family: str) -> None:
    """Refuse a family whose tokenizers transformers loads with a normalizer of its own, whatever the file says.

    Raises:
        ExportError: says so.
    """
    written = Tokenizer.from_file(str(folder / FILES[0]))
    with quiet_transformers():
        loaded = transformers.AutoTokenizer.from_pretrained(str(folder)).backend_tokenizer
    if json.loads(loaded.to_str())["normalizer"] != json.loads(written.to_str())["normalizer"]:
        raise ExportError(
            f"transformers {transformers.__version__}, which sentence-transformers loads with, replaces the normalizer "
            f"of every {family} tokenizer, so that texts would not be cleaned as in training: pass --format onnx, or "
            "open_clip for a folder that clipglot.load reads"
        )


def _whole(lm: Any) -> Any:
    """A language model as the class that its library loads it with: T5's keep an encoder inside another model."""
    name = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}.get(lm.config.model_type)
    if name is None:
        return lm
    whole = getattr(transformers, name)(lm.config)
    load_strictly(whole.get_encoder(), lm.state_dict())
    return whole


def _write_image(folder: Path, clip: MergedClip) -> dict[str, str]:
    """Write the image tower and its projection; gives the modules by folder."""
    path = folder / "image_0_Transformer"
    path.mkdir()
    tower = clip.image_tower
    with quiet_transformers():
        if isinstance(tower.visual, TimmModel):
            config, tensors, projection = timm_vision(tower)
            model: Any = transformers.TimmWrapperModel(config)
        else:
            values, tensors, projection = clip_vision(tower)
            model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**values))
        load_strictly(model, tensors)
        model.save_pretrained(str(path))
    write_preprocessing(path, tower)
    _write_transformer(path, {"image": _POOLED})
    modules = {path.name: _TRANSFORMER}
    if not torch.equal(projection, torch.eye(len(projection))):
        modules |= _write_dense(folder / "image_1_Dense", projection, nn.Identity())
    return modules


def _write_transformer(folder: Path, outputs: dict[str, Any], name: str = "sentence_embedding") -> None:
    """Say which output of a model of transformers is taken for which kind of input."""
    described = {"transformer_task": "feature-extraction", "modality_config": outputs, "module_output_name": name}
    _write_json(folder / "sentence_bert_config.json", described)


def _write_dense(folder: Path, weight: Tensor, activation: nn.Module) -> dict[str, str]:
    """Write a linear layer without bias."""
    from sentence_transformers.base.modules import Dense

    weight = weight.detach().clone().contiguous()
    width, given = weight.shape
    return _save(folder, Dense(given, width, bias=False, activation_function=activation, init_weight=weight))


def _save(folder: Path, module: Any) -> dict[str, str]:
    """Save a module; gives its type by folder."""
    folder.mkdir()
    module.save(str(folder))
    return {folder.name: f"{type(module).__module__}.{type(module).__name__}"}


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
