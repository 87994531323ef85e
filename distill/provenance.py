"""Provenance: the identity of encoder and data that ties a cache, a run and an export together."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..cache.format import EncoderInfo, Status
from ..cache.read.cache import Cache
from ..encoders.image_tower import ImageTower
from ..encoders.loading.clips import weights_file
from ..encoders.loading.model_names import LOCAL_PREFIX
from .errors import DistillError


def encoder_info(tower: ImageTower) -> EncoderInfo:
    """Record of a tower that a cache keeps; paths are absolute, so that it holds in every working directory."""
    model, file = tower.model, weights_file(tower.model, tower.pretrained)
    if model.startswith(LOCAL_PREFIX):
        model = f"{LOCAL_PREFIX}{Path(model.removeprefix(LOCAL_PREFIX)).absolute()}"
    return EncoderInfo(
        model=model,
        pretrained=str(file.absolute()) if file else tower.pretrained,
        weights_sha256=tower.weights_sha256,
        preprocess=tower.preprocess,
        dim=tower.dim,
        precision=tower.precision,
        quick_gelu=tower.quick_gelu,
    )


def run_provenance(cache: Cache, num_views: int = 1) -> dict[str, Any]:
    """Provenance of a run on so many views of a cache."""
    info = cache.info
    return {
        "cache": str(cache.path.absolute()),
        "encoder": asdict(info.encoder),
        "source": info.source.to_plain(),
        "num_pictures": info.num_images,
        "num_captions": info.num_captions,
        "counts": info.counts,
        "num_views": num_views,
        "augmentation": asdict(info.augmentation) if info.augmentation and num_views > 1 else None,
        **({"teacher_sha256": info.teacher_sha256} if info.teacher_sha256 else {}),
        **({"captions": _captions(cache)} if cache.chosen_sets else {}),
    }


def _captions(cache: Cache) -> list[dict[str, str]]:
    """The sets that captions come from, each with the digest of its content but the cache's own."""
    digests = {info.name: info.sha256 for info in cache.chosen_sets}
    return [{"name": name} | ({"sha256": digests[name]} if name in digests else {}) for name in cache.caption_names]


def content_of(provenance: dict[str, Any]) -> dict[str, Any]:
    """Provenance without paths: equal for equal data, wherever it lies."""
    encoder, source = dict(provenance["encoder"]), dict(provenance["source"])
    for name in ("model", "pretrained"):
        del encoder[name]
    for name in ("path", "image_root"):
        del source[name]
    if not source.get("teacher_fields"):
        source.pop("teacher_fields", None)  # absent from runs made before there were teachers
    if source.get("images"):
        del source["images"]
    views = {"num_views": 1, "augmentation": None}  # absent from runs made before there were views
    return views | {k: v for k, v in provenance.items() if k != "cache"} | {"encoder": encoder, "source": source}


def content_id(cache: Cache) -> str:
    """Short name of a cache's content, its chosen captions among it, wherever it lies; whatever its number of views."""
    content = json.dumps(content_of(run_provenance(cache)), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def public_provenance(provenance: dict[str, Any]) -> dict[str, Any]:
    """Provenance for an export: identities and counts, but no paths of this machine.

    Paths are told by their form, not by looking at the disk: files move.
    """
    encoder = dict(provenance["encoder"])
    # In timm/NAME, hf-hub:ORG/NAME and ViT-B/32 the slash is part of a name.
    if encoder["model"].startswith(LOCAL_PREFIX):
        encoder["model"] = LOCAL_PREFIX + Path(encoder["model"].removeprefix(LOCAL_PREFIX)).name
    if encoder["pretrained"]:  # a tag has no slash
        encoder["pretrained"] = Path(encoder["pretrained"]).name
    source = {"name": Path(provenance["source"]["path"]).name, "sha256": provenance["source"]["sha256"]}
    counts = {name: provenance[name] for name in ("num_pictures", "num_captions")}
    counts["num_embedded"] = provenance["counts"].get(Status.EMBEDDED.label, 0)  # others are not trained on
    return {"encoder": encoder, "source": source} | counts


def require_same_encoder(expected: EncoderInfo, actual: EncoderInfo, subject: str) -> None:
    """Refuse embeddings or towers of another encoder.

    Args:
        expected: encoder of the cache.
        actual: encoder of something else.
        subject: of the message, e.g. "the encoder of val.zarr".

    Raises:
        DistillError: names both encoders and the first field that differs.
    """
    name = expected.difference(actual)
    if name:
        raise DistillError(
            f"{subject} is {_describe(actual)}, expected {_describe(expected)}: {name} is {getattr(actual, name)!r}, "
            f"expected {getattr(expected, name)!r}"
        )


def _describe(encoder: EncoderInfo) -> str:
    return f"{encoder.model}{f' / {encoder.pretrained}' if encoder.pretrained else ''} ({encoder.weights_sha256[:12]}…)"
