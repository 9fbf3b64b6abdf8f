"""Denominator degrees of freedom: one object a method, each answering for single rows and for several at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, fdtrc, ndtr, stdtr

from fastlmm_core.core import CoreFit
from fastlmm_core.core.conditioning import independent_columns, qr_triangle
from fastlmm_core.core.slopes import contrast_df
from fastlmm_core.errors import FastLMMWarning, ModelError, no_such, warn
from fastlmm_core.inference.information import VarianceInformation, variance_information
from fastlmm_core.inference.kenward_roger import Adjustment, adjustment, scaled_f
from fastlmm_core.inference.refits import reml_fit
from fastlmm_core.records import quick

if TYPE_CHECKING:
    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["METHODS", "Ddf", "FTest", "Method", "ddf_method", "f_pvalue", "method_name", "t_pvalues"]

Array = NDArray[np.float64]
Ddf = Literal["satterthwaite", "kenward-roger", "kenward-roger-linear", "residual", "normal"]

METHODS = ("satterthwaite", "kenward-roger", "kenward-roger-linear", "residual", "normal")

CERTAIN = 1e-13
"""Smallest eigenvalue of the correlation matrix of independent rows at which their test has digits."""

LEAST_DF = 1e-8
"""Denominator degrees of freedom below which a test has no distribution; rounding leaves some where there are none."""

PLAIN = 1e-10
"""Smallest ratio of eigenvalues at which the rows' covariance is taken apart in their own units."""


@dataclass(frozen=True)
class FTest:
    """A test of several linear hypotheses at once.

    Attributes
    ----------
    F : float
        Statistic, on `num_df` and `den_df` degrees of freedom.
    num_df : int
        Independent rows of the hypothesis.
    den_df : float
        Infinite for the chi-squared limit.
    p : float
    sum_sq : float
        Residual variance times `num_df` times the unscaled statistic, as lmerTest reports it.
    notes : tuple of str
        Why there is no answer, and how far the degrees of freedom can be trusted.
    """

    F: float
    num_df: int
    den_df: float
    p: float
    sum_sq: float
    notes: tuple[str, ...] = ()

    @property
    def mean_sq(self) -> float:
        """`sum_sq` over `num_df`."""
        return self.sum_sq / self.num_df if self.num_df else np.nan

    def __repr__(self) -> str:
        notes = "".join(f"; {note}" for note in self.notes)
        return f"<FTest: F = {self.F:.4g} on {self.num_df} and {self.den_df:.4g} df, p = {self.p:.4g}{notes}>"

    @classmethod
    def impossible(cls, num_df: int, *notes: str) -> FTest:
        """No test, for the reasons given."""
        return cls(np.nan, num_df, np.nan, np.nan, np.nan, notes)


