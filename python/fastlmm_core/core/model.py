"""One design, any number of responses: everything that does not depend on y is made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core._native.criterion.newton import Newton
from fastlmm_core.core.control import Control, checked_control
from fastlmm_core.core.crossprod import DesignProducts, Responses
from fastlmm_core.core.fit import FAILED, CoreFit, estimates, minimise
from fastlmm_core.core.identifiability import identify
from fastlmm_core.core.objective import Objective
from fastlmm_core.core.plan import Plan, plan
from fastlmm_core.core.terms import Term, as_floats
from fastlmm_core.core.threads import blas_threads
from fastlmm_core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ManyFits", "Model", "fit", "fit_many"]

Array = NDArray[np.float64]
Report = Callable[[int, Array, float, float, float], None]

BATCH = 256
"""Responses conditioned at a time, at most."""

PARTS = 16
"""Batches that few responses are cut into, so that threads can share them."""

BATCH_NUMBERS = 1 << 25
"""Numbers in a batch of responses, at most, unless one response has more."""

WIDE_FLOPS = 1e8
"""Flops of X'X above which conditioning X shares BLAS among the threads."""


@dataclass(frozen=True)
class ManyFits:
    """Estimates of k responses with one design, in the user's units.

    Attributes
    ----------
    theta : (k, n_theta)
    beta, se : (k, p)
        Fixed effects and their standard errors; NaN in columns set aside, errors also where they are not determined.
    sigma, criterion : (k,)
    converged : (k,) bool
    n_evaluations : (k,) int32
    """

    theta: Array
    beta: Array
    se: Array
    sigma: Array
    criterion: Array
    converged: NDArray[np.bool_]
    n_evaluations: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.sigma)

    def to_frame(self) -> pd.DataFrame:
        """One row a response: theta_0, ..., beta_0, ..., se_0, ..., sigma, criterion, converged, n_evaluations."""
        import pandas as pd

        columns = {}
        for name in ("theta", "beta", "se"):
            values = getattr(self, name)
            columns.update({f"{name}_{j}": values[:, j] for j in range(values.shape[1])})
        for name in ("sigma", "criterion", "converged", "n_evaluations"):
            columns[name] = getattr(self, name)
        return pd.DataFrame(columns)


def identified_products(
    X: ArrayLike | None, terms: Sequence[Term], weights: ArrayLike | None, offset: ArrayLike | None, reml: bool
) -> DesignProducts:
    """A design's products, with what its criterion does not depend on held at zero."""
    products = DesignProducts(X, terms, weights=weights, offset=offset)
    found = identify(products, reml)
    if found is None:
        return products
    if any(terms[k].n_columns > 1 for k, _ in found.spanned):
        products = DesignProducts(X, terms, weights=weights, offset=offset, held=dict(found.spanned))
    products.unidentified = found
    products.theta_map = replace(products.theta_map, held=np.flatnonzero(found.held))
    return products


