"""CHOLMOD's symbolic analysis against the definitions."""

import numpy as np
import pytest

from fastlmm_core._native.symbolic.ordering import elimination_tree, fill_ordering
from sparse_patterns import PATTERNS, compressed, permuted, random_pattern, symbolic_factor

patterns = pytest.mark.parametrize("name", PATTERNS)


@pytest.mark.parametrize("method", ["amd", "metis"])
@patterns
def test_fill_ordering_is_a_permutation(name, method):
    perm = fill_ordering(*compressed(PATTERNS[name]), method)
    assert perm.dtype == np.int64
    np.testing.assert_array_equal(np.sort(perm), np.arange(len(PATTERNS[name])))


def test_fill_ordering_puts_the_hub_of_a_star_late():
    """Eliminating the hub first fills everything; an ordering that works leaves no fill at all."""
    lower = PATTERNS["arrow, hub first"]
    m = len(lower)
    perm = fill_ordering(*compressed(lower))
    assert symbolic_factor(lower).sum() == m * (m + 1) // 2
    assert symbolic_factor(permuted(lower, perm)).sum() == 2 * m - 1


def test_nothing_writes_to_its_arguments():
    ptr, idx = compressed(random_pattern(30, 0.1, 1))
    perm = fill_ordering(ptr, idx)
    ptr.flags.writeable = idx.flags.writeable = perm.flags.writeable = False
    fill_ordering(ptr, idx)
    elimination_tree(ptr, idx)
    elimination_tree(ptr, idx, perm)


def test_unknown_ordering():
    with pytest.raises(KeyError):
        fill_ordering(*compressed(random_pattern(3, 0.1, 1)), "best")


def test_a_permutation_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 positions for 3 columns"):
        elimination_tree(*compressed(random_pattern(3, 0.1, 1)), np.arange(2))


@pytest.mark.parametrize("seed", [None, 0, 1])
@patterns
def test_elimination_tree_and_counts(name, seed):
    lower = PATTERNS[name]
    perm = None if seed is None else np.random.default_rng(seed).permutation(len(lower))
    parent, counts = elimination_tree(*compressed(lower), perm)
    fill = symbolic_factor(lower if perm is None else permuted(lower, perm))
    np.testing.assert_array_equal(counts, fill.sum(axis=0))
    for j, p in enumerate(parent):
        below = np.flatnonzero(fill[j + 1 :, j])
        assert p == (below[0] + j + 1 if len(below) else -1)
