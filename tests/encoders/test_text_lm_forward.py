"""Language models over packed captions give what they give for one caption at a time."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from clipglot.encoders.packing import PackedCaptions, PackedRows
from clipglot.encoders.text_lm_forward import hidden_states, pack_tokens, pool, supports_rows

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 150,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
MT5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}


FAMILIES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}


def make_model(family: str, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    if family == "mt5":
        return transformers.MT5EncoderModel(transformers.MT5Config(**MT5)).train()
    config = getattr(transformers, f"{FAMILIES[family]}Config")(**SMALL, attn_implementation=attention)
    return getattr(transformers, f"{FAMILIES[family]}Model")(config, add_pooling_layer=False).train()


def captions(lengths: list[int]) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(4, 40, length).tolist() for length in lengths]


def embed(model: Any, batch: list[list[int]], pooler: Any) -> torch.Tensor:
    packed = pack_tokens(model.config, np.concatenate(batch), np.array([len(caption) for caption in batch])).to("cpu")
    return pool(hidden_states(model, packed), packed, pooler)


def one_at_a_time(model: Any, batch: list[list[int]], pooler: str) -> torch.Tensor:
    states = [model(input_ids=torch.tensor([caption])).last_hidden_state[0] for caption in batch]
    take = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "eos": lambda x: x[-1]}[pooler]
    return torch.stack([take(x) for x in states])


@pytest.mark.parametrize("pooler", ["mean", "cls", "eos"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "mt5"])
@pytest.mark.parametrize("lengths", [[5, 2, 9, 5, 70, 60, 2, 1], [3], [140, 4]], ids=["two rows", "one", "long"])
def test_packed_features_and_gradients_are_those_of_each_caption(
    family: str, attention: str, lengths: list[int], pooler: str
) -> None:
    model = make_model(family, attention)
    batch = captions(lengths)
    torch.testing.assert_close(embed(model, batch, pooler), one_at_a_time(model, batch, pooler), rtol=1e-5, atol=2e-6)

    model = model.double()
    ours, theirs = embed(model, batch, pooler), one_at_a_time(model, batch, pooler)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(ours)
    gradients = [
        torch.autograd.grad((pooled * weights).sum(), list(model.parameters()), allow_unused=True)
        for pooled in (ours, theirs)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_a_family_without_such_a_mask_goes_by_length() -> None:
    assert not supports_rows(transformers.MT5Config(**MT5))
    flash = transformers.BertConfig(**SMALL)
    flash._attn_implementation = "flash_attention_2"
    assert not supports_rows(flash)
    ids, lengths = np.arange(4, 9), np.array([3, 2])
    assert isinstance(pack_tokens(flash, ids, lengths), PackedCaptions)
    assert isinstance(pack_tokens(make_model("bert").config, ids, lengths), PackedRows)
