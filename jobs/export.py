"""`clipglot export`: merge the frozen image tower and the trained text tower into one CLIP that open_clip loads."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ..cache.errors import CacheError
from ..cache.format import EncoderInfo
from ..cache.location import to_location
from ..cache.read.cache import Cache
from ..cache.read.caption_sets import with_captions
from ..cache.storage.atomic import atomic_directory, explain_os_error
from ..cache.typed import has_type
from ..cache.write.image_decode import ResizeCrop
from ..distill.errors import DistillError
from ..distill.provenance import encoder_info, public_provenance, require_same_encoder
from ..distill.train_settings import LanguageSettings
from ..distill.training.final import Which, final_step, load_final
from ..distill.training.run_folder import RunFolder
from ..encoders.image_tower import ImageTower, load_image_tower
from ..encoders.interpolate import interpolate
from ..encoders.loading.untrusted import CLIP_CONFIG
from ..encoders.loading.untrusted_files import read_json
from ..encoders.merged_clip import load_merged, load_named, write_merged
from ..encoders.text_tower import TextTower
from ..encoders.tokenizer import TextTokenizer
from ..encoders.tokenizer_lm import LMTokenizer
from ..exports.errors import ExportError
from ..exports.formats import FORMATS, write_format
from .hub_upload import require_login, upload
from .installed import installed_version
from .model_card import Public, describe_weights, index_card, model_card, recorded_languages
from .reembed import reembed
from .settings.export import ExportFormat, ExportSettings

NUM_PROBES = 8
CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class FormatResult:
    """An export in one format, as its library loaded it.

    Attributes:
        format: of the export.
        folder: that holds it.
        loaded_by: library that loaded it to check it.
        code: the lines of Python that do so.
        text_difference: largest difference of a value of normalized text features; None of open_clip's format.
        image_difference: likewise of image features.
        notes: differences and conditions, a sentence each.
    """

    format: ExportFormat
    folder: Path
    loaded_by: str
    code: str
    text_difference: float | None = None
    image_difference: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written and how it was checked.

    Attributes:
        folder: of the export, or that has a folder for each format.
        which: weights of the text tower: "best", of the best validation, or "last"; None of a merged CLIP.
        step: after which they were taken; None in runs that did not write it down.
        validation: metrics of these weights, if the run had a validation.
        num_probes: cached images that were embedded again; 0 when none could be read.
        min_cosine: their worst cosine with the cached rows, None without probes.
        why_no_probes: the reason, where there are none.
        formats: the exports, in the order asked for.
        url: of the hub repository that the export was uploaded to.
    """

    folder: Path
    which: Which | None
    step: int | None
    validation: dict[str, Any] | None
    num_probes: int
    min_cosine: float | None
    why_no_probes: str | None
    formats: tuple[FormatResult, ...]
    url: str | None = None

    @property
    def loaded_by(self) -> str:
        """The library that loads the first format."""
        return self.formats[0].loaded_by

    @property
    def code(self) -> str:
        """The lines of Python that load the first format."""
        return self.formats[0].code


def export_run(settings: ExportSettings) -> ExportResult:
    """Merge, check and write a finished run, or write a merged CLIP in other formats.

    The folder appears only when every check held.

    Raises:
        CacheError, EncoderError, DistillError, ExportError: a wrong tower is refused by name; a format cannot hold the
            CLIP, or its library computes something else.
    """
    if os.path.lexists(settings.output):
        raise DistillError(f"{settings.output} exists: choose another -o")
    formats = tuple(dict.fromkeys(settings.format))
    if settings.push:
        require_login(settings.push)
    public = Public(license=settings.license, language=settings.language, dataset=settings.dataset)
    is_merged = (settings.run / CLIP_CONFIG).is_file()
    if is_merged and (settings.model or settings.pretrained or settings.step or settings.interpolate is not None):
        raise DistillError(
            f"{settings.run} is a merged CLIP: --step, --interpolate, --model and --pretrained are of runs, drop them"
        )
    if is_merged and "open_clip" in formats:
        raise DistillError(f"{settings.run} is already in open_clip's format: pass --format transformers, for example")
    if settings.quantize and "onnx" not in formats:
        raise DistillError(f"--quantize {settings.quantize} requires --format onnx: pass both, or drop it")
    run = None if is_merged else _load_run(settings)
    record = run.record if run else read_json(settings.run / CLIP_CONFIG).get("clipglot")
    public = replace(public, language=public.language or recorded_languages(record))
    results = []
    with (
        explain_os_error(settings.output),
        atomic_directory(settings.output) as folder,
        TemporaryDirectory(prefix="clipglot-") as scratch,
    ):
        # Every other format is written from the folder that open_clip loads.
        native, inside = settings.run, {name: name if len(formats) > 1 else "." for name in formats}
        if run is not None:
            native = folder / inside["open_clip"] if "open_clip" in formats else Path(scratch)
            native.mkdir(exist_ok=True)
            run.write(native, settings.output.name, public)
        for name in formats:
            final = settings.output / inside[name]
            if name == "open_clip":
                assert run is not None, "refused above"
                results.append(run.result(final))
            else:
                (folder / inside[name]).mkdir(exist_ok=True)
                options = {"quantize": settings.quantize} if name == "onnx" else {}
                results.append(_write_format(name, native, folder / inside[name], final, public, **options))
        if len(formats) > 1:
            (folder / CARD).write_text(index_card(settings.output.name, formats, public), encoding="utf-8")
    url = upload(settings.output, settings.push, private=settings.private) if settings.push else None
    num_probes, min_cosine, why = run.probes if run else (0, None, "a merged CLIP has no cache")
    return ExportResult(
        folder=settings.output,
        which=run.which if run else None,
        step=run.step if run else None,
        validation=run.validation if run else None,
        num_probes=num_probes,
        min_cosine=min_cosine,
        why_no_probes=why,
        formats=tuple(results),
        url=url,
    )


