"""Kenward and Roger's adjustment against dense algebra."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import ddf_oracle
import oracle
from fastlmm_core.errors import ModelError
from fastlmm_core.inference import marginal_products
from fastlmm_core.inference.kenward_roger import adjustment, scaled_f
from fastlmm_core.inference.marginal_products import MarginalProducts
from problems import REGISTRY, build, random_problem


@pytest.mark.parametrize("which", [*sorted(REGISTRY), *range(8)])
def test_covariance_and_degrees_of_freedom(which: str | int) -> None:
    problem = build(which) if isinstance(which, str) else random_problem(which)
    core = problem.fit()
    ours = adjustment(core)
    p = len(ours.cov)
    if p == 0:
        return
    ev = oracle.evaluate(problem, core.theta)
    _, adjusted, _, _ = ddf_oracle.kenward_roger(ev)
    np.testing.assert_allclose(ours.cov, adjusted, rtol=1e-8, atol=1e-10 * np.abs(adjusted).max())
    rng = np.random.default_rng(1)
    hypotheses = [*(np.eye(p)[[j]] for j in range(p)), rng.normal(size=(1, p))]
    if p > 1:
        hypotheses += [np.eye(p)[:2], rng.normal(size=(min(p, 3), p))]
    for rows in hypotheses:
        _, df, scale = ddf_oracle.kenward_roger_f(ev, rows)
        found = scaled_f(ours, rows)
        if abs(df - 2.0) > 1e-2:
            np.testing.assert_allclose(found, [df, scale], rtol=1e-8)


def products_of(name: str) -> tuple[MarginalProducts, np.ndarray, list[slice]]:
    """The products, and Z'V^-1Z from conditioned cross-products by dense algebra."""
    core = build(name).fit()
    cross = core.cross
    theta = np.linspace(0.5, 1.5, len(core.theta))
    found = MarginalProducts(cross, theta, 1 << 30)
    groups = cross.groups
    ends = np.cumsum([0, *(g.size for g in groups)])
    parts = [slice(a, b) for a, b in pairwise(ends)]
    gram, lam = np.zeros((ends[-1], ends[-1])), np.zeros((ends[-1], ends[-1]))
    for g, (part, group) in enumerate(zip(parts, groups, strict=True)):
        for j in range(group.n_levels):
            at = part.start + j * group.n_columns + np.arange(group.n_columns)
            gram[np.ix_(at, at)] = cross.blocks[g][j]
            lam[np.ix_(at, at)] = found.factors[g]
    for (g, h), (ptr, idx, val) in cross.pairs.items():
        lg, lh = groups[g].n_columns, groups[h].n_columns
        for j in range(groups[g].n_levels):
            for t in range(ptr[j], ptr[j + 1]):
                rows = parts[g].start + j * lg + np.arange(lg)
                columns = parts[h].start + idx[t] * lh + np.arange(lh)
                gram[np.ix_(rows, columns)] = val[t].reshape(lg, lh)
                gram[np.ix_(columns, rows)] = val[t].reshape(lg, lh).T
    inner = np.linalg.inv(lam.T @ gram @ lam + np.eye(len(lam)))
    return found, gram - gram @ lam @ inner @ lam.T @ gram, parts


@pytest.mark.parametrize("route", [{"SPARSE": 1e9}, {"SPARSE": 0}, {"SMALLEST_FACTOR": np.inf}], ids=str)
@pytest.mark.parametrize("name", ["mixed", "crossed_three", "three_columns", "shared_codes"])
def test_sums_are_those_of_the_dense_matrix(
    name: str, route: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marginal_products, "BATCH", 64)  # several batches of levels
    for constant, value in route.items():
        monkeypatch.setattr(marginal_products, constant, value)
    found, dense, parts = products_of(name)
    groups = found.cross.groups
    pairs, single = found.traces()
    for g, group in enumerate(groups):
        lg = group.n_columns
        blocks = dense[parts[g], parts[g]].reshape(-1, lg, group.n_levels, lg)
        np.testing.assert_allclose(single[g], np.einsum("jrjs->rs", blocks), atol=1e-10)
        for h in range(g, len(groups)):
            lh = groups[h].n_columns
            blocks = dense[parts[g], parts[h]].reshape(group.n_levels, lg, groups[h].n_levels, lh)
            np.testing.assert_allclose(pairs[g, h], np.einsum("arbu,asbv->rsuv", blocks, blocks), rtol=1e-9, atol=1e-10)
    u = np.random.default_rng(3).normal(size=(len(dense), 4))
    lead = u[parts[0]].reshape(groups[0].n_levels, groups[0].n_columns, 4)
    tail = u[groups[0].size :]
    np.testing.assert_allclose(found.quadratic(lead, tail), u.T @ dense @ u, atol=1e-9)


def test_too_large_is_refused_with_the_figures() -> None:
    core = build("crossed").fit(memory_limit=1 << 30)
    theta = core.objective().to_conditioned(core.theta)
    with pytest.raises(ModelError, match=r"matrices of \d+ x \d+.*GiB.*satterthwaite"):
        MarginalProducts(core.cross, theta, 10)


def test_computed_once() -> None:
    core = build("intercept").fit()
    assert adjustment(core) is adjustment(core)
