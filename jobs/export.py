"""`clipglot export`: merge the frozen image tower and the trained text tower into one CLIP that open_clip loads."""

import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cache.errors import CacheError
from ..cache.format import EncoderInfo
from ..cache.location import to_location
from ..cache.read.cache import Cache
from ..cache.storage.atomic import atomic_directory, explain_os_error
from ..cache.write.image_decode import ResizeCrop
from ..distill.errors import DistillError
from ..distill.provenance import encoder_info, public_provenance, require_same_encoder
from ..distill.training.final import Which, final_step, load_final
from ..distill.training.run_folder import RunFolder
from ..encoders.image_tower import ImageTower, load_image_tower
from ..encoders.merged_clip import load_merged, write_merged
from ..encoders.text_tower import TextTower
from ..encoders.tokenizer import TextTokenizer
from .model_card import describe_weights, model_card
from .reembed import reembed
from .settings.export import ExportSettings

NUM_PROBES = 8


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written and how it was checked.

    Attributes:
        folder: of the merged CLIP.
        which: weights of the text tower: "best", of the best validation, or "last".
        step: after which they were taken; None in runs that did not write it down.
        validation: metrics of these weights, if the run had a validation.
        num_probes: cached images that were embedded again; 0 when none could be read.
        min_cosine: their worst cosine with the cached rows, None without probes.
        why_no_probes: the reason, where there are none.
        loaded_by: what loads the folder, and loaded it to check it.
        code: the lines of Python that do so.
    """

    folder: Path
    which: Which
    step: int | None
    validation: dict[str, Any] | None
    num_probes: int
    min_cosine: float | None
    why_no_probes: str | None
    loaded_by: str
    code: str


def export_run(settings: ExportSettings) -> ExportResult:
    """Merge, check and write a finished run; the folder appears only when every check held.

    Raises:
        CacheError, EncoderError, DistillError: a wrong tower is refused by name.
    """
    if os.path.lexists(settings.output):
        raise DistillError(f"{settings.output} exists: choose another -o")
    run = RunFolder(settings.run)
    provenance = run.provenance()
    which: Which = settings.step or ("best" if run.best.exists() else "last")
    text_tower, logit_scale, logit_bias = load_final(run, which)
    step = final_step(run, which)
    validation = run.last_validation() if which == "last" else run.validation_at(step)
    tokenizer = text_tower.tokenizer_type.load(run.tokenizer)
    trained_on = EncoderInfo(**provenance["encoder"])
    pretrained = settings.pretrained if settings.model or settings.pretrained else trained_on.pretrained
    image_tower = load_image_tower(settings.model or trained_on.model, pretrained)
    require_same_encoder(trained_on, encoder_info(image_tower), f"the image tower for {settings.run}")
    num_probes, min_cosine, why = _probe(image_tower, provenance)

    record = public_provenance(provenance) | {
        "clipglot": version("clipglot"),
        "open_clip_torch": version("open_clip_torch"),
    }
    with explain_os_error(settings.output), atomic_directory(settings.output) as folder:
        write_merged(folder, image_tower, text_tower, logit_scale, logit_bias, tokenizer, record)
        card = model_card(
            record,
            validation,
            text_tower.config,
            tokenizer.vocab_size,
            settings.output.name,
            weights=describe_weights(which, step),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        _require_same_outputs(folder, image_tower, text_tower, tokenizer)
    return ExportResult(
        folder=settings.output,
        which=which,
        step=step,
        validation=validation,
        num_probes=num_probes,
        min_cosine=min_cosine,
        why_no_probes=why,
        loaded_by="open_clip" if text_tower.config.loads_in_open_clip else "clipglot",
        code=text_tower.config.loading_code(str(settings.output)),
    )


def _probe(tower: ImageTower, provenance: dict[str, Any]) -> tuple[int, float | None, str | None]:
    """Embed a few cached images again, where cache and images can still be read.

    Raises:
        DistillError: the tower does not give what the cache holds.
    """
    path = to_location(provenance["cache"])
    try:
        if isinstance(path, Path) and not path.exists():
            return 0, None, f"there is no cache at {path} any more"
        cache = Cache(path)
        if cache.info.encoder.difference(EncoderInfo(**provenance["encoder"])) or (
            cache.info.source.sha256 != provenance["source"]["sha256"]
        ):
            return 0, None, f"another cache stands at {path}"
        probes = reembed(cache, tower, NUM_PROBES)
    except (CacheError, OSError) as error:
        return 0, None, str(error)
    if probes.changed:
        raise DistillError(f"{probes.changed[0]}: run `clipglot verify`")
    return probes.num, probes.min_cosine, None if probes.num else probes.not_checked


@torch.inference_mode()
def _require_same_outputs(
    folder: Path, image_tower: ImageTower, text_tower: TextTower, tokenizer: TextTokenizer
) -> None:
    """Load the folder as a user will and compare both towers with what was merged."""
    clip = load_merged(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *_size(image_tower), 3), np.uint8)
    same_image = np.array_equal(clip.image_tower.encode(pixels), image_tower.encode(pixels))
    captions = ["", "clipglot ✓ клип 클립 图文"]
    ours = text_tower.encode(tokenizer.encode(captions, text_tower.config.context_length)).numpy()
    if not same_image or not np.allclose(clip.encode_texts(captions, raw=True), ours, rtol=1e-4, atol=1e-5):
        raise DistillError(
            f"open_clip {version('open_clip_torch')} loads the export with other "
            f"{'text' if same_image else 'image'} features than were merged: please report this, with both versions"
        )


def _size(tower: ImageTower) -> tuple[int, int]:
    geometry = ResizeCrop.from_preprocess(tower.preprocess)
    return geometry.height, geometry.width
