"""The model card of an export: what it is, how to load it, where it came from, what was measured."""

from typing import Any

from ..encoders.text_lm import LMConfig
from ..encoders.text_tower import TextTowerConfig


def model_card(
    provenance: dict[str, Any], validation: dict[str, Any] | None, text: TextTowerConfig, vocab_size: int, name: str
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        provenance: as `public_provenance` gives it.
        validation: the last validation of the run, if there was one.
        text: shape of the text tower.
        vocab_size: of its tokenizer.
        name: of the merged folder.
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

{_loading(text, name)}

| | |
|---|---|
| image tower | `{encoder["model"]}`{f", weights `{encoder['pretrained']}`" if encoder["pretrained"] else ""} |
| SHA-256 of its tensors | `{encoder["weights_sha256"]}` |
| text tower | {text.describe()} |
| vocabulary, context | {vocab_size:,} tokens, captions of at most {text.context_length} tokens |
| trained on | {provenance["num_pictures"]:,} images with {provenance["num_captions"]:,} captions |
{_recall(validation)}
Files: weights and `open_clip_config.json` for open_clip, `tokenizer.json` and its configuration for open_clip and
transformers. The config's `clipglot` entry repeats where everything came from.
"""


def loading_code(text: TextTowerConfig, name: str) -> str:
    """The lines of Python that load a merged folder of this name."""
    if not isinstance(text, LMConfig):
        return f"""import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{name}")
tokenizer = open_clip.get_tokenizer("local-dir:{name}")"""
    if text.loads_in_open_clip:
        return f"""import open_clip

name = "local-dir:{name}"
text_cfg = open_clip.get_model_config(name)["text_cfg"] | {{"hf_model_name": "{name}"}}
model, _, preprocess = open_clip.create_model_and_transforms(name, text_cfg=text_cfg)
tokenizer = open_clip.get_tokenizer(name)"""
    return f"""from pathlib import Path
from clipglot.encoders.clip import load_merged

clip = load_merged(Path("{name}"))
clip.encode_texts(["a caption"])  # [1, D], unit norm"""


def _loading(text: TextTowerConfig, name: str) -> str:
    """How to load the folder, with open_clip where it can."""
    code = f"```python\n{loading_code(text, name)}\n```"
    if not isinstance(text, LMConfig):
        return code
    if text.loads_in_open_clip:
        return f"""open_clip asks transformers for the language model's configuration by name. It lies in this folder as
`config.json`; say so, and nothing is fetched:

{code}

`clipglot predict {name} …`, or `clipglot.encoders.clip.load_merged`, does that by itself."""
    return f"""open_clip has no text tower of this kind ({text.family}, {text.pooler} pooling); clipglot loads it:

{code}"""


def _recall(validation: dict[str, Any] | None) -> str:
    if validation is None:
        return ""
    return (
        f"| held-out text→image recall | R@1 {validation['r_at_1']:.1%}, R@5 {validation['r_at_5']:.1%}, "
        f"R@10 {validation['r_at_10']:.1%}, median rank {validation['median_rank']:g} |\n"
    )