@dataclass(frozen=True, eq=False)
class Method(ABC):
    """A method for one fit: the covariance of the estimates, and degrees of freedom of what is estimated.

    Attributes
    ----------
    name : str
    beta : (rank,)
        Estimated coefficients; dropped columns are left out throughout.
    cov : (rank, rank)
        Their covariance as the method has it.
    sigma : float
    notes : tuple of str
    determined : callable, optional
        `CoreFit.determined`, where the criterion does not depend on some parameters that variances do depend on.
    """

    name: str
    beta: Array
    cov: Array
    sigma: float
    notes: tuple[str, ...] = ()
    determined: Callable[[Array], NDArray[np.bool_]] | None = field(default=None, kw_only=True)

    def variances(self, rows: Array) -> Array:
        """Variances (k,) of rows (k, rank) times beta; NaN where they depend on what the criterion cannot see."""
        out = ((rows @ self.cov) * rows).sum(axis=1)
        if self.determined is not None:
            out[~self.determined(rows)] = np.nan
        return np.asarray(out)

    @abstractmethod
    def df(self, rows: Array) -> Array:
        """Degrees of freedom (k,) of each row (k, rank) on its own."""

    @abstractmethod
    def joint(self, rows: Array, values: Array) -> tuple[float, float]:
        """Degrees of freedom and scale of the F statistic of independent rows (l, rank), orthogonal under `cov`.

        `values` (l,) are the rows' variances.
        """

    def f_test(self, rows: Array, values: Array | None = None) -> FTest:
        """Test rows (k, rank) times beta against `values` (k,), zero by default.

        Rows that are combinations of earlier ones are left out first: they test nothing of their own.
        """
        values = np.zeros(len(rows)) if values is None else values
        if self.determined is not None and not self.determined(rows).all():
            return FTest.impossible(int(np.linalg.matrix_rank(rows)), UNIDENTIFIED_NOTE)
        keep = independent_rows(rows, np.sqrt(np.diagonal(self.cov)))
        check_consistent(rows, values, keep)
        rows, n = rows[keep], len(keep)
        difference = rows @ self.beta - values[keep]
        if n == 0:
            return FTest.impossible(0)
        v = rows @ self.cov @ rows.T
        scale = np.sqrt(np.diag(v))
        d, vectors = np.linalg.eigh(v / np.outer(scale, scale))
        if d[0] < CERTAIN:
            return FTest.impossible(n, "the rows cannot be told apart to a double's precision: centre the covariates")
        plain, plain_vectors = np.linalg.eigh(v)
        if plain[0] > PLAIN * plain[-1]:
            # lmerTest's orthogonal rows: Fai and Cornelius' degrees of freedom depend on how they are chosen
            d, turned, difference = plain, plain_vectors.T @ rows, plain_vectors.T @ difference
        else:
            mixed = vectors.T / scale
            turned, difference = mixed @ rows, mixed @ difference
        wald = float(np.sum(difference**2 / d)) / n
        den_df, factor = self.joint(turned, d)
        if den_df < LEAST_DF:
            return FTest.impossible(n, "there are no degrees of freedom left for the denominator")
        statistic = wald * factor
        return FTest(statistic, n, den_df, f_pvalue(statistic, n, den_df), wald * n * self.sigma**2)


def independent_rows(rows: Array, se: Array) -> NDArray[np.int64]:
    """Rows (k, rank) that are no combinations of earlier ones, coefficients in units of their standard errors."""
    return independent_columns(qr_triangle((rows * se).T))


def check_consistent(rows: Array, values: Array, keep: NDArray[np.int64]) -> None:
    """ModelError where a row that follows from those kept has a value that does not."""
    rest = np.setdiff1d(np.arange(len(rows)), keep)
    if not len(rest) or not np.any(values):
        return
    mix = np.linalg.lstsq(rows[keep].T, rows[rest].T, rcond=None)[0]
    size = np.abs(values[rest]) + np.abs(mix).T @ np.abs(values[keep])
    if (np.abs(mix.T @ values[keep] - values[rest]) > 1e-6 * size).any():
        raise ModelError("the hypotheses contradict one another: some rows are combinations of others")


@dataclass(frozen=True, eq=False)
class FixedDf(Method):
    """The same degrees of freedom for everything: residual, or infinite."""

    value: float = np.inf

    def df(self, rows: Array) -> Array:
        return np.full(len(rows), self.value)

    def joint(self, rows: Array, values: Array) -> tuple[float, float]:
        return self.value, 1.0


@quick
@dataclass(frozen=True, eq=False)
class Satterthwaite(Method):
    """Giesbrecht and Burns (1985) for single rows, Fai and Cornelius (1996) for several, as lmerTest."""

    information: VarianceInformation | None = None

    def df(self, rows: Array) -> Array:
        info = self.information
        assert info is not None
        return contrast_df(np.asarray(rows, np.float64), info.half, info.slopes, info.cov)

    def joint(self, rows: Array, values: Array) -> tuple[float, float]:
        return pooled_df(self.df(rows)), 1.0


@dataclass(frozen=True, eq=False)
class KenwardRoger(Method):
    """Kenward and Roger (1997)."""

    adjusted: Adjustment | None = None

    def df(self, rows: Array) -> Array:
        assert self.adjusted is not None
        return np.array([scaled_f(self.adjusted, row[None])[0] if row.any() else np.nan for row in rows])

    def joint(self, rows: Array, values: Array) -> tuple[float, float]:
        assert self.adjusted is not None
        return scaled_f(self.adjusted, rows)


def pooled_df(df: Array) -> float:
    """Degrees of freedom of an F statistic that averages squared t statistics on `df` degrees of freedom.

    Fai and Cornelius (1996): the F distribution with the same mean, E = sum df / (df - 2); 2 where there is no mean.
    """
    if not np.isfinite(df).any() or np.ptp(df) < 1e-8:
        return float(df.mean())
    if (df <= 2.0).any():
        return 2.0
    expected = float(np.sum(1.0 / (1.0 - 2.0 / df)))
    return 2.0 * expected / (expected - len(df))


