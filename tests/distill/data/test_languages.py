"""Languages by weight: which captions a batch has, exactly by (seed, epoch, batch), and a balanced sample."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from clipglot.distill.data.batch_sampler import BatchSampler
from clipglot.distill.data.languages import LanguageMix
from clipglot.distill.errors import DistillError
from clipglot.distill.train_settings import LanguageSettings

NAMES = ["ru", "en", "de"]


def mixed(num_images: int, weights: list[float], seed: int = 0) -> tuple[LanguageMix, np.ndarray[Any, Any]]:
    """Images with five Russian captions, one English and two German ones, in random order; every tenth is lost."""
    rng = np.random.default_rng(seed)
    codes = np.concatenate([rng.permutation(np.array([0] * 5 + [1] + [2] * 2)) for _ in range(num_images)])
    images = np.repeat(np.arange(num_images), 8)
    mix = LanguageMix(
        codes=codes.astype(np.uint16), names=NAMES, counts=np.bincount(codes, minlength=3), weights=np.array(weights)
    )
    return mix, np.where(images % 10 == 9, -1, images)


def sampler(mix: LanguageMix, images: Any, **settings: Any) -> BatchSampler:
    weight = mix.caption_weights(images)
    assert weight is not None
    kept = np.where(weight > 0, images, -1)
    return BatchSampler(kept, caption_weight=weight, **{"batch_size": 45, "seed": 3} | settings)


def test_each_language_is_drawn_as_often_as_its_weight_says_and_its_captions_alike() -> None:
    mix, images = mixed(500, [1.0, 0.25, 0.0])
    batches = sampler(mix, images)
    drawn, per_image = Counter[str](), Counter[int]()
    for epoch in range(40):
        rows = []
        for index in range(len(batches)):
            batch = batches.batch(epoch, index)
            assert batch.image is None
            assert (images[batch.captions] == batch.rows).all()  # of its image, which is embedded
            drawn.update(NAMES[code] for code in mix.codes[batch.captions].tolist())
            per_image.update(batch.captions[mix.codes[batch.captions] == 0].tolist())
            rows += batch.rows.tolist()
        assert len(set(rows)) == len(rows) == 450  # each image once an epoch
    total = drawn.total()
    assert set(drawn) == {"ru", "en"}
    assert drawn["en"] / total == pytest.approx(0.2, abs=0.015)
    # 40 epochs, 4 in 5 of them Russian, five captions each: 6.4 times on average, with a binomial's spread.
    russian = np.array([per_image[i] for i in np.flatnonzero((mix.codes == 0) & (images >= 0)).tolist()])
    assert russian.mean() == pytest.approx(6.4, abs=0.1)
    assert russian.var() == pytest.approx(40 * 0.16 * 0.84, rel=0.1)


def test_a_batch_follows_from_seed_epoch_and_number_alone() -> None:
    mix, images = mixed(100, [1.0, 0.5, 2.0])
    one, other = sampler(mix, images), sampler(mix, images)
    later = [one.batch(epoch, index).captions.tolist() for epoch in range(3) for index in range(len(one))]
    places = [(epoch, index) for epoch in range(3) for index in range(len(other))]
    backwards = [other.batch(*place).captions.tolist() for place in reversed(places)]
    assert later == backwards[::-1]
    assert len({tuple(captions) for captions in later}) == len(later)
    assert sampler(mix, images, seed=4).batch(0, 0).captions.tolist() != later[0]


@pytest.mark.parametrize("most", [2, 3, 9])
def test_several_captions_of_an_image_are_distinct_and_those_of_greater_weight_come_more_often(most: int) -> None:
    mix, images = mixed(300, [1.0, 0.0, 4.0])
    batches = sampler(mix, images, captions_per_image=most)
    counts = Counter[int]()
    for epoch in range(20):
        batch = batches.batch(epoch, 0)
        assert batch.image is not None
        assert (images[batch.captions] == batch.rows[batch.image]).all()
        assert len(set(batch.captions.tolist())) == len(batch.captions) == 45 * min(most, 7)
        assert (np.diff(batch.image) >= 0).all()
        counts.update(mix.codes[batch.captions].tolist())
    assert counts[1] == 0
    if most < 7:
        assert counts[2] / counts.total() > 2 / 7 + 0.05
    else:
        assert counts[2] * 5 == counts[0] * 2


def test_equal_weights_in_one_language_are_the_sampling_of_a_set_of_it_alone() -> None:
    """Left-out captions change nothing: the batches are those of a cache without them."""
    mix, images = mixed(100, [1.0, 0.0, 0.0])
    all_of_them = sampler(mix, images)
    only = np.flatnonzero(mix.codes == 0)
    few = LanguageMix(
        codes=mix.codes[only], names=NAMES, counts=np.array([len(only), 0, 0]), weights=np.array([1.0, 0.0, 0.0])
    )
    alone = sampler(few, images[only])
    for index in range(len(alone)):
        theirs, ours = alone.batch(0, index), all_of_them.batch(0, index)
        assert ours.rows.tolist() == theirs.rows.tolist()
        assert ours.captions.tolist() == only[theirs.captions].tolist()


def test_an_image_that_lacks_a_language_shows_the_others() -> None:
    codes, images = np.array([0, 0, 1, 2], np.uint16), np.array([0, 1, 1, 2])
    mix = LanguageMix(codes=codes, names=NAMES, counts=np.array([2, 1, 1]), weights=np.array([1e-9, 1.0, 0.0]))
    batches = sampler(mix, images, batch_size=2)
    assert batches.rows.tolist() == [0, 1]
    captions = [set(batches.batch(epoch, 0).captions.tolist()) for epoch in range(50)]
    assert all(chosen == {0, 2} for chosen in captions)


def test_the_sample_for_a_tokenizer_has_each_language_by_its_weight() -> None:
    mix, _ = mixed(100, [1.0, 1.0, 0.0])
    texts = [f"{NAMES[code]} {i}" for i, code in enumerate(mix.codes.tolist())]
    sample = mix.balanced(texts, seed=0)
    languages = Counter(text[:2] for text in sample)
    assert languages == {"ru": 300, "en": 300}
    times = Counter(text for text in sample if text.startswith("en"))
    assert set(times.values()) == {3}  # each English caption as often as the others
    assert max(Counter(text for text in sample if text.startswith("ru")).values()) == 1
    assert sample == mix.balanced(texts, seed=0) != mix.balanced(texts, seed=1)
    assert sorted(mix.trained(texts)) == sorted(text for text in texts if text[:2] != "de")
    plain = LanguageMix(codes=mix.codes, names=NAMES, counts=mix.counts, weights=None)
    assert set(Counter(text[:2] for text in plain.balanced(texts, seed=0)).values()) == {267}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": ("ru=x",)}, "--language ru"),
        ({"language": ("ru=-1",)}, "--language ru"),
        ({"language": ("ru=inf",)}, "--language ru"),
        ({"language": ("=1",)}, "--language"),
        ({"language": ("ru", "ru=2")}, "twice"),
        ({"language": ("ru=0", "en=0")}, "all weights are 0"),
        ({"language": ("ru=1", "en=1e-9")}, "never be drawn"),
        ({"language": ("ru",), "language_temperature": 0.5}, "exclude each other"),
        ({"language_temperature": 1.5}, "between 0 and 1"),
        ({"captions": ("ru", "ru")}, "twice"),
    ],
)
def test_weights_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DistillError, match=message):
        LanguageSettings(**settings)


def test_weights_are_read_from_text() -> None:
    assert LanguageSettings(language=("ru=1", "pt-BR=0.3", "en")).language_weights == {"ru": 1, "pt-BR": 0.3, "en": 1}
