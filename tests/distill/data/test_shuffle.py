"""Computed orders are permutations and look random."""

import numpy as np
import pytest
from clipglot.distill.data.shuffle import Permutation, random_below, random_keys
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 100))
def test_an_order_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    order = Permutation(n, seed, epoch)
    whole = order(np.arange(n))
    assert np.array_equal(np.sort(whole), np.arange(n))
    part = np.arange(n)[:: max(1, n // 7)]
    assert np.array_equal(order(part), whole[part])


def test_large_orders_need_no_memory() -> None:
    n = 10**11
    found = Permutation(n, 0)(np.arange(n - 1000, n))
    assert len(set(found.tolist())) == 1000
    assert found.min() >= 0
    assert found.max() < n
    assert found.mean() == pytest.approx(n / 2, rel=0.15)


@pytest.mark.parametrize("n", [5, 12, 100])
def test_positions_are_uniformly_distributed(n: int) -> None:
    """Chi-square test on 4,000 orders: n (n - 1) degrees of freedom at least, standard deviation sqrt(2 n (n - 1))."""
    counts = np.zeros((n, n))
    for seed in range(4000):
        counts[np.arange(n), Permutation(n, seed)(np.arange(n))] += 1
    expected = 4000 / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert abs(chi_square - freedom) < 6 * np.sqrt(2 * freedom)


def test_neighbours_are_separated() -> None:
    whole = Permutation(10_000, 3)(np.arange(10_000))
    assert abs(np.corrcoef(np.arange(10_000), whole)[0, 1]) < 0.04
    assert (np.abs(np.diff(whole)) == 1).mean() < 0.001


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = {Permutation(50, *seed)(np.arange(50)).tobytes() for seed in ((0, 0), (0, 1), (1, 0), (1, 1))}
    assert len(orders) == 4


def test_choices_are_uniform_and_within_their_counts() -> None:
    counts = np.repeat([1, 2, 5, 1000], 20_000)
    chosen = random_below(counts, np.arange(80_000), random_keys(1, 0)[0])
    assert (chosen >= 0).all()
    assert (chosen < counts).all()
    for count in (2, 5):
        share = np.bincount(chosen[counts == count], minlength=count) / 20_000
        assert share == pytest.approx(1 / count, abs=0.02)
