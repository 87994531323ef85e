"""Extension of tokenizers: tokens learned from captions are appended, old ones keep their ids."""

import heapq
import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

from open_clip.tokenizer import bytes_to_unicode
from tokenizers import Tokenizer

from .errors import EncoderError
from .scripts import script_runs
from .text_cleaning import clean
from .tokenizer import CaptionTokenizer

Words = Counter[tuple[str, ...]]
MIN_MARGIN = 0.1  # log probability by which a new Unigram piece wins over its parts
State = dict[str, Any]  # tokenizer.json


def extend(old: CaptionTokenizer, captions: Iterable[str], vocab_size: int) -> CaptionTokenizer:
    """Add tokens learned from captions to a byte-level BPE, a Unigram or a WordPiece tokenizer.

    Every old token keeps its id, and new ones follow. New merges of a BPE rank after all old ones. The score of a new
    Unigram piece is high enough to win over its two parts. A Han character is never merged with another character, as
    in training.

    Args:
        old: the tokenizer; not changed.
        captions: the texts to learn from.
        vocab_size: maximum number of tokens of the result, old and new; few captions may give fewer.

    Raises:
        EncoderError: another kind of tokenizer, ids with gaps, or a tokenizer that already has `vocab_size` tokens.
    """
    tokenizer = old.backend
    state = json.loads(tokenizer.to_str())
    kind, vocab = state["model"]["type"], tokenizer.get_vocab(with_added_tokens=True)
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise EncoderError("this tokenizer cannot be extended: its ids have gaps, so new ones cannot follow")
    if vocab_size <= len(vocab):
        raise EncoderError(f"--vocab-size {vocab_size}: the tokenizer has {len(vocab)} tokens already: ask for more")
    add = {"BPE": _add_to_bpe, "Unigram": _add_to_unigram, "WordPiece": _add_to_wordpiece}.get(kind)
    if add is None:
        raise EncoderError(f"a {kind} tokenizer cannot be extended: only byte-level BPE, Unigram and WordPiece can")
    add(state, vocab, _pre_tokens(tokenizer, captions), tokenizer, vocab_size - len(vocab))
    result = CaptionTokenizer(Tokenizer.from_str(json.dumps(state)), old.special)
    assert result.backend.get_vocab(with_added_tokens=True).items() >= vocab.items()
    return result


def _pre_tokens(tokenizer: Tokenizer, captions: Iterable[str]) -> Counter[str]:
    """Pre-tokens of the captions, which the model splits further, with their counts."""
    counts: Counter[str] = Counter()
    for caption in captions:
        text = clean(caption)
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        if tokenizer.pre_tokenizer is not None:
            counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
        else:
            counts[text] += 1
    return counts


# The three functions below add at most `num_new` tokens, learned from pre-tokens, to `state`. Added tokens, which the
# tokenizer keeps outside its model, move into the model: their ids count from the model's last one and would shift.


def _add_to_bpe(state: State, vocab: dict[str, int], texts: Counter[str], tokenizer: Tokenizer, num_new: int) -> None:
    model, to_byte = state["model"], {character: byte for byte, character in bytes_to_unicode().items()}
    if (
        "ByteLevel" not in json.dumps([state["normalizer"], state["pre_tokenizer"]])
        or not to_byte.keys() <= vocab.keys()
    ):
        raise EncoderError("this BPE is not byte-level and cannot be extended: train a new one (leave out --extend)")
    suffix = model["end_of_word_suffix"] or ""
    words: Words = Counter()
    for text, count in texts.items():
        symbols = [token.value for token in tokenizer.model.tokenize(text)]
        decoded = bytes(to_byte[character] for character in text).decode(errors="surrogateescape")
        sizes = [len(character.encode(errors="surrogateescape")) for character in decoded]
        for run in _split_at_han(symbols, decoded, sizes, [len(symbol.removesuffix(suffix)) for symbol in symbols]):
            words[run] += count
    learned = learn_merges(words, vocab.keys(), num_new, prefix=model["continuing_subword_prefix"] or "")
    model["merges"] += [list(pair) for pair, _, _ in learned]
    model["vocab"] = vocab | {token: len(vocab) + index for index, (_, token, _) in enumerate(learned)}


