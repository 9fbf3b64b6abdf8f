"""The criterion without differences of cross-products, for residuals far smaller than the groups' effects.

Cross-products square the ratio of the two: at 1e-8 nothing is left of the residual in 16 digits. Here the rows
themselves are reduced by orthogonal transformations, whose errors are those of the columns (Golub & Van Loan 2013,
section 5.3). With the triangle [R_Z R_Q r] of the rows [Z Q e] (n disappears once), one evaluation is the QR

    [ R_Z Lambda  R_Q  R_Z  r ]        log|M| = 2 sum log diag of the first block, log|Q'V^-1Q| likewise of the second;
    [ I           0    0    0 ]        with (S s) what is left below them, r^2 = s's, Z'PZ = S'S and Z'Pe = S's

and the gradient and the average information follow from Z'PZ and Z'Pe as in `evaluator`. Cost: (m + p)^3 an evaluation
for m random effects, so it is for small models; they are what such data come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.callback import Callback
from fastlmm_core._native.criterion.newton import Newton
from fastlmm_core.errors import NumericalError, RepeatedValuesError

if TYPE_CHECKING:
    from fastlmm_core.core.control import Control
    from fastlmm_core.core.crossprod import DesignProducts
    from fastlmm_core.core.products import Responses

__all__ = ["NEAR_PERFECT", "RowsEvaluator", "SquareRoot", "accurate_estimates"]

Array = NDArray[np.float64]

NEAR_PERFECT = 1e-4
"""Norm of the residual, relative to the response's on X, below which cross-products have lost too many digits."""

LARGEST_MODEL = 1200
"""Random effects and coefficients, at most."""

LEAST_RESIDUAL = 1e-9
"""Norm of the residual, relative to the response's on X, below which the rows themselves have too few digits."""

LEAST_LARGE = 3e-5
"""The same for the cross-products, of models too large for anything else."""

TOLERANCE = 1e-11
"""The optimiser's, where rounding allows."""

TOO_SMALL = (
    "the residuals are so small beside the random effects that double precision cannot answer this: ask for estimates, "
    "standard errors and Satterthwaite's degrees of freedom, or fit the levels' means"
)

POLISH, SHORT, FLAT = 4, 1e-3, 1e-10
"""Newton steps after convergence, their relative length at most, and the least relative curvature they need."""

CHUNK = 4096
"""Rows reduced at a time."""


def most_repeated(design: DesignProducts, r: Array, starts: Array, m: int) -> int:
    """The first term of the grouping factor that leaves least of the response beside it and X."""
    left = []
    for start, group in zip(starts, design.groups, strict=True):
        columns = np.hstack([r[:, start : start + group.size], r[:, m:-1]])
        left.append(float(np.linalg.norm(r[:, -1] - columns @ np.linalg.lstsq(columns, r[:, -1], rcond=None)[0])))
    return design.groups[int(np.argmin(np.array(left).round(12)))].terms[0]


def accurate_estimates(
    design: DesignProducts, response: Responses, y: Array, reml: bool, control: Control, ratio: float
) -> tuple[SquareRoot, Array, Array, int] | None:
    """Estimates of a near-perfect fit from its rows; None where those from the cross-products, of residuals that are
    ``ratio`` of the response's, have digits enough.

    Raises
    ------
    RepeatedValuesError
        The residual has too few digits.
    """
    size = sum(group.size for group in design.groups) + design.rank
    if size > LARGEST_MODEL:
        if ratio < LEAST_LARGE:
            raise RepeatedValuesError(ratio, design.groups[0].terms[0])
        return None
    found = SquareRoot(design, response, y, reml)
    theta, evaluations, status = found.minimise(control)
    return found, theta, evaluations, status


