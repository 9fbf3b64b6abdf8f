"""The oracle against itself (complex step, differences, identities) and against lme4's published fits."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
import problems
from golden_models import SMALL, golden_problem

SIZES_FOR_DERIVATIVES = [name for name in problems.REGISTRY if len(problems.build(name).y) <= 120]
AT = ["ordinary", "zero", "singular", "first_zero", "term_zero"]


def close(actual, expected, rtol, atol=0.0):
    np.testing.assert_allclose(np.asarray(actual, dtype=float), np.asarray(expected, dtype=float), rtol=rtol, atol=atol)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", SIZES_FOR_DERIVATIVES)
def test_gradient_and_hessian_are_the_derivatives(name, reml):
    problem = problems.build(name)
    for label in AT if len(problem.y) <= 60 else ["ordinary", "singular"]:
        theta = problems.thetas(problem)[label]
        ev = oracle.evaluate(problem, theta, reml=reml)
        slope = oracle.complex_step(lambda t: oracle.criterion(problem, t, reml=reml), theta)
        curve = oracle.complex_step(lambda t: oracle.gradient(oracle.evaluate(problem, t, reml=reml)), theta)
        scale = max(1.0, float(np.abs(slope).max()))
        close(oracle.gradient(ev), slope, 1e-13, 1e-13 * scale)
        close(oracle.exact_hessian(ev), curve, 1e-12, 1e-13 * float(np.abs(curve).max()))


def test_complex_step_agrees_with_central_differences():
    problem = problems.build("slope")
    theta, h = problems.thetas(problem)["ordinary"], 1e-6
    steps = np.eye(problem.n_theta) * h
    central = [(oracle.criterion(problem, theta + s) - oracle.criterion(problem, theta - s)) / (2 * h) for s in steps]
    close(oracle.gradient(oracle.evaluate(problem, theta)), central, 1e-9)


@pytest.mark.parametrize("name", ["mixed_weights", "shared_codes", "factor_slope", "crossed_three"])
@pytest.mark.parametrize("reml", [True, False])
def test_gradient_is_twice_G_times_L(name, reml):
    """`d(criterion)/dL_k = 2 G_k L_k`, read off at the entries of theta."""
    problem = problems.build(name)
    for theta in problems.thetas(problem).values():
        ev = oracle.evaluate(problem, theta, reml=reml)
        slopes = [
            (2 * G @ L)[i, j]
            for term, G, L in zip(problem.terms, oracle.cross_moments(ev), ev.L, strict=True)
            for i, j in oracle.entries(term)
        ]
        gradient = oracle.gradient(ev)
        close(slopes, gradient, 1e-12, 1e-13 * float(np.abs(gradient).max()))


@pytest.mark.parametrize("name", ["mixed_weights", "crossed", "slope", "deficient_X", "no_X"])
def test_average_information_is_the_mean_of_observed_and_expected(name):
    """Up to the profiling of sigma: `2 AI = H_exact + (tr(P V_a P V_b) - nu s_a s_b) + curvature`, REML."""
    problem = problems.build(name)
    ev = oracle.evaluate(problem, problems.thetas(problem)["ordinary"])
    dV = oracle.derivatives_V(ev)
    s = np.array([ev.Py @ Va @ ev.Py for Va in dV]) / ev.r2
    PV = [ev.P @ Va for Va in dV]
    expected = np.array([[(A * B.T).sum() for B in PV] for A in PV]) - ev.nu * np.outer(s, s)
    twice = oracle.exact_hessian(ev) + expected + oracle.curvature_of_square(ev)
    close(2 * oracle.ai_hessian(ev), twice, 1e-12)


@pytest.mark.parametrize("name", list(problems.REGISTRY))
def test_float64_and_extended_precision_agree(name):
    problem = problems.build(name)
    for theta in problems.thetas(problem).values():
        for reml in (True, False):
            fast = oracle.criterion(problem, theta, reml=reml, dtype=float)
            close(fast, oracle.criterion(problem, theta, reml=reml), 1e-12)


@pytest.mark.parametrize("name", ["mixed_weights", "unobserved_levels", "shared_codes"])
def test_modes_solve_hendersons_equations(name):
    """The mixed-model equations in the spherical form: `(Lambda'Z'WZ Lambda + I) u = Lambda'Z'W (y - X beta)`."""
    problem = problems.build(name)
    ev = oracle.evaluate(problem, problems.thetas(problem)["ordinary"])
    columns = []
    for term, L in zip(problem.terms, ev.L, strict=True):
        zl = oracle.term_z(term) @ np.asarray(L, dtype=float)
        q = oracle.term_levels(term)
        block = np.zeros((len(problem.y), q, zl.shape[1]))
        block[np.arange(len(problem.y)), term.codes] = zl
        columns.append(block.reshape(len(problem.y), -1))
    ZL = np.hstack(columns)
    w = np.ones(len(problem.y)) if problem.weights is None else problem.weights
    y = problem.y if problem.offset is None else problem.y - problem.offset
    M = ZL.T * w @ ZL + np.eye(ZL.shape[1])
    u = np.linalg.solve(M, ZL.T @ (w * (y - problem.X[:, ev.kept] @ np.asarray(ev.beta, dtype=float))))
    start, inverse = 0, np.linalg.inv(M)
    for modes, variances, L in zip(oracle.cond_modes(ev), oracle.cond_var(ev), ev.L, strict=True):
        L, q, width = np.asarray(L, dtype=float), *modes.shape
        close(modes, u[start : start + modes.size].reshape(modes.shape) @ L.T, 1e-9, 1e-11)
        for j in range(q):
            part = slice(start + j * width, start + (j + 1) * width)
            close(variances[j], oracle.sigma(ev) ** 2 * L @ inverse[part, part] @ L.T, 1e-9, 1e-11)
        start += modes.size
    sign, logdet = np.linalg.slogdet(M)
    assert sign == 1
    close(ev.logdet_V, logdet - np.log(w).sum(), 1e-11)


@pytest.mark.parametrize("name", SMALL)
def test_lme4s_answers_at_lme4s_theta(name):
    problem, labels, lme4 = golden_problem(name)
    ev = oracle.evaluate(problem, np.array(lme4["theta"]), reml=lme4["REML"])
    close(oracle.profiled(ev), lme4["criterion"], 1e-12)
    close(oracle.beta(ev), list(lme4["beta"].values()), 1e-8, 1e-8)
    close(oracle.cov_beta(ev), lme4["vcov"], 1e-8, 1e-9)
    close(oracle.sigma(ev), lme4["sigma"], 1e-8)
    close(oracle.fitted(ev)[:20], lme4["fitted_head"], 1e-9)
    # lme4 stopped at a minimum of the very function the oracle computes: nothing left to gain by a Newton step
    gradient, curvature = oracle.gradient(ev).astype(float), oracle.exact_hessian(ev).astype(float)
    assert np.linalg.eigvalsh(curvature).min() > 0
    assert gradient @ np.linalg.solve(curvature, gradient) / 2 < 1e-7

    modes, variances = oracle.cond_modes(ev), oracle.cond_var(ev)
    found = {}
    for k, (names, b, v) in enumerate(zip(labels, modes, variances, strict=True)):
        for j, label in enumerate(names):
            for i in range(b.shape[1]):
                found.setdefault((str(label), k if len(labels) > 1 else 0), []).append((b[j, i], v[j, i, i]))
    flat = {}
    for (label, _), values in found.items():
        flat.setdefault(label, []).extend(values)
    rows: dict[str, list[tuple[float, float]]] = {}
    for grp, value, sd in zip(lme4["ranef"]["grp"], lme4["ranef"]["condval"], lme4["ranef"]["condsd"], strict=True):
        rows.setdefault(grp, []).append((value, sd))
    assert set(rows) == set(flat)
    for grp, expected in rows.items():
        value, variance = np.array(flat[grp], dtype=float).T
        close(value, [v for v, _ in expected], 1e-6, 1e-7)
        close(np.sqrt(variance), [sd for _, sd in expected], 1e-7)


def test_split_plot_has_the_published_components():
    """SAS PROC MIXED's documentation: block 62.3958333, A * block 15.3819444, residual 9.3611111 (REML)."""
    problem = problems.split_plot()
    residual, inner, block = 9.0 + 13 / 36, 15.0 + 55 / 144, 62.0 + 19 / 48
    ev = oracle.evaluate(problem, np.sqrt(np.array([inner, block]) / residual))
    close(oracle.sigma(ev) ** 2, residual, 1e-14)
    assert float(np.abs(oracle.gradient(ev)).max()) < 1e-14
    close([block, inner, residual], [62.3958333, 15.3819444, 9.3611111], 1e-8)


