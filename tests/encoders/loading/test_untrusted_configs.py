"""Configs of language models: what transformers makes of them is what it makes of the untouched ones."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.loading.untrusted import config_values, to_config
from clipglot.encoders.text_lm import LMTower
from safetensors.torch import load_file, save_file
from support.hostile_models import edit_json
from support.tiny_lms import CONTEXT
from transformers import AutoConfig

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"type": "longrope", "long_factor": [1.5] * 48, "short_factor": [1.0] * 48}
# As published, besides labels, type and names of files.
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen2": {"rope_theta": 1e6, "sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28},
    "qwen3": {"rope_theta": 1e6, "head_dim": 128, "rope_scaling": YARN, "max_position_embeddings": 40960},
    "llama": {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192}},
    "mistral": {"rope_theta": 1e6, "sliding_window": None, "hidden_act": "silu"},
    "phi": {"rope_theta": 1e4, "partial_rotary_factor": 0.4, "qk_layernorm": False},
    "phi3": {"rope_theta": 1e4, "rope_scaling": LONG, "original_max_position_embeddings": 4096, "pad_token_id": 0},
    "deberta-v2": {"norm_rel_ebd": "layer_norm", "conv_act": "gelu", "conv_kernel_size": 3, "pos_att_type": "p2c|c2p"},
    "modernbert": {"global_rope_theta": 8e4, "local_rope_theta": 2e4, "global_attn_every_n_layers": 3},
    "gemma3_text": {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "sliding_window_pattern": 6, "query_scalar": 256},
    "gpt_neox": {"rotary_pct": 0.3, "rotary_emb_base": 20000, "use_parallel_residual": True},
    "bert": {"position_embedding_type": "absolute", "classifier_dropout": None, "gradient_checkpointing": False},
    "xlm-roberta": {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "vocab_size": 250002, "output_past": True},
    "mt5": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 64, "is_encoder_decoder": True},
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_config_is_that_of_transformers(family: str) -> None:
    values = {"model_type": family, "architectures": ["Any"], "transformers_version": "4.51.0", **PUBLISHED[family]}
    ours, theirs = to_config(values, "here"), AutoConfig.for_model(**values)
    assert ours.to_dict() == theirs.to_dict()
    undeclared = {"norm_rel_ebd": "layer_norm", "query_scalar": 256}
    assert all(getattr(ours, name) == value for name, value in undeclared.items() if name in values)


def test_what_names_code_files_or_repositories_is_dropped_at_any_depth() -> None:
    hostile = {"auto_map": {"AutoModel": "a.B"}, "name_or_path": "/etc", "backbone": "a/b", "_name_or_path": "a/b"}
    hostile |= {"attn_implementation": "a/b", "dtype": "int8", "attribute_map": {"a": "b"}}
    values = {"model_type": "bert", "own": "text", "rope_scaling": {"factor": 2.0}, "other": [{"deep": {"a": 1}}]}
    nested = {"rope_scaling": {"factor": 2.0, **hostile}, "other": [{"deep": {"a": 1, **hostile}, **hostile}]}
    assert config_values(values | hostile | nested | {"to_dict": "a method"}, "here") == values


@pytest.mark.parametrize("place", [{}, {"text_config": {}}])
def test_a_quantized_model_is_refused(place: dict[str, Any], lms: dict[str, Path], tmp_path: Path) -> None:
    lm = shutil.copytree(lms["bert"], tmp_path / "lm")
    quantized = {"quantization_config": {"quant_method": "fp8"}}
    edit_json(lm / "config.json", **(dict.fromkeys(place, quantized) or quantized))
    with pytest.raises(EncoderError, match=r"is quantized, .*pass the model that is not quantized"):
        LMTower.from_pretrained(str(lm), 6, context_length=CONTEXT)
    edit_json(lm / "config.json", **({name: {} for name in place} or {"quantization_config": None}))
    LMTower.from_pretrained(str(lm), 6, context_length=CONTEXT)


@pytest.mark.parametrize("suffix", ["weight_scale", "weight_scale_inv", "SCB"])
def test_weights_with_scales_are_refused(suffix: str, lms: dict[str, Path], tmp_path: Path) -> None:
    lm = shutil.copytree(lms["bert"], tmp_path / "lm")
    weights = load_file(lm / "model.safetensors")
    save_file(weights | {"logit_scale": torch.ones(1)}, lm / "model.safetensors", {"format": "pt"})
    LMTower.from_pretrained(str(lm), 6, context_length=CONTEXT)  # of a CLIP
    name = f"encoder.layer.0.attention.self.query.{suffix}"
    save_file(weights | {name: torch.ones(1)}, lm / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match=rf"{name}.*quantized: pass the model that is not quantized"):
        LMTower.from_pretrained(str(lm), 6, context_length=CONTEXT)
