"""Recall of parts of the captions: by length, script, rarest word, and how many images share the caption."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import regex
from numpy.typing import NDArray

from ..encoders.scripts import script_runs
from ..evals.retrieval import Places
from .figures import Bucket

MOST_LENGTHS = 5
COUNTS = (0, 1, 3, 10, 30, 100)  # first of each bucket of counts
TIMES = (1, 2, 3, 10, 100)
MOST_QUERIES = 20_000  # captions that are put into buckets, spread evenly over all
# Characters of scripts without spaces, pictographs, or runs of other letters: six times as fast as `script_runs`.
_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORDS = regex.compile(
    rf"(?V1)(?:[{_SPACELESS}]|\p{{Extended_Pictographic}}|\p{{Regional_Indicator}}{{2}})[\p{{M}}\u200d]*"
    rf"|[\p{{L}}\p{{M}}--[{_SPACELESS}]]+"
)
MIXED = "several scripts"
MAIN_SCRIPT = 0.8  # share of a caption's letters


def words(text: str) -> list[str]:
    """Words in lower case; characters of scripts without spaces.

    >>> words("Кот и 2 猫ねこ")
    ['кот', 'и', '猫', 'ね', 'こ']
    """
    found: list[str] = _WORDS.findall(text.lower())
    return found


def script_of(text: str) -> str:
    """The script of nearly all letters of a text; that of two, if no script has nearly all.

    >>> script_of("красный шар 2"), script_of("iPhone на столе"), script_of("12")
    ('Cyrillic', 'several scripts', 'no letters')
    """
    counts: Counter[str] = Counter()
    for script, start, end in script_runs(text):
        if script != "other":
            counts[script] += end - start
    if not counts:
        return "no letters"
    script, most = counts.most_common(1)[0]
    return script if most >= MAIN_SCRIPT * counts.total() else MIXED


def count_words(captions: Iterable[str]) -> Counter[str]:
    """Captions that each word is in."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(set(words(caption)))
    return counts


def bucketed(
    captions: Sequence[str], places: Places, known: Counter[str], ids: NDArray[np.int64]
) -> dict[str, list[Bucket]]:
    """Recall of parts of the captions, text to image, of many a sample; parts that would be the whole are left out.

    Args:
        captions: the queries, M.
        places: of the captions.
        known: captions that each word is in, of those that were trained on, or of these.
        ids: `[M]`, equal for equal captions.
    """
    _, group, sizes = np.unique(ids, return_inverse=True, return_counts=True)
    times = sizes[group.ravel()]
    taken = np.arange(len(captions))[:: -(-len(captions) // MOST_QUERIES)]
    captions, times, places = [captions[i] for i in taken], times[taken], places.take(taken)
    recall = places.recall(1), places.recall(10)

    def parts(names: Sequence[str], keys: NDArray[np.int64]) -> list[Bucket]:
        found = []
        for i, name in enumerate(names):
            chosen = keys == i
            if chosen.any():
                r_at_1, r_at_10 = (float(each[chosen].mean()) for each in recall)
                found.append(Bucket(name=name, num_captions=int(chosen.sum()), r_at_1=r_at_1, r_at_10=r_at_10))
        return found

    lengths = np.array([len(caption) for caption in captions])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, MOST_LENGTHS + 1)[1:-1], method="lower") + 1)
    scripts = [script_of(caption) for caption in captions]
    kinds = [script for script, _ in Counter(scripts).most_common()]
    rarest = np.array([min((known[word] for word in words(caption)), default=0) for caption in captions])
    result = {
        "caption length": parts(
            _ranges([int(lengths.min()), *edges.tolist()], "characters"), np.searchsorted(edges, lengths, "right")
        ),
        "script": parts(kinds, np.array([kinds.index(script) for script in scripts])),
        "rarest word is in": parts(_ranges(COUNTS, "captions"), np.searchsorted(COUNTS, rarest, "right") - 1),
        "caption occurs": parts(
            [name.replace("1 times", "once") for name in _ranges(TIMES, "times")],
            np.searchsorted(TIMES, times, "right") - 1,
        ),
    }
    return {name: buckets for name, buckets in result.items() if len(buckets) > 1}


def _ranges(starts: Sequence[int], unit: str) -> list[str]:
    """Names of ranges of whole numbers, the last one open.

    >>> _ranges([0, 1, 3, 10], "captions")
    ['0 captions', '1–2 captions', '3–9 captions', '10 or more captions']
    """
    names = [f"{a}" if b - a == 1 else f"{a}–{b - 1}" for a, b in pairwise(starts)]
    return [f"{name} {unit}" for name in [*names, f"{starts[-1]} or more"]]
