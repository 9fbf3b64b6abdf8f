"""Fits of the mixed-model equations without a factor, where levels meet too widely for one.

Gradients are estimated from probes that stay the same, and `core.iterative`'s search sets them to zero. At the
parameters it ends with, beta, its covariance, sigma and the modes are exact to the solver's tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import WIDTH
from fastlmm_core.core.descent import Report
from fastlmm_core.core.iterative.derivatives import Derivatives
from fastlmm_core.core.iterative.iterative_fit import MonteCarlo
from fastlmm_core.core.iterative.newton import Found, Search
from fastlmm_core.core.iterative.problem import Factors, TailGroup, refuse_unidentified, tail_terms
from fastlmm_core.core.structures.constrained import ConstrainedFactor
from fastlmm_core.core.structures.covariances import Entries
from fastlmm_core.core.structures.equations import Equations, Solved
from fastlmm_core.core.structures.equations_fit import EquationsFit, EquationsModel
from fastlmm_core.core.structures.probed_factor import ProbedFactor
from fastlmm_core.core.structures.projected import Projected
from fastlmm_core.core.structures.structured import factor_derivatives
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import MonteCarloWarning, warn

__all__ = ["IterativeEquationsFit", "ProbedEquations", "iterate"]

Array = NDArray[np.float64]

ENOUGH = 32
"""Probes of the log-determinant, where the search took as many."""


@dataclass(frozen=True, eq=False, kw_only=True)
class IterativeEquationsFit(EquationsFit):
    """An `EquationsFit` that was made without a factor.

    Attributes
    ----------
    monte_carlo : MonteCarlo
    search : Found
        In working coordinates.
    reason : str
        Why there is no factor.
    began : (r,), optional
        The parameters that `EquationsModel.fit` was given to start from: a search from there has these bits again.
    """

    monte_carlo: MonteCarlo
    search: Found = field(repr=False)
    reason: str = field(repr=False)
    began: Array | None = field(default=None, repr=False)

    def prediction_sd_error(self) -> tuple[Array, ...]:
        """Monte Carlo standard errors of the roots of `prediction_var`'s diagonals, tuple of (q, l)."""
        if "errors" not in self.kept:
            with one_blas_thread():
                self.kept["errors"] = self._errors()
        kept: tuple[Array, ...] = self.kept["errors"]
        return kept

    def _errors(self) -> tuple[Array, ...]:
        equations = self.equations()
        equations.solve(self.solved.factors)
        _, errors = inner_factor(equations.factor).inverse_and_errors()
        out = []
        for L, T, V in zip(
            self.relative, equations.on_diagonal(np.square(errors)), self.prediction_var(), strict=False
        ):
            squares = np.square(L)
            error = self.scale**2 * np.sqrt(np.einsum("ia,qab,ib->qi", squares, T, squares))
            sd = np.sqrt(np.diagonal(V, axis1=1, axis2=2))
            out.append(np.divide(error, 2.0 * sd, out=np.zeros_like(sd), where=sd > 0.0))
        return tuple(out)


