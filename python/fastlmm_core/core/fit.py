"""Minimise the criterion and bring the estimates back to the user's coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core._newton import Newton
from fastlmm_core.core.control import Control
from fastlmm_core.core.crossprod import CrossProducts, DesignProducts
from fastlmm_core.core.objective import Objective, blas_threads
from fastlmm_core.core.theta import SINGULAR
from fastlmm_core.errors import NumericalError

__all__ = ["CoreFit", "FitLog", "estimates", "minimise"]

Array = NDArray[np.float64]

FAILED = 3
"""The optimiser's status, of `Newton.messages`, where the criterion could not be evaluated at the start."""


@dataclass(frozen=True)
class FitLog:
    """What the optimiser did, one row an evaluation.

    Attributes
    ----------
    theta : (k, n_theta)
    criterion : (k,)
    gradient_norm : (k,)
        NaN at points that were rejected and at the last one.
    radius : (k,)
        Trust radius, in conditioned coordinates.
    """

    theta: Array
    criterion: Array
    gradient_norm: Array
    radius: Array

    def __len__(self) -> int:
        return len(self.criterion)


@dataclass(frozen=True, eq=False)
class CoreFit:
    """A fitted model as plain arrays, in the user's units.

    Attributes
    ----------
    theta : (n_theta,)
        Covariance parameters term by term: the lower triangle of each relative factor, column by column.
    L : tuple of (l, l)
        Relative covariance factor of each term.
    beta : (p,)
        Fixed effects; NaN where a column depends on earlier ones and was set aside.
    cov_beta : (p, p)
        sigma^2 (X'V^-1 X)^-1, NaN in the rows and columns set aside.
    sigma : float
        Residual standard deviation.
    criterion : float
        REML criterion or deviance.
    reml : bool
    n, rank : int
        Observations; independent columns of X.
    is_singular : bool
        Some relative factor is (nearly) singular.
    b : tuple of (q, l)
        Conditional modes of each term.
    fitted : (n,)
        X beta + Z b + offset.
    log : FitLog
    converged : bool
    message : str
    """

    theta: Array
    L: tuple[Array, ...]
    beta: Array
    cov_beta: Array
    sigma: float
    criterion: float
    reml: bool
    n: int
    rank: int
    is_singular: bool
    b: tuple[Array, ...]
    fitted: Array
    log: FitLog
    converged: bool
    message: str
    cross: CrossProducts = field(repr=False)
    control: Control = field(repr=False)
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}

    def objective(self) -> Objective:
        """The model's criterion; its factor is rebuilt from the cross-products."""
        return Objective(self.cross, self.reml, self.control)

    def cond_var(self) -> tuple[Array, ...]:
        """Conditional covariance Var(b | y) of each level of each term, sigma^2 included.

        Returns
        -------
        tuple of (q, l, l)
        """
        if "cond_var" not in self._cache:
            self._cache["cond_var"] = conditional_variances(self.objective(), self.theta, self.sigma)
        return self._cache["cond_var"]


def conditional_variances(model: Objective, theta: Array, sigma: float) -> tuple[Array, ...]:
    """Var(b | y) of each term in the user's units."""
    cross = model.cross
    with blas_threads(1):
        lead, tail = model.evaluator.cond_var(model.to_conditioned(theta))
    by_group = [lead]
    for offset, blocks in zip(model.plan.offsets, tail, strict=True):
        by_group.append(blocks[np.argsort(np.argsort(offset, kind="stable"), kind="stable")])
    # conditioned effects relate to sigma by the scaled weights
    scale = sigma**2 / cross.conditioning.weight_scale
    out: list[Array] = [np.empty(0)] * len(cross.transforms)
    for group, blocks in zip(cross.groups, by_group, strict=True):
        for k, o in zip(group.terms, group.offsets, strict=True):
            t = cross.transforms[k]
            part = blocks[:, o : o + len(t), o : o + len(t)]
            out[k] = scale * (t @ part @ t.T)
    return tuple(out)


