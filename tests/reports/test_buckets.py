"""Buckets of captions, against counting by hand."""

from collections import Counter

import numpy as np
from clipglot.evals.retrieval import number_texts, retrieve
from clipglot.reports.buckets import bucketed, count_words, script_of, words


def test_words_and_scripts_of_many_languages() -> None:
    assert words("A dog, two DOGS") == ["a", "dog", "two", "dogs"]
    assert words("고양이 한 마리") == ["고양이", "한", "마리"]
    assert words("两只猫🐈") == ["两", "只", "猫", "🐈"]
    assert [script_of(text) for text in ("кот", "猫", "고양이", "cat кот", "…", "🐈")] == [
        "Cyrillic", "Han", "Hangul", "several scripts", "no letters", "emoji",
    ]  # fmt: skip


def test_a_word_counts_once_a_caption() -> None:
    assert count_words(["a a b", "b c"]) == {"a": 1, "b": 2, "c": 1}


def test_recall_of_each_part_is_that_of_its_captions() -> None:
    rng = np.random.default_rng(0)
    emb = rng.normal(size=(40, 6)).astype(np.float32)
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    text = emb + rng.normal(size=emb.shape).astype(np.float32) * 0.4
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    captions = [("кот " if i % 2 else "cat ") + "x" * (i % 5) for i in range(40)]
    ids = number_texts(captions)
    places = retrieve(text.astype(np.float32), emb, np.arange(40), ids).text_to_image
    found = bucketed(captions, places, Counter(), ids)
    latin = np.array([script_of(caption) == "Latin" for caption in captions])
    by_name = {bucket.name: bucket for bucket in found["script"]}
    assert by_name["Latin"].num_captions == latin.sum()
    assert by_name["Latin"].r_at_1 == float(places.recall(1)[latin].mean())
    assert by_name["Latin"].r_at_10 == float(places.recall(10)[latin].mean())
    assert "rarest word is in" not in found  # none of them is known: one part is the whole
    assert [bucket.name for bucket in found["caption length"]][-1].endswith("or more characters")
    assert sum(bucket.num_captions for bucket in found["caption length"]) == 40
