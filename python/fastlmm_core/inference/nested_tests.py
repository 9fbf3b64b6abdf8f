"""Tests of nested models by a parametric bootstrap: both models fitted to responses drawn from the smaller one.

Halekoh and Hojsgaard (2014), whose further p-values use the simulated moments of the statistic instead of its ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, fdtrc, gammaincc

from fastlmm_core.core import Model
from fastlmm_core.core.arguments import checked_count
from fastlmm_core.errors import ConvergenceWarning, ModelError, RankWarning, warn
from fastlmm_core.fitting.fit import model_of
from fastlmm_core.fitting.generalised import kept_glmm
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.fitting.options import n_theta
from fastlmm_core.fitting.spelling import METHOD_ARGUMENTS, answered
from fastlmm_core.inference.generalised.simulate import drawer
from fastlmm_core.inference.reductions import (
    Reduction,
    column_basis,
    linear_criteria,
    model_without,
    refuse_structures,
    refuse_without_rows,
)
from fastlmm_core.inference.refits import ml_fit
from fastlmm_core.inference.same_data import check_nested_families, same_criterion, same_data
from fastlmm_core.inference.simulate import Recipe, TermRecipe, draw_responses, generators, recipe

if TYPE_CHECKING:
    from fastlmm_core.core import CoreFit
    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.fitting.models import AnyModel
    from fastlmm_core.formula import Design, RandomDesign

__all__ = ["NestedTest", "bootstrap_reduction", "bootstrap_test", "tie_bound"]

Array = NDArray[np.float64]
Seed = int | Sequence[int] | np.random.SeedSequence | None
Criteria = Callable[[Array], tuple[Array, NDArray[np.bool_]]]
Draw = Callable[[Sequence[np.random.Generator]], Array]

CHUNK_NUMBERS = 1 << 22
"""Responses are drawn and fitted as many at a time as have this many values."""

TIE = 1e-8
"""A drawn statistic this close below the observed one counts as equal: both carry rounding errors."""


@dataclass(frozen=True, eq=False, repr=False)
class NestedTest:
    """A likelihood-ratio test of two nested models with a simulated null distribution.

    Attributes
    ----------
    lrt : float
        Difference of the criteria, not below 0.
    df : int
        Difference of the numbers of parameters.
    p_chi2 : float
        From chi-squared with `df` degrees of freedom; too large where a variance is tested, too small in small samples.
    p : float
        Share of the simulated statistics that are as large; the observed one counts as one of a bootstrap's.
    mcse : float
        Monte Carlo standard error of `p`.
    p_bartlett, p_gamma, p_f : float
        From chi-squared after Bartlett's correction, and from the gamma and F distributions with the simulated moments;
        NaN for an exact test.
    n : int
        Statistics simulated.
    n_failed : int
        Of these, draws to which a model could not be fitted; they are not in `p`.
    draws : ndarray (n - n_failed,)
        The simulated statistics.
    title : str
    notes : tuple of str
    kind : {"bootstrap", "exact"}
        Of the null distribution.
    """

    lrt: float
    df: int
    p_chi2: float
    p: float
    mcse: float
    p_bartlett: float
    p_gamma: float
    p_f: float
    n: int
    n_failed: int
    draws: Array
    title: str
    notes: tuple[str, ...] = field(default=())
    kind: str = "bootstrap"

    def __repr__(self) -> str:
        rows = [("chi-squared", self.lrt, f"{self.df}", self.p_chi2), (self.kind, self.lrt, "", self.p)]
        if np.isfinite(self.p_bartlett):
            mean = float(self.draws.mean())
            rows += [
                ("Bartlett", self.lrt * self.df / mean, f"{self.df}", self.p_bartlett),
                ("gamma", self.lrt, "", self.p_gamma),
                ("F", self.lrt / self.df, f"{self.df}", self.p_f),
            ]
        lines = [self.title, f"{'':12s}{'statistic':>10s}{'df':>4s}{'p':>10s}"]
        lines += [f"{name:12s}{value:>10.4f}{df:>4s}{_p_text(p):>10s}" for name, value, df, p in rows]
        lines.append(
            f"{self.n} draws, standard error of p {self.mcse:.1g}" + (f", {self.n_failed} failed" * bool(self.n_failed))
        )
        return "\n".join([*lines, *self.notes])


def _p_text(p: float) -> str:
    return "NA" if np.isnan(p) else "<.00001" if p < 1e-5 else f"{p:.5f}"


@answered(METHOD_ARGUMENTS)
def bootstrap_test(
    small: FittedModel,
    large: FittedModel,
    n: int = 1000,
    *,
    seed: Seed = None,
    stop: int | None = None,
    threads: int | None = None,
) -> NestedTest:
    """Test a model within a larger one by a parametric bootstrap of the likelihood ratio.

    Responses are drawn from the maximum-likelihood fit of the smaller model, and both models are fitted to each.

    Parameters
    ----------
    small, large : LmerResult or GlmerResult
        Fits of the same rows and response; REML fits are refitted by maximum likelihood.
    n : int
        Draws.
    seed : int, sequence, SeedSequence or None
        The same numbers whatever n and threads.
    stop : int, optional
        Stop once this many draws are as large as the observed statistic: the p-value is then their share among the
        draws made (Besag and Clifford 1991), as precise for a large p and much sooner.
    threads : int, optional
        Fits side by side, of linear models.

    Returns
    -------
    NestedTest

    Raises
    ------
    DataError
        Other rows, responses, weights or offsets.
    ModelError
        The models are not nested, or do not differ; likelihoods that are approximated in different ways.

    Warns
    -----
    ConvergenceWarning
        A model could not be fitted to some draws.

    Examples
    --------
    >>> from fastlmm_core import bootstrap_test, lmer, load_dataset
    >>> data = load_dataset("cake")
    >>> large = lmer("angle ~ recipe + temperature + (1 | recipe:replicate)", data)
    >>> small = lmer("angle ~ temperature + (1 | recipe:replicate)", data)
    >>> test = bootstrap_test(small, large, n=500, seed=1)
    >>> round(test.lrt, 3), test.df, bool(0.6 < test.p < 0.9)
    (0.53, 2, True)
    """
    checked_count(n, "n")
    if stop is not None:
        checked_count(stop, "stop")
    for design in (small.design, large.design):
        refuse_without_rows(design, "a bootstrap")
    if isinstance(small, GeneralisedModel) and isinstance(large, GeneralisedModel):
        return _of_generalised(small, large, n, seed, stop)
    if isinstance(small, GeneralisedModel) or isinstance(large, GeneralisedModel):
        raise ModelError("one model is lmer()'s and one glmer()'s: a bootstrap compares fits of one kind")
    check_nested(small, large)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)  # the fits' own warnings were given before
        s, l = ml_fit(small), ml_fit(large)
    observed = max(0.0, s.criterion - l.criterion)
    source, _ = recipe(s)
    criteria = [_criteria(model_of(f.design, f.options), moments(f.core), threads) for f in (s, l)]
    draws, failed, drawn = _draw(partial(draw_responses, source), criteria, observed, n, seed, stop, len(source.mean))
    notes = () if not (small.reml or large.reml) else ("REML fits were refitted by maximum likelihood",)
    title = f"Parametric bootstrap: {small.formula}  against  {large.formula}"
    return _summarised(observed, l.df_model - s.df_model, draws, drawn, failed, title, notes, stop)


def _of_generalised(
    small: GeneralisedModel, large: GeneralisedModel, n: int, seed: Seed, stop: int | None
) -> NestedTest:
    """`bootstrap_test` of generalised fits."""
    df = check_nested_generalised(small, large)
    draw = drawer(small)

    def together(streams: Sequence[np.random.Generator]) -> Array:
        return np.array([draw(stream) for stream in streams])

    observed = max(0.0, small.criterion - large.criterion)
    criteria = [_generalised_criteria(fit) for fit in (small, large)]
    draws, failed, drawn = _draw(together, criteria, observed, n, seed, stop, len(small.design.y))
    title = f"Parametric bootstrap: {small.formula}  against  {large.formula}"
    return _summarised(observed, df, draws, drawn, failed, title, (), stop)


def _generalised_criteria(fit: GeneralisedModel) -> Criteria:
    """As `_criteria`."""

    def fitted(Y: Array) -> tuple[Array, NDArray[np.bool_]]:
        fits = kept_glmm(fit).fit_many(Y, start=fit.core.again)
        return fits.criterion, fits.converged

    return fitted


def check_nested_generalised(small: GeneralisedModel, large: GeneralisedModel) -> int:
    """How many parameters fewer a fit has than one that contains it; errors as of `check_nested`."""
    if small.monte_carlo is not None or large.monte_carlo is not None:
        raise ModelError("likelihood ratios of draws are lost in the Monte Carlo error of the iterative engine")
    check_nested_families((small, large))
    same_data((small, large))
    same_criterion((small, large))
    check_within(small.design, large.design, small.formula, large.formula)
    if (part := small.options.zero) is not None:
        if large.options.zero is None:
            raise ModelError(
                f"the models are not nested: {small.formula!r} has a part for zeros, which the larger lacks"
            )
        check_within(part, large.options.zero, small.formula, large.formula)
    df = large.df_model - small.df_model
    refuse_fewer(df, small.formula, large.formula)
    return df


def _criteria(model: AnyModel, start: Array, threads: int | None) -> Criteria:
    """The criterion of a model fitted to each of many responses, and which fits converged."""
    assert isinstance(model, Model)  # `check_nested` has refused the others

    def fitted(Y: Array) -> tuple[Array, NDArray[np.bool_]]:
        fits = model.fit_many(Y, start=start, threads=threads)
        return fits.criterion, fits.converged

    return fitted


def _draw(
    draw: Draw, criteria: Sequence[Criteria], observed: float, n: int, seed: Seed, stop: int | None, n_rows: int
) -> tuple[Array, int, int]:
    """Statistics of responses drawn, how many failed, and how many were made."""
    small, large = criteria
    streams = generators(seed, n)
    size = max(1, CHUNK_NUMBERS // n_rows)
    if stop is not None:
        size = min(size, max(64, stop))
    blocks, failed, drawn, beyond = [], 0, 0, 0
    while batch := list(islice(streams, size)):
        Y = draw(batch)
        (c_small, ok_small), (c_large, ok_large) = small(Y), large(Y)
        ok = ok_small & ok_large & np.isfinite(c_small) & np.isfinite(c_large)
        t = np.maximum(0.0, c_small - c_large)
        if stop is not None:
            reached = np.flatnonzero(np.cumsum(ok & (t >= tie_bound(observed))) >= stop - beyond)
            if len(reached):
                ok, t = ok[: reached[0] + 1], t[: reached[0] + 1]
            beyond += int(np.count_nonzero(ok & (t >= tie_bound(observed))))
        blocks.append(t[ok])
        failed += int(np.count_nonzero(~ok))
        drawn += len(ok)
        if stop is not None and beyond >= stop:
            break
    if failed:
        warn(f"{failed} of {drawn} draws could not be fitted", ConvergenceWarning)
    return np.concatenate(blocks), failed, drawn


def moments(core: CoreFit) -> Array:
    """Moment estimates of theta for the fit's own response, where the fits of draws start."""
    with core.workspace() as objective:
        return np.array(objective.start)