def minimise(
    model: Objective,
    start: ArrayLike | None = None,
    on_evaluation: Callable[[int, Array, float, float, float], None] | None = None,
) -> tuple[Array, FitLog, str]:
    """Minimise a criterion.

    Returns
    -------
    theta : (n_theta,) in conditioned coordinates, canonical signs
    log : FitLog, in the user's coordinates
    message : str
    """
    first = model.to_conditioned(model.start if start is None else start)
    newton = Newton(model.evaluator, model.control.max_evaluations, model.control.tol)
    report = None
    if on_evaluation is not None:

        def report(k: int, theta: Array, value: float, norm: float, radius: float) -> None:
            on_evaluation(k, model.to_user(theta), value, norm, radius)

    parameters = model.cross.theta_map
    with blas_threads(1):
        theta, value, status = newton.minimise(first, report)
        if status == FAILED:
            raise NumericalError(f"{newton.messages[status]} theta = {model.to_user(first)}")
        logs = [newton.log()]
        theta = parameters.canonical(theta)
        if start is None and (theta[parameters.vector_diagonal] < SINGULAR).any():
            # covariance matrices of lower rank can be local minima: look once more from a place of full rank
            other, other_value, other_status = newton.minimise(parameters.diagonal.astype(float), report)
            logs.append(newton.log())
            if other_status != FAILED and other_value < value - 1e-9:
                theta, value, status = parameters.canonical(other), other_value, other_status
        theta = snap(model, theta, value)
    rows, *columns = (np.concatenate(parts) for parts in zip(*logs, strict=True))
    log = FitLog(model.to_user(rows.T).T, *columns)
    return theta, log, newton.messages[status]


def snap(model: Objective, theta: Array, value: float) -> Array:
    """Set diagonal elements that are all but zero to zero, where the criterion does not rise."""
    for a in np.flatnonzero(model.cross.theta_map.diagonal & (np.abs(theta) < SINGULAR) & (theta != 0)):
        trial = theta.copy()
        trial[a] = 0.0
        at_zero = model.evaluator.value(trial)
        if at_zero <= value + 1e-12 * abs(value) + 1e-9:
            theta, value = trial, at_zero
    return theta


def estimates(model: Objective, theta: Array, log: FitLog, message: str, design: DesignProducts) -> CoreFit:
    """The fit at conditioned ``theta``, in the user's units."""
    cross, terms = model.cross, design.terms
    c = cross.conditioning
    with blas_threads(1):
        gamma, b_lead, b_tail, ld, value = model.evaluator.modes(theta)
    rank, p = c.rank, c.n_columns
    sigma = float(ld[-1, -1] * c.y_scale * np.sqrt(c.weight_scale / model.evaluator.nu))
    beta, cov_beta = np.full(p, np.nan), np.full((p, p), np.nan)
    beta[c.keep] = c.shift + design.inverse @ (c.r[:rank, -1] + c.y_scale * gamma)
    # X'V^-1 X = weight_scale r'(L L')r, so its inverse is H H' / weight_scale with H = r^-1 L^-T
    half = design.inverse @ np.linalg.inv(ld[:rank, :rank].T)
    cov_beta[c.keep[:, None], c.keep] = sigma**2 / c.weight_scale * (half @ half.T)

    by_group = [b_lead]
    for group, offset in zip(cross.groups[1:], model.plan.offsets, strict=True):
        by_group.append(b_tail[offset[:, None] + np.arange(group.n_columns)])
    b: list[Array] = [np.empty(0)] * len(terms)
    for group, modes in zip(cross.groups, by_group, strict=True):
        for k, o in zip(group.terms, group.offsets, strict=True):
            t = cross.transforms[k]
            b[k] = c.y_scale * modes[:, o : o + len(t)] @ t.T
    user = model.to_user(theta)
    factors, at = [], 0
    for term in terms:
        factor = np.zeros((term.n_columns, term.n_columns))
        rows, columns = zip(*term.index(), strict=True)
        factor[rows, columns] = user[at : at + term.n_theta]
        at += term.n_theta
        factors.append(factor)
    return CoreFit(
        theta=user,
        L=tuple(factors),
        beta=beta,
        cov_beta=cov_beta,
        sigma=sigma,
        criterion=float(value),
        reml=model.reml,
        n=cross.n,
        rank=rank,
        is_singular=cross.theta_map.is_singular(theta),
        b=tuple(b),
        fitted=fitted_values(beta, b, design),
        log=log,
        converged=message == Newton.messages[0],
        message=message,
        cross=cross,
        control=model.control,
    )


def fitted_values(beta: Array, b: Sequence[Array], design: DesignProducts) -> Array:
    """X beta + Z b + offset, (n,)."""
    out = design.X @ np.nan_to_num(beta)
    if design.offset is not None:
        out += design.offset
    for term, modes in zip(design.terms, b, strict=True):
        rows = modes[term.codes]
        out += rows[:, 0] if term.z is None else np.einsum("ij,ij->i", term.z, rows)
    return out