class SquareRoot:
    """One design with one response.

    Parameters
    ----------
    design : DesignProducts
    response : Responses
        Of one response.
    y : (n,)
        The response itself, the offset subtracted.
    reml : bool
    """

    def __init__(self, design: DesignProducts, response: Responses, y: Array, reml: bool) -> None:
        self.groups, self.theta_map, self.n = design.groups, design.theta_map, design.n
        self.reml, self.p = reml, design.rank
        self.nu = float(design.n - design.rank if reml else design.n)
        self.constant = float(design.constant(self.nu, reml, response.norms[0]))
        starts = np.cumsum([0, *(group.size for group in design.groups)])
        self.starts, self.m = starts[:-1], int(starts[-1])
        self.r = self._triangle(design, response, y)
        self.index = design.theta_map.index
        self.replicates = design.n - int(np.linalg.matrix_rank(self.r[:, :-1]))
        self.residual = float(np.abs(self.r[-1, -1])) if len(self.r) == self.m + self.p + 1 else 0.0
        if self.replicates > 0 and self.residual < LEAST_RESIDUAL:
            raise RepeatedValuesError(self.residual, most_repeated(design, self.r, self.starts, self.m))

    def _triangle(self, design: DesignProducts, response: Responses, y: Array) -> Array:
        """R of the rows [Z Q e], e the conditioned residual, each row multiplied by the root of its weight."""
        m, p = self.m, self.p
        out = np.zeros((0, m + p + 1))
        for first in range(0, design.n, CHUNK):
            part = slice(first, min(first + CHUNK, design.n))
            rows = np.zeros((part.stop - part.start, m + p + 1))
            for start, group, codes, z in zip(self.starts, design.groups, design.codes, design.columns, strict=True):
                places = start + codes[part, None].astype(np.int64) * group.n_columns + np.arange(group.n_columns)
                np.put_along_axis(rows, places, 1.0 if z is None else z[part], axis=1)
            rows[:, m : m + p] = design.q(part)
            left = y[part].astype(np.longdouble)
            if response.shift is not None:
                left = left - design.X[part][:, design.keep].astype(np.longdouble) @ response.shift[:, 0]
            left = left - rows[:, m : m + p].astype(np.longdouble) @ response.coefficients[:, 0]
            rows[:, m + p] = (left / response.norms[0]).astype(np.float64)
            if design.weights is not None:
                rows *= np.sqrt(design.weights[part])[:, None]
            out = np.asarray(np.linalg.qr(np.vstack([out, rows]), mode="r"))
        return out

    def _factors(self, theta: Array) -> list[Array]:
        factors = [np.zeros((group.n_columns, group.n_columns)) for group in self.groups]
        for (g, i, j), value in zip(self.index, theta, strict=True):
            factors[g][i, j] = value
        return factors

    def _scaled(self, theta: Array) -> Array:
        """[R_Z Lambda; I] of the random effects."""
        m = self.m
        columns = np.zeros((len(self.r) + m, m))
        for start, group, factor in zip(self.starts, self.groups, self._factors(theta), strict=True):
            block = self.r[:, start : start + group.size].reshape(len(self.r), group.n_levels, -1)
            columns[: len(self.r), start : start + group.size] = (block @ factor).reshape(len(self.r), -1)
        columns[len(self.r) :] = np.eye(m)
        return columns

    def _reduce(self, theta: Array, *extra: Array, fixed: bool = True) -> Array:
        """R of [Z Lambda, Q, extra...; I 0 ...]; without Q unless ``fixed``."""
        above = np.hstack([self.r[:, self.m : self.m + self.p * fixed], *extra])
        right = np.vstack([above, np.zeros((self.m, above.shape[1]))])
        return np.asarray(np.linalg.qr(np.hstack([self._scaled(theta), right]), mode="r"))

    def evaluate(self, theta: Array) -> tuple[float, Array, Array]:
        """Criterion, gradient (n_theta,) and model Hessian (n_theta, n_theta) at conditioned theta.

        Raises
        ------
        NumericalError
            Nothing is left of the residual, or theta overflows.
        """
        m, p, nt = self.m, self.p, len(theta)
        r = self._reduce(theta, self.r[:, :m], self.r[:, -1:])
        left = r[m + p :, m + p :]
        s = left[:, -1]
        r2 = float(s @ s)
        if not (np.isfinite(r2) and r2 > 0.0):
            raise NumericalError(f"nothing is left of the residual at theta = {theta}")
        value = 2.0 * float(np.log(np.abs(r.diagonal()[:m])).sum())
        if self.reml:
            value += 2.0 * float(np.log(np.abs(r.diagonal()[m : m + p])).sum())
        value += self.nu * (1.0 + float(np.log(2.0 * np.pi * r2 / self.nu))) + self.constant
        projected = left[:, :-1]
        t = projected.T @ s
        above = r[m : m + p, m + p : -1]  # what the fixed effects take of Z, which V^-1 has and P has not
        factors, big_g = self._factors(theta), []
        for start, group in zip(self.starts, self.groups, strict=True):
            where = slice(start, start + group.size)
            parts = [projected[:, where]] if self.reml else [projected[:, where], above[:, where]]
            blocks = [x.reshape(len(x), group.n_levels, group.n_columns) for x in parts]
            tt = t[where].reshape(group.n_levels, group.n_columns)
            total = sum(np.einsum("xjr,xjs->rs", x, x) for x in blocks)
            big_g.append(total - self.nu / r2 * (tt.T @ tt))
        moved, along = np.zeros((self.m, nt)), np.empty(nt)
        gradient, hessian = np.empty(nt), np.zeros((nt, nt))
        for a, (g, i, j) in enumerate(self.index):
            group, factor = self.groups[g], factors[g]
            where = slice(self.starts[g], self.starts[g] + group.size)
            tt = t[where].reshape(group.n_levels, group.n_columns)
            v = tt[:, i, None] * factor[:, j]
            v[:, i] += tt @ factor[:, j]
            moved[where, a] = v.ravel()
            gradient[a] = 2.0 * float(big_g[g][i] @ factor[:, j])
            along[a] = float(moved[:, a] @ t)
        f = projected @ moved
        hessian = self.nu * (f.T @ f / r2 - np.outer(along, along) / r2**2)
        for a, (g, i, j) in enumerate(self.index):
            for b, (h, k, l) in enumerate(self.index):
                if g == h and j == l:
                    hessian[a, b] += 2.0 * big_g[g][i, k]
        return value, gradient, hessian

    def modes(self, theta: Array) -> tuple[Array, list[Array], Array, float]:
        """Conditioned coefficients (p,), modes (q, l) of each group, factor (p + 1, p + 1) of [Q e], criterion."""
        m, p = self.m, self.p
        r = self._reduce(theta, self.r[:, -1:])
        tail = float(np.linalg.norm(r[m + p :, -1]))
        solution = np.linalg.solve(r[: m + p, : m + p], r[: m + p, -1])
        ld = np.zeros((p + 1, p + 1))
        signs = np.where(r.diagonal()[m : m + p] < 0, -1.0, 1.0)
        ld[:p, :p] = (r[m : m + p, m : m + p] * signs[:, None]).T
        ld[p, :p], ld[p, p] = r[m : m + p, -1] * signs, tail
        modes = []
        for start, group, factor in zip(self.starts, self.groups, self._factors(theta), strict=True):
            u = solution[start : start + group.size].reshape(group.n_levels, group.n_columns)
            modes.append(u @ factor.T)
        return np.asarray(solution[m:], np.float64), modes, ld, self.evaluate(theta)[0]

    def dense_products(self, theta: Array) -> list[Array]:
        """Z'V^-1[Q e] of each group, (q * l, p + 1)."""
        m = self.m
        left = self._reduce(theta, self.r[:, :m], self.r[:, m:], fixed=False)[m:, m:]
        products = left[:, :m].T @ left[:, m:]
        return [products[s : s + g.size] for s, g in zip(self.starts, self.groups, strict=True)]

    def conditional(self, theta: Array) -> list[Array]:
        """Conditional covariances (q, l, l) of each group's effects given the coefficients, over sigma^2."""
        m = self.m
        inverse = np.linalg.inv(self._reduce(theta, fixed=False)[:m, :m])
        out = []
        for start, group, factor in zip(self.starts, self.groups, self._factors(theta), strict=True):
            rows = factor @ inverse[start : start + group.size].reshape(group.n_levels, group.n_columns, -1)
            out.append(rows @ rows.transpose(0, 2, 1))
        return out

    def start(self) -> Array:
        """Relative standard deviations from the spread between and within all groups together."""
        within = self.residual / np.sqrt(max(1.0, self.replicates))
        ratio = 1.0 / np.sqrt(self.n) / max(within, LEAST_RESIDUAL)
        return np.where(self.theta_map.diagonal, np.clip(ratio, 1.0, 1e10), 0.0)

    def minimise(self, control: Control) -> tuple[Array, Array, int]:
        """Optimum (n_theta,), evaluations (see `Newton.evaluations`) and status."""
        accuracy = self.nu * np.finfo(float).eps / max(self.residual, LEAST_RESIDUAL)
        found: list[tuple[Array, Array]] = []

        def value(theta: Array) -> float:
            at, *derivatives = self.evaluate(theta)
            found[:] = [(derivatives[0], derivatives[1])]
            return at

        criterion = Callback(len(self.index), value, lambda: found[0], accuracy / 1e-12)
        newton = Newton(criterion, control.max_evaluations, min(control.tol, TOLERANCE), self.theta_map.held)
        theta, _, status = newton.minimise(self.start())
        criterion.raise_error()
        if status == 0:
            theta = self._polish(theta)
        return self.theta_map.canonical(theta), newton.evaluations(), status

    def _polish(self, theta: Array) -> Array:
        """A few Newton steps more: the gradient has digits left where differences of the criterion have none."""
        free = np.setdiff1d(np.arange(len(theta)), [] if self.theta_map.held is None else self.theta_map.held)
        for _ in range(POLISH):
            _, gradient, hessian = self.evaluate(theta)
            values, vectors = np.linalg.eigh(hessian[np.ix_(free, free)])
            if not len(free) or values[0] <= FLAT * values[-1]:
                break
            step = vectors @ (vectors.T @ gradient[free] / values)
            if not np.linalg.norm(step) <= SHORT * np.linalg.norm(theta):
                break
            theta = theta.copy()
            theta[free] -= step
        return theta


