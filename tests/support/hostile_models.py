"""Models of strangers that would run code: each leaves a mark, a file on the disk, where it did."""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clipglot.encoders.errors import EncoderError

from support.tiny_lms import save_tiny_lm

# What libraries say to make users load what they refused.
ADVICE = ("weights_only", "allow_pickle", "safe_globals", "trust_remote_code", "Traceback")


class Malicious:
    """Unpickling it makes a file, the mark that code ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def zip_of_torch(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def legacy_file_of_torch(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


PICKLES: dict[str, Callable[[Any], bytes]] = {
    "zip": zip_of_torch,
    "legacy": legacy_file_of_torch,
    "plain": pickle.dumps,
}


def refused(load: Callable[[], Any], mark: Path, error: type[Exception] = EncoderError) -> str:
    """The message with which something malicious is refused."""
    with pytest.raises(error) as caught:
        load()
    message = str(caught.value)
    assert not mark.exists(), "code ran"
    for advice in ADVICE:
        assert advice not in message, message
    assert len(message) < 600
    return message


CODE = """
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast

open({mark!r}, "w").close()


class OwnConfig(BertConfig):
    model_type = "own"


class OwnModel(BertModel):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def edit_json(file: Path, **changes: Any) -> None:
    """Set fields of a JSON file, which need not exist."""
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | changes))


def add_code(folder: Path, mark: Path) -> None:
    (folder / "evil.py").write_text(CODE.format(mark=str(mark)))


def ask_in_config(folder: Path, mark: Path, model_type: str = "own") -> None:
    """Let the config.json of a language model ask for code of the folder."""
    add_code(folder, mark)
    code = {"AutoConfig": "evil.OwnConfig", "AutoModel": "evil.OwnModel"}
    edit_json(folder / "config.json", auto_map=code, model_type=model_type)


def ask_in_tokenizer(folder: Path, mark: Path, tokenizer_class: str = "OwnTokenizer") -> None:
    """Let the tokenizer of a folder ask for code of the folder."""
    add_code(folder, mark)
    code = {"AutoTokenizer": [None, "evil.OwnTokenizer"]}
    edit_json(folder / "tokenizer_config.json", auto_map=code, tokenizer_class=tokenizer_class)


def hostile_lm(folder: Path, mark: Path) -> Path:
    """A language model whose config and tokenizer both ask for code."""
    save_tiny_lm(folder)
    ask_in_config(folder, mark)
    ask_in_tokenizer(folder, mark)
    return folder


def edit_text_cfg(folder: Path, **changes: Any) -> None:
    """Set fields of the text tower in an open_clip_config.json."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= changes
    edit_json(folder / "open_clip_config.json", **config)


def allow_code_for_tokenizer(folder: Path, mark: Path) -> None:
    """A CLIP that allows itself to run the code of its tokenizer."""
    if not (folder / "tokenizer.json").exists():
        for file in save_tiny_lm(folder.with_name(f"{folder.name}-lm")).glob("*token*"):
            shutil.copy(file, folder)
    ask_in_tokenizer(folder, mark)
    edit_text_cfg(folder, hf_tokenizer_name="own", tokenizer_kwargs={"trust_remote_code": True})


def own_language_model(folder: Path, mark: Path) -> None:
    """A CLIP whose text tower is a language model with code in the same folder."""
    hostile_lm(folder.with_name(f"{folder.name}-lm"), mark)
    for file in folder.with_name(f"{folder.name}-lm").glob("*[!s]"):
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    edit_text_cfg(folder, hf_model_name="stranger/lm", hf_tokenizer_name="stranger/lm")


def language_model_elsewhere(folder: Path, mark: Path) -> None:
    """A CLIP whose text tower is a language model with code in another folder."""
    other = str(hostile_lm(folder.with_name(f"{folder.name}-lm"), mark))
    edit_text_cfg(folder, hf_model_name=other, hf_tokenizer_name=other)


def language_model_of_the_hub(folder: Path, mark: Path) -> None:
    """A CLIP whose text tower is a language model with code in a repository of the hub (`in_hub` puts it there)."""
    edit_text_cfg(folder, hf_model_name="stranger/lm", hf_tokenizer_name="stranger/lm")


HOSTILE_CLIPS: dict[str, Callable[[Path, Path], None]] = {
    "tokenizer": allow_code_for_tokenizer,
    "own": own_language_model,
    "elsewhere": language_model_elsewhere,
    "hub": language_model_of_the_hub,
}


def in_hub(cache: Path, repository: str, folder: Path) -> None:
    """Put a folder into the cache of the hub, as if it had been fetched."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))
