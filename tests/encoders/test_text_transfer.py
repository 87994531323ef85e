"""Towers that go on from another one: the features that it had, kept rows, whole runs, refusals."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from clipglot.cache.read.cache import Cache
from clipglot.distill.errors import DistillError
from clipglot.distill.training.build_tower import build_tower, open_tokenizer
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.text_scratch import ScratchTower
from clipglot.encoders.text_transfer import transfer_rows
from clipglot.encoders.tokenizer import CaptionTokenizer, open_clip_tokenizer, train_bpe, train_unigram
from clipglot.encoders.tokenizer_extend import extend
from open_clip.tokenizer import SimpleTokenizer
from support.runs import settings, stop_at
from support.tiny_clip import save_full_clip

CAPTIONS = ["a red circle", "", "noise", "noise above a green triangle, twice"]
RUSSIAN = ["красный круг над синим квадратом", "зелёный шум", "красный шум", "синий круг"] * 3


@pytest.fixture(scope="module")
def clip_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_full_clip(tmp_path_factory.mktemp("clips") / "clip")


def features(tower: Any, tokenizer: CaptionTokenizer, texts: list[str]) -> torch.Tensor:
    with torch.inference_mode():
        return tower.eval().encode(tokenizer.encode(texts, tower.config.context_length))


def test_a_clips_text_tower_gives_what_open_clip_gives(clip_name: str, merged: Path) -> None:
    tower, tokenizer = ScratchTower.from_clip(clip_name, None)
    clip = open_clip.create_model(clip_name).eval()
    with torch.inference_mode():
        theirs = clip.encode_text(SimpleTokenizer()(CAPTIONS, context_length=12))
    torch.testing.assert_close(features(tower, tokenizer, CAPTIONS), theirs, rtol=1e-5, atol=1e-6)

    exported = f"local-dir:{merged}"
    tower, tokenizer = ScratchTower.from_clip(exported, None)
    clip = open_clip.create_model(exported).eval()
    with torch.inference_mode():
        theirs = clip.encode_text(open_clip.get_tokenizer(exported)(RUSSIAN))
    torch.testing.assert_close(features(tower, tokenizer, RUSSIAN), theirs, rtol=1e-5, atol=1e-6)


def test_an_extended_vocabulary_keeps_what_was_known(clip_name: str) -> None:
    tower, old = ScratchTower.from_clip(clip_name, None)
    new = extend(old, RUSSIAN, old.vocab_size + 20)
    grown = tower.with_vocabulary(old, new, context_length=10, embed_dim=16)
    assert grown.config.vocab_size == new.vocab_size > old.vocab_size
    assert new.encode(CAPTIONS, 10) == old.encode(CAPTIONS, 10)
    torch.testing.assert_close(features(grown, new, CAPTIONS), features(tower, old, CAPTIONS), rtol=1e-5, atol=1e-6)
    # A token that is new begins at the mean of what spelled it.
    added = new.encode(["круг"], 10)[0][1:-1]
    assert len(added) == 1
    assert added[0] >= old.vocab_size
    before = tower.text.token_embedding.weight[old.encode(["круг"], 10)[0][1:-1]].mean(0)
    torch.testing.assert_close(grown.text.token_embedding.weight[added[0]], before, rtol=1e-6, atol=1e-8)


def test_a_new_vocabulary_takes_rows_by_what_they_spell(clip_name: str) -> None:
    tower, old = ScratchTower.from_clip(clip_name, None)
    new = train_bpe(["red circle, red circle, a circle"] * 9, 300)
    grown = tower.with_vocabulary(old, new, context_length=12, embed_dim=16)
    circle = new.encode(["a circle"], 12)[0][-2]
    assert new.backend.decode([circle]) == " circle"
    (spelled,) = old.encode(["circle"], 12)[0][1:-1]
    rows, known = grown.text.token_embedding.weight, tower.text.token_embedding.weight
    assert torch.equal(rows[circle], known[spelled])
    assert torch.equal(rows[new.eos_id], known[old.eos_id])
    assert torch.equal(
        grown.text.transformer.resblocks[0].mlp[0].weight, tower.text.transformer.resblocks[0].mlp[0].weight
    )


def test_a_whole_word_takes_the_rows_of_the_word_in_a_sentence() -> None:
    """A vocabulary that marks ends of words meets one that writes the space before a word."""
    old, new = tokenizer_of("bpe", ENGLISH), open_clip_tokenizer()
    rows = torch.randn(old.vocab_size, 4)
    grown = transfer_rows(rows, old, new)
    for word in ("circle", "triangle"):
        (expected,) = old.encode([f"a {word}"], 12)[0][2:-1]
        (id_,) = new.encode([word], 12)[0][1:-1]
        assert torch.equal(grown[id_], rows[expected])


GPT2_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]  # written as the characters of these numbers


def byte_tokens(tokenizer: CaptionTokenizer) -> list[int]:
    """Ids of the 256 bytes, by the two ways that vocabularies write them."""
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    if "<0x00>" in vocabulary:
        return [vocabulary[f"<0x{byte:02X}>"] for byte in range(256)]
    others = iter(range(256, 512))  # written as the characters from 256 on, in order
    written = {byte: chr(byte if byte in GPT2_BYTES else next(others)) for byte in range(256)}
    return [vocabulary[written[byte]] for byte in range(256)]


ENGLISH, KOREAN = ("a red circle", "a green triangle") * 9, ("책상 위의 고양이", "빨간 원", "책상 위의 원") * 9


@cache
def tokenizer_of(kind: str, texts: tuple[str, ...]) -> CaptionTokenizer:
    make = {"bpe": lambda: train_bpe(texts, 300), "unigram": lambda: train_unigram(texts, 480)}
    return open_clip_tokenizer() if kind == "clip" else make[kind]()


@pytest.mark.parametrize("old_kind", ["bpe", "unigram", "clip"])
@pytest.mark.parametrize("new_kind", ["bpe", "unigram", "clip"])
def test_lone_bytes_take_the_rows_of_the_same_bytes(old_kind: str, new_kind: str) -> None:
    old, new = tokenizer_of(old_kind, ENGLISH), tokenizer_of(new_kind, KOREAN)
    embedding = torch.randn(old.vocab_size, 8, generator=torch.Generator().manual_seed(0))
    rows = transfer_rows(embedding, old, new)
    ours, theirs = byte_tokens(new), byte_tokens(old)
    no_ascii = [*range(128, 256)]
    assert torch.equal(rows[[ours[byte] for byte in no_ascii]], embedding[[theirs[byte] for byte in no_ascii]])
    assert len(torch.unique(rows[ours], dim=0)) >= 256 - 26  # a tokenizer may write capitals as small letters


def test_a_part_of_a_character_takes_the_mean_of_its_bytes() -> None:
    old, new = train_bpe(["a red circle"] * 9, 300), train_bpe(["책상 위의 고양이", "책상 위의 원"] * 9, 300)
    embedding = torch.randn(old.vocab_size, 8, generator=torch.Generator().manual_seed(0))
    rows, (ours, theirs) = transfer_rows(embedding, old, new), (byte_tokens(t) for t in (new, old))
    written = {new.backend.id_to_token(id_): byte for byte, id_ in enumerate(ours)}
    parts = [id_ for id_ in range(259, new.vocab_size) if "\ufffd" in new.backend.decode([id_])]
    assert parts
    for id_ in parts:
        spelled = [theirs[written[character]] for character in new.backend.id_to_token(id_)]
        torch.testing.assert_close(rows[id_], embedding[spelled].mean(0))


def test_a_run_goes_on_from_an_earlier_one(tiny_cache: Path, tiny_run: Path, tmp_path: Path) -> None:
    given = replace(settings(tiny_cache, tmp_path / "run"), text=str(tiny_run), width=512, layers=6, heads=8)
    cache, before = Cache(tiny_cache), load_final(RunFolder(tiny_run)).tower
    tokenizer = open_tokenizer(given, tmp_path / "none", cache.captions)
    tower = build_tower(replace(given, context_length=16), cache.info.encoder, tokenizer)
    short = ["шум", "красный шум", ""]
    torch.testing.assert_close(features(tower, tokenizer, short), features(before, tokenizer, short))
    train(replace(given, lr=1e-12))
    after = load_final(RunFolder(given.output)).tower
    torch.testing.assert_close(features(after, tokenizer, short), features(before, tokenizer, short))


def test_a_run_on_the_clips_own_text_tower(clip_name: str, manifest: Path, make_cache: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache.zarr"
    make_cache(manifest, cache, model=clip_name)
    given = replace(settings(cache, tmp_path / "run"), text="clip", width=512, layers=6, heads=8, context_length=12)
    assert train(given).complete
    tower = load_final(RunFolder(given.output)).tower
    assert (tower.config.width, tower.config.layers, tower.config.vocab_size) == (16, 1, 300)


def test_the_default_context_length_is_that_of_a_tower_with_fewer_positions(
    clip_name: str, manifest: Path, make_cache: Any, tmp_path: Path
) -> None:
    cache = tmp_path / "cache.zarr"
    make_cache(manifest, cache, model=clip_name)
    shape = {"width": 512, "layers": 6, "heads": 8}
    given = replace(settings(cache, tmp_path / "run"), text="clip", context_length=77, **shape)
    train(given, on_progress=stop_at(7))
    assert train(given, resume=True).complete
    assert load_final(RunFolder(given.output)).tower.config.context_length == 12
    further = replace(given, text=str(given.output), output=tmp_path / "further", epochs=1)
    train(further)
    assert load_final(RunFolder(further.output)).tower.config.context_length == 12
    with pytest.raises(EncoderError, match=r"--context-length 20: .* 12 tokens: pass --context-length 12"):
        train(replace(given, output=tmp_path / "long", context_length=20))


def test_what_cannot_be_begun_with_is_refused(
    clip_name: str, tiny_clip: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(EncoderError, match=r"timm/vit has no text tower: pass scratch"):
        ScratchTower.from_clip("timm/vit", None)
    with pytest.raises(EncoderError, match=r"has rows for 64 tokens, its tokenizer knows 49,408"):
        ScratchTower.from_clip(f"local-dir:{tiny_clip}", None)
    other = save_full_clip(tmp_path / "other", no_causal_mask=True)
    with pytest.raises(EncoderError, match=r"is not a causal transformer pooled at the text's end"):
        ScratchTower.from_clip(other, None)
    with pytest.raises(
        EncoderError, match=r"--text clip needs the CLIP that made the cache where it was: .*cannot read"
    ):
        ScratchTower.from_clip(f"local-dir:{tmp_path}/moved", None)
    tower, old = ScratchTower.from_clip(clip_name, None)
    with pytest.raises(EncoderError, match=r"--context-length 13: .* 12 tokens: pass --context-length 12"):
        tower.with_vocabulary(old, open_clip_tokenizer(), context_length=13, embed_dim=16)
    with pytest.raises(DistillError, match=r"--width belongs to a scratch tower.* clip "):
        settings(tiny_cache, tmp_path / "run", text="clip")
    given = replace(settings(tiny_cache, tmp_path / "run"), text=str(tiny_run), width=512, layers=6, heads=8)
    with pytest.raises(EncoderError, match=r"--warm-start ridge: .* has learned already"):
        train(replace(given, warm_start="ridge"))
    with pytest.raises(DistillError, match=r"--simcse 0.5: both passes .* of .* drops nothing: pass --dropout"):
        train(replace(given, simcse=0.5))
