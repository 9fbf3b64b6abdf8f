"""One design, any number of responses: everything that does not depend on y is made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.arguments import as_floats, checked_flag
from fastlmm_core.core.control import Control, checked_control
from fastlmm_core.core.criterion import Objective
from fastlmm_core.core.crossprod import DesignProducts, identified_products
from fastlmm_core.core.estimates import FAILED, CoreFit, estimates, minimise, near_perfect
from fastlmm_core.core.iterative.choice import factored, may_iterate
from fastlmm_core.core.many.fits import ManyFits
from fastlmm_core.core.many.information import Probes, empty_information, fill_information, probe
from fastlmm_core.core.products import Responses
from fastlmm_core.core.square_root import NEAR_PERFECT
from fastlmm_core.core.terms import Term
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.core.workspaces import Workspaces
from fastlmm_core.errors import DataError, FastLMMError, MemoryLimitError, ModelError, NumericalError

__all__ = ["ManyFits", "Model", "fit", "fit_many"]

Array = NDArray[np.float64]
Report = Callable[[int, Array, float, float, float], None]

BATCH = 256
"""Responses conditioned at a time, at most."""

PARTS = 16
"""Batches that few responses are cut into, so that threads can share them."""

BATCH_NUMBERS = 1 << 25
"""Numbers in a batch of responses, at most, unless one response has more."""


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
    A model may be used from any number of threads: each call works in a workspace that no other has meanwhile.
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
        self.control, self.reml = checked_control(control), checked_flag(reml)
        with one_blas_thread():
            self.products = identified_products(X, terms, weights, offset, self.reml)
        self._workspaces = Workspaces(self.reml, self.control)
        self._no_factor = ""  # why the iterative engine fits it, once that is known

    def objective(self, y: ArrayLike) -> Objective:
        """The criterion with response ``y`` (n,), in a workspace of its own."""
        return Objective(self.products.cross(y), self.reml, self.control)

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
        calls_blas = self._workspaces.calls_blas or self.products.rows.calls_blas
        if start is not None and not calls_blas:
            return self._fit(y, start, on_evaluation)  # bounding BLAS takes a third of what such a fit takes
        with one_blas_thread():  # a 2 x 2 solve wakes every thread of BLAS otherwise
            return self._fit(y, start, on_evaluation)

    def _fit(self, y: ArrayLike, start: ArrayLike | None, on_evaluation: Report | None) -> CoreFit:
        found = self.products.response(y)
        model = self._exact(found)
        if model is None:
            from fastlmm_core.core.iterative.estimates import iterate

            return iterate(
                self.products,
                found,
                reml=self.reml,
                control=self.control,
                start=start,
                on_evaluation=on_evaluation,
                reason=self._no_factor,
            )
        try:
            return self._estimates(y, found, model, start, on_evaluation)
        finally:
            self._workspaces.give_back(model)

    def _exact(self, found: Responses) -> Objective | None:
        """An exact engine's workspace, the caller's alone; None where the iterative engine fits the model."""
        model = None
        if not self._no_factor:
            model, self._no_factor = factored(self.products, found, self._workspaces, self.control)
        return model

    def _estimates(
        self, y: ArrayLike, found: Responses, model: Objective, start: ArrayLike | None, on_evaluation: Report | None
    ) -> CoreFit:
        """The fit of a response; once more from the rows where little is left beside the random effects."""
        fit, failure = None, None
        try:
            minimum = minimise(model, start, on_evaluation)
            fit = estimates(model, *minimum, self.products, found, self._workspaces)
            ratio = fit.residual_ratio
        except NumericalError as error:
            failure, ratio = error, 0.0
        if ratio >= NEAR_PERFECT:
            assert fit is not None
            return fit
        again = None
        if failure is None or np.abs(np.asarray(found.dense[0])).max() > 0.0:
            again = near_perfect(model, self.products.prepare(y), ratio, self.products, found, self._workspaces)
        if again is not None:
            return again
        if fit is None:
            assert failure is not None
            raise failure
        return fit

    def at(self, y: ArrayLike, theta: ArrayLike) -> CoreFit:
        """The estimates that belong to given ``theta`` (n_theta,), as `CoreFit.theta`: nothing is optimised.

        Raises
        ------
        MemoryLimitError
            No exact engine fits into memory; the iterative one, which may fit the model, has no factor.
        ModelError
            The iterative engine was asked for.
        NumericalError
            The criterion cannot be evaluated there.
        """
        with one_blas_thread():
            found = self.products.response(y)
            try:
                model = self._workspaces.take(self.products, found)
            except MemoryLimitError as error:
                if not may_iterate(self.products, self.control):
                    raise
                raise MemoryLimitError(
                    f"estimates at a given theta need a factor, and {str(error).split(': ')[0]}: `fit` takes the "
                    "iterative engine here, which has none; raise Control(memory_limit=...) if the machine has more, "
                    "or fit, with start=theta"
                ) from None
            try:
                at = model.to_conditioned(np.asarray(theta, dtype=np.float64))
                nothing = np.empty((0, len(at) + 3))
                return estimates(
                    model, at, nothing, "not optimised: theta was given", self.products, found, self._workspaces
                )
            finally:
                self._workspaces.give_back(model)

    def fit_many(
        self,
        Y: ArrayLike,
        *,
        start: ArrayLike | None = None,
        threads: int | None = None,
        information: bool = False,
    ) -> ManyFits:
        """Fit the model to each row of ``Y``.

        Parameters
        ----------
        Y : (k, n)
            Responses.
        start : (n_theta,), optional
            Where every fit starts; the moment estimates of the first response when left out.
        threads : int, optional
            Fits that run side by side; `Control.threads` when left out. The results do not depend on it.
        information : bool
            Also make what standard errors and degrees of freedom of any function of beta need: four evaluations a
            variance parameter more.

        Returns
        -------
        ManyFits

        Raises
        ------
        DataError
            Y has another shape, or values that are not finite.
        ModelError
            Not one of the responses can be fitted.

        Warns
        -----
        ConvergenceWarning
            Some responses could not be fitted: constant ones, say. Their rows are NaN.
        """
        chosen = self.control if threads is None else replace(self.control, threads=threads)
        responses = as_floats(Y, "Y")
        products = self.products
        if responses.ndim != 2 or responses.shape[1] != products.n:
            raise DataError(f"Y has shape {np.shape(Y)}, but each response needs {products.n} values")
        if products.offset is not None:
            responses = responses - products.offset
        k = len(responses)
        n_theta = len(products.theta_map.index)
        kept = empty_information(k, n_theta, products.rank) if information else None
        out = ManyFits.unfitted(k, n_theta, products.X.shape[1], kept)
        if k == 0:
            return out
        first = self._first_response(responses)
        model = self._exact(first)
        if model is None:
            if information:
                raise ModelError("information=True is not available for the iterative engine, which has no factor")
            return self._fit_each(responses, start, out)
        # cut without regard to the threads: the columns of a batch decide how BLAS rounds
        size = min(BATCH, -(-k // PARTS), max(1, BATCH_NUMBERS // products.n))
        batches = [slice(s, min(s + size, k)) for s in range(0, k, size)]
        workers, theta0, single = self._workers(model, start, min(chosen.n_threads, len(batches)))
        stop, small = np.zeros(1, np.int32), np.zeros(k, bool)

        def work(part: list[slice]) -> None:
            worker = single.take(products, first)
            try:
                for rows in part:
                    if stop[0]:
                        return
                    fit_batch(products, worker, responses[rows], theta0, rows, out, stop, small)
            finally:
                single.give_back(worker)

        if k == 1:  # a thread takes longer to start than such a fit
            with one_blas_thread():
                work(batches)
        else:
            side_by_side(work, batches, workers, stop)
        for i in np.flatnonzero(small):
            self._fit_again(responses[i], int(i), out)
        out.warn_of_unfitted()
        return out

    def _fit_each(self, responses: Array, start: ArrayLike | None, out: ManyFits) -> ManyFits:
        """Fit responses, less the offset, one after the other: each shares its work among the threads itself."""
        offset = self.products.offset
        for i, response in enumerate(responses):
            try:
                fit = self.fit(response if offset is None else response + offset, start=start)
            except (ModelError, NumericalError):
                continue
            start = fit.theta if start is None and not fit.is_singular else start
            out.theta[i], out.beta[i], out.se[i] = fit.theta, fit.beta, np.sqrt(np.diag(fit.cov_beta))
            out.sigma[i], out.criterion[i], out.converged[i] = fit.sigma, fit.criterion, fit.converged
            out.n_evaluations[i], out.is_singular[i] = len(fit.log), fit.is_singular
        out.warn_of_unfitted()
        return out

    def _fit_again(self, response: Array, i: int, out: ManyFits) -> None:
        """Fit one response of many, less the offset, that the cross-products have too few digits for."""
        try:
            fit = self._fit(response if self.products.offset is None else response + self.products.offset, None, None)
        except (ModelError, NumericalError):
            for values in (out.theta, out.beta, out.se, out.sigma, out.criterion):
                values[i] = np.nan
            out.converged[i] = False
            return
        out.theta[i], out.beta[i], out.se[i] = fit.theta, fit.beta, np.sqrt(np.diagonal(fit.cov_beta))
        out.sigma[i], out.criterion[i] = fit.sigma, fit.criterion
        out.converged[i], out.n_evaluations[i] = fit.converged, len(fit.log)

    def _first_response(self, responses: Array) -> Responses:
        """The first of some responses (k, n), less the offset, that can be fitted; an error where none can."""
        for y in responses[:-1]:
            try:
                return self.products.responses(np.ascontiguousarray(y[:, None]))
            except FastLMMError:
                continue
        return self.products.responses(np.ascontiguousarray(responses[-1:].T))

    def _workers(self, first: Objective, start: ArrayLike | None, most: int) -> tuple[int, Array, Workspaces]:
        """Threads for `fit_many`, where its fits start (conditioned), and workspaces that use one thread each.

        ``first`` is a workspace with the first response, which is given back.
        """
        try:
            theta0 = first.to_conditioned(first.start if start is None else start)
            shared = first.plan.threads == 1
            if shared:
                single = self._workspaces
            else:  # the same engine, whatever memory is free by then
                engine = self.control.engine if first.plan.engine == "none" else first.plan.engine
                single = Workspaces(self.reml, replace(self.control, threads=1, engine=engine))
            # a workspace each; the one in hand is among what a limit counts, but no longer free memory
            room = self.control.n_bytes // max(1, first.plan.total_bytes) + shared
            room -= self.control.memory_limit is not None
        finally:
            self._workspaces.give_back(first)
        return max(1, min(most, room)), theta0, single


def side_by_side(
    work: Callable[[list[slice]], None], batches: list[slice], workers: int, stop: NDArray[np.int32]
) -> None:
    """Share batches out to threads; at Ctrl-C, or an error in one, ``stop`` ends the others after an evaluation."""
    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(work, batches[i::workers]) for i in range(workers)]
        try:
            for future in running:
                future.result()
        finally:
            stop[0] = 1


def fit_batch(
    products: DesignProducts,
    worker: Objective,
    Y: Array,
    start: Array,
    rows: slice,
    out: ManyFits,
    stop: NDArray[np.int32],
    small: NDArray[np.bool_],
    later: list[tuple[int, Probes]] | None = None,
) -> None:
    """Fit some responses (k, n) and write their estimates into rows of ``out``; nonzero in ``stop`` (1,) ends it.

    ``small`` (all responses,) is set where the residuals are too small for cross-products. What information is made of
    goes to ``later`` where that is given, with the row at which it begins.
    """
    found = products.responses(np.ascontiguousarray(Y.T), tolerant=True)
    k, p, nt = len(Y), products.rank, len(start)
    theta, value, gamma = np.empty((k, nt)), np.empty(k), np.empty((k, p))
    ld, outcome = np.zeros((k, p + 1, p + 1)), np.empty((k, 2), np.int32)
    nu = worker.evaluator.nu
    constants = np.asarray(products.constant(nu, worker.reml, found.norms))
    lead, tail = worker.plan.lead_rows(found.dense), worker.plan.tail_columns(found.dense)
    worker.newton.minimise_many(lead, tail, found.xty, constants, start, theta, value, gamma, ld, outcome, stop)
    if stop[0]:
        return
    unfit = np.isnan(found.norms)
    small[rows] = ~unfit & ((outcome[:, 0] == FAILED) | (ld[:, p, p] < NEAR_PERFECT))
    ld[small[rows] | unfit] = np.nan
    theta[unfit], value[unfit], outcome[unfit, 0] = np.nan, np.nan, FAILED
    parameters = products.theta_map
    theta = parameters.canonical(theta)
    out.theta[rows] = theta @ parameters.to_user.T
    out.is_singular[rows] = [parameters.is_singular(row) for row in theta]
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
    if out.information is None and later is None:
        return
    half = half * (sigma / np.sqrt(products.weight_scale))[:, None, None]
    probes = probe(worker.evaluator, products, found, lead, tail, constants, theta, ld, half)
    if later is not None:
        later.append((rows.start, probes))
    elif out.information is not None:
        fill_information(out.information, rows, probes)


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
    with one_blas_thread():  # once for all that nests in it
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