class Model:
    """A linear mixed model without its response.

    Parameters
    ----------
    X : (n, p) or None
        Fixed-effects columns, the intercept included if there is one.
    terms : sequence of Term
        Random-effects terms; those with the same codes share a grouping factor.
    weights : (n,), optional
        Positive; the residual variance of row i is sigma^2 / weights[i].
    offset : (n,), optional
        Known part of the mean.
    reml : bool
        REML, or maximum likelihood.
    control : Control, optional

    Raises
    ------
    DataError, ModelError
        The input cannot support a model.

    Notes
    -----
    A model owns one workspace: call it from one thread at a time. `fit_many` makes a workspace for each of its threads.
    """

    def __init__(
        self,
        X: ArrayLike | None,
        terms: Sequence[Term],
        *,
        weights: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        reml: bool = True,
        control: Control | None = None,
    ) -> None:
        self.control = checked_control(control)
        shape = () if X is None else np.shape(X)
        wide = len(shape) == 2 and shape[0] * shape[1] ** 2 > WIDE_FLOPS
        with blas_threads(self.control.n_threads if wide else 1):
            self.products = identified_products(X, terms, weights, offset, reml)
        self.reml = reml
        self._objective: Objective | None = None

    def objective(self, y: ArrayLike) -> Objective:
        """The criterion with response ``y`` (n,). It shares this model's workspace until the next call."""
        return self._respond(self.products.response(y))

    def _respond(self, found: Responses) -> Objective:
        if self._objective is None:
            self._objective = Objective(self.products.complete(found), self.reml, self.control)
        else:
            self._objective.set_response(self.products, found)
        return self._objective

    def fit(
        self,
        y: ArrayLike,
        *,
        start: ArrayLike | None = None,
        on_evaluation: Report | None = None,
    ) -> CoreFit:
        """Fit the model to a response.

        Parameters
        ----------
        y : (n,)
        start : (n_theta,), optional
            Where to start, as `CoreFit.theta`; moment estimates when left out.
        on_evaluation : callable, optional
            Called with (number, theta, criterion, gradient norm, radius) after each evaluation.

        Raises
        ------
        DataError, ModelError, MemoryLimitError
            The response, the model, or the machine cannot support the fit.
        NumericalError
            The criterion cannot be evaluated at the start.

        Notes
        -----
        Some figures of the fit are made when they are asked for, from X, z and the codes: see `CoreFit`.
        """
        model = self._objective
        calls_blas = model is None or model.evaluator.calls_blas or self.products.rows.calls_blas
        if start is not None and not calls_blas:
            return self._fit(y, start, on_evaluation)  # bounding BLAS takes a third of what such a fit takes
        with blas_threads(1):  # a 2 x 2 solve wakes every thread of BLAS otherwise
            return self._fit(y, start, on_evaluation)

    def _fit(self, y: ArrayLike, start: ArrayLike | None, on_evaluation: Report | None) -> CoreFit:
        found = self.products.response(y)
        model = self._respond(found)
        return estimates(model, *minimise(model, start, on_evaluation), self.products, found)

    def fit_many(self, Y: ArrayLike, *, start: ArrayLike | None = None, threads: int | None = None) -> ManyFits:
        """Fit the model to each row of ``Y``.

        Parameters
        ----------
        Y : (k, n)
            Responses.
        start : (n_theta,), optional
            Where every fit starts; the moment estimates of the first response when left out.
        threads : int, optional
            Fits that run side by side; `Control.threads` when left out. The results do not depend on it.

        Returns
        -------
        ManyFits
        """
        chosen = self.control if threads is None else replace(self.control, threads=threads)
        responses = as_floats(Y, "Y")
        products = self.products
        if responses.ndim != 2 or responses.shape[1] != products.n:
            raise DataError(f"Y has shape {np.shape(Y)}, but each response needs {products.n} values")
        if products.offset is not None:
            responses = responses - products.offset
        k = len(responses)
        out = ManyFits(
            np.empty((k, len(products.theta_map.index))),
            np.full((k, products.X.shape[1]), np.nan),
            np.full((k, products.X.shape[1]), np.nan),
            np.empty(k),
            np.empty(k),
            np.empty(k, bool),
            np.empty(k, np.int32),
        )
        if k == 0:
            return out
        # cut without regard to the threads: the columns of a batch decide how BLAS rounds
        size = min(BATCH, -(-k // PARTS), max(1, BATCH_NUMBERS // products.n))
        batches = [slice(s, min(s + size, k)) for s in range(0, k, size)]
        first = self.objective(responses[0] if products.offset is None else responses[0] + products.offset)
        # a workspace each; the model's own is among what a limit counts, but no longer free memory
        room = self.control.n_bytes // max(1, first.plan.total_bytes) - (self.control.memory_limit is not None)
        workers = max(1, min(chosen.n_threads, len(batches), room))
        theta0 = first.to_conditioned(first.start if start is None else start)
        engine = self.control.engine if first.plan.engine == "none" else first.plan.engine
        single = replace(self.control, threads=1, engine=engine)  # the same one, whatever memory is free by then

        def work(part: list[slice]) -> None:
            worker = plan(first.cross, single)
            newton = Newton(
                worker.evaluator(self.reml), single.max_evaluations, single.tol, products.theta_map.held
            )
            for rows in part:
                fit_batch(products, worker, newton, responses[rows], theta0, rows, out)

        parts = [batches[i::workers] for i in range(workers)]
        with blas_threads(1):
            if workers == 1:
                work(parts[0])
            else:
                with ThreadPoolExecutor(workers) as pool:
                    list(pool.map(work, parts))
        return out


def fit_batch(
    products: DesignProducts, worker: Plan, newton: Newton, Y: Array, start: Array, rows: slice, out: ManyFits
) -> None:
    """Fit some responses (k, n) and write their estimates into rows of ``out``."""
    found = products.responses(np.ascontiguousarray(Y.T))
    k, p, nt = len(Y), products.rank, len(start)
    theta, value, gamma = np.empty((k, nt)), np.empty(k), np.empty((k, p))
    ld, outcome = np.zeros((k, p + 1, p + 1)), np.empty((k, 2), np.int32)
    nu = newton.evaluator.nu
    constants = np.asarray(products.constant(nu, newton.evaluator.reml, found.norms))
    tail = worker.tail_columns(found.dense)
    newton.minimise_many(found.dense[0], tail, found.xty, constants, start, theta, value, gamma, ld, outcome)
    ld[outcome[:, 0] == FAILED] = np.nan
    out.theta[rows] = products.theta_map.canonical(theta) @ products.theta_map.to_user.T
    out.criterion[rows] = value
    sigma = ld[:, p, p] * found.norms / np.sqrt(nu) * np.sqrt(products.weight_scale)
    out.sigma[rows] = sigma
    beta = products.inverse @ (found.coefficients + found.norms * gamma.T)
    if found.shift is not None:
        beta += found.shift
    half = products.inverse @ np.linalg.inv(ld[:, :p, :p]).transpose(0, 2, 1)
    se = np.sqrt(np.square(half).sum(axis=2)) * (sigma / np.sqrt(products.weight_scale))[:, None]
    if products.unidentified is not None:
        se[:, ~products.unidentified.determined(products.inverse)] = np.nan
    out.beta[rows][:, products.keep] = beta.T
    out.se[rows][:, products.keep] = se
    out.converged[rows] = outcome[:, 0] == 0
    out.n_evaluations[rows] = outcome[:, 1]


def fit(
    y: ArrayLike,
    X: ArrayLike | None,
    terms: Sequence[Term],
    *,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    reml: bool = True,
    control: Control | None = None,
    start: ArrayLike | None = None,
    on_evaluation: Report | None = None,
) -> CoreFit:
    """Fit a linear mixed model given as arrays.

    Parameters
    ----------
    y : (n,)
        Response.
    X, terms, weights, offset, reml, control
        As in `Model`.
    start, on_evaluation
        As in `Model.fit`.

    Returns
    -------
    CoreFit

    Raises
    ------
    DataError, ModelError, MemoryLimitError, NumericalError
        As `Model` and `Model.fit`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlmm_core.core import Term, fit
    >>> y = np.array([1.0, 1.2, 2.9, 3.1, 5.2, 4.9])
    >>> result = fit(y, np.ones((6, 1)), [Term([0, 0, 1, 1, 2, 2])])
    >>> result.beta.round(2)
    array([3.05])
    """
    with blas_threads(1):  # once for all that nests in it
        model = Model(X, terms, weights=weights, offset=offset, reml=reml, control=control)
        return model.fit(y, start=start, on_evaluation=on_evaluation).complete()


def fit_many(
    Y: ArrayLike,
    X: ArrayLike | None,
    terms: Sequence[Term],
    *,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    reml: bool = True,
    control: Control | None = None,
    start: ArrayLike | None = None,
) -> ManyFits:
    """Fit one design to each row of ``Y`` (k, n); parameters as in `fit`."""
    model = Model(X, terms, weights=weights, offset=offset, reml=reml, control=control)
    return model.fit_many(Y, start=start)
