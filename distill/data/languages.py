"""Languages of a run's captions: the weight of each, the weight of each caption that follows, and a balanced sample.

A caption without a language tag counts as of the language that is named as its set (`source`, for a cache's own).
M captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...cache.format import OWN_CAPTIONS
from ...cache.read.cache import Cache
from ..errors import DistillError
from ..train_settings import LanguageSettings


@dataclass(frozen=True, kw_only=True)
class LanguageMix:
    """Languages of captions, and how often each is trained on.

    Attributes:
        codes: `[M]`, language of each caption, as an index of `names`.
        names: of the languages.
        counts: captions of each language.
        weights: of each language; 0 leaves its captions out. None where captions are drawn alike, whatever their
            language.
    """

    codes: NDArray[np.uint16]
    names: Sequence[str]
    counts: NDArray[np.int64]
    weights: NDArray[np.float64] | None

    @property
    def is_trained(self) -> NDArray[np.bool_]:
        """Whether captions of each language are trained on."""
        return self.counts > 0 if self.weights is None else (self.weights > 0) & (self.counts > 0)

    def caption_weights(self, caption_image: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Weight of each caption among those of its image, `[M]`; 0 for captions that are left out.

        The captions of a language share its weight, so that an image with five captions in one language and one in
        another shows both as often as the weights say. None where there are no weights.

        Args:
            caption_image: `[M]`, the row of each caption's image, -1 where it was not embedded.
        """
        if self.weights is None:
            return None
        usable = np.flatnonzero(caption_image >= 0)
        pairs = caption_image[usable] * len(self.names) + self.codes[usable]
        _, pair, count = np.unique(pairs, return_inverse=True, return_counts=True)
        result = np.zeros(len(caption_image), np.float32)
        result[usable] = self.weights[self.codes[usable]] / count[pair.ravel()]
        return result

    def balanced(self, captions: Sequence[str], seed: int) -> list[str]:
        """As many captions as are trained on, with each language as often as its weight says, equally without weights.

        Captions of a language that has too few are repeated.

        Args:
            captions: all of them, `[M]`.
            seed: of the sample.
        """
        chosen = np.flatnonzero(self.is_trained)
        weights = np.ones(len(self.names)) if self.weights is None else self.weights
        total, rng, sample = int(self.counts[chosen].sum()), np.random.default_rng(seed), list[str]()
        for code in chosen.tolist():
            own = np.flatnonzero(self.codes == code)
            num = max(1, round(total * weights[code] / weights[chosen].sum()))
            places = np.concatenate([np.tile(own, num // len(own)), rng.choice(own, num % len(own), replace=False)])
            sample += [captions[place] for place in places.tolist()]
        return sample

    def trained(self, captions: Sequence[str]) -> list[str]:
        """Those of all captions that are trained on."""
        kept = self.is_trained[self.codes]
        return [caption for caption, is_kept in zip(captions, kept.tolist(), strict=True) if is_kept]

    def describe(self) -> str:
        """Languages in words: weights and captions of those that are trained, and which are left out."""
        order = np.argsort(-self.counts, kind="stable").tolist()
        told = []
        for code in order:
            if self.is_trained[code]:
                weight = "" if self.weights is None else f" with weight {self.weights[code]:.3g}"
                told.append(f"{self.names[code]}{weight} ({self.counts[code]:,})")
        left_out = [f"{self.names[i]} ({self.counts[i]:,})" for i in order if self.counts[i] and not self.is_trained[i]]
        return ", ".join(told) + (f"; left out: {', '.join(left_out)}" if left_out else "")


def caption_languages(cache: Cache) -> tuple[NDArray[np.uint16], list[str]]:
    """Language of each caption, `[M]`, as an index, and the names of the languages.

    Raises:
        CacheError: the languages are damaged.
    """
    if not cache.has_languages:
        return np.zeros(cache.info.num_captions, np.uint16), [OWN_CAPTIONS]
    names = [tag or OWN_CAPTIONS for tag in cache.info.languages]
    return cache.language_codes(), names


def mix_languages(cache: Cache, settings: LanguageSettings) -> LanguageMix:
    """Languages of the captions of a cache, with the weights of the settings.

    Raises:
        CacheError: the languages are damaged.
        DistillError: `--language` names one of which there is no caption, or leaves none.
    """
    codes, names = caption_languages(cache)
    counts = np.bincount(codes, minlength=len(names))
    weights = None
    if settings.language:
        given, known = settings.language_weights, {name for name, num in zip(names, counts, strict=True) if num}
        if lacking := [name for name in given if name not in known]:
            raise DistillError(
                f"--language {lacking[0]}: no caption of it in {', '.join(cache.caption_names)} of {cache.path}; "
                f"found: {', '.join(sorted(known))}"
            )
        weights = np.array([given.get(name, 0.0) for name in names])
    elif settings.language_temperature is not None:
        weights = np.where(counts > 0, np.maximum(counts, 1) ** settings.language_temperature, 0.0)
    if weights is not None:
        weights = weights / weights.max()
    return LanguageMix(codes=codes, names=names, counts=counts, weights=weights)
