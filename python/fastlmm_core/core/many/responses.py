"""Thousands of responses with one design, each with weights, an offset or missing values of its own.

Responses that miss the same rows share a model of the rows they have, so that 20,000 responses with 50 patterns cost 50
plans; those with weights of their own have cross-products of their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from fastlmm_core.core.arguments import as_doubles
from fastlmm_core.core.arrays import ModelArrays
from fastlmm_core.core.control import Control, checked_control
from fastlmm_core.core.crossprod import DesignProducts
from fastlmm_core.core.many.information import Probes, empty_information, fill_information
from fastlmm_core.core.model import ManyFits, fit_batch
from fastlmm_core.core.terms import Term
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.core.workspaces import Workspaces
from fastlmm_core.errors import ConvergenceWarning, DataError, FastLMMError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ManyResponses", "fit_responses", "fit_responses_by_blocks", "patterns"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ManyResponses:
    """Estimates of k responses.

    Attributes
    ----------
    theta : (k, n_theta)
    beta, se : (k, p)
        NaN where a response's rows do not determine a coefficient.
    sigma, criterion : (k,)
    n : (k,) int64
        Rows that a response has.
    converged, is_singular : (k,) bool
    estimate, std_error, df, t, p : (k, c)
        Of the contrasts, with Satterthwaite's degrees of freedom.
    message : (k,) object
        Why a response could not be fitted; empty where it was.
    """

    theta: Array
    beta: Array
    se: Array
    sigma: Array
    criterion: Array
    n: Index
    converged: NDArray[np.bool_]
    is_singular: NDArray[np.bool_]
    estimate: Array
    std_error: Array
    df: Array
    t: Array
    p: Array
    message: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.sigma)

    def to_frame(self) -> pd.DataFrame:
        """One row a response; two-dimensional figures by column, beta_0, beta_1, ..."""
        import pandas as pd

        columns = {}
        for spec in fields(self):
            values = getattr(self, spec.name)
            if values.ndim == 1:
                columns[spec.name] = values
            else:
                columns |= {f"{spec.name}_{j}": values[:, j] for j in range(values.shape[1])}
        return pd.DataFrame(columns)


def fit_responses(
    Y: ArrayLike,
    X: ArrayLike | None,
    terms: Sequence[Term],
    *,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    contrasts: ArrayLike | None = None,
    reml: bool = True,
    control: Control | None = None,
    progress: Callable[[int], None] | None = None,
) -> ManyResponses:
    """Fit one design to each row of ``Y``, with missing values.

    Parameters
    ----------
    Y : (k, n)
        Responses; NaN is a missing value (so is a masked one), and leaves that row out of that response's fit.
    X, terms, reml, control
        As in `Model`.
    weights, offset : (n,) or (k, n), optional
        For all responses, or for each. Rows whose weight is zero or missing are left out.
    contrasts : (c, p), optional
        Functions of the coefficients to be tested; each coefficient by default.
    progress : callable, optional
        Called with the number of responses done since the last call.

    Returns
    -------
    ManyResponses
        A response that cannot be fitted (constant, too few rows) is NaN, and `message` says why.

    Raises
    ------
    DataError
        Shapes that do not fit together; infinite values.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlmm_core.core import Term, fit_responses
    >>> rng = np.random.default_rng(0)
    >>> codes = np.repeat(np.arange(10), 6)
    >>> X = np.column_stack([np.ones(60), np.arange(60) % 2])
    >>> Y = rng.normal(size=(100, 10))[:, codes] + rng.normal(size=(100, 60))
    >>> Y[3, :4] = np.nan
    >>> found = fit_responses(Y, X, [Term(codes)], contrasts=[[0.0, 1.0]])
    >>> found.t.shape, int(found.n[3])
    ((100, 1), 56)
    """
    responses = np.array(_unmasked(Y, "the responses"), ndmin=2)
    n = responses.shape[1]
    fixed = np.empty((n, 0)) if X is None else np.asarray(X, dtype=np.float64)
    k, p = len(responses), fixed.shape[1]
    rows = np.eye(p) if contrasts is None else np.atleast_2d(np.asarray(contrasts, dtype=np.float64))
    if rows.shape[1] != p:
        raise DataError(f"the contrasts have {rows.shape[1]} columns, but there are {p} coefficients")
    if np.isinf(responses).any():
        raise DataError(f"response {int(np.argmax(np.isinf(responses).any(axis=1)))} has infinite values")
    given = _matched(weights, "weights", k, n)
    there = np.isfinite(responses)
    if given is not None:
        if (given < 0.0).any() or np.isinf(given).any():
            raise DataError("weights are negative or infinite")
        there &= given > 0.0
    shared, each = (given, None) if given is None or given.ndim == 1 else (None, given)
    if shared is not None:
        shared = np.where(shared > 0.0, shared, 1.0)  # of rows that no response has
    arrays, control = ModelArrays(fixed, tuple(terms), shared), checked_control(control)
    own_offset = _matched(offset, "offset", k, n)
    if own_offset is not None:
        responses -= own_offset
    out = _empty(k, sum(term.n_theta for term in terms), p, len(rows))
    with one_blas_thread():  # once for all that nests in it
        for present, members in patterns(there):
            here = np.flatnonzero(present)
            out.n[members] = len(here)
            if not len(here):
                out.message[members] = "the response has no value"
                continue
            task = _Task(arrays if len(here) == n else arrays.rows(here, all_levels=False), rows, reml, control)
            Y_here = responses[np.ix_(members, here)]
            if each is None:
                _fit_shared(out, members, Y_here, task)
            else:
                _fit_weighted(out, members, Y_here, task, each[np.ix_(members, here)])
            if progress is not None:
                progress(len(members))
    _test(out)
    return out


def fit_responses_by_blocks(
    blocks: Iterable[ArrayLike], X: ArrayLike | None, terms: Sequence[Term], **arguments: object
) -> Iterator[ManyResponses]:
    """`fit_responses` of one block (k, n) of responses after another, in the memory of one."""
    for block in blocks:
        yield fit_responses(block, X, terms, **arguments)  # type: ignore[arg-type]


def _unmasked(values: ArrayLike, name: str) -> Array:
    """Values as float64, masked ones NaN."""
    if isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(np.float64), np.nan)
    return as_doubles(values, name)


def _matched(values: ArrayLike | None, name: str, k: int, n: int) -> Array | None:
    """Weights or offsets (n,) or (k, n)."""
    if values is None:
        return None
    array = _unmasked(values, name)
    if array.shape not in ((n,), (k, n)):
        raise DataError(f"{name} has shape {array.shape}: ({n},) or ({k}, {n}) is needed")
    return array


def _empty(k: int, n_theta: int, p: int, c: int) -> ManyResponses:
    def nan(*shape: int) -> Array:
        return np.full(shape, np.nan)

    return ManyResponses(
        nan(k, n_theta),
        nan(k, p),
        nan(k, p),
        nan(k),
        nan(k),
        np.zeros(k, np.int64),
        np.zeros(k, bool),
        np.zeros(k, bool),
        nan(k, c),
        nan(k, c),
        nan(k, c),
        nan(k, c),
        nan(k, c),
        np.full(k, "", dtype=object),
    )


def _test(out: ManyResponses) -> None:
    """Statistics t and p-values of every estimate."""
    out.df[np.isnan(out.std_error)] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        out.t[:] = out.estimate / out.std_error
        out.p[:] = 2.0 * stdtr(np.minimum(out.df, 1e10), -np.abs(out.t))


def patterns(present: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.bool_], Index]]:
    """Rows that are present, and the responses that have just these."""
    if not len(present):
        return
    if present.all():
        yield present[0], np.arange(len(present))
        return
    packed = np.packbits(present, axis=1)
    keys = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    for number, at in enumerate(first):
        yield present[at], np.flatnonzero(group == number)


@dataclass(frozen=True, eq=False)
class _Task:
    """What responses that miss the same rows share."""

    arrays: ModelArrays
    contrasts: Array
    reml: bool
    control: Control


def _fit_shared(out: ManyResponses, part: Index, Y: Array, task: _Task) -> None:
    """Fit responses (k, n) that share their weights, too, and write their figures."""
    try:
        model = task.arrays.model(task.reml, task.control)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # each response has a message of its own
            fits = model.fit_many(Y, information=True)
    except FastLMMError as error:  # not one of them can be fitted
        out.message[part] = str(error)
        return
    _write(out, part, fits, model.products, task.contrasts)
    out.message[part[np.ptp(Y, axis=1) == 0.0]] = CONSTANT


def _fit_weighted(out: ManyResponses, part: Index, Y: Array, task: _Task, weights: Array) -> None:
    """Fit responses with weights (k, n) of their own: new numbers in one plan, each starting where the first does."""
    workspaces, start, fits, products = Workspaces(task.reml, task.control), None, None, None
    stop, small, probes = np.zeros(1, np.int32), np.zeros(len(Y), bool), list[tuple[int, Probes]]()
    for i, (y, w) in enumerate(zip(Y, weights, strict=True)):
        if np.ptp(y) == 0.0:
            out.message[part[i]] = CONSTANT
            continue
        try:
            own = task.arrays.with_weights(w).design()
            with workspaces.lent(own.complete(own.responses(y[:, None]))) as objective:
                if start is None:
                    start = objective.start
                if fits is None:
                    products, n_theta = own, len(own.theta_map.index)
                    information = empty_information(len(Y), n_theta, own.rank)
                    fits = ManyFits.unfitted(len(Y), n_theta, task.arrays.X.shape[1], information)
                at = objective.to_conditioned(start)
                fit_batch(own, objective, y[None], at, slice(i, i + 1), fits, stop, small, probes)
        except FastLMMError as error:
            out.message[part[i]] = str(error)
    if fits is not None and products is not None and probes and fits.information is not None:
        fill_information(fits.information, np.array([at for at, _ in probes]), Probes.joined([p for _, p in probes]))
        known = np.flatnonzero((out.message[part] == "") & ~small)
        _write(out, part[known], fits.some(known), products, task.contrasts)
    for i in np.flatnonzero(small).tolist():
        _fit_shared(out, part[i : i + 1], Y[i : i + 1], replace(task, arrays=task.arrays.with_weights(weights[i])))


CONSTANT = "the response is constant"


def _write(out: ManyResponses, part: Index, fits: ManyFits, products: DesignProducts, rows: Array) -> None:
    """The figures of some responses, and their contrasts."""
    for name in ("theta", "beta", "se", "sigma", "criterion", "converged", "is_singular"):
        getattr(out, name)[part] = getattr(fits, name)
    out.message[part[~fits.converged]] = "not converged"
    if fits.information is not None:
        unknown = np.isnan(fits.information.half).any(axis=(1, 2))
        out.message[part[unknown]] = "the residuals are too small beside the response for standard errors of contrasts"
    out.message[part[np.isnan(fits.sigma)]] = "nothing is left to fit beside the fixed effects"
    estimable = np.ones(len(rows), bool) if products.null_space is None else products.null_space.estimable(rows)
    if fits.information is not None and estimable.any():
        use = rows[estimable][:, products.keep]
        variance, df = fits.information.df(use)
        at = np.ix_(part, np.flatnonzero(estimable))
        out.estimate[at] = fits.beta[:, products.keep] @ use.T
        out.std_error[at], out.df[at] = np.sqrt(variance), df