class RowsEvaluator:
    """A `SquareRoot` in an evaluator's place: what inference asks of one, as far as the rows answer it.

    Parameters
    ----------
    rows : SquareRoot
    offsets : list of (q,)
        Places of the tail's levels, as in `Plan`.
    """

    def __init__(self, rows: SquareRoot, offsets: list[NDArray[np.int64]]) -> None:
        self.rows, self.offsets = rows, offsets
        self.own = len(rows.groups) - len(offsets)  # groups beside the tail: one, or none
        self.nu, self.p, self.reml, self.n_theta = rows.nu, rows.p, rows.reml, len(rows.index)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NumericalError(TOO_SMALL)

    def value(self, theta: Array) -> float:
        """As `Evaluator.value`."""
        return self.derivatives(theta)[0]

    def derivatives(self, theta: Array) -> tuple[float, Array, Array]:
        """As `Evaluator.derivatives`."""
        return self.rows.evaluate(theta)

    def modes(self, theta: Array) -> tuple[Array, Array, Array, Array, float]:
        """As `Evaluator.modes`."""
        gamma, modes, ld, value = self.rows.modes(theta)
        groups = self.rows.groups[self.own :]
        tail = np.empty(sum(group.size for group in groups))
        for group, offset, b in zip(groups, self.offsets, modes[self.own :], strict=True):
            tail[offset[:, None] + np.arange(group.n_columns)] = b
        return gamma, modes[0] if self.own else modes[0][:0], tail, ld, value

    def cond_var(self, theta: Array) -> tuple[Array, list[Array]]:
        """As `Evaluator.cond_var`."""
        blocks = self.rows.conditional(theta)
        lead, tail = (blocks[0] if self.own else blocks[0][:0]), blocks[self.own :]
        return lead, [part[np.argsort(offset, kind="stable")] for part, offset in zip(tail, self.offsets, strict=True)]

    def dense_products(self, theta: Array) -> list[Array]:
        """As `SquareRoot.dense_products`."""
        return self.rows.dense_products(theta)
