"""Queries that add and subtract: how they are read, and their embeddings against sums computed by hand."""

import re

import numpy as np
import pytest
from clipglot.inference.errors import InputError
from clipglot.inference.query import embed_queries, parse_query
from hypothesis import assume, given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("a dog", [(1, "a dog")]),
        ("собака -снег +два человека", [(1, "собака"), (-1, "снег"), (1, "два человека")]),
        ("+dog +dog", [(1, "dog"), (1, "dog")]),
        ("dog\t-snow\n+two  men ", [(1, "dog"), (-1, "snow"), (1, "two  men")]),
        ("dog \u2212snow", [(1, "dog"), (-1, "snow")]),  # the minus of mathematics
        ("狗\u3000\uff0b雪 \uff0d猫", [(1, "狗"), (1, "雪"), (-1, "猫")]),  # fullwidth, after an ideographic space
        ("beach +🐕 -☂️", [(1, "beach"), (1, "🐕"), (-1, "☂️")]),
        # Signs that are part of a text.
        ("C++", [(1, "C++")]),
        ("a C++ book -desk", [(1, "a C++ book"), (-1, "desk")]),
        ("++C", [(1, "++C")]),
        ("--dog", [(1, "--dog")]),
        ("+-dog", [(1, "+-dog")]),
        ("-5 degrees", [(1, "-5 degrees")]),
        ("\u22125 °C", [(1, "\u22125 °C")]),
        ("+7 495 -phone", [(1, "+7 495"), (-1, "phone")]),
        ("a - b", [(1, "a - b")]),
        ("a + b +c", [(1, "a + b"), (1, "c")]),
        ("a -> b", [(1, "a -> b")]),
        ("+/-3 dB", [(1, "+/-3 dB")]),
        ("smile :-) -)", [(1, "smile :-) -)")]),
        ("T-shirt e-mail- well-", [(1, "T-shirt e-mail- well-")]),
        ("кот \u2014 чёрный \u2013рыжий", [(1, "кот \u2014 чёрный \u2013рыжий")]),  # dashes
        # Quotes.
        ('"-snow"', [(1, "-snow")]),
        ('"a -b" -"c +d"', [(1, "a -b"), (-1, "c +d")]),
        ('beach -"5 people" in it', [(1, "beach"), (-1, '"5 people" in it')]),
        ('the word "stop" -sign', [(1, 'the word "stop"'), (-1, "sign")]),
        ('a 5" disk -box 3"', [(1, 'a 5" disk'), (-1, 'box 3"')]),
        ('"unclosed -snow', [(1, '"unclosed'), (-1, "snow")]),
        ("кот «-Барсик»", [(1, "кот «-Барсик»")]),
        ('dog -""', [(1, "dog")]),
    ],
)
def test_terms_of_a_query(query: str, terms: list[tuple[int, str]]) -> None:
    assert parse_query(query) == terms


@pytest.mark.parametrize("query", ["", "  \n", '""', '+""', '-""', "\u3000"])
def test_an_empty_query_is_refused(query: str) -> None:
    with pytest.raises(InputError, match="an empty query"):
        parse_query(query)


@pytest.mark.parametrize("query", ["-snow", " -snow -rain", '-"5 people"', "\u2212snow"])
def test_a_query_that_only_takes_away_is_refused(query: str) -> None:
    with pytest.raises(InputError, match="only takes away"):
        parse_query(query)


WORD = st.text("abжё狗가ß", min_size=1, max_size=4)
TEXT = st.lists(WORD, min_size=1, max_size=3).map(" ".join)


@given(st.lists(st.tuples(st.sampled_from([1, -1]), TEXT), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_what_is_written_is_read(terms: list[tuple[int, str]], unsigned: bool, quoted: bool) -> None:
    assume(any(sign > 0 for sign, _ in terms))
    shown = [f'"{text}"' if quoted else text for _, text in terms]
    parts = [("+" if sign > 0 else "-") + text for (sign, _), text in zip(terms, shown, strict=True)]
    if unsigned and terms[0][0] > 0:
        parts[0] = shown[0]
    assert parse_query(" ".join(parts)) == terms


@given(st.text())
def test_any_text_is_read_or_refused_and_nothing_is_lost(query: str) -> None:
    try:
        terms = parse_query(query)
    except InputError:
        return
    assert all(text and text == text.strip() for _, text in terms)
    assert any(sign > 0 for sign, _ in terms)
    # What is left out of the texts: spaces, the signs and quotes.
    left = re.sub(r'[\s"+\-\u2212\uff0b\uff0d]', "", "".join(text for _, text in terms))
    assert left == re.sub(r'[\s"+\-\u2212\uff0b\uff0d]', "", query)


@given(st.text())
def test_quotes_take_a_text_as_it_is(text: str) -> None:
    text = text.replace('"', "").strip()
    assume(text)
    assert parse_query(f'"{text}"') == [(1, text)]
    assert parse_query(f'dog -"{text}"') == [(1, "dog"), (-1, text)]


VECTORS = {"dog": [1, 0, 0], "snow": [0.6, 0.8, 0], "leash": [0, 0, 1]}


def test_embeddings_are_sums_at_unit_norm_and_each_text_is_encoded_once() -> None:
    asked: list[list[str]] = []

    def encode(texts: object) -> np.ndarray:
        asked.append(list(texts))  # type: ignore[call-overload]
        return np.array([VECTORS[text] for text in asked[-1]], np.float32)

    emb = embed_queries(["dog", "dog -snow", "dog +snow -leash", "+snow +snow"], encode)
    assert asked == [["dog", "snow", "leash"]]
    expected = [[1, 0, 0], [0.4, -0.8, 0], [1.6, 0.8, -1], [1.2, 1.6, 0]]
    norms = [1, 0.8**0.5, 4.2**0.5, 2]
    np.testing.assert_allclose(emb, np.array(expected) / np.array(norms)[:, None], atol=1e-6)
    assert emb.dtype == np.float32


def test_texts_that_cancel_and_towers_that_diverged_are_refused() -> None:
    with pytest.raises(InputError, match="'dog -dog' takes away what it adds"):
        embed_queries(["snow", "dog -dog"], lambda texts: np.array([VECTORS[text] for text in texts], np.float32))
    with pytest.raises(InputError, match="'a' holds NaN"):
        embed_queries(["a"], lambda texts: np.full((1, 3), np.nan, np.float32))
