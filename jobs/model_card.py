"""The model card of an export: what it is, how to load it, where it came from, what was measured."""

from typing import Any

from ..distill.training.final import Which
from ..encoders.text_tower import TextTowerConfig


def model_card(
    provenance: dict[str, Any],
    validation: dict[str, Any] | None,
    text: TextTowerConfig,
    vocab_size: int,
    name: str,
    *,
    weights: str,
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        provenance: as `public_provenance` gives it.
        validation: of the exported weights, if there was one.
        text: shape of the text tower.
        vocab_size: of its tokenizer.
        name: of the merged folder.
        weights: which ones of the run, as `describe_weights` says.
    """
    encoder = provenance["encoder"]
    return f"""---
library_name: open_clip
tags: [clip, clipglot]
pipeline_tag: zero-shot-image-classification
---

# {name}

A CLIP whose image tower is frozen and unchanged, and whose text tower was trained by clipglot on the cached
embeddings of that image tower.

{text.loading_guide(name)}

| | |
|---|---|
| image tower | `{encoder["model"]}`{f", weights `{encoder['pretrained']}`" if encoder["pretrained"] else ""} |
| SHA-256 of its tensors | `{encoder["weights_sha256"]}` |
| text tower | {text.describe()} |
| its weights | {weights} |
| vocabulary, context | {vocab_size:,} tokens, captions of at most {text.context_length} tokens |
| trained on | {_trained_on(provenance)} |
{_recall(validation)}
Files: weights and `open_clip_config.json` for open_clip, `tokenizer.json` and its configuration for open_clip and
transformers. The config's `clipglot` entry repeats where everything came from.
"""


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


def _recall(validation: dict[str, Any] | None) -> str:
    if validation is None:
        return ""
    return (
        f"| held-out text→image recall | R@1 {validation['r_at_1']:.1%}, R@5 {validation['r_at_5']:.1%}, "
        f"R@10 {validation['r_at_10']:.1%}, median rank {validation['median_rank']:g} |\n"
    )