@dataclass(frozen=True, kw_only=True)
class _LoadedRun:
    """Both towers of a run, and what its model card tells."""

    image_tower: ImageTower
    text_tower: TextTower
    tokenizer: TextTokenizer
    logit_scale: float
    logit_bias: float | None
    record: dict[str, Any]
    which: Which
    step: int | None
    validation: dict[str, Any] | None
    probes: tuple[int, float | None, str | None]

    def write(self, folder: Path, name: str, public: Public) -> None:
        """Write the folder that open_clip loads, and load it.

        Raises:
            DistillError: open_clip computes something else.
        """
        parts = (self.image_tower, self.text_tower, self.logit_scale, self.logit_bias, self.tokenizer)
        write_merged(folder, *parts, self.record)
        text, vocab_size = self.text_tower.config, self.tokenizer.vocab_size
        card = model_card(self.record, text, vocab_size, name, guide=text.loading_guide(name), public=public)
        (folder / CARD).write_text(card, encoding="utf-8")
        _require_same_outputs(folder, self.image_tower, self.text_tower, self.tokenizer)

    def result(self, final: Path) -> FormatResult:
        """The export in open_clip's format, as it is called in the end."""
        text = self.text_tower.config
        by = "open_clip" if text.loads_in_open_clip else "clipglot"
        return FormatResult(format="open_clip", folder=final, loaded_by=by, code=text.loading_code(str(final)))


def _load_run(settings: ExportSettings) -> _LoadedRun:
    """Load both towers of a run and check them against its cache.

    Raises:
        CacheError, EncoderError, DistillError: as `export_run`.
    """
    run = RunFolder(settings.run)
    provenance = run.provenance()
    which: Which = settings.step or ("best" if run.best.exists() else "last")
    cache, why_none = _cache_of(provenance)
    languages = _languages(cache, provenance, run.settings())
    text_tower, logit_scale, logit_bias = load_final(run, which)
    step = final_step(run, which)
    validation = run.last_validation() if which == "last" else run.validation_at(step)
    trained_on = EncoderInfo(**provenance["encoder"])
    pretrained = settings.pretrained if settings.model or settings.pretrained else trained_on.pretrained
    image_tower = load_image_tower(settings.model or trained_on.model, pretrained)
    require_same_encoder(trained_on, encoder_info(image_tower), f"the image tower for {settings.run}")
    tokenizer, weights = text_tower.tokenizer_type.load(run.tokenizer), describe_weights(which, step)
    if settings.interpolate is not None:
        start = load_named(settings.model or trained_on.model, pretrained)
        text_tower, logit_scale = interpolate(start, text_tower, tokenizer, logit_scale, settings.interpolate)
        weights += f", {settings.interpolate:g} of the way from those that training began with"
        validation = None  # of other weights
    return _LoadedRun(
        image_tower=image_tower,
        text_tower=text_tower,
        tokenizer=tokenizer,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        record=public_provenance(provenance)
        | {
            "clipglot": installed_version("clipglot"),
            "open_clip_torch": installed_version("open_clip_torch"),
            "weights": weights,
            "validation": validation,
            **({"languages": languages} if languages else {}),
            **({"text_prompt": tokenizer.prompt} if isinstance(tokenizer, LMTokenizer) and tokenizer.prompt else {}),
        }
        | ({} if settings.interpolate is None else {"interpolate": settings.interpolate}),
        which=which,
        step=step,
        validation=validation,
        probes=(0, None, why_none) if cache is None else _probe(cache, image_tower),
    )


