from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from fastlmm_core.core import Objective, Term, cross_products
from fastlmm_core.inference.rotation import reorder_term


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("k", [0, 1])
def test_the_model_is_the_same(order: tuple[int, ...], k: int) -> None:
    """Two vector-valued terms on crossed factors, so that blocks, pairs, tail and dense columns all turn."""
    rng = np.random.default_rng(1)
    n = 90
    terms = [
        Term(rng.integers(0, 9, n), np.column_stack([np.ones(n), rng.normal(3.0, 1.0, (n, 2))])),
        Term(rng.integers(0, 5, n), np.column_stack([np.ones(n), rng.normal(size=(n, 2))])),
    ]
    X, y = np.column_stack([np.ones(n), rng.normal(size=n)]), rng.normal(size=n)
    weights = rng.uniform(0.5, 2.0, n)
    cross = cross_products(y, X, terms, weights=weights)
    theta = rng.normal(size=12)
    conditioned = cross.to_conditioned @ theta
    found = reorder_term(cross, k, order)
    turned, new = found.cross, found.there(conditioned)
    before, after = Objective(cross, False), Objective(turned, False)
    np.testing.assert_allclose(before.evaluator.value(found.back(new)), before.evaluator.value(conditioned), rtol=1e-11)
    np.testing.assert_allclose(after.evaluator.value(new), before.evaluator.value(conditioned), rtol=1e-11)

    # the user's coordinates are those of a term whose columns really have the new order
    swapped = list(terms)
    z = terms[k].z
    assert z is not None
    swapped[k] = Term(terms[k].codes, z[:, list(order)])
    direct = Objective(cross_products(y, X, swapped, weights=weights), False)
    user = turned.theta_map.to_user @ new
    np.testing.assert_allclose(direct(user), before.evaluator.value(conditioned), rtol=1e-11)


def test_the_given_order_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    cross = cross_products(rng.normal(size=20), None, [Term(np.arange(20) % 4)])
    theta = np.array([0.7])
    same = reorder_term(cross, 0, [0])
    assert same.cross is cross
    assert same.there(theta) is same.back(theta) is theta
