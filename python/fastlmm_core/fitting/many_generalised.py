"""Generalised models of many responses on one design: a model a pattern of missing values, a fit a response."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from fastlmm_core.core.arrays import ModelArrays
from fastlmm_core.core.glmm import GlmmFit, Model
from fastlmm_core.core.many.responses import patterns
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import DataError, FastLMMError, FastLMMWarning, ModelError
from fastlmm_core.fitting.generalised import refuse_fine, remarks, settled

if TYPE_CHECKING:
    from fastlmm_core.core import Control
    from fastlmm_core.families import Family

__all__ = ["ManyGeneralised", "Shared", "fit_each"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ManyGeneralised:
    """Estimates of k responses.

    Attributes
    ----------
    theta : (k, n_theta)
    beta, se : (k, p)
        NaN where a response's rows do not determine a coefficient.
    rho : (k, n_extra)
        Logarithm of the family's parameter.
    criterion : (k,)
    n : (k,) int64
        Rows that a response has.
    converged, is_singular : (k,) bool
    estimate, std_error, z, p : (k, c)
        Of the contrasts.
    message : (k,) object
        Why a response could not be fitted, or what a warning of `glmer` would say of it; empty otherwise.
    """

    theta: Array
    beta: Array
    se: Array
    rho: Array
    criterion: Array
    n: NDArray[np.int64]
    converged: NDArray[np.bool_]
    is_singular: NDArray[np.bool_]
    estimate: Array
    std_error: Array
    z: Array
    p: Array
    message: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.criterion)


@dataclass(frozen=True, eq=False)
class Shared:
    """What the responses have in common: family, columns, random effects, and options of `core.glmm.Model`.

    Attributes
    ----------
    columns : ModelArrays
        Without weights or offset.
    family : Family
    names : tuple of str
        Of the columns.
    groups : tuple of str
        Of each term its grouping factor.
    n_agq, control
        As in `core.glmm.Model`.
    """

    columns: ModelArrays
    family: Family
    names: tuple[str, ...]
    groups: tuple[str, ...]
    n_agq: int
    control: Control | None

    def model(self, rows: NDArray[np.int64], given: dict[str, Array]) -> Model:
        """The model of some rows; ``given`` has trials, weights, freq_weights and offset of all.

        Raises
        ------
        DataError, ModelError
            There are no rows, or they do not tell the random effects, as `glmer` finds.
        """
        if not len(rows):
            raise DataError("the response has no values")
        whole = len(rows) == len(self.columns.X)
        arrays = self.columns if whole else self.columns.rows(rows, all_levels=False)
        taken: dict[str, Any] = {name: values if whole else values[rows] for name, values in given.items()}
        sizes = {group: int(term.n_levels or 0) for group, term in zip(self.groups, arrays.terms, strict=True)}
        for group, size in sizes.items():
            if size < 2:
                raise ModelError(f"grouping factors must have more than one level: {group} has one in the rows used")
        trials = taken.get("trials")
        single = self.family.name == "binomial" and (trials is None or bool((trials == 1.0).all()))
        refuse_fine(sizes, len(rows), self.family, single=single)
        return Model(arrays.X, arrays.terms, self.family, n_agq=self.n_agq, control=self.control, **taken)


def fit_each(
    Y: Array,
    shared: Shared,
    given: dict[str, Array],
    contrasts: Array,
    progress: Callable[[int], None],
) -> ManyGeneralised:
    """Fit every row of Y (k, n), as `glmer` fits one; NaN is a missing value of that response alone.

    Parameters
    ----------
    given : dict
        trials, weights, freq_weights, offset: (n,) for all responses, or (k, n).
    contrasts : (c, p)
    """
    k, p, terms = len(Y), shared.columns.X.shape[1], shared.columns.terms
    out = _empty(k, sum(term.n_theta for term in terms), p, shared.family.n_extra, len(contrasts))
    each = {name: values for name, values in given.items() if values.ndim == 2}
    common = {name: values for name, values in given.items() if values.ndim == 1}
    with one_blas_thread():
        for present, members in patterns(np.isfinite(Y)):
            rows = np.flatnonzero(present)
            out.n[members] = len(rows)
            for i, model in _models(shared, rows, members, common, each, out):
                if model is not None:
                    _fit(out, i, model, Y[i, rows], contrasts, shared.names)
                progress(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        out.z[:] = out.estimate / out.std_error
    out.p[:] = 2.0 * ndtr(-np.abs(out.z))
    return out


def _models(
    shared: Shared,
    rows: NDArray[np.int64],
    members: NDArray[np.int64],
    common: dict[str, Array],
    each: dict[str, Array],
    out: ManyGeneralised,
) -> Iterator[tuple[int, Model | None]]:
    """Every response of a pattern with its model: one for all, unless they differ in more than y."""
    model: Model | None = None
    for i in members.tolist():
        if model is None or each:
            try:
                model = shared.model(rows, common | {name: values[i] for name, values in each.items()})
            except FastLMMError as error:
                out.message[i if each else members] = str(error)
                model = None
        yield i, model


def _fit(out: ManyGeneralised, i: int, model: Model, y: Array, contrasts: Array, names: tuple[str, ...]) -> None:
    """Fit one response and write its figures."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            core = settled(model.fit(y))
            cov = core.cov_beta
        except FastLMMError as error:
            out.message[i] = str(error)
            return
    out.theta[i], out.beta[i], out.se[i], out.criterion[i] = core.theta, core.beta, core.se, core.criterion
    out.rho[i] = core.family.extra(core.rho)
    out.converged[i], out.is_singular[i] = core.converged, core.is_singular
    out.estimate[i], out.std_error[i] = _contrasts(core, cov, contrasts)
    own = [str(w.message) for w in said if issubclass(w.category, FastLMMWarning)]
    found = [text for _, text in remarks(core, model.design, names)]
    out.message[i] = "; ".join([*([] if core.converged else [core.message]), *own, *found])


def _contrasts(core: GlmmFit, cov: Array, contrasts: Array) -> tuple[Array, Array]:
    """Estimates and standard errors (c,); NaN where a coefficient that takes part has none."""
    lost = np.isnan(core.beta)
    known = ~(contrasts[:, lost] != 0.0).any(axis=1)
    estimate = np.where(known, contrasts @ np.nan_to_num(core.beta), np.nan)
    variance = np.einsum("cp,pq,cq->c", contrasts, np.where(lost[:, None] | lost, 0.0, cov), contrasts)
    return estimate, np.where(known, np.sqrt(variance), np.nan)


def _empty(k: int, n_theta: int, p: int, extra: int, c: int) -> ManyGeneralised:
    def nan(*shape: int) -> Any:
        return np.full(shape, np.nan)

    return ManyGeneralised(
        nan(k, n_theta),
        nan(k, p),
        nan(k, p),
        nan(k, extra),
        nan(k),
        np.zeros(k, np.int64),
        np.zeros(k, bool),
        np.zeros(k, bool),
        nan(k, c),
        nan(k, c),
        nan(k, c),
        nan(k, c),
        np.full(k, "", dtype=object),
    )