class ProbedEquations:
    """What the search solves: see `core.iterative.equations.Equations`.

    Parameters
    ----------
    model : EquationsModel
    equations : Equations
        With a `ProbedFactor`.
    """

    def __init__(self, model: EquationsModel, equations: Equations) -> None:
        self.model, self.equations, self.n_free = model, equations, model.n_parameters
        self.iterations = self.longest = 0
        groups, blocks = [], []
        for k, (covariance, where, columns) in enumerate(
            zip(model.covariances, model.slices, equations.slices, strict=False)
        ):
            assert isinstance(covariance, Entries)
            places = tuple((where.start + a, int(i), int(j)) for a, (i, j) in enumerate(covariance.entries))
            groups.append(TailGroup(places, equations.levels[k], covariance.l, columns))
            own = next(b for b in equations.blocks if b.k == b.other == k)
            blocks.append(own.C[own.a == own.b])
        self.levels = Factors(tuple(blocks), (), tuple(groups), tail_terms(groups), model.n_parameters)

    @property
    def probed(self) -> ProbedFactor:
        """Where the solves are made."""
        return inner_factor(self.equations.factor)

    def reorder(self, levels: Factors) -> bool:
        """Columns of factors stay in their order."""
        return False

    def refresh(self) -> None:
        """Choose the deflated directions and the control's polynomials anew."""
        self.probed.deflated = None

    def derivatives(self, x: Array, blocks: int) -> Derivatives:
        """At working parameters (r,)."""
        model, equations = self.model, self.equations
        parts = [factor_derivatives(c, x[where]) for c, where in zip(model.covariances, model.slices, strict=True)]
        factors = [L for L, _, _ in parts]
        solved = equations.solve(factors)
        directions = [(k, dL) for k, (_, first, _) in enumerate(parts) for dL in first]
        hessian = equations.information(solved, directions)
        traces = self.traces(factors, blocks)
        gradients, means = np.empty((len(traces), self.n_free)), []
        for k, (L, where) in enumerate(zip(factors, model.slices, strict=True)):
            rows, columns = model.covariances[k].rows, model.covariances[k].columns  # type: ignore[attr-defined]
            gradients[:, where] = traces[:, where] + self.explained(solved, k)[rows, columns]
            means.append(whole(gradients[:, where].mean(axis=0), L, rows, columns))
        model.add_curvature(parts, means, hessian)
        self.iterations, self.longest = self.probed.iterations, self.probed.longest
        return Derivatives(gradients, 0.5 * (hessian + hessian.T))

    def traces(self, factors: list[Array], blocks: int) -> Array:
        """Of log|M| that the criterion has, by the parameters (s, r); one estimate a probe."""
        equations, changes = self.equations, []
        for k, covariance in enumerate(self.model.covariances):
            for i, j in zip(covariance.rows, covariance.columns, strict=True):  # type: ignore[attr-defined]
                dL = np.zeros((covariance.l, covariance.l))
                dL[i, j] = 1.0
                changes.append(equations.matrix_change(factors, k, dL))
        factor = equations.factor
        if equations.random_factor is not None:  # maximum likelihood: fixed effects have no share
            factor = equations.random_factor
            changes = [change[equations.random_entries] for change in changes]
        if isinstance(factor, ProbedFactor | ConstrainedFactor) and not factor.exact:
            return factor.traces(changes, blocks)
        rows, columns = (factor.inner if isinstance(factor, ConstrainedFactor) else factor).given
        times = np.where(rows == columns, 1.0, 2.0)
        selected = factor.inverse() * times
        return np.tile([float(selected @ change) for change in changes], (blocks * WIDTH, 1))

    def explained(self, solved: Solved, k: int) -> Array:
        """The rest of the gradient, which is exact: the matrix (l, l) of a term."""
        equations, p = self.equations, self.equations.p
        e, u = equations.by_level(solved.residual[:, None], k), equations.by_level(solved.u[:, None], k)
        out = -2.0 * equations.nu / solved.r2 * np.einsum("qic,qjc->ij", e, u)
        if self.model.reml and p:
            Y = equations.ZE[:, :p] - equations.C @ equations.unscaled(equations.every_factor(solved), solved.U)
            left = equations.by_level(Y @ np.linalg.inv(solved.D), k)
            out -= 2.0 * np.einsum("qip,qjp->ij", left, equations.by_level(solved.U, k))
        return np.asarray(out)


def inner_factor(factor: Any) -> ProbedFactor:
    """The probed factor, constraints aside."""
    inner = factor.inner if isinstance(factor, ConstrainedFactor) else factor
    assert isinstance(inner, ProbedFactor)
    return inner


