"""Filters by caption against plain Python over a table with captions in two languages."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipglot.cache.read.cache import Cache
from clipglot.search import filters
from clipglot.search.errors import SearchError
from clipglot.search.filters import caption_mask
from support.drawings import draw_images

WORDS = ["КОТ", "café", "cafe\u0301", "Straße", "ὈΔΥΣΣΕΎΣ", "狗", "CATS", "снег"]
Captions = list[list[tuple[str, str]]]


@pytest.fixture(scope="module")
def tagged(make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Cache, Captions]:
    """A cache of 24 images, some of which have no caption, and the captions with their tags."""
    folder = tmp_path_factory.mktemp("tagged")
    table = draw_images(folder, 24)
    rng = np.random.default_rng(3)
    lines, captions = [], Captions()
    for line in map(json.loads, table.read_text().splitlines()):
        own = [
            (f"a {WORDS[word]} {WORDS[other]}.", str(tag))
            for word, other, tag in zip(
                *rng.integers(len(WORDS), size=(2, int(rng.integers(4)))), rng.choice(["ru", "en", ""], 3), strict=False
            )
        ]
        captions.append(own)
        # A list of objects gives each caption its own tag.
        lines.append({"image": line["image"], "text": [text for text, _ in own], "lang": [tag for _, tag in own]})
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = make_cache(table, folder / "c.zarr", language_field="lang")
    return Cache(made.cache.path), captions


def plain(captions: Captions, text: str | None, language: str | None) -> list[bool]:
    def fold(value: str) -> str:
        return unicodedata.normalize("NFC", unicodedata.normalize("NFC", value).casefold())

    return [
        any((text is None or fold(text) in fold(own)) and language in (None, tag) for own, tag in each)
        for each in captions
    ]


@pytest.mark.parametrize("language", [None, "ru", "en"])
@pytest.mark.parametrize(
    "text",
    [None, "кот", "CAFÉ", "cafe\u0301", "STRASSE", "ὀδυσσεύς", "狗", "cat", "s.", "e", "a кот", "снег снег", "absent"],
)
@pytest.mark.parametrize("at_a_time", [filters.CAPTIONS_AT_A_TIME, 5])
def test_masks_are_those_of_plain_python(
    text: str | None,
    language: str | None,
    at_a_time: int,
    tagged: tuple[Cache, Captions],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, captions = tagged
    monkeypatch.setattr(filters, "CAPTIONS_AT_A_TIME", at_a_time)
    assert caption_mask(cache, text, language).tolist() == plain(captions, text, language)


def test_an_accent_is_equal_in_both_forms_and_no_plain_letter(tagged: tuple[Cache, Captions]) -> None:
    cache, _ = tagged
    both = caption_mask(cache, "café")
    assert both.any()
    np.testing.assert_array_equal(both, caption_mask(cache, "CAFE\u0301"))
    assert not caption_mask(cache, "cafe ").any()


def test_a_language_that_no_caption_has_is_named_with_those_there(
    tagged: tuple[Cache, Captions], tiny_cache: Path
) -> None:
    with pytest.raises(SearchError, match=r"no caption in 'fr': its languages are (ru, en|en, ru)"):
        caption_mask(tagged[0], language="fr")
    np.testing.assert_array_equal(caption_mask(tagged[0], language="RU"), caption_mask(tagged[0], language="ru"))
    with pytest.raises(SearchError, match="none of its captions has a language"):
        caption_mask(Cache(tiny_cache), language="ru")
