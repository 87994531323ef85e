"""Further tokens from words that a tokenizer has split: pairs are joined, the most frequent first."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from itertools import pairwise

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
