"""A known precision between levels in the place of the identity, against dense algebra: the inverse of a relationship
matrix, and zeros for effects that are fixed."""

import numpy as np
import pytest

from fastlmm_core.core import Control, plan
from kernel_oracle import Dense, expand, problem

MODELS = [
    pytest.param((13, 7), (1, 1), id="crossed"),
    pytest.param((25, 7), (1, 2), id="slopes in the tail"),
    pytest.param((15, 6, 5), (2, 3, 3), id="wide blocks"),
]
models = pytest.mark.parametrize(("levels", "widths"), MODELS)
engines = pytest.mark.parametrize("engine", ["dense", "sparse"])
kinds = pytest.mark.parametrize("kind", ["identity", "relationship", "absorbed"])


class Related:
    """Log|M| with a precision between the levels of the last group, and its dense counterpart."""

    def __init__(self, levels, widths, engine, kind):
        given = problem(levels, widths, p=0, n=120)
        model = given.model(engine=engine)
        self.layout = plan(model.products, Control(engine, threads=1))
        rows = self.layout.rows(model.products)
        self.evaluator = self.layout.working_evaluator()
        w = np.random.default_rng(0).uniform(0.2, 2.0, rows.n)
        self.evaluator.load(rows.refill(w))
        self.dense = dense = Dense(model, given.y, self.layout)
        dense.w = w
        q, l = levels[-1], widths[-1]
        root = np.random.default_rng(1).normal(size=(q, q))
        between = {"identity": np.eye(q), "relationship": np.linalg.inv(root @ root.T + q * np.eye(q)) * q}.get(kind)
        self.between = np.zeros((q, q)) if between is None else between
        # between all blocks of the tail, in the tail's order
        starts = np.concatenate(self.layout.offsets)
        order = np.argsort(starts)
        first = sum(levels[1:-1])
        natural = np.eye(len(starts))
        natural[first:, first:] = self.between
        blocks = natural[np.ix_(order, order)]
        kept = [np.flatnonzero(np.append(blocks[b, :b] != 0, True)) for b in range(len(blocks))]
        ptr, idx = np.cumsum([0, *map(len, kept)]), np.concatenate(kept)
        val = np.concatenate([blocks[b, k] for b, k in enumerate(kept)])
        self.layout.tail.set_precision(ptr, idx, val)
        self.P = np.eye(dense.Z.shape[1])
        place = dense.lead_size + expand(self.layout.offsets[-1], l)
        self.P[np.ix_(place, place)] = np.kron(self.between, np.eye(l))
        self.place, self.l = place, l

    def M(self, theta):
        scaled = self.dense.Z @ self.dense.lam(theta)
        return scaled.T @ (self.dense.w[:, None] * scaled) + self.P


@models
@engines
@kinds
def test_value_solve_and_variances(levels, widths, engine, kind):
    it = Related(levels, widths, engine, kind)
    theta = it.dense.random_theta(0)
    M, lam = it.M(theta), it.dense.lam(theta)
    np.testing.assert_allclose(it.evaluator.value(theta), np.linalg.slogdet(M)[1], rtol=1e-10)
    H = lam @ np.linalg.solve(M, lam.T)
    rhs = np.random.default_rng(2).normal(size=(2, len(M)))
    size = it.dense.lead_size
    b = np.hstack(it.evaluator.solve(theta, rhs[:, :size].copy(), rhs[:, size:].copy())[:2])
    np.testing.assert_allclose(b, rhs @ H, atol=1e-9)
    lead, tail = it.evaluator.cond_var(theta)
    l = lead.shape[1]
    for i, block in enumerate(lead):
        np.testing.assert_allclose(block, H[i * l : (i + 1) * l, i * l : (i + 1) * l], atol=1e-9)
    for blocks, place, group in zip(tail, it.dense.places, it.dense.groups[1:], strict=True):
        for block, at in zip(blocks, np.sort(place).reshape(-1, group.n_columns), strict=True):
            np.testing.assert_allclose(block, H[np.ix_(size + at, size + at)], atol=1e-9)


@models
@engines
@kinds
def test_chained_traces_are_the_gradient(levels, widths, engine, kind):
    it = Related(levels, widths, engine, kind)
    theta = it.dense.random_theta(3)
    gradient, _ = it.evaluator.chain(theta, it.evaluator.traces(theta))
    M, lam = it.M(theta), it.dense.lam(theta)
    scaled = it.dense.Z.T @ (it.dense.w[:, None] * it.dense.Z)
    inverse = np.linalg.inv(M)
    for a, (g, i, j) in enumerate(it.dense.cross.theta_index):
        unit = [np.zeros_like(block) for block in it.dense.factor_blocks(theta)]
        unit[g][i, j] = 1.0
        step = it.dense.spread(unit)
        expected = 2.0 * np.sum(inverse * (step.T @ scaled @ lam))
        assert gradient[a] == pytest.approx(expected, rel=1e-7, abs=1e-7 * np.abs(gradient).max())


def test_a_factor_of_the_old_precision_is_not_used():
    it = Related((13, 7), (1, 1), "dense", "identity")
    theta = it.dense.random_theta(0)
    before = it.evaluator.value(theta)
    it.layout.tail.set_precision(np.arange(8), np.arange(7), np.full(7, 2.0))
    b = it.evaluator.solve(theta, np.ones((1, 13)), np.ones((1, 7)))[1]
    it.P[it.place, it.place] = 2.0
    lam = it.dense.lam(theta)
    np.testing.assert_allclose(b[0], (lam @ np.linalg.solve(it.M(theta), lam.T @ np.ones(20)))[13:], atol=1e-10)
    assert it.evaluator.value(theta) > before


def test_arrays_that_do_not_match_are_refused():
    it = Related((13, 7), (1, 1), "dense", "identity")
    with pytest.raises(ValueError, match="do not match"):
        it.layout.tail.set_precision(np.arange(8), np.arange(7), np.ones(6))
