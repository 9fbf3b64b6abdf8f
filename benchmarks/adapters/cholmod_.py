"""Plain CHOLMOD through scikit-sparse, the textbook way: what our own kernels add is the difference.

Z is one sparse matrix; at each θ the whole M = Λ'Z'ZΛ + I is refactorised (`cholesky_inplace`, ordering and mode
CHOLMOD's own choice) and a derivative-free optimiser works on the criterion. It starts from arrays: formula and design
are left out of its time.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.adapters import Absent, Call, Outcome
from benchmarks.problems import Problem

Array = NDArray[np.float64]

TOLERANCE = 1e-8
"""Absolute change of criterion and θ at which to stop, lme4's default."""

NUDGE = 1e-12
"""Stands for a θ of exactly zero: SciPy's products drop zeros, and the analysed pattern must not shrink."""


def versions() -> dict[str, str]:
    try:
        import sksparse.cholmod  # noqa: F401
    except ImportError as error:
        raise Absent(f"scikit-sparse 0.4 is not installed ({error})") from error
    found = {"scikit-sparse": version("scikit-sparse")}
    try:
        return found | {"nlopt": version("nlopt")}
    except ImportError:
        return found | {"scipy": version("scipy")}


def unfit(problem: Problem, task: str) -> str:
    if not problem.linear:
        return "linear models only"
    return "" if task in ("fit", "evaluate", "factorise") else "not timed through plain CHOLMOD"


def prepare(problem: Problem, table: pd.DataFrame, task: str) -> Call:
    from fastlmm_core import build_design

    design = build_design(problem.formula, table)
    if task == "fit":
        return Call(lambda: minimise(Textbook(design, problem.reml)), lambda found: Outcome(found[0], found[1]))
    model = Textbook(design, problem.reml)
    theta = 0.5 * model.start
    model.analyse()
    if task == "evaluate":
        return Call(lambda: model.criterion(theta), lambda value: Outcome(value, 1))
    system = model.system(theta)
    return Call(lambda: model.factor.cholesky_inplace(system), lambda _: Outcome(evaluations=1))


@dataclass
class Shape:
    """A term's block in θ and in Λ: its width, levels, first column and first parameter."""

    width: int
    levels: int
    column: int
    parameter: int


class Textbook:
    """The profiled criterion of Bates et al. (2015, eq. 34 and 41) on one sparse system.

    Parameters
    ----------
    design : Design
        Response, fixed effects and coded terms.
    reml : bool
    """

    def __init__(self, design: Any, reml: bool) -> None:
        from scipy import sparse

        n = len(design.y)
        blocks, self.shapes, column, parameter = [], [], 0, 0
        for term in design.random:
            width = 1 if term.z is None else term.z.shape[1]
            levels = len(term.level_set)
            values = np.ones(n) if term.z is None else term.z.ravel()
            rows = np.repeat(np.arange(n), width)
            columns = (width * term.codes.astype(np.int64)[:, None] + np.arange(width)).ravel()
            blocks.append(sparse.csc_array((values, (rows, columns)), shape=(n, width * levels)))
            self.shapes.append(Shape(width, levels, column, parameter))
            column += width * levels
            parameter += width * (width + 1) // 2
        z = sparse.hstack(blocks, format="csc")
        dense = np.column_stack([design.X, design.y])
        self.n, self.p, self.q, self.reml = n, design.X.shape[1], column, reml
        self.ztz = sparse.csc_array(z.T @ z)
        self.ztd, self.dtd = z.T @ dense, dense.T @ dense
        self.start = np.concatenate([np.eye(s.width)[np.tril_indices(s.width)] for s in self.shapes])
        self.lower = np.where(self.start == 1.0, 0.0, -np.inf)
        self.identity = sparse.eye_array(self.q, format="csc")
        self.entry_row = self.ztz.indices
        self.entry_column = np.repeat(np.arange(self.q), np.diff(self.ztz.indptr))
        self.factor: Any = None

    def relative_factor(self, theta: Array) -> Any:
        """Λ, block-diagonal; θ runs down the columns of each block."""
        from scipy import sparse

        blocks = []
        for s in self.shapes:
            block = np.zeros((s.width, s.width))
            columns, rows = np.triu_indices(s.width)
            block[rows, columns] = theta[s.parameter : s.parameter + len(rows)]
            blocks.append(sparse.kron(sparse.eye_array(s.levels), sparse.csc_array(block)))
        return sparse.block_diag(blocks, format="csc")

    def scaled(self, theta: Array) -> Any:
        """Λ'Z'ZΛ; where every block is 1 x 1 by scaling entries, otherwise by two sparse products."""
        from scipy import sparse

        lam = np.where(np.abs(theta) < NUDGE, NUDGE, theta)
        if all(s.width == 1 for s in self.shapes):
            diagonal = np.repeat(lam, [s.levels for s in self.shapes])
            data = self.ztz.data * diagonal[self.entry_row] * diagonal[self.entry_column]
            return sparse.csc_array((data, self.ztz.indices, self.ztz.indptr), shape=self.ztz.shape)
        factor = self.relative_factor(lam)
        return sparse.csc_array(factor.T @ self.ztz @ factor)

    def system(self, theta: Array) -> Any:
        """M = Λ'Z'ZΛ + I with sorted indices, as CHOLMOD takes it."""
        from scipy import sparse

        out = sparse.csc_matrix(self.scaled(theta) + self.identity)
        out.sort_indices()
        return out

    def analyse(self) -> None:
        """Order and analyse once, on a θ without zeros."""
        from sksparse.cholmod import analyze

        self.factor = analyze(self.system(np.linspace(0.5, 1.0, len(self.start))))

    def criterion(self, theta: Array) -> float:
        """ML deviance or REML criterion at ``theta``."""
        if self.factor is None:
            self.analyse()
        self.factor.cholesky_inplace(self.system(theta))
        lam = self.relative_factor(theta)
        scaled = self.factor.apply_P(lam.T @ self.ztd)
        half = self.factor.solve_L(scaled, use_LDLt_decomposition=False)
        rest = np.linalg.cholesky(self.dtd - half.T @ half)
        nu = self.n - self.p if self.reml else self.n
        value = self.factor.logdet() + nu * (1.0 + np.log(2.0 * np.pi * rest[-1, -1] ** 2 / nu))
        if self.reml:
            value += 2.0 * np.log(np.diag(rest)[:-1]).sum()
        return float(value)


def minimise(model: Textbook) -> tuple[float, int]:
    """Criterion reached and evaluations, by BOBYQA (nlopt) or else COBYQA (SciPy)."""
    count = 0

    def objective(theta: Array, gradient: Array | None = None) -> float:
        nonlocal count
        count += 1
        return model.criterion(np.array(theta))

    try:
        import nlopt
    except ImportError:
        from scipy.optimize import Bounds, minimize

        found = minimize(objective, model.start, method="COBYQA", bounds=Bounds(model.lower, np.inf))
        return float(found.fun), count
    optimiser = nlopt.opt(nlopt.LN_BOBYQA, len(model.start))
    optimiser.set_min_objective(objective)
    optimiser.set_lower_bounds(model.lower)
    optimiser.set_ftol_abs(TOLERANCE)
    optimiser.set_xtol_abs(TOLERANCE)
    optimiser.optimize(model.start)
    return float(optimiser.last_optimum_value()), count