SPELLINGS = {"kr": "kenward-roger", "kenwardroger": "kenward-roger", "satt": "satterthwaite", "z": "normal"}


def method_name(ddf: str) -> str:
    """The name of a method, whatever its case, of "kenward-roger", "Kenward_Roger", "KR"; ModelError for another."""
    if isinstance(ddf, str) and ddf in METHODS:
        return ddf
    name = str(ddf).strip().lower().replace("_", "-").replace(" ", "-")
    name = SPELLINGS.get(name, name)
    if name not in METHODS:
        raise ModelError(no_such("ddf", ddf, METHODS))
    return name


def ddf_method(result: FittedModel, ddf: str) -> Method:
    """The method named `ddf` for one fit.

    Parameters
    ----------
    result : FittedModel
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}

    Warns
    -----
    FastLMMWarning
        Kenward-Roger asked of a maximum-likelihood fit, which is refitted by REML.
    """
    name = method_name(ddf)
    if name.startswith("kenward-roger") and not result.reml:
        warn(
            "Kenward-Roger is defined for REML: the model was refitted by REML for its standard errors and degrees of "
            "freedom",
            FastLMMWarning,
        )
        result = reml_fit(result)
    core = result.core
    beta, cov = core.beta, core.known_cov
    if core.rank < len(beta):
        kept = ~np.isnan(beta)
        beta, cov = beta[kept], cov[np.ix_(kept, kept)]
    notes = () if not core.is_singular else (SINGULAR_NOTES.get(name, ""),)
    determined = None
    if core.unidentified is not None and core.unidentified.basis.size:
        determined = core.determined
        notes = (*notes, UNIDENTIFIED_NOTE)
    if name == "satterthwaite":
        return Satterthwaite(name, beta, cov, core.sigma, notes, information_of(core), determined=determined)
    if name.startswith("kenward-roger"):
        # of an ordinary model V is linear in its parameters: both forms are one
        adjusted = adjustment_of(core, linear=name.endswith("linear"))
        return KenwardRoger(name, beta, adjusted.cov, core.sigma, notes, adjusted, determined=determined)
    notes = notes[1:] if core.is_singular else notes
    value = np.inf if name == "normal" else float(core.n - core.rank)
    return FixedDf(name, beta, cov, core.sigma, notes, value, determined=determined)


def information_of(core: CoreFit) -> VarianceInformation:
    """Information on the covariance parameters of any fit; kept with it."""
    if type(core) is CoreFit:
        return variance_information(core)
    if not isinstance(core, CoreFit):  # a fit that was saved without its rows
        kept: VarianceInformation = core.information
        return kept
    from fastlmm_core.inference import structured  # what most fits do without

    return structured.information_of(core)


def adjustment_of(core: CoreFit, *, linear: bool) -> Adjustment:
    """Kenward and Roger's adjustment of any REML fit; ModelError where there is none."""
    if type(core) is CoreFit:
        return adjustment(core)
    from fastlmm_core.inference import structured

    return structured.adjustment_of(core, linear=linear)


UNIDENTIFIED_NOTE = "NaN: depends on a variance that the criterion cannot see"

SINGULAR_NOTES = {
    "satterthwaite": "degrees of freedom: the fit is singular; parameters on the boundary count as known",
    "kenward-roger-linear": "degrees of freedom: the fit is singular; information is the observed one",
    "kenward-roger": "degrees of freedom: the fit is singular; information is the expected one at the boundary",
}


def t_pvalues(t: Array, df: Array) -> Array:
    """Two-sided p-values of t statistics; the normal distribution's where df is infinite."""
    if all(map(isfinite, df.ravel().tolist())):
        return np.asarray(2.0 * stdtr(df, -np.abs(t)))
    finite = np.isfinite(df)
    return np.asarray(2.0 * np.where(finite, stdtr(np.where(finite, df, 1.0), -np.abs(t)), ndtr(-np.abs(t))))


def f_pvalue(statistic: float, num_df: int, den_df: float) -> float:
    """Upper tail of the F distribution; of chi-squared over `num_df` where `den_df` is infinite."""
    if np.isinf(den_df):
        return float(chdtrc(num_df, num_df * statistic))
    return float(fdtrc(num_df, den_df, statistic))
