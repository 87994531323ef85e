"""The table of kinds of text towers."""

from dataclasses import fields

import pytest
from clipglot.distill.train_settings import LM_ALONE, SCRATCH_ALONE
from clipglot.encoders.lora import LoRAOptions
from clipglot.encoders.text_lm import LMOptions, LMTower
from clipglot.encoders.text_scratch import ScratchOptions, ScratchTower
from clipglot.encoders.text_towers import TEXT_TOWERS, stored_tower, tower_named


def test_runs_made_before_are_read_by_the_same_keys() -> None:
    assert {"text": ScratchTower, "lm": LMTower} == TEXT_TOWERS
    assert stored_tower({"lm": {}, "logit_scale": 1.0}) is LMTower
    with pytest.raises(ValueError, match=r"no text tower of a known kind \(text, lm\)"):
        stored_tower({"logit_scale": 1.0})


def test_names_are_of_one_kind_and_any_other_text_is_a_language_model() -> None:
    names = [name for tower in TEXT_TOWERS.values() for name in tower.names]
    assert len(names) == len(set(names))
    assert [tower_named(text) for text in ("scratch", "clip", "xlm-roberta-base", "./folder")] == [
        *[ScratchTower, ScratchTower],
        *[LMTower, LMTower],
    ]


def test_train_refuses_early_what_the_tower_would_refuse() -> None:
    lora = {field.name for field in fields(LoRAOptions)}
    assert set(SCRATCH_ALONE) | lora == {field.name for field in fields(ScratchOptions)}
    of_the_run = {"text_prompt", "prune_vocab", "text_features"}  # settings that the tower never sees
    assert set(LM_ALONE) | lora == {field.name for field in fields(LMOptions)} | of_the_run
