"""The one way in for models of strangers: what a folder or a hub repository may say, and what is made of it.

open_clip and transformers run code that a folder brings if its files ask for that, or ask the user to allow it. So they
never see such a folder. They are given a temporary one: tensors and vocabularies are links to regular files, and each
JSON is written anew without what names code or files. Every tokenizer, every config of transformers and every
open_clip config is loaded by this module, whoever names it: a flag, a run, an export, or the provenance of a cache.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import open_clip
import timm
import transformers
from huggingface_hub import hf_hub_download
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from ..errors import EncoderError
from .hub import fetched, fetched_from_hub, hub_access
from .model_names import HUB_PREFIX, LOCAL_PREFIX
from .untrusted_files import MAX_VOCABULARY, read_json, require_regular
from .untrusted_regex import require_tame_expressions

CLIP_CONFIG = "open_clip_config.json"
LM_CONFIG = "config.json"  # of transformers, beside the weights
LM_WEIGHTS, LM_INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
VOCABULARIES = ["tokenizer.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "spm.model"]
VOCABULARIES += ["spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "source.spm", "target.spm", "bpe.codes"]
TOKENIZER_FILES = [*VOCABULARIES, TOKENIZER_CONFIG, SPECIAL_TOKENS, LM_CONFIG]

# Of a config of transformers, wherever in it they stand: what names code, other files or other repositories, what is
# computed with, and labels, whose number alone fills memory. All else is kept: families also read fields that their
# config class does not declare, as rope_theta, and without them a model computes something else.
_QUANTIZED = {"quantization_config", "compression_config", "sparsity_config"}
_NOT_OF_A_CONFIG = {"auto_map", "custom_pipelines", "trust_remote_code", "transformers_weights", *_QUANTIZED}
_NOT_OF_A_CONFIG |= {"attn_implementation", "experts_implementation", "use_kernels", "kernel_config", "gguf_file"}
_NOT_OF_A_CONFIG |= {"dtype", "torch_dtype", "num_labels", "id2label", "label2id", "tokenizer_class"}
_NOT_OF_A_CONFIG |= {"name_or_path", "base_model_name_or_path", "extra_files", "extra_config_files", "peft_type"}
_NOT_OF_A_CONFIG |= {"backbone", "use_pretrained_backbone", "use_timm_backbone", "backbone_kwargs", "processor_class"}
_NOT_OF_A_CONFIG |= {"device_map", "distributed_config", "fusion_config"}
# Of config classes themselves, besides methods.
_NOT_OF_A_CONFIG |= {"attribute_map", "sub_configs", "sub_configs_defaults", "base_config_key"}
_NOT_OF_A_CONFIG |= {f"base_model_{kind}_plan" for kind in ("tp", "fsdp", "pp", "ep")}
MAX_LAYERS, MAX_POSITIONS, MAX_NUMBER = 1024, 2**20, 2**31
# Of a tokenizer_config.json; special tokens (`…_token`) besides.
_OF_A_TOKENIZER = {"added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "model_max_length"}
_OF_A_TOKENIZER |= {"padding_side", "truncation_side", "clean_up_tokenization_spaces", "split_special_tokens"}
_OF_A_TOKENIZER |= {"do_lower_case", "do_basic_tokenize", "never_split", "strip_accents", "tokenize_chinese_chars"}
_OF_A_TOKENIZER |= {"keep_accents", "remove_space", "lowercase", "add_prefix_space", "trim_offsets", "errors"}
_OF_A_TOKENIZER |= {"legacy", "extra_ids", "src_lang", "tgt_lang", "language_codes", "num_madeup_words"}
_OF_A_TOKENIZER |= {"add_bos_token", "add_eos_token", "add_dummy_prefix_space", "spaces_between_special_tokens"}
_OF_A_TOKENIZER |= {"split_by_punct", "model_input_names", "tokenizer_class"}
MAX_MADE_UP = 2**16
_PLAIN_TOKENIZERS = {"PreTrainedTokenizerFast", "TokenizersBackend"}
# Of the `tokenizer_kwargs` of an open_clip_config.json, and the types of their values.
_TOKENIZER_KWARGS: dict[str, type] = {"clean": str, "reduction_mask": str, "language": str, "padding_side": str}
_TOKENIZER_KWARGS |= {"strip_sep_token": bool, "split_special_tokens": bool}
_NO_CODE = "clipglot never runs code that a model brings"


def clip_config(model: str) -> dict[str, Any] | None:
    """The `model_cfg` of an open_clip model, with nothing in it that open_clip does not know.

    Args:
        model: as of `load_image_tower`, without slashes in a name of open_clip's.

    Returns:
        None if open_clip knows no model of that name.

    Raises:
        EncoderError: a config that asks for code, for another file or for a model that timm does not have.
        Exception: there is none, or the hub gives nothing.
    """
    if model.startswith(LOCAL_PREFIX):
        file = Path(model.removeprefix(LOCAL_PREFIX)) / CLIP_CONFIG
        if not file.exists():
            raise FileNotFoundError(f"there is none in {file.parent}")
        for pattern in ("*.safetensors", "*.bin", "*.pth"):  # open_clip takes one of them
            for weights in file.parent.glob(pattern):
                require_regular(weights)
    elif model.startswith(HUB_PREFIX):
        with hub_access():
            file = Path(hf_hub_download(model.removeprefix(HUB_PREFIX), CLIP_CONFIG))
    else:
        return open_clip.get_model_config(model)  # type: ignore[no-any-return]
    values = read_json(file)
    config = values.get("model_cfg", values)
    _require_known(config, file)
    result: dict[str, Any] = config
    return result


@contextmanager
def clip_text_arguments(model: str, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Arguments with which open_clip builds the text tower of a model, valid inside the block.

    Its loader asks transformers for the config of a language model by name. It is given the name of a folder that holds
    nothing else: the config of the model's own folder, or else of the hub repository that is named.

    Args:
        model: as of `clip_config`.
        config: what that gave.

    Raises:
        EncoderError: a language model that transformers does not have.
        Exception: of the hub, if it gives nothing.
    """
    text_cfg = config["text_cfg"]
    if not text_cfg.get("hf_model_name"):
        yield {}
        return
    folder = Path(model.removeprefix(LOCAL_PREFIX)) if model.startswith(LOCAL_PREFIX) else None
    own = folder is not None and (folder / LM_CONFIG).exists()
    source = folder if own and folder else fetched_from_hub(text_cfg["hf_model_name"], [LM_CONFIG])
    with tempfile.TemporaryDirectory(prefix="clipglot-") as safe:
        _write(Path(safe) / LM_CONFIG, read_config(source))
        yield {"text_cfg": {**text_cfg, "hf_model_name": safe, "hf_model_pretrained": False}}