def test_dependent_columns_are_the_later_ones():
    problem = problems.build("deficient_X")
    assert oracle.independent_columns(problem.X) == [0, 1, 3, 5]
    dropped = np.isnan(oracle.beta(oracle.evaluate(problem, np.ones(problem.n_theta))).astype(float))
    assert dropped.tolist() == [False, False, True, False, True, False]


def test_large_means_and_scales_do_not_disturb_it():
    """y + 1e9 and y * 1e+-100 shift the criterion by what they must."""
    problem = problems.build("slope")
    theta = problems.thetas(problem)["ordinary"]
    for reml in (True, False):
        ev = oracle.evaluate(problem, theta, reml=reml)
        shifted = problem.but(y=np.round(problem.y * 2**20) / 2**20)
        moved = shifted.but(y=shifted.y + 1e9)
        # 1e9 costs 30 of the 64 bits: a residual of size one keeps about ten digits
        close(oracle.criterion(moved, theta, reml=reml), oracle.criterion(shifted, theta, reml=reml), 1e-11)
        for scale in (1e100, 1e-100):
            scaled = oracle.criterion(problem.but(y=problem.y * scale), theta, reml=reml)
            close(scaled, oracle.profiled(ev) + 2 * ev.nu * np.log(scale), 1e-13)