def tie_bound(observed: float) -> float:
    """What a drawn statistic has to reach to count as large as the observed one."""
    return observed - TIE * max(1.0, observed)


def _summarised(
    observed: float,
    df: int,
    draws: Array,
    drawn: int,
    failed: int,
    title: str,
    notes: tuple[str, ...],
    stop: int | None = None,
) -> NestedTest:
    """P-values of a bootstrap from its statistics."""
    beyond, m = int(np.count_nonzero(draws >= tie_bound(observed))), len(draws)
    if m == 0:
        raise ModelError("no draw could be fitted by both models")
    sequential = stop is not None and beyond >= stop
    p = beyond / m if sequential else (beyond + 1) / (m + 1)
    mean, variance = float(draws.mean()), float(draws.var(ddof=1)) if m > 1 else np.nan
    p_bartlett = p_gamma = p_f = np.nan
    if mean > 0.0:
        p_bartlett = float(chdtrc(df, observed * df / mean))
        if variance > 0.0:
            p_gamma = float(gammaincc(mean**2 / variance, observed * mean / variance))
        excess = mean / df
        if excess > 1.0:  # the F distribution of that mean
            p_f = float(fdtrc(df, 2.0 * excess / (excess - 1.0), observed / df))
    return NestedTest(
        lrt=observed,
        df=df,
        p_chi2=float(chdtrc(df, observed)),
        p=p,
        mcse=float(np.sqrt(p * (1.0 - p) / m)),
        p_bartlett=p_bartlett,
        p_gamma=p_gamma,
        p_f=p_f,
        n=drawn,
        n_failed=failed,
        draws=draws,
        title=title,
        notes=notes,
    )