def clip_tokenizer(model: str, config: Mapping[str, Any]) -> Any:
    """The tokenizer of an open_clip model, as `open_clip.get_tokenizer` gives it.

    Args:
        model: as of `clip_config`.
        config: what that gave.

    Raises:
        Exception: of many kinds, if there is none or it is damaged.
    """
    name = config["text_cfg"].get("hf_tokenizer_name")
    if not name and ":" not in model:
        return open_clip.get_tokenizer(model)
    with tempfile.TemporaryDirectory(prefix="clipglot-") as safe:
        _write(Path(safe) / CLIP_CONFIG, {"model_cfg": config})
        if not name:
            return open_clip.get_tokenizer(f"{LOCAL_PREFIX}{safe}")
        local = model.startswith(LOCAL_PREFIX)
        source = Path(model.removeprefix(LOCAL_PREFIX)) if local else fetched_from_hub(name, TOKENIZER_FILES)
        with _in_its_own_name(safe, source):
            _write_tokenizer(source, Path(safe))
            return open_clip.get_tokenizer(f"{LOCAL_PREFIX}{safe}", trust_remote_code=False)


def lm_tokenizer(source: str | Path, **options: Any) -> Any:
    """The tokenizer of a language model in a folder or a hub repository, as transformers loads it.

    Raises:
        Exception: of many kinds, if there is none, it is damaged, or it asks for code.
    """
    with tempfile.TemporaryDirectory(prefix="clipglot-") as safe, _in_its_own_name(safe, source):
        _write_tokenizer(source, Path(safe))
        return AutoTokenizer.from_pretrained(safe, trust_remote_code=False, **options)


