"""More tokens for a tokenizer that exists: those it has keep their ids, those learned from captions follow."""

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
from .tokenizer import CaptionTokenizer, clean

Words = Counter[tuple[str, ...]]
WINS_BY = 0.1  # log probability
State = dict[str, Any]  # tokenizer.json


def extend(old: CaptionTokenizer, captions: Iterable[str], vocab_size: int) -> CaptionTokenizer:
    """Add tokens learned from captions to a byte-level BPE, a Unigram or a WordPiece tokenizer.

    Every old token keeps its id, and new ones follow. New merges of a BPE rank after all old ones. A new piece of a
    Unigram model is scored so that it wins over the pieces that it was made of. A Han character joins no other one, as
    in training.

    Args:
        old: the tokenizer; it stays as it is.
        captions: the texts to learn from.
        vocab_size: most tokens of the result, old and new; few captions may give fewer.

    Raises:
        EncoderError: it is of another kind, has gaps between its ids, or has so many tokens already.
    """
    tokenizer = old.backend
    state = json.loads(tokenizer.to_str())
    kind, vocab = state["model"]["type"], tokenizer.get_vocab(with_added_tokens=True)
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise EncoderError("this tokenizer cannot be extended: its ids have gaps, so nothing can follow them")
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
    """What the model underneath is given to split, and how often."""
    found: Counter[str] = Counter()
    for caption in captions:
        text = clean(caption)
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        if tokenizer.pre_tokenizer is not None:
            found.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
        else:
            found[text] += 1
    return found


# The three below write into `state` what they add: at most `room` tokens, learned from `texts`. What the tokenizer
# knows beside its model goes into the model too, for its ids are counted from behind the model's and would move.


def _add_to_bpe(state: State, vocab: dict[str, int], texts: Counter[str], tokenizer: Tokenizer, room: int) -> None:
    model, to_byte = state["model"], {character: byte for byte, character in bytes_to_unicode().items()}
    if (
        "ByteLevel" not in json.dumps([state["normalizer"], state["pre_tokenizer"]])
        or not to_byte.keys() <= vocab.keys()
    ):
        raise EncoderError("this BPE is not byte-level and cannot be extended: train a new one (leave --extend away)")
    suffix = model["end_of_word_suffix"] or ""
    words: Words = Counter()
    for text, count in texts.items():
        symbols = [token.value for token in tokenizer.model.tokenize(text)]
        read = bytes(to_byte[character] for character in text).decode(errors="surrogateescape")
        sizes = [len(character.encode(errors="surrogateescape")) for character in read]
        for run in _cut_at_han(symbols, read, sizes, [len(symbol.removesuffix(suffix)) for symbol in symbols]):
            words[run] += count
    learned = learn_merges(words, vocab.keys(), room, prefix=model["continuing_subword_prefix"] or "")
    model["merges"] += [list(pair) for pair, _, _ in learned]
    model["vocab"] = vocab | {token: len(vocab) + place for place, (_, token, _) in enumerate(learned)}


def _add_to_wordpiece(
    state: State, vocab: dict[str, int], texts: Counter[str], tokenizer: Tokenizer, room: int
) -> None:
    model = state["model"]
    prefix = model["continuing_subword_prefix"]
    spelled: list[tuple[str, list[str], int]] = []
    for text, count in texts.items():
        symbols = [token.value for token in tokenizer.model.tokenize(text)]
        if len(text) > model["max_input_chars_per_word"]:
            continue
        if symbols == [model["unk_token"]]:
            symbols = [text[0], *(prefix + character for character in text[1:])]
        spelled.append((text, symbols, count))
    characters = _new_characters(((symbols, count) for _, symbols, count in spelled), vocab.keys(), 1)[:room]
    known = vocab.keys() | {character for character, _ in characters}
    words: Words = Counter()
    for text, symbols, count in spelled:
        lengths = [len(symbol.removeprefix(prefix)) if place else len(symbol) for place, symbol in enumerate(symbols)]
        for run in _cut_at_han(symbols, text, [1] * len(text), lengths):
            for part in _known_parts(run, known):
                words[part] += count
    learned = learn_merges(words, known, room - len(characters), prefix=prefix)
    new = [*(character for character, _ in characters), *(token for _, token, _ in learned)]
    model["vocab"] = vocab | {token: len(vocab) + place for place, token in enumerate(new)}