def whole(lower: Array, L: Array, rows: Array, columns: Array) -> Array:
    """The matrix 2 G L (l, l) of a symmetric G of which the entries at rows and columns are known."""
    l = len(L)
    if l == 1:
        return lower.reshape(1, 1)
    places = [(i, j) for i, j in zip(rows, columns, strict=True)]
    system = np.zeros((len(lower), len(lower)))
    for a, (i, j) in enumerate(places):
        for b, (r, c) in enumerate(places):
            system[a, b] = 2.0 * ((r == i) * L[c, j] + (c == i and r != c) * L[r, j])
    entries = np.linalg.lstsq(system, lower, rcond=None)[0]
    G = np.zeros((l, l))
    G[rows, columns] = G[columns, rows] = entries
    return np.asarray(2.0 * G @ L)


def iterate(
    model: EquationsModel,
    equations: Equations,
    start: Array,
    projected: Projected,
    constant: float,
    on_evaluation: Report | None,
) -> IterativeEquationsFit:
    """Fit one response; ``start`` (r,) in working coordinates.

    Warns
    -----
    MonteCarloWarning
        The error asked for was not reached with 128 probes.
    """
    control = model.control
    refuse_unidentified(model.unseen(equations)[0])
    probed = ProbedEquations(model, equations)

    def report(k: int, x: Array, norm: float) -> None:
        if on_evaluation is not None:
            on_evaluation(k, model.to_user(x), np.nan, norm, np.nan)

    end = Search(probed, report, control.max_evaluations).run(start, control.probes, control.mc_error)
    phi = model.canonical(end.theta)
    solved = equations.solve(model.factors(phi))
    value, error = criterion(equations, solved, -(-max(control.probes, min(end.probes, ENOUGH)) // WIDTH))
    solved = replace(solved, value=value)
    figures = model.figures(equations, phi, solved, projected, constant)
    back = jacobian(model, phi)
    sd = np.sqrt(np.diag(back @ np.nan_to_num(end.sampling) @ back.T))
    found = MonteCarlo(
        control.seed,
        end.probes,
        np.sqrt(np.diag(back @ end.monte_carlo @ back.T)),
        np.where(sd > 0.0, sd, np.nan),
        end.ratio,
        error,
        end.evaluations,
        end.iterations,
        probed.probed.products,
        max(end.longest, probed.longest),
    )
    message = "converged"
    if not end.converged:
        message = f"the search over the variance parameters did not end in {end.evaluations} evaluations"
    elif end.ratio > control.mc_error:
        warn(
            f"with {end.probes} probes the Monte Carlo error of the variance parameters is still {end.ratio:.2g} "
            f"standard errors, above mc_error={control.mc_error:g}",
            MonteCarloWarning,
        )
    values = [np.nan] * (len(end.trace) - 1) + [figures["criterion"]]
    log = [(model.to_user(x), c, norm, np.nan) for (x, norm), c in zip(end.trace, values, strict=True)]
    return IterativeEquationsFit(
        **figures,
        converged=end.converged,
        message=message,
        evaluations=log,
        monte_carlo=found,
        search=end,
        reason=probed.probed.reason,
    )


def criterion(equations: Equations, solved: Solved, blocks: int) -> tuple[float, float]:
    """The criterion and its Monte Carlo standard error, the factors at hand those of ``solved``."""
    factor = equations.factor if equations.random_factor is None else equations.random_factor
    if factor.exact:
        return solved.value, 0.0
    log_det, error = inner_factor(factor).log_determinant(blocks)
    border = factor.own if isinstance(factor, ConstrainedFactor) else 0.0
    return equations.beside(solved.D, solved.r2) + log_det + border, error


def jacobian(model: EquationsModel, phi: Array) -> Array:
    """Of the user's parameters by working ones (r, r): columns of random effects are scaled, a linear map."""
    zero = model.to_user(np.zeros(len(phi)))
    return np.array([model.to_user(unit) - zero for unit in np.eye(len(phi))]).reshape(len(phi), len(phi)).T
