"""Fuzz target of export folders, run in a child process of bounded memory."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.merged_clip import load_merged
from hypothesis import strategies as st

from support.mutations import byte_mutations, json_mutations, search

DOCUMENTS = ("open_clip_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
WEIGHTS = "open_clip_model.safetensors"
CAPTIONS = ["a cat", "", "<eos> 🐈 \ud83d"]


def exports(case: list[Any]) -> str:
    """An export with one file mutated is loaded and embeds texts, or is refused with an `EncoderError`."""
    original, num = Path(case[0]), case[1]
    files = {name: (original / name).read_bytes() for name in (*DOCUMENTS, WEIGHTS)}
    as_json = st.sampled_from(DOCUMENTS).flatmap(
        lambda name: st.tuples(st.just(name), json_mutations(json.loads(files[name])).map(_encoded))
    )
    as_bytes = st.sampled_from(sorted(files)).flatmap(
        lambda name: st.tuples(st.just(name), byte_mutations(files[name]))
    )
    outcomes = {"read": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(shutil.copytree(original, Path(folder, "merged")))

        def check(example: tuple[str, bytes]) -> None:
            name, content = example
            (merged / name).write_bytes(content)
            try:
                embedded = load_merged(merged).encode_texts(CAPTIONS)
                assert embedded.shape[0] == len(CAPTIONS)
                assert embedded.dtype == np.float32
            except EncoderError:
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
            finally:
                (merged / name).write_bytes(files[name])

        search(st.one_of(as_json, as_bytes), check, num)
    return json.dumps(outcomes)


def _encoded(document: Any) -> bytes:
    return json.dumps(document).encode()
