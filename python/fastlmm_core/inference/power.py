"""Power of tests by simulation: responses drawn from given parameters, fitted and tested in batches.

Fits, Satterthwaite's degrees of freedom and Fai and Cornelius' come from the core's compiled loop and array algebra
over draws; Kenward and Roger's method refits one draw after another.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import betaincinv, chdtrc, fdtrc

from fastlmm_core.core import Model
from fastlmm_core.core.arguments import checked_count
from fastlmm_core.errors import ConvergenceWarning, DataError, FastLMMWarning, ModelError, warn
from fastlmm_core.fitting.fit import model_of, refit
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.fitting.spelling import METHOD_ARGUMENTS, answered
from fastlmm_core.inference.ddf import ddf_method, method_name, t_pvalues
from fastlmm_core.inference.estimates import Estimates
from fastlmm_core.inference.families import simulated_p
from fastlmm_core.inference.generalised.refits import refitted
from fastlmm_core.inference.generalised.simulate import drawer
from fastlmm_core.inference.levels import checked_level
from fastlmm_core.inference.power_tests import PowerTest, estimated, read_test, true_values
from fastlmm_core.inference.reductions import refuse_structures, refuse_without_rows
from fastlmm_core.inference.simulate import draw_responses, generators, recipe

if TYPE_CHECKING:
    from fastlmm_core.core import ManyFits
    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.inference.ddf import Method
    from fastlmm_core.inference.simulate import Recipe

__all__ = ["PowerResult", "power"]

Array = NDArray[np.float64]
Seed = int | Sequence[int] | np.random.SeedSequence | None

CHUNK_NUMBERS = 1 << 22
"""Responses are drawn and fitted as many at a time as have this many values."""

RANK = 1e-8
"""Eigenvalues of a hypothesis' scaled covariance below this are rows that depend on others."""


@dataclass(frozen=True, eq=False, repr=False)
class PowerResult:
    """Power of some tests, from simulated responses.

    Attributes
    ----------
    p : DataFrame (n, tests)
        P-values of every draw; NaN where a test could not be done.
    estimates : DataFrame (n, tests)
        Estimates of tests of one row.
    truth : Series (tests)
        Their true values, less the hypothesised ones.
    alpha : float
    share_singular : float
        Share of the fits on the boundary.
    n_failed : int
        Fits that did not converge.
    notes : tuple of str
    """

    p: pd.DataFrame
    estimates: pd.DataFrame
    truth: pd.Series
    alpha: float
    share_singular: float
    n_failed: int
    notes: tuple[str, ...] = field(default=())

    def table(self, alpha: float | None = None, level: float = 0.95) -> pd.DataFrame:
        """Power at `alpha`, with Clopper and Pearson's limits.

        Returns
        -------
        DataFrame
            A row a test: power, lower, upper, n (draws in which the test could be done), estimate (mean), truth, bias,
            type_s (share of the rejections with the wrong sign) and type_m (mean of the estimates' size among the
            rejections over the true size), the last five for tests of one row (Gelman and Carlin 2014).
        """
        at = self.alpha if alpha is None else alpha
        rows = []
        for name in self.p:
            p = self.p[name].to_numpy()
            known = ~np.isnan(p)
            n, hits = int(known.sum()), int(np.count_nonzero(p[known] < at))
            lower, upper = _limits(hits, n, level)
            row = {"power": hits / n if n else np.nan, "lower": lower, "upper": upper, "n": n}
            if name in self.estimates:
                estimate, truth = self.estimates[name].to_numpy(), float(self.truth[name])
                rejected = known & (np.nan_to_num(p, nan=1.0) < at)
                row |= {"estimate": float(np.nanmean(estimate)), "truth": truth}
                row["bias"] = row["estimate"] - truth
                if truth and rejected.any():
                    row["type_s"] = float(np.mean(np.sign(estimate[rejected]) != np.sign(truth)))
                    row["type_m"] = float(np.mean(np.abs(estimate[rejected])) / abs(truth))
            rows.append(row)
        columns = ["power", "lower", "upper", "n", "estimate", "truth", "bias", "type_s", "type_m"]
        return pd.DataFrame(rows, columns=columns, index=pd.Index(list(self.p), name="test"))

    def __repr__(self) -> str:
        table = self.table()
        shown = table[["power", "lower", "upper"]].map(lambda v: f"{100 * v:.1f} %")
        shown["bias"] = [f"{v:.3g}" for v in table["bias"]]
        lines = [f"Power at alpha = {self.alpha:g}, {len(self.p)} draws", shown.to_string()]
        lines.append(f"singular fits: {100 * self.share_singular:.1f} %; not converged: {self.n_failed}")
        return "\n".join([*lines, *self.notes])


