"""Sums of ridge estimates against one level at a time in NumPy."""

import numpy as np
import pytest

from fastlmm_core._native.criterion.start import ridge_sums


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