def bootstrap_reduction(
    result: FittedModel, reduction: Reduction, n: int = 1000, *, seed: Seed = None, threads: int | None = None
) -> NestedTest:
    """Test what a reduction takes from the random part, by the criterion of the fit (REML or ML).

    Responses are drawn from the smaller model's fit.
    """
    checked_count(n, "n")
    design, options = result.design, result.options
    larger = model_of(design, options)
    sd = np.ones(len(design.y)) if design.weights is None else 1.0 / np.sqrt(design.weights)
    offset = 0.0 if design.offset is None else design.offset
    smaller = model_without(result, reduction)
    if smaller is None:
        small, beta, sigma = linear_criteria(result)
        terms: tuple[TermRecipe, ...] = ()
        observed = float(small(design.y[None])[0][0])
    else:
        fit = smaller.fit(design.y)
        beta, sigma, observed = np.nan_to_num(fit.beta), fit.sigma, fit.criterion
        terms = tuple(
            TermRecipe(t.codes, t.z, int(t.codes.max()) + 1, sigma * L)
            for t, L in zip(reduction.terms, fit.L, strict=True)
        )
        small = _criteria(smaller, moments(fit), threads)
    source = Recipe(design.X @ beta + offset, terms, sigma * sd)
    large = _criteria(larger, moments(result.core), threads)
    lrt = max(0.0, observed - result.criterion)
    draws, failed, drawn = _draw(partial(draw_responses, source), (small, large), lrt, n, seed, None, len(source.mean))
    title = f"Parametric bootstrap: {reduction.label} of {result.formula}"
    return _summarised(lrt, reduction.df, draws, drawn, failed, title, ())


