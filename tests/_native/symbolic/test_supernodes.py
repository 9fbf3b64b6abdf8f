"""The partition, the tree and the stack of fronts, by their definitions."""

from itertools import pairwise

import numpy as np
import pytest

from fastlmm_core._native.symbolic.ordering import elimination_tree, fill_ordering
from fastlmm_core._native.symbolic.supernodes import Supernodes, dense_seconds, index_maps
from sparse_patterns import PATTERNS, compressed, permuted, symbolic_factor


@pytest.fixture(params=[(name, order) for name in PATTERNS for order in ("given", "amd")], ids="-".join)
def lower(request):
    name, order = request.param
    found = PATTERNS[name]
    return found if order == "given" else permuted(found, fill_ordering(*compressed(found)))


def test_panels_hold_the_factor(lower):
    """Every entry of L has a place, and a supernode's rows are those of its last column."""
    ptr, idx = compressed(lower)
    tree = Supernodes(*elimination_tree(ptr, idx))
    rows, relative, place = index_maps(tree, ptr, idx)
    fill = symbolic_factor(lower)
    starts = tree.starts
    assert starts[0] == 0
    assert starts[-1] == tree.m == len(lower)
    assert (np.diff(starts) > 0).all()
    at = entries = 0
    lists = []
    for a, b in pairwise(starts):
        below = np.flatnonzero(fill[b:, b - 1]) + b
        np.testing.assert_array_equal(rows[at : at + len(below)], below)
        for j in range(a, b):
            assert set(np.flatnonzero(fill[b:, j]) + b) <= set(below)
        lists.append((a, b, below, relative[at : at + len(below)]))
        at += len(below)
        entries += (b - a) * (b - a + len(below))
    assert (at, entries) == (tree.row_count, tree.entries)
    assert len(np.unique(place)) == len(idx)
    for _, _, below, to in lists:
        if len(below):
            a, b, above, _ = next(x for x in lists if x[0] <= below[0] < x[1])
            np.testing.assert_array_equal(np.concatenate([np.arange(a, b), above])[to], below)


def test_sizes(lower):
    tree = Supernodes(*elimination_tree(*compressed(lower)))
    widths = np.diff(tree.starts)
    assert tree.n == len(widths)
    assert tree.widest == max(widths, default=0)
    assert tree.entries >= symbolic_factor(lower).sum()
    assert tree.bytes >= 8 * (tree.entries + tree.front_size)


def test_a_full_matrix_is_one_supernode_and_costs_what_a_dense_one_does():
    tree = Supernodes(*elimination_tree(*compressed(PATTERNS["full"])))
    assert tree.n == 1
    assert tree.front_size == 0
    assert tree.seconds == dense_seconds(tree.m) > 0
    assert dense_seconds(0) == 0


def test_zeros_are_stored_only_where_that_saves_time():
    """Singletons have nothing to gain; a chain's fronts of one entry cost more than a zero or two."""
    singletons, chain = (Supernodes(*elimination_tree(*compressed(PATTERNS[name]))) for name in ("singletons", "chain"))
    assert singletons.n == singletons.m
    assert chain.n < chain.m
    m = chain.m
    pairs = (np.minimum(np.arange(1, m + 1), m - 1), np.r_[np.full(m - 1, 2), 1])
    assert chain.entries > pairs[1].sum()


def test_the_time_of_a_sum_of_trees_is_the_sum():
    one = PATTERNS["deep"]
    m = len(one)
    two = np.zeros((2 * m, 2 * m), bool)
    two[:m, :m] = two[m:, m:] = one
    single, double = (Supernodes(*elimination_tree(*compressed(lower))) for lower in (one, two))
    assert double.seconds == pytest.approx(2 * single.seconds)
    assert double.front_size == single.front_size