def _limits(hits: int, n: int, level: float) -> tuple[float, float]:
    """Clopper and Pearson's limits of a share."""
    if n == 0:
        return np.nan, np.nan
    tail = 0.5 * (1.0 - level)
    lower = 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
    upper = 1.0 if hits == n else float(betaincinv(hits + 1, n - hits, 1.0 - tail))
    return lower, upper


@answered(METHOD_ARGUMENTS)
def power(
    model: FittedModel,
    tests: Any,
    *,
    n: int = 1000,
    alpha: float = 0.05,
    ddf: str | None = None,
    seed: Seed = None,
    params: Mapping[str, float] | None = None,
    threads: int | None = None,
) -> PowerResult:
    """Power of tests of a model's fixed effects, by simulation.

    Parameters
    ----------
    model : LmerResult or GlmerResult
        From `hypothetical`; or a fit, whose variances are then taken for the true ones.
    tests : str, Estimates, or list of them
        A coefficient's name (a t test); a term's (an F test); a hypothesis such as ``"slope = 0.2"``, of one row or
        several; `Estimates` of the model, tested as they are adjusted, with the power of any and of all of them; the
        formula of a smaller model (a likelihood-ratio test in the rows of the larger), whose left side may be left out.
        All are done on the same draws.
    n : int
        Draws.
    alpha : float
    ddf : {"satterthwaite", "kenward-roger", "normal", "residual", "fixed"}
        As in `coef_table`, draw by draw; "fixed" uses Kenward and Roger's degrees of freedom at the true parameters.
        "normal" rejects too often in small designs. Satterthwaite's where left out; a generalised model has Wald's z
        and chi-squared tests only, "normal".
    seed : int, sequence, SeedSequence or None
        The same draws whatever n and threads.
    params : mapping, optional
        Coefficients by name instead of the model's.
    threads : int, optional
        Fits side by side, of linear models.

    Returns
    -------
    PowerResult

    Raises
    ------
    ModelError, DataError, FormulaError
        A test cannot be done; before anything is drawn.

    Warns
    -----
    FastLMMWarning
        A fit's own estimates are taken for the truth: its power says no more than its p-values (Hoenig and Heisey
        2001).

    Examples
    --------
    >>> import pandas as pd
    >>> from fastlmm_core import hypothetical, power
    >>> design = pd.DataFrame([(s, "ab"[s % 2], t) for s in range(20) for t in range(4)],
    ...                       columns=["subject", "group", "time"])
    >>> model = hypothetical("y ~ group * time + (1 | subject)", design, params={"group[T.b]:time": 0.5},
    ...                      sd={"subject": 1.0}, sigma=1.0)
    >>> found = power(model, "group[T.b]:time", n=500, seed=1)
    >>> bool(0.6 < found.table().loc["group[T.b]:time", "power"] < 0.8)
    True
    """
    checked_count(n, "n")
    alpha = checked_level(alpha, "alpha")
    refuse_structures(model.design, "the power")
    refuse_without_rows(model.design, "the power")
    generalised = isinstance(model, GeneralisedModel)
    ddf = ("normal" if generalised else "satterthwaite") if ddf is None else ddf
    method = "fixed" if str(ddf).lower() == "fixed" else method_name(ddf)
    if generalised and method != "normal":
        raise ModelError(f"{method} degrees of freedom belong to linear models: a generalised one takes ddf='normal'")
    if method.startswith("kenward-roger") and not model.reml:
        raise ModelError("Kenward and Roger's method needs REML: leave reml=True")
    hypothetical = bool(getattr(model, "is_hypothetical", False))
    beta = _true_beta(model, params)
    if not hypothetical and params is None:
        warn(
            "the fit's own estimates are taken for the truth: such power says no more than the fit's p-values; give "
            "params=, or a model from hypothetical()",
            FastLMMWarning,
        )
    if not isinstance(tests, (str, Estimates, Iterable)):
        raise ModelError(f"tests are texts or Estimates, or a list of them, not {type(tests).__name__}")
    every = [read_test(model, test) for test in ([tests] if isinstance(tests, (str, Estimates)) else list(tests))]
    if not every:
        raise ModelError("tests is empty: name a coefficient, a term or a hypothesis")
    labels = [label for test in every for label in test.labels]
    if len(set(labels)) < len(labels):
        raise DataError(f"two tests have one name: {', '.join(labels)}")
    source, _ = recipe(model, params={"beta": beta})
    truth = true_values(every, beta[~np.isnan(model.core.beta)])
    if isinstance(model, GeneralisedModel):
        p, estimates, singular, failed = _simulate_generalised(model, source, every, n, seed)
    else:
        at_truth = ddf_method(model, "kenward-roger") if method == "fixed" else None
        p, estimates, singular, failed = _simulate(model, source, every, method, at_truth, n, seed, threads)
    frame = pd.DataFrame(p, columns=labels, index=pd.RangeIndex(1, n + 1, name="draw"))
    known = pd.DataFrame(estimates, columns=labels, index=frame.index)[[c for c in labels if c in truth]]
    if failed:
        warn(f"{failed} of {n} fits did not converge", ConvergenceWarning)
    notes = (f"degrees of freedom: {method}",)
    return PowerResult(frame, known, pd.Series(truth, dtype=float), alpha, singular, failed, notes)


