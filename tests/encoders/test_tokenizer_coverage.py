"""What becomes of each script, and the warning before a tokenizer that does not know the language is trained with."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from clipglot.cli.main import main
from clipglot.encoders.scripts import script_runs
from clipglot.encoders.tokenizer import FILES, CaptionTokenizer, train_bpe, train_unigram
from clipglot.encoders.tokenizer_coverage import SAMPLE, coverage_warning, sample, script_coverage
from tokenizers import Tokenizer, models, pre_tokenizers

RUSSIAN = ["рыжий кот спит", "чёрный кот спит", "рыжий пёс"] * 2


def runs(text: str) -> list[tuple[str, str]]:
    return [(script, text[start:end]) for script, start, end in script_runs(text)]


def test_words_and_runs_of_every_script() -> None:
    assert runs("Кот на 2 столах, don't!") == [
        *[("Cyrillic", "Кот"), ("Cyrillic", "на"), ("other", "2"), ("Cyrillic", "столах"), ("other", ",")],
        *[("Latin", "don"), ("other", "'"), ("Latin", "t"), ("other", "!")],
    ]
    assert runs("猫がコーヒー。한국어") == [
        *[("Han", "猫"), ("Kana", "がコーヒー"), ("other", "。"), ("Hangul", "한국어")],
    ]
    assert runs("हिन्दी می\u200cخواهم e\u0301te") == [
        *[("Devanagari", "हिन्दी"), ("Arabic", "می\u200cخواهم"), ("Latin", "e\u0301te")],
    ]
    assert runs("👩‍👩‍👧🇰🇷 ❤️ 1️⃣ ᚠᚢ") == [("emoji", "👩‍👩‍👧🇰🇷"), ("emoji", "❤️"), ("other", "1️⃣"), ("unlisted", "ᚠᚢ")]


def wordpiece() -> Tokenizer:
    vocab = {token: id_ for id_, token in enumerate(["[UNK]", "猫", "кот", "к", "##о", "##т", "##и", "2"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def test_figures_of_a_word_piece_tokenizer_counted_by_hand() -> None:
    splits = {split.script: split for split in script_coverage(wordpiece(), ["кот коти пёс", "猫 2", "кот 狗"])}
    cyrillic, han, other = (splits[script] for script in ("Cyrillic", "Han", "other"))
    assert list(splits) == ["Cyrillic", "Han", "other"]
    assert (cyrillic.unit, han.unit) == ("word", "character")
    assert cyrillic.captions == han.captions == 2 / 3
    assert cyrillic.characters == 13 / 16
    assert cyrillic.tokens_per_unit == (1 + 2 + 1 + 1) / 4  # кот, кот ##и, [UNK], кот
    assert cyrillic.whole == 2 / 4
    assert cyrillic.unknown == 3 / 13
    assert (han.whole, han.unknown, han.tokens_per_unit) == (0.5, 0.5, 1.0)
    assert (other.whole, other.unknown, other.pieces) == (1, 0, 0)


@pytest.mark.parametrize("train", [train_bpe, train_unigram])
def test_bytes_are_pieces_and_nothing_is_unknown(train: Any) -> None:
    tokenizer = train(RUSSIAN, 450).backend
    (split,) = script_coverage(tokenizer, ["猫猫"])
    assert (split.script, split.tokens_per_unit, split.whole, split.pieces, split.unknown) == ("Han", 3, 0, 1, 0)
    (split,) = script_coverage(tokenizer, RUSSIAN[:1])
    assert (split.pieces, split.unknown) == (0, 0)
    assert split.tokens_per_unit < 5


def test_a_tokenizer_that_does_not_know_the_language_is_told_from_one_that_does() -> None:
    english = train_bpe(["a cat and a dog on the table"] * 3, 300).backend
    assert coverage_warning(train_bpe(RUSSIAN, 300).backend, RUSSIAN) is None
    message = coverage_warning(english, RUSSIAN, "LM")
    assert message is not None
    assert message.startswith("LM splits these captions badly: Cyrillic (100% of the text) has ")
    assert "tokens per word, 100% of the tokens pieces of a character: choose a model" in message
    assert "60% of the characters unknown" in str(coverage_warning(wordpiece(), ["狗 狗 狗 猫 猫"]))
    assert coverage_warning(english, ["a cat and a dog on the table"] * 40 + ["кот"]) is None
    assert coverage_warning(english, []) is None


def test_a_sample_is_spread_evenly() -> None:
    captions = [str(i) for i in range(3 * SAMPLE)]
    assert sample(captions) == captions[::3]
    assert sample(captions[:5]) == captions[:5]
    assert sample([]) == []


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(main, ["tokenizer", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


def test_the_command_trains_extends_and_inspects(tiny_cache: Path, tmp_path: Path) -> None:
    made = json.loads(run(tiny_cache, "-o", tmp_path / "u", "--kind", "unigram", "--vocab-size", 460, "--json").stdout)
    assert CaptionTokenizer.load(tmp_path / "u").vocab_size == made["vocab_size"]
    more = run(tiny_cache, "-o", tmp_path / "e", "--extend", tmp_path / "u", "--vocab-size", 480, "--json")
    extended = json.loads(more.stdout)
    assert made["vocab_size"] < extended["vocab_size"] <= 480
    assert extended["tokens_per_caption"] < made["tokens_per_caption"]
    again = json.loads(run(tiny_cache, "--inspect", tmp_path / "e", "--json").stdout)
    assert again == extended
    assert {split["script"] for split in again["scripts"]} == {"Cyrillic", "other"}
    assert (again["num_cut"], again["warning"]) == (0, None)
    cut = json.loads(run(tiny_cache, "--inspect", "open_clip", "--context-length", 8, "--json").stdout)
    assert 0 < cut["num_cut"] <= cut["num_captions"]
    assert cut["percentile_95"] <= cut["longest"]


def test_the_table_shows_scripts_and_the_warning_goes_to_standard_error(tiny_cache: Path, tmp_path: Path) -> None:
    wordpiece().save(str(tmp_path / FILES[0]))
    result = run(tiny_cache, "--inspect", tmp_path)
    assert "Cyrillic" in result.stdout
    assert "a context of 77 cuts 0" in result.stdout
    assert result.stderr.startswith(f"warning: {tmp_path} splits these captions badly: Cyrillic (")


def test_what_is_there_is_not_written_over_and_bad_folders_are_named(tiny_cache: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["-o", tmp_path], "exists: choose another -o"),
        (["--inspect", tmp_path], "no tokenizer.json in it"),
        (["-o", tmp_path / "t", "--extend", tmp_path], "no tokenizer.json in it"),
    ):
        result = CliRunner().invoke(main, ["tokenizer", str(tiny_cache), *map(str, arguments)])
        assert result.exit_code == 1
        assert message in result.stderr
    assert list(tmp_path.iterdir()) == []