def check_nested(small: FittedModel, large: FittedModel) -> None:
    """DataError where two fits do not share their data, ModelError where one is not within the other."""
    one, other = small.design, large.design
    for design in (one, other):
        refuse_structures(design, "a bootstrap")
    same_data((small, large))
    check_nested_designs(one, other, small.formula, large.formula)


def check_nested_designs(small: Design, large: Design, name: str, other: str) -> int:
    """How many parameters fewer a design has than one that contains it; ModelError where it is not within the other."""
    df = check_within(small, large, name, other) + n_theta(large) - n_theta(small)
    refuse_fewer(df, name, other)
    return df


def refuse_fewer(df: int, name: str, other: str) -> None:
    """ModelError where the larger model does not have more parameters."""
    if df <= 0:
        raise ModelError(f"the larger model has to have more parameters: {other!r} has {-df} fewer than {name!r}")


def check_within(small: Design, large: Design, name: str, other: str) -> int:
    """How many columns more the larger fixed part has; ModelError where a design is not within the other."""
    q = column_basis(large.X)
    size = np.maximum(np.linalg.norm(small.X, axis=0), 1e-300)
    outside = np.linalg.norm(small.X - q @ (q.T @ small.X), axis=0) / size
    if (outside > 1e-7).any():
        names = ", ".join(small.x_names[j] for j in np.flatnonzero(outside > 1e-7)[:5])
        raise ModelError(f"the models are not nested: {names} of {name!r} is not in the fixed part of {other!r}")
    for term in small.random:
        if not _within(term, large):
            raise ModelError(
                f"the models are not nested: ({' + '.join(term.columns)} | {term.group}) of {name!r} is not among the "
                f"random terms of {other!r}"
            )
    return int(q.shape[1] - column_basis(small.X).shape[1])


def _within(term: RandomDesign, larger: Design) -> bool:
    """Whether a random term's columns are spanned by those of the larger model's terms on the same groups."""
    n = len(term.codes)
    columns = []
    for other in larger.random:
        if len(other.level_set) != len(term.level_set):
            continue
        name = np.full(len(term.level_set), -1, np.int64)
        name[term.codes] = other.codes
        if np.array_equal(name[term.codes], other.codes):
            columns.append(np.ones((n, 1)) if other.z is None else other.z)
    if not columns:
        return False
    mine = np.ones((n, 1)) if term.z is None else term.z
    q = column_basis(np.hstack(columns))
    return bool(np.linalg.norm(mine - q @ (q.T @ mine)) <= 1e-7 * np.linalg.norm(mine))
