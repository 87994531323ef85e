"""The code of a model card, run as a reader runs it: pasted, in the folder that the export lies in."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def run_card(card: str) -> Callable[[str], Any]:
    """Run the fenced Python of a card; the result embeds a caption with what it made."""
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(code, names)

    def encode(caption: str) -> Any:
        if "clip" in names:
            return names["clip"].encode_texts([caption])[0]
        with torch.inference_mode():
            return names["model"].encode_text(names["tokenizer"]([caption]), normalize=True)[0].numpy()

    return encode


def cosine(a: Any, b: Any) -> float:
    """Exactly 1 for equal vectors."""
    return 1.0 if np.array_equal(a, b) else float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
