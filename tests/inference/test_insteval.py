"""73,421 rows, 2,972 x 1,128 crossed levels: what a dense oracle cannot check, by identities and by sampled rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import LmerResult, lmer, load_dataset
from fastlmm_core.inference.joint_inverse import JointInverse
from fastlmm_core.inference.leverage import rows_of_fit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    return load_dataset("InstEval")


@pytest.fixture(scope="module")
def fit(data: pd.DataFrame) -> LmerResult:
    return lmer("y ~ service + (1 | s) + (1 | d) + (1 | dept:service)", data, reml=False)


def test_leverages_sum_to_the_trace(fit: LmerResult) -> None:
    """tr(C R'WR) = p + q - sum_k tr(Var(b-hat - b)_k) / tau_k^2, with every level's prediction variance."""
    expected = float(fit.core.rank)
    for term, blocks in zip(fit.design.random, fit.ranef_cov(beta_known=False).values(), strict=True):
        tau2 = fit.var_corr()[term.grp].iloc[0, 0]
        expected += len(blocks) - blocks.to_numpy().sum() / tau2
    assert fit.hatvalues().sum() == pytest.approx(expected, rel=1e-9)
    assert fit.hatvalues().between(0, 1).all()


def test_leverages_by_solves(fit: LmerResult) -> None:
    rows = rows_of_fit(fit.design, fit.core).take(np.array([0, 1000, 40_000, 73_420]))
    inverse = JointInverse(fit.core.objective(), fit.core.theta)
    half = inverse.half(rows)
    by_solve = inverse.solved_forms(rows) + np.einsum("ij,ij->i", half, half)
    np.testing.assert_allclose(fit.hatvalues().iloc[[0, 1000, 40_000, 73_420]], by_solve, rtol=1e-9)


def test_pairs_that_never_met(fit: LmerResult, data: pd.DataFrame) -> None:
    """New rows, nearly all off the pattern: the variance is a form in the joint covariance of what they meet."""
    rng = np.random.default_rng(0)
    new = data.iloc[:20].copy()
    new["s"], new["d"] = (rng.choice(data[name].to_numpy(), 20) for name in ("s", "d"))
    out = fit.predict(new, interval="confidence", ddf="normal")["std_error"]
    X = fit.design.rebuild(new).X
    third = fit.design.random[-1]
    codes = fit.design.rebuild(new).random[-1].codes
    for i in (0, 7, 19):
        levels = {"s": [new["s"].iloc[i]], "d": [new["d"].iloc[i]], third.group: [third.levels[codes[i]]]}
        joint = fit.cov_params(levels=levels).to_numpy()
        row = np.append(X[i], [1.0, 1.0, 1.0])
        assert out.iloc[i] ** 2 == pytest.approx(row @ joint @ row, rel=1e-9)


def test_deleting_a_department(fit: LmerResult) -> None:
    influence = fit.influence("dept:service")
    assert np.isfinite(influence.to_frame().to_numpy()).all()
    assert influence.n_rows.sum() == 73_421