@contextmanager
def safe_lm(source: str) -> Iterator[Path]:
    """A folder, inside the block, with the config and the safetensors of a language model, and nothing else.

    Args:
        source: folder or hub repository.

    Raises:
        EncoderError: it lacks one of these, or transformers has no such model.
        Exception: of the hub, if it gives nothing.
    """
    folder = fetched(source, [LM_CONFIG, LM_WEIGHTS, LM_INDEX, "model-*-of-*.safetensors"])
    with tempfile.TemporaryDirectory(prefix="clipglot-") as name, _in_its_own_name(name, source):
        safe = Path(name)
        _write(safe / LM_CONFIG, read_config(folder))
        if (folder / LM_WEIGHTS).exists():
            (safe / LM_WEIGHTS).symlink_to(require_regular(folder / LM_WEIGHTS))
        elif (folder / LM_INDEX).exists():
            index = read_json(folder / LM_INDEX)
            for shard in set(index["weight_map"].values()):
                if Path(shard).name != shard or not shard.endswith(".safetensors"):
                    raise EncoderError(f"{folder / LM_INDEX}: names {shard}, which is no file beside it")
                (safe / shard).symlink_to(require_regular(folder / shard))
            _write(safe / LM_INDEX, index)
        else:
            raise EncoderError(f"no file {LM_WEIGHTS}")
        yield safe


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a language model, as of `config_values`.

    Raises:
        EncoderError: no JSON, a quantized model, or a family that transformers does not have.
    """
    values = read_json(folder / LM_CONFIG)
    if any(_named(values, _QUANTIZED)):
        raise EncoderError(
            f"{folder / LM_CONFIG}: the model is quantized, and its weights mean nothing without their scales: pass "
            "the model that is not quantized"
        )
    return config_values(values, str(folder / LM_CONFIG))


def config_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What of a config neither names code nor anything to load.

    Args:
        values: of a config.json of transformers.
        where: it stands, for messages.

    Raises:
        EncoderError: a family that transformers does not have, or a number that no model has.
    """
    family = values.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        code = f" It brings code for it, but {_NO_CODE}." if values.get("auto_map") else ""
        raise EncoderError(
            f"{where}: transformers {transformers.__version__} has no model of type {family!r}.{code} Pass a model of "
            "one of its families"
        )
    methods = {name for name in values if callable(getattr(CONFIG_MAPPING[family], name, None))}
    result: dict[str, Any] = _without(dict(values), _NOT_OF_A_CONFIG | methods)
    _require_sizes(result, where)
    return result | {"model_type": family}


def to_config(values: Mapping[str, Any], where: str) -> Any:
    """The config of transformers that plain values describe; errors as of `config_values`."""
    return AutoConfig.for_model(**config_values(values, where))