def _add_to_wordpiece(
    state: State, vocab: dict[str, int], texts: Counter[str], tokenizer: Tokenizer, num_new: int
) -> None:
    model = state["model"]
    prefix = model["continuing_subword_prefix"]
    split_texts: list[tuple[str, list[str], int]] = []
    for text, count in texts.items():
        symbols = [token.value for token in tokenizer.model.tokenize(text)]
        if len(text) > model["max_input_chars_per_word"]:
            continue
        if symbols == [model["unk_token"]]:
            symbols = [text[0], *(prefix + character for character in text[1:])]
        split_texts.append((text, symbols, count))
    characters = _new_characters(((symbols, count) for _, symbols, count in split_texts), vocab.keys(), 1)[:num_new]
    extended_vocab = vocab.keys() | {character for character, _ in characters}
    words: Words = Counter()
    for text, symbols, count in split_texts:
        lengths = [len(symbol.removeprefix(prefix)) if index else len(symbol) for index, symbol in enumerate(symbols)]
        for run in _split_at_han(symbols, text, [1] * len(text), lengths):
            for part in _parts_in_vocab(run, extended_vocab):
                words[part] += count
    learned = learn_merges(words, extended_vocab, num_new - len(characters), prefix=prefix)
    new = [*(character for character, _ in characters), *(token for _, token, _ in learned)]
    model["vocab"] = vocab | {token: len(vocab) + index for index, token in enumerate(new)}


def _add_to_unigram(
    state: State, vocab: dict[str, int], texts: Counter[str], tokenizer: Tokenizer, num_new: int
) -> None:
    model = state["model"]
    by_id = {id_: token for token, id_ in vocab.items()}
    model["vocab"] += [[by_id[id_], 0.0] for id_ in range(len(model["vocab"]), len(vocab))]
    scores: dict[str, float] = dict(model["vocab"])
    split_texts = []
    for text, count in texts.items():
        data, symbols = text.encode(), list[str]()
        # All bytes of a run of unknown characters have the offsets of the run.
        for start, end in dict.fromkeys(token.offsets for token in tokenizer.model.tokenize(text)):
            piece = data[start:end].decode()
            symbols += [piece] if piece in scores else list(piece)
        split_texts.append((text, symbols, count))
    min_count = 2 if model["byte_fallback"] else 1  # without byte fallback a missing character would be unknown
    symbol_counts = ((symbols, count) for _, symbols, count in split_texts)
    characters = _new_characters(symbol_counts, scores.keys(), min_count)[:num_new]
    total = sum(len(symbols) * count for _, symbols, count in split_texts)
    scores |= {character: math.log(count / total) for character, count in characters}
    words: Words = Counter()
    for text, symbols, count in split_texts:
        for run in _split_at_han(symbols, text, [1] * len(text), list(map(len, symbols))):
            for part in _parts_in_vocab(run, scores.keys()):
                words[part] += count
    for (first, second), piece, count in learn_merges(words, scores.keys(), num_new - len(characters)):
        # At least a little better than both parts together, otherwise it would never be chosen.
        scores[piece] = max(math.log(count / total), scores[first] + scores[second] + MIN_MARGIN)
    model["vocab"] += [[piece, score] for piece, score in scores.items()][len(model["vocab"]) :]


def _new_characters(
    words: Iterable[tuple[list[str], int]], vocab: Collection[str], min_count: int
) -> list[tuple[str, int]]:
    """Symbols outside the vocabulary with their counts, most frequent first."""
    counts: Counter[str] = Counter()
    for symbols, count in words:
        counts.update({symbol: symbols.count(symbol) * count for symbol in symbols if symbol not in vocab})
    return sorted(((s, n) for s, n in counts.items() if n >= min_count), key=lambda counted: (-counted[1], counted[0]))