def _write_format(
    name: ExportFormat, native: Path, folder: Path, final: Path, public: Public, **options: Any
) -> FormatResult:
    """Write another format from the folder that open_clip loads.

    Args:
        name: of the format.
        native: that folder.
        folder: exists and is empty.
        final: how it is called in the end.
        public: for the model card.
        **options: of the format.

    Raises:
        ExportError: the format cannot hold this CLIP, or its library computes something else.
    """
    clip = load_merged(native)
    if clip.text_tower is None:
        raise ExportError(
            f"{native}: a text tower that clipglot does not have: export it with the library that made it"
        )
    written = write_format(name, folder, clip, **options)
    text, size = clip.text_tower.config, clip.tokenizer.vocab_size
    guide = "\n".join(
        [f"```python\n{written.code.replace('{folder}', final.name)}\n```", *(f"- {note}" for note in written.notes)]
    )
    library = FORMATS[name][1]
    card = model_card(
        clip.record, text, size, final.name, guide=guide, library=library, tags=written.tags, public=public
    )
    (folder / CARD).write_text(card, encoding="utf-8")
    return FormatResult(
        format=name,
        folder=final,
        loaded_by=written.loaded_by,
        code=written.code.replace("{folder}", str(final)),
        text_difference=written.text_difference,
        image_difference=written.image_difference,
        notes=tuple(written.notes),
    )


def _cache_of(provenance: dict[str, Any]) -> tuple[Cache | None, str | None]:
    """The cache of a run, or why there is none any more."""
    path = to_location(provenance["cache"])
    try:
        if isinstance(path, Path) and not path.exists():
            return None, f"there is no cache at {path} any more"
        cache = Cache(path)
    except (CacheError, OSError) as error:
        return None, str(error)
    if cache.info.encoder.difference(EncoderInfo(**provenance["encoder"])) or (
        cache.info.source.sha256 != provenance["source"]["sha256"]
    ):
        return None, f"another cache stands at {path}"
    return cache, None


def _languages(cache: Cache | None, provenance: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Languages that a run was trained on, the most frequent first; those that its source declares without a cache."""
    declared: list[str] = provenance["source"].get("languages") or []
    given: Any = settings.get("language")
    weights = LanguageSettings(language=tuple(given)).language_weights if has_type(given, list[str]) else {}
    try:
        if cache is None:
            return [] if provenance.get("captions") else declared
        trained_on = provenance.get("captions", ())
        chosen = with_captions(cache, [of["name"] for of in trained_on])
        if not {of["sha256"] for of in trained_on if "sha256" in of} <= {info.sha256 for info in chosen.chosen_sets}:
            return []  # sets of these names have other captions by now
        # A caption without a tag counts as of its set, whose name is no language.
        tagged = {*cache.info.languages, *(tag for info in chosen.chosen_sets for tag in info.languages)}
        return [tag for tag in chosen.count_languages() if tag in tagged and (not weights or weights.get(tag))]
    except (CacheError, OSError):
        return declared if not provenance.get("captions") else []


def _probe(cache: Cache, tower: ImageTower) -> tuple[int, float | None, str | None]:
    """Embed a few cached images again, where they can still be read.

    Raises:
        DistillError: the tower does not give what the cache holds.
    """
    try:
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
    clip = load_merged(folder, by_open_clip=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *_size(image_tower), 3), np.uint8)
    same_image = np.array_equal(clip.image_tower.encode(pixels), image_tower.encode(pixels))
    captions = ["", "clipglot ✓ клип 클립 图文"]
    ours = text_tower.encode(tokenizer.encode(captions, text_tower.config.context_length)).numpy()
    if not same_image or not np.allclose(clip.encode_texts(captions, raw=True), ours, rtol=1e-4, atol=1e-5):
        raise DistillError(
            f"open_clip {installed_version('open_clip_torch')} loads the export with other "
            f"{'text' if same_image else 'image'} features than were merged: please report this, with both versions"
        )


def _size(tower: ImageTower) -> tuple[int, int]:
    geometry = ResizeCrop.from_preprocess(tower.preprocess)
    return geometry.height, geometry.width