def tokenizer_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What of a tokenizer_config.json says how to tokenize.

    Args:
        values: of the file.
        where: it stands, for messages.

    Raises:
        EncoderError: a kind of tokenizer that transformers does not have, or a number that none has.
    """
    kept = {name: value for name, value in values.items() if name in _OF_A_TOKENIZER or _is_token(name, value)}
    for name in ("extra_ids", "num_madeup_words"):  # tokens that are made up at once
        if isinstance(number := kept.get(name), int) and number > MAX_MADE_UP:
            raise EncoderError(f"{where}: {name} is {number}, expected at most {MAX_MADE_UP:,}")
    kind = kept.pop("tokenizer_class", None)
    if kind is None and not values.get("auto_map"):
        return kept
    plain = str(kind).removesuffix("Fast")
    known = {str(name).removesuffix("Fast") for name in TOKENIZER_MAPPING_NAMES.values() if name}
    if kind in _PLAIN_TOKENIZERS or (plain in known and plain not in ("MistralCommonBackend", "PythonBackend")):
        return kept | {"tokenizer_class": kind}
    if values.get("auto_map"):
        raise EncoderError(f"{where}: asks for a tokenizer of its own ({kind}), but {_NO_CODE}")
    return kept  # transformers takes its plain one, too, where it does not have the class


def _require_known(config: Any, file: Path) -> None:
    """Refuse an open_clip config that could make open_clip, timm or transformers load anything but what is here."""

    def refused(reason: str) -> EncoderError:
        return EncoderError(f"{file}: {reason}: pass the folder or repository of an open_clip model")

    if not (isinstance(config, dict) and all(isinstance(config.get(k), dict) for k in ("vision_cfg", "text_cfg"))):
        raise refused("describes no image and text tower (vision_cfg, text_cfg)")
    vision, text = config["vision_cfg"], config["text_cfg"]
    for name, part, kind in (("vision_cfg", vision, CLIPVisionCfg), ("text_cfg", text, CLIPTextCfg)):
        if unknown := part.keys() - {field.name for field in fields(kind)}:
            raise refused(f"{name} has {min(unknown)!r}, which open_clip {version('open_clip_torch')} does not know")
        for field, most in {"layers": MAX_LAYERS, "width": 2**16, "context_length": 2**16, "vocab_size": 2**24}.items():
            value = part.get(field, 0)
            if not all(isinstance(number, int) and 0 <= number <= most for number in _listed(value)):
                raise refused(f"{field} of {name} is {value!r}, expected at most {most:,}")
    if (timm_name := vision.get("timm_model_name")) and not (isinstance(timm_name, str) and timm.is_model(timm_name)):
        raise refused(f"timm has no model {timm_name!r}")
    for name in ("hf_model_name", "hf_tokenizer_name"):
        if text.get(name) is not None and not isinstance(text[name], str):
            raise refused(f"{name} is no text")
    arguments = text.get("tokenizer_kwargs") or {}
    if not isinstance(arguments, dict):
        raise refused("tokenizer_kwargs is no object")
    if arguments.pop("trust_remote_code", False):
        raise refused(f"asks for code of its own, but {_NO_CODE}")
    for name, value in arguments.items():
        if not isinstance(value, _TOKENIZER_KWARGS.get(name, ())):
            known = ", ".join(_TOKENIZER_KWARGS)
            raise refused(
                f"tokenizer_kwargs has {name!r}: {type(value).__name__}, which is not passed on (only {known})"
            )


def _write_tokenizer(source: str | Path, safe: Path) -> None:
    """The files of a tokenizer in a safe folder."""
    folder = fetched(source, TOKENIZER_FILES)
    for name in VOCABULARIES:
        if (folder / name).is_symlink() or (folder / name).exists():
            (safe / name).symlink_to(require_regular(folder / name, MAX_VOCABULARY))
    if (safe / VOCABULARIES[0]).exists():
        require_tame_expressions(folder / VOCABULARIES[0])
    described = {}
    if (folder / TOKENIZER_CONFIG).exists():
        described = read_json(folder / TOKENIZER_CONFIG)
        _write(safe / TOKENIZER_CONFIG, tokenizer_values(described, str(folder / TOKENIZER_CONFIG)))
    if (folder / SPECIAL_TOKENS).exists():
        tokens = read_json(folder / SPECIAL_TOKENS)
        _write(safe / SPECIAL_TOKENS, {k: v for k, v in tokens.items() if _is_token(k, v) or k in _OF_A_TOKENIZER})
    # A tokenizer of the plain class is what its file says. Given the config of a Qwen2 model, transformers 5 takes the
    # class of the family nevertheless, whose normalizer then replaces that of the file, a prompt included.
    if (folder / LM_CONFIG).exists() and described.get("tokenizer_class") not in _PLAIN_TOKENIZERS:
        values = read_json(folder / LM_CONFIG)
        if values.get("model_type") in CONFIG_MAPPING or not described.get("tokenizer_class"):
            config = config_values(values, str(folder / LM_CONFIG))
            _write(safe / LM_CONFIG, config | tokenizer_values({"tokenizer_class": values.get("tokenizer_class")}, ""))


@contextmanager
def _in_its_own_name(safe: str, source: str | Path) -> Iterator[None]:
    """Let errors inside the block name the folder that the user named, not the safe one."""
    try:
        yield
    except EncoderError:
        raise
    except Exception as error:
        text = str(error)
        if safe not in text:
            raise
        raise EncoderError(text.replace(safe, str(source))) from error


def _is_token(name: str, value: Any) -> bool:
    return name.endswith("_token") and (value is None or isinstance(value, str | dict))


def _without(value: Any, names: set[str]) -> Any:
    """Plain values without these names, and those that begin with an underscore, at any depth."""
    if isinstance(value, dict):
        kept = {key: part for key, part in value.items() if key not in names and not key.startswith("_")}
        parts = {key: _without(part, names) for key, part in kept.items()}
        return {key: part for key, part in parts.items() if part != {} or kept[key] == {}}  # no empty remains
    return [_without(part, names) for part in value] if isinstance(value, list) else value


def _named(value: Any, names: set[str]) -> Iterator[bool]:
    """Whether each plain value inside, at any depth, has one of these names and says something."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield key in names and part is not None
            yield from _named(part, names)
    elif isinstance(value, list):
        for part in value:
            yield from _named(part, names)


def _require_sizes(value: Any, where: str, name: str = "") -> None:
    """Refuse numbers of a config that would fill memory before the weights show that they are wrong."""
    most = MAX_LAYERS if "layers" in name or name == "n_layer" else MAX_POSITIONS if "position" in name else MAX_NUMBER
    if isinstance(value, dict):
        for key, part in value.items():
            _require_sizes(part, where, key)
    elif isinstance(value, list):
        if len(value) > MAX_POSITIONS:
            raise EncoderError(f"{where}: {name} has {len(value):,} entries")
        for part in value:
            _require_sizes(part, where, name)
    elif isinstance(value, int) and value > most:
        raise EncoderError(f"{where}: {name} is {value}, expected at most {most:,}")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _write(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values), encoding="utf-8")