def _true_beta(model: FittedModel, params: Mapping[str, float] | None) -> Array:
    beta = np.array(model.core.beta)
    names = list(model.design.x_names)
    for name, value in (params or {}).items():
        if name not in names:
            raise DataError(f"params names {name!r}, but the coefficients are {', '.join(names)}")
        beta[names.index(name)] = float(value)
    return beta


def _simulate(
    model: FittedModel,
    source: Recipe,
    tests: list[PowerTest],
    method: str,
    at_truth: Method | None,
    n: int,
    seed: Seed,
    threads: int | None,
) -> tuple[Array, Array, float, int]:
    """P-values and estimates (n, labels) of every draw, the share of singular fits, and how many did not converge."""
    width = sum(len(test.labels) for test in tests)
    p, estimates = np.full((n, width), np.nan), np.full((n, width), np.nan)
    singular = failed = at = 0
    streams = generators(seed, n)
    fitted = model_of(model.design, model.options)
    assert isinstance(fitted, Model)
    larger = _likelihoods(model, fitted) if any(test.smaller is not None for test in tests) else None
    beta_kept = ~np.isnan(model.core.beta)
    while batch := list(islice(streams, max(1, CHUNK_NUMBERS // len(source.mean)))):
        Y = draw_responses(source, batch)
        fits = fitted.fit_many(Y, start=model.core.theta, threads=threads, information=True)
        singular += int(fits.is_singular.sum())
        failed += int(np.count_nonzero(~fits.converged))
        here = slice(at, at + len(Y))
        at += len(Y)
        beta = fits.beta[:, beta_kept]
        answers = _one_by_one(model, Y, tests, method) if method.startswith("kenward-roger") else None
        criterion = None if larger is None else larger.fit_many(Y, start=model.core.theta, threads=threads).criterion
        first = 0
        for k, test in enumerate(tests):
            where = slice(first, first + len(test.labels))
            first = where.stop
            if test.smaller is not None:
                assert criterion is not None
                t = test.smaller(Y, threads) - criterion
                p[here, where.start] = chdtrc(test.df, np.maximum(0.0, t))
            elif answers is not None:
                p[here, where] = answers[k]
            elif test.estimates is not None:
                p[here, where] = _of_estimates(test.estimates, fits, beta, method, at_truth, model)
            else:
                p[here, where.start] = _of_rows(test, fits, beta, method, at_truth, model)
            estimates[here, where] = estimated(test, beta)
    return p, estimates, singular / n, failed


def _simulate_generalised(
    model: GeneralisedModel, source: Recipe, tests: list[PowerTest], n: int, seed: Seed
) -> tuple[Array, Array, float, int]:
    """`_simulate` of a generalised model: a fit and its Hessian a draw."""
    draw = drawer(model, source)
    p, estimates, singular, failed = [], [], 0, 0
    for stream in generators(seed, n):
        y = draw(stream)
        found = refitted(model, y)
        failed += found is None or not found.converged
        singular += found is not None and found.is_singular
        if found is None:
            p.append(np.full(sum(len(test.labels) for test in tests), np.nan))
            estimates.append(p[-1])
            continue
        answers = _answers(found.method, tests)
        for test, answer in zip(tests, answers, strict=True):
            if test.smaller is not None:
                t = test.smaller(y[None], None) - found.criterion
                answer[:] = chdtrc(test.df, np.maximum(0.0, t))
        p.append(np.concatenate(answers))
        estimates.append(np.concatenate([estimated(test, found.method.beta[None])[0] for test in tests]))
    return np.array(p), np.array(estimates), singular / n, failed


def _likelihoods(model: FittedModel, fitted: Model) -> Model:
    """The model by maximum likelihood."""
    if not fitted.reml:
        return fitted
    found = model_of(model.design, replace(model.options, reml=False))
    assert isinstance(found, Model)
    return found


def _degrees(
    fits: ManyFits, rows: Array, method: str, at_truth: Method | None, model: FittedModel
) -> tuple[Array, Array]:
    """Variances and degrees of freedom (k, c) of rows (c, rank), or of each fit's own (k, c, rank)."""
    assert fits.information is not None
    variance, df = fits.information.df(rows)
    if method == "satterthwaite":
        return variance, df
    if method == "fixed":
        assert at_truth is not None
        return variance, np.broadcast_to(at_truth.df(rows), variance.shape)
    value = np.inf if method == "normal" else float(model.core.n - model.core.rank)
    return variance, np.full(variance.shape, value)


def _of_estimates(
    e: Estimates, fits: ManyFits, beta: Array, method: str, at_truth: Method | None, model: FittedModel
) -> Array:
    """P-values (k, rows + 2) of estimates, and the smallest and largest of each draw."""
    rows = e.functions.rows
    variance, df = _degrees(fits, rows, method, at_truth, model)
    p = simulated_p(e, beta @ rows.T + e.offset, np.sqrt(variance), np.array(df))
    return p if len(e) == 1 else np.column_stack([p, p.min(axis=1), p.max(axis=1)])


def _of_rows(
    test: PowerTest, fits: ManyFits, beta: Array, method: str, at_truth: Method | None, model: FittedModel
) -> Array:
    """P-values (k,) of a t test, or of an F test with Fai and Cornelius' degrees of freedom."""
    rows, values = test.rows, test.values
    assert fits.information is not None
    difference = beta @ rows.T - values
    if len(rows) == 1:
        variance, df = _degrees(fits, rows, method, at_truth, model)
        with np.errstate(divide="ignore", invalid="ignore"):
            return t_pvalues((difference / np.sqrt(variance))[:, 0], df[:, 0])
    h = rows @ fits.information.half
    cov = h @ h.transpose(0, 2, 1)
    ok: NDArray[np.bool_] = np.all(np.isfinite(cov), axis=(1, 2))
    out = np.full(len(beta), np.nan)
    size, axes = np.linalg.eigh(np.where(ok[:, None, None], cov, np.eye(len(rows))))
    if (size[ok][:, 0] <= RANK**2 * size[ok][:, -1]).any():
        raise ModelError(f"the rows of {test.labels[0]!r} depend on one another: leave some out")
    turned = axes.transpose(0, 2, 1) @ rows
    along = np.einsum("kij,kj->ki", axes.transpose(0, 2, 1), difference)
    l = len(rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.sum(along**2 / size, axis=1) / l
    if method == "fixed":
        assert at_truth is not None
        joint = at_truth.f_test(rows, values if values.any() else None)
        den = np.full(len(beta), joint.den_df)
    else:
        den = _pooled(_degrees(fits, turned, method, None, model)[1])
    finite = np.isfinite(den)
    p = np.where(finite, fdtrc(l, np.where(finite, den, 1.0), statistic), chdtrc(l, l * statistic))
    out[ok] = p[ok]
    return out


def _pooled(df: Array) -> Array:
    """`ddf.pooled_df` of each row of (k, l)."""
    infinite = ~np.isfinite(df).any(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.sum(1.0 / (1.0 - 2.0 / df), axis=1)
        out = 2.0 * expected / (expected - df.shape[1])
    out = np.where((df <= 2.0).any(axis=1), 2.0, out)
    return np.where(infinite | (np.ptp(np.where(np.isfinite(df), df, 1e300), axis=1) < 1e-8), df.mean(axis=1), out)


def _one_by_one(model: FittedModel, Y: Array, tests: list[PowerTest], method: str) -> list[Array]:
    """P-values of each test, draw by draw through a refit and its method."""
    out = []
    for y in Y:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fits that do not converge are counted
            out.append(_answers(ddf_method(refit(model, y), method), tests))
    return [np.array(of_test) for of_test in zip(*out, strict=True)]


def _answers(found: Method, tests: list[PowerTest]) -> list[Array]:
    """P-values (labels,) of each test of one fit; NaN for likelihood ratios."""
    out = []
    for test in tests:
        p = np.full(len(test.labels), np.nan)
        if test.estimates is not None:
            e, rows = test.estimates, test.estimates.functions.rows
            se = np.sqrt(np.einsum("kx,xy,ky->k", rows, found.cov, rows))
            each = simulated_p(e, (rows @ found.beta + e.offset)[None], se[None], found.df(rows)[None])[0]
            p[:] = each if len(e) == 1 else np.r_[each, each.min(), each.max()]
        elif test.smaller is None:
            p[:] = found.f_test(test.rows, test.values if test.values.any() else None).p
        out.append(p)
    return out
