"""Tiny language models of several families: random weights, real tokenizers, folders that transformers loads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from support.runs import settings

TEXTS = [
    "красный круг над синим квадратом",
    "a red circle above a blue square",
    "зелёный шум",
    "桌上的猫",
    "yellow noise",
]
CAPTIONS = [*TEXTS, "", "шум " * 50, "a", TEXTS[0]]
CONTEXT = 24
SPECIAL = ["<pad>", "<cls>", "<sep>", "<unk>"]
BERT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", BERT),
    "roberta": ("Roberta", BERT),
    "xlm-roberta": ("XLMRoberta", BERT),
    "mt5": ("MT5", {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2, "pad_token_id": 0}),
    "m2m_100": (
        "M2M100",
        {"d_model": 16, "encoder_layers": 3, "decoder_layers": 1, "encoder_attention_heads": 2, "pad_token_id": 0}
        | {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_attention_heads": 2, "max_position_embeddings": 40},
    ),
    "distilbert": (
        "DistilBert",
        {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40},
    ),
    "gpt2": (
        "GPT2",
        {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 40, "bos_token_id": 1, "eos_token_id": 2},
    ),
}
SMALL_DECODER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
# Decoders: causal, without a token that begins or ends a text.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": FAMILIES["gpt2"],
    "llama": ("Llama", SMALL_DECODER),
    "mistral": ("Mistral", SMALL_DECODER | {"sliding_window": 8}),
    "qwen2": ("Qwen2", SMALL_DECODER),
    "qwen3": ("Qwen3", SMALL_DECODER | {"head_dim": 8}),
    "gemma3_text": ("Gemma3Text", SMALL_DECODER | {"head_dim": 8, "sliding_window": 8}),
}
# Families whose blocks share a table of relative positions, which the model keeps after them.
RELATIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "deberta-v2": (
        "DebertaV2",
        BERT
        | {"relative_attention": True, "max_relative_positions": 12, "pos_att_type": ["p2c", "c2p"]}
        | {"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False, "conv_kernel_size": 3},
    ),
    "mpnet": ("MPNet", BERT),
}
# Kin of mt5, which open_clip has no form of.
T5_KIN: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", FAMILIES["mt5"][1]),
    "umt5": ("UMT5", FAMILIES["mt5"][1]),
}


def save_tiny_lm(folder: Path, family: str = "bert", *, as_decoder: bool = False) -> Path:
    """Write model and tokenizer; dropout stays as the family has it.

    Args:
        folder: to write to.
        family: key of one of the tables above.
        as_decoder: whether the tokenizer is that of a decoder, which adds no special tokens and pads on the left.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if not as_decoder:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<cls> $A <sep>", special_tokens=[("<cls>", 1), ("<sep>", 2)]
        )
    names = {
        "pad_token": "<pad>",
        "cls_token": "<cls>",
        "sep_token": "<sep>",
        "eos_token": "<sep>",
        "unk_token": "<unk>",
    }
    side = "left" if as_decoder else "right"
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=side, **names).save_pretrained(
        str(folder)
    )
    name, shape = (FAMILIES | RELATIVE | T5_KIN | DECODERS)[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(vocab_size=tokenizer.get_vocab_size(), **shape)
    getattr(transformers, f"{name}Model")(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family: config, weights, tokenizer. Read only."""
    return {family: save_tiny_lm(tmp_path_factory.mktemp("lm") / family, family) for family in FAMILIES}


@pytest.fixture
def lm_settings(lms: dict[str, Path], tiny_cache: Path, tmp_path: Path) -> Any:
    """The settings of a run with the tiny BERT."""
    base = settings(tiny_cache, tmp_path / "run")
    shape = {"width": 512, "layers": 6, "heads": 8}  # the defaults: a language model has its own
    return replace(base, text=str(lms["bert"]), context_length=CONTEXT, lm_lr=1e-3, **shape)