def _add_to_unigram(state: State, vocab: dict[str, int], texts: Counter[str], tokenizer: Tokenizer, room: int) -> None:
    model = state["model"]
    by_id = {id_: token for token, id_ in vocab.items()}
    model["vocab"] += [[by_id[id_], 0.0] for id_ in range(len(model["vocab"]), len(vocab))]
    scores: dict[str, float] = dict(model["vocab"])
    spelled = []
    for text, count in texts.items():
        data, symbols = text.encode(), list[str]()
        # Bytes of a run of unknown characters all have the place of that run.
        for start, end in dict.fromkeys(token.offsets for token in tokenizer.model.tokenize(text)):
            piece = data[start:end].decode()
            symbols += [piece] if piece in scores else list(piece)
        spelled.append((text, symbols, count))
    at_least = 2 if model["byte_fallback"] else 1  # a character without bytes would be unknown
    characters = _new_characters(((symbols, count) for _, symbols, count in spelled), scores.keys(), at_least)[:room]
    total = sum(len(symbols) * count for _, symbols, count in spelled)
    scores |= {character: math.log(count / total) for character, count in characters}
    words: Words = Counter()
    for text, symbols, count in spelled:
        for run in _cut_at_han(symbols, text, [1] * len(text), list(map(len, symbols))):
            for part in _known_parts(run, scores.keys()):
                words[part] += count
    for (first, second), piece, count in learn_merges(words, scores.keys(), room - len(characters)):
        # At least a little better than the two that it is made of, or it would never be taken.
        scores[piece] = max(math.log(count / total), scores[first] + scores[second] + WINS_BY)
    model["vocab"] += [[piece, score] for piece, score in scores.items()][len(model["vocab"]) :]


def _new_characters(
    spelled: Iterable[tuple[list[str], int]], known: Collection[str], at_least: int
) -> list[tuple[str, int]]:
    """Symbols that the tokenizer does not know, the most frequent first, and how often they occur."""
    counts: Counter[str] = Counter()
    for symbols, count in spelled:
        counts.update({symbol: symbols.count(symbol) * count for symbol in symbols if symbol not in known})
    return sorted(((s, n) for s, n in counts.items() if n >= at_least), key=lambda counted: (-counted[1], counted[0]))


def _known_parts(run: tuple[str, ...], known: Collection[str]) -> Iterator[tuple[str, ...]]:
    """The stretches of a run between symbols that found no room."""
    for is_known, part in groupby(run, known.__contains__):
        if is_known:
            yield tuple(part)


def _cut_at_han(
    symbols: Sequence[str], text: str, sizes: Sequence[int], lengths: Sequence[int]
) -> list[tuple[str, ...]]:
    """Symbols of a word in runs that no Han character shares with another character.

    Args:
        symbols: that the word is split into.
        text: the word.
        sizes: of each of its characters, in bytes or characters.
        lengths: of each symbol, in the same unit.
    """
    starts = [0, *accumulate(sizes)]
    han = ((start, end) for script, start, end in script_runs(text) if script == "Han")
    borders = {starts[place] for start, end in han for place in range(start, end + 1)}
    runs: list[list[str]] = [[]]
    for symbol, position in zip(symbols, [0, *accumulate(lengths)], strict=False):
        if position in borders and runs[-1]:
            runs.append([])
        runs[-1].append(symbol)
    return [tuple(run) for run in runs if run]


Pair = tuple[str, str]


def learn_merges(
    words: Mapping[tuple[str, ...], int], known: Collection[str], num_new: int, *, prefix: str = "", min_count: int = 2
) -> list[tuple[Pair, str, int]]:
    """Go on with byte pair encoding where an older tokenizer stopped (Sennrich et al. 2016, section 3.2, algorithm 1).

    A pair whose token is there already, made otherwise, is left alone: then the new merges, applied after all old ones,
    give on every word what they gave here. Equal counts are ordered by the tokens: the result is the same every time.

    Args:
        words: each as the tokens that it is split into now, and how often it occurs.
        known: the tokens that are there.
        num_new: most new tokens.
        prefix: what marks a token inside of a word, as `##` does; it vanishes from the second of a pair.
        min_count: fewer occurrences of a pair are no token.

    Returns:
        Of each new token, in order: the pair, the token, and how often it occurred.

    >>> learn_merges({("c", "a", "t"): 5, ("a", "t"): 3}, {"c", "a", "t"}, 2)
    [(('a', 't'), 'at', 8), (('c', 'at'), 'cat', 5)]
    """
    spelled = [list(word) for word in words]
    counts = list(words.values())
    total: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for place, word in enumerate(spelled):
        for pair in pairwise(word):
            total[pair] += counts[place]
            where[pair].add(place)
    queue = [(-count, pair) for pair, count in total.items()]
    heapq.heapify(queue)
    tokens, merges = set(known), list[tuple[Pair, str, int]]()
    while queue and len(merges) < num_new:
        negative, pair = heapq.heappop(queue)
        if -negative != total[pair]:  # outdated: the right count is pushed at each change
            continue
        if -negative < min_count:
            break
        token = pair[0] + pair[1].removeprefix(prefix)
        if token in tokens:
            continue
        tokens.add(token)
        merges.append((pair, token, -negative))
        changed: Counter[Pair] = Counter()
        for place in where.pop(pair):
            word = spelled[place]
            joined = _join(word, pair, token)
            for old in pairwise(word):
                changed[old] -= counts[place]
            for new in pairwise(joined):
                changed[new] += counts[place]
                where[new].add(place)
            spelled[place] = joined
        for other, change in changed.items():
            if change:
                total[other] += change
                heapq.heappush(queue, (-total[other], other))
    return merges


def _join(word: list[str], pair: Pair, token: str) -> list[str]:
    joined, place = [], 0
    while place < len(word):
        if tuple(word[place : place + 2]) == pair:
            joined.append(token)
            place += 2
        else:
            joined.append(word[place])
            place += 1
    return joined
