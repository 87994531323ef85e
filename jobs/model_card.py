"""The model card of an export: what it is, how to load it, where it came from, what was measured."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..distill.training.final import Which
from ..encoders.loading.model_names import HUB_PREFIX
from ..encoders.text_tower import TextTowerConfig

_TRAINED_HERE = """\
A CLIP whose image tower is frozen and unchanged, and whose text tower was trained by clipglot on the cached
embeddings of that image tower."""
_FILES = {
    "open_clip": "Files: weights and `open_clip_config.json` for open_clip, `tokenizer.json` and its configuration for "
    "open_clip and\ntransformers. The config's `clipglot` entry repeats where everything came from.",
    "transformers": "Files: as transformers writes them.",
    "sentence-transformers": "Files: as sentence-transformers writes them.",
    "onnx": "Files: `textual/` and `visual/` with a model each, the tokenizer and the preprocessing.",
}

_NO_LANGUAGE = ("und", "mul", "zxx", "mis")  # undetermined, several, none, uncoded (ISO 639)


@dataclass(frozen=True, kw_only=True)
class Public:
    """What a hub asks of a model: what only its maker knows, and the languages of the captions.

    Attributes:
        license: of both towers, as hubs write it.
        language: codes of the captions' languages.
        dataset: hub datasets of the captions.
    """

    license: str | None = None
    language: tuple[str, ...] = ()
    dataset: tuple[str, ...] = ()


NOTHING_PUBLIC = Public()


def model_card(
    record: dict[str, Any],
    text: TextTowerConfig,
    vocab_size: int,
    name: str,
    *,
    guide: str,
    library: str = "open_clip",
    tags: Sequence[str] = (),
    public: Public = NOTHING_PUBLIC,
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        record: what an export keeps of where it came from (`public_provenance`), with `weights` and `validation`; empty
            for a CLIP of others.
        text: shape of the text tower.
        vocab_size: of its tokenizer.
        name: of the folder.
        guide: Markdown that says how to load it.
        library: that loads it, as hubs call it.
        tags: further tags.
        public: what only the user knows.
    """
    front_matter = ModelCardData(
        model_name=name,
        library_name=library,
        license=public.license,
        language=list(public.language) or None,
        datasets=list(public.dataset) or None,
        base_model=_base_models(record, text) or None,
        tags=["clip", "clipglot", *tags],
        pipeline_tag="zero-shot-image-classification",
        eval_results=_eval_results(record.get("validation")),
    )
    rows = {
        **_image_tower(record),
        "text tower": text.describe(),
        **({"its weights": record["weights"]} if "weights" in record else {}),
        "vocabulary, context": f"{vocab_size:,} tokens, captions of at most {text.context_length} tokens",
        **(
            {"prompt": f"`{record['text_prompt']}`, which the tokenizer puts before each text"}
            if record.get("text_prompt")
            else {}
        ),
        **({"trained on": _trained_on(record)} if "num_embedded" in record else {}),
        **_recall(record.get("validation")),
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    return f"""---
{front_matter.to_yaml()}
---

# {name}

{_TRAINED_HERE if "encoder" in record else "A CLIP, written by clipglot in another format."}

{guide}

| | |
|---|---|
{table}
{_FILES[library]}
"""


def index_card(name: str, formats: Sequence[str], public: Public) -> str:
    """Markdown for a folder that has a folder for each of several formats.

    Args:
        name: of the folder.
        formats: and names of the folders.
        public: as of `model_card`.
    """
    front_matter = ModelCardData(
        license=public.license,
        language=list(public.language) or None,
        datasets=list(public.dataset) or None,
        tags=["clip", "clipglot"],
        pipeline_tag="zero-shot-image-classification",
    )
    rows = "".join(f"- [{each}]({each}/README.md)\n" for each in formats)
    return f"""---
{front_matter.to_yaml()}
---

# {name}

One CLIP in several formats, each with its own card:

{rows}"""


def recorded_languages(record: Any) -> tuple[str, ...]:
    """Languages as hubs write them, of the tags in an export's record: without script, region and what is no language.

    >>> recorded_languages({"languages": ["zh-Hans", "en", "zh-TW", "", "und"]}), recorded_languages(None)
    (('zh', 'en'), ())
    """
    tags = record.get("languages") if isinstance(record, dict) else None
    first = [tag.partition("-")[0].lower() for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return tuple(dict.fromkeys(tag for tag in first if re.fullmatch("[a-z]{2,3}", tag) and tag not in _NO_LANGUAGE))


def describe_weights(which: Which, step: int | None) -> str:
    """Which weights of a run were exported, for the card and the command's output.

    >>> describe_weights("best", 80), describe_weights("best", 0), describe_weights("last", None)
    ('of the best validation, after step 80', 'of the best validation, before the first step', 'of the last step')
    """
    if which == "last":
        return "of the last step" if step is None else f"of the last step, {step:,}"
    return "of the best validation, " + (f"after step {step:,}" if step else "before the first step")


def _trained_on(provenance: dict[str, Any]) -> str:
    """How many images were embedded, so that a run could learn from them; the cache counts captions of all images."""
    num, total, captions = (provenance[name] for name in ("num_embedded", "num_pictures", "num_captions"))
    if num == total:
        return f"{num:,} images with {captions:,} captions"
    failed = f"of which {total - num:,} could not be embedded"
    return f"{num:,} images; the cache has {total:,}, {failed}, and {captions:,} captions"


def _base_models(record: dict[str, Any], text: TextTowerConfig) -> list[str]:
    """Hub repositories that the towers came from."""
    names = [record.get("encoder", {}).get("model", "").removeprefix(HUB_PREFIX), getattr(text, "name", "")]
    return [name for name in names if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("timm/")]


def _eval_results(validation: dict[str, Any] | None) -> list[EvalResult] | None:
    """Recalls of the validation, as hubs list them."""
    if validation is None:
        return None
    return [
        EvalResult(
            task_type="image-text-retrieval",
            task_name="text to image retrieval",
            dataset_type="held-out",
            dataset_name="held-out images of the run",
            metric_type=f"recall_at_{k}",
            metric_name=f"R@{k}",
            metric_value=round(float(validation[f"r_at_{k}"]), 4),
        )
        for k in (1, 5, 10)
    ]


def _image_tower(record: dict[str, Any]) -> dict[str, str]:
    if "encoder" not in record:
        return {}
    encoder = record["encoder"]
    weights = f", weights `{encoder['pretrained']}`" if encoder["pretrained"] else ""
    return {"image tower": f"`{encoder['model']}`{weights}", "SHA-256 of its tensors": f"`{encoder['weights_sha256']}`"}


def _recall(validation: dict[str, Any] | None) -> dict[str, str]:
    if validation is None:
        return {}
    recalls = ", ".join(f"R@{k} {validation[f'r_at_{k}']:.1%}" for k in (1, 5, 10))
    return {"held-out text→image recall": f"{recalls}, median rank {validation['median_rank']:g}"}
