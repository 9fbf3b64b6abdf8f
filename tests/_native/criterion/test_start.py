"""Sums of ridge estimates against one level at a time in NumPy."""

import numpy as np
import pytest

from fastlmm_core._native.criterion.start import clipped_roots, group_moment, moment_roots, ridge_sums


@pytest.mark.parametrize("l", [1, 2, 5])
@pytest.mark.parametrize("ridge", [1.0, 0.3])
def test_against_a_loop_over_levels(l, ridge):
    rng = np.random.default_rng(l)
    q = 12
    roots = rng.normal(size=(q, l, l))
    roots[3] = 0.0  # a level without rows
    blocks, s = roots @ roots.transpose(0, 2, 1), rng.normal(size=(q * l, 2))[:, 1]
    inverse = np.linalg.inv(blocks + ridge * np.eye(l))
    shrink = inverse @ blocks
    b = np.einsum("jrc,jc->jr", inverse, s.reshape(q, l))
    bb, noise, kept, fitted, freedom = ridge_sums(blocks, s, ridge)
    np.testing.assert_allclose(bb, b.T @ b)
    np.testing.assert_allclose(noise, (inverse @ shrink.transpose(0, 2, 1)).sum(axis=0), atol=1e-14)
    np.testing.assert_allclose(kept, np.square(np.diagonal(shrink, axis1=1, axis2=2)).sum(axis=0))
    assert fitted == pytest.approx(2.0 * b.ravel() @ s - sum(x @ a @ x for x, a in zip(b, blocks, strict=True)))
    assert freedom == pytest.approx(sum(2.0 * np.trace(h) - np.trace(h @ h) for h in shrink))


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="do not match"):
        ridge_sums(np.ones((3, 2, 2)), np.ones(5), 1.0)


@pytest.mark.parametrize("l", [1, 2, 4])
def test_moments_and_their_roots_are_those_of_numpy(l):
    rng = np.random.default_rng(10 + l)
    q, n, total = 9, 70, 31.0
    roots = rng.normal(size=(q, l, l + 2))
    blocks, s = roots @ roots.transpose(0, 2, 1), rng.normal(size=(q * l, 2))[:, 1]
    bb, spread, kept, fitted, freedom = ridge_sums(blocks, s, 1.0)
    root = np.sqrt(kept / q)
    for given, noise in ((2.5, 2.5), (np.nan, (total - fitted) / (n - freedom))):
        estimate = group_moment(blocks, s, 1.0, n, total, given)
        np.testing.assert_allclose(estimate, (bb - noise * spread) / (q * np.outer(root, root)), rtol=1e-12)
    index = np.array([(0, i, j) for j in range(l) for i in range(j, l) if (i, j) != (1, 0)])
    masked = estimate.copy()
    if l > 1:
        masked[0, 1] = masked[1, 0] = 0.0
    values, vectors = np.linalg.eigh(masked / 0.7)
    factor = np.linalg.cholesky((vectors * np.clip(values, 0.2**2, 0.9**2)) @ vectors.T)
    found = clipped_roots([estimate], 0.7, index, 0.2, 0.9)
    np.testing.assert_allclose(found, [factor[i, j] for _, i, j in index], rtol=1e-10, atol=1e-14)


def test_parameters_that_are_no_elements_are_refused():
    for place in ((1, 0, 0), (0, 0, 1), (0, 2, 0)):
        with pytest.raises(ValueError, match="no element"):
            clipped_roots([np.eye(2)], 1.0, np.array([place]), 0.1, 10.0)


def test_a_start_is_the_roots_of_every_factors_moments():
    rng = np.random.default_rng(3)
    roots = [rng.normal(size=(q, l, l + 2)) for q, l in ((9, 2), (5, 1))]
    blocks = tuple(root @ root.transpose(0, 2, 1) for root in roots)
    sums = tuple(rng.normal(size=(b.shape[0] * b.shape[1], 3)) for b in blocks)
    index = np.array([(0, 0, 0), (0, 1, 0), (0, 1, 1), (1, 0, 0)])
    estimates = [group_moment(b, s[:, -1], 1.0, 60, 40.0) for b, s in zip(blocks, sums, strict=True)]
    left = max(40.0 / 60 - sum(np.trace(e) for e in estimates), 4.0 / 60)
    expected = clipped_roots(estimates, left, index, 0.1, 10.0)
    np.testing.assert_array_equal(moment_roots(blocks, sums, 60, 40.0, index, 1.0, 0.1, 10.0), expected)
    with pytest.raises(ValueError, match="2 blocks and 1 sums"):
        moment_roots(blocks, sums[:1], 60, 40.0, index, 1.0, 0.1, 10.0)