def _parts_in_vocab(run: tuple[str, ...], vocab: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Parts of a run between symbols outside the vocabulary."""
    for is_in_vocab, part in groupby(run, vocab.__contains__):
        if is_in_vocab:
            yield tuple(part)


def _split_at_han(
    symbols: Sequence[str], text: str, sizes: Sequence[int], lengths: Sequence[int]
) -> list[tuple[str, ...]]:
    """Split the symbols of a word into runs, so that each Han character is alone in its run.

    Args:
        symbols: symbols of the word.
        text: the word.
        sizes: size of each character of the word, in bytes or characters.
        lengths: length of each symbol, in the same unit.
    """
    starts = [0, *accumulate(sizes)]
    han = ((start, end) for script, start, end in script_runs(text) if script == "Han")
    boundaries = {starts[index] for start, end in han for index in range(start, end + 1)}
    runs: list[list[str]] = [[]]
    for symbol, position in zip(symbols, [0, *accumulate(lengths)], strict=False):
        if position in boundaries and runs[-1]:
            runs.append([])
        runs[-1].append(symbol)
    return [tuple(run) for run in runs if run]


Pair = tuple[str, str]


def learn_merges(
    words: Mapping[tuple[str, ...], int], vocab: Collection[str], num_new: int, *, prefix: str = "", min_count: int = 2
) -> list[tuple[Pair, str, int]]:
    """Continue byte pair encoding from an existing vocabulary (Sennrich et al. 2016, section 3.2, algorithm 1).

    A pair whose token already exists, from other parts, is never merged. The new merges, applied after all old ones,
    then split every word as they did here. Pairs of equal count are ordered by their tokens, so the result is
    deterministic.

    Args:
        words: words as tuples of their current tokens, with counts.
        vocab: the existing tokens.
        num_new: maximum number of new tokens.
        prefix: marker of tokens inside a word, such as `##`; removed from the second token of a merged pair.
        min_count: pairs that occur less often are not merged.

    Returns:
        For each new token, in order: the pair, the token, and its count.

    >>> learn_merges({("c", "a", "t"): 5, ("a", "t"): 3}, {"c", "a", "t"}, 2)
    [(('a', 't'), 'at', 8), (('c', 'at'), 'cat', 5)]
    """
    sequences = [list(word) for word in words]
    counts = list(words.values())
    pair_counts: Counter[Pair] = Counter()
    words_with: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, word in enumerate(sequences):
        for pair in pairwise(word):
            pair_counts[pair] += counts[index]
            words_with[pair].add(index)
    queue = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(queue)
    tokens, merges = set(vocab), list[tuple[Pair, str, int]]()
    while queue and len(merges) < num_new:
        negative_count, pair = heapq.heappop(queue)
        if -negative_count != pair_counts[pair]:  # outdated: each change pushes the new count
            continue
        if -negative_count < min_count:
            break
        token = pair[0] + pair[1].removeprefix(prefix)
        if token in tokens:
            continue
        tokens.add(token)
        merges.append((pair, token, -negative_count))
        changed: Counter[Pair] = Counter()
        for index in words_with.pop(pair):
            word = sequences[index]
            joined = _join(word, pair, token)
            for old in pairwise(word):
                changed[old] -= counts[index]
            for new in pairwise(joined):
                changed[new] += counts[index]
                words_with[new].add(index)
            sequences[index] = joined
        for other, change in changed.items():
            if change:
                pair_counts[other] += change
                heapq.heappush(queue, (-pair_counts[other], other))
    return merges


def _join(word: list[str], pair: Pair, token: str) -> list[str]:
    joined, index = [], 0
    while index < len(word):
        if tuple(word[index : index + 2]) == pair:
            joined.append(token)
            index += 2
        else:
            joined.append(word[index])
            index += 1
    return joined
