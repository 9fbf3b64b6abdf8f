"""Counts with a part of their own for zeros: zero inflation and hurdles.

    zero inflation   P(y = 0) = pi + (1 - pi) f(0),   P(y) = (1 - pi) f(y)
    hurdle           P(y = 0) = pi,                   P(y) = (1 - pi) f(y | y > 0)

with logit pi = z'zeta + offset, f a family of counts and f(. | y > 0) its truncated sibling. The extra parameters are
zeta, then the counts' own, if any, then the covariance parameters of random effects of the log odds, if any: with these
a row has two linear predictors, and `joint_rows` has its derivatives in both. Lambert (1992), Technometrics 34; Mullahy
(1986), J. Econometrics 33.

An inflated zero has, with t = P(it is the counts' | y = 0) and the count's own l, s, w at zero,

    l = log(pi + (1 - pi) e^l),   s~ = t s,   w~ = t w - t(1 - t) s^2

which may be negative: such a row says that its mean is either small or does not matter. Steps towards the modes take
expected weights where M is not positive definite; the approximation at the modes has the observed ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from fastlmm_core._native.families.several import two_part_rows
from fastlmm_core.errors import ModelError
from fastlmm_core.families.exponential import Poisson
from fastlmm_core.families.family import Family
from fastlmm_core.families.overdispersed import NegativeBinomial, NegativeBinomial1
from fastlmm_core.families.truncated import (
    TruncatedNegativeBinomial,
    TruncatedNegativeBinomial1,
    TruncatedPoisson,
)
from fastlmm_core.families.vector import VectorFamily, VectorRows

__all__ = ["Hurdle", "TwoPart", "ZeroInflated"]

Array = NDArray[np.float64]

MOST_LOG_ODDS = 18.0
"""Size of a constant log odds beyond which there is no zero part, or nothing else."""

NEAR = 1e-3
"""Standard deviation below which it counts as zero here."""

STEP = 1e-6
"""Of differences of standard deviations and correlations in covariance parameters."""

STEPS = 8
"""Steps of the rough fits that a search starts from."""

FIRST_SD = 0.5
"""Standard deviation of the log odds' random effects to start from."""

RHOS = (-1.0, 0.0, 1.0, 2.0)
"""Values of the counts' own parameter to start from."""


@dataclass(frozen=True, init=False, eq=False)
class TwoPart(VectorFamily):
    """Base of `ZeroInflated` and `Hurdle`.

    Parameters
    ----------
    base : Family
        The counts.
    zero : (n, k), optional
        Columns of the zero part's linear predictor, one row a row of the data; a constant when left out.
    columns : sequence of str, optional
        Their names.
    offset : (n,), optional
        Known part of the log odds; of a fitted model with their random effects at the modes.
    effects : sequence of (str, sequence of str)
        The log odds' random effects: of each term its grouping factor and its columns by name. The terms themselves are
        the model's (``core.glmm.Model(zero_terms=)``).

    Raises
    ------
    ModelError
        A base that is not a count's, or whose own parameter is given; columns that depend on each other.
    """

    base: Family
    zero: Array | None
    columns: tuple[str, ...]
    offset: Array | None
    effects: tuple[tuple[str, tuple[str, ...]], ...]

    bases: ClassVar[tuple[type[Family], ...]]
    links = ("log",)

    def __init__(
        self,
        base: Family,
        zero: ArrayLike | None = None,
        columns: Sequence[str] | None = None,
        *,
        offset: ArrayLike | None = None,
        effects: Sequence[tuple[str, Sequence[str]]] = (),
    ) -> None:
        if type(base) not in self.bases or base.link.name != "log":
            known = ", ".join(repr(f.name) for f in self.bases)
            raise ModelError(
                f"a {self.kind} needs one of the families {known} with the log link, not {base.name!r} with the "
                f"{base.link.name} link"
            )
        if base.fixed_rho is not None:
            raise ModelError(f"a {self.kind} estimates {base.parameter}: leave it out")
        super().__init__(base.link)
        columns = ("Intercept",) if columns is None and zero is None else columns
        z = None if zero is None else np.array(zero, np.float64, order="C")
        if z is not None:
            if z.ndim != 2 or not np.isfinite(z).all():
                raise ModelError("the zero part's columns must be a finite array (n, k)")
            if np.linalg.matrix_rank(z / np.maximum(np.abs(z).max(axis=0, initial=0.0), 1e-300)) < z.shape[1]:
                raise ModelError("the columns of the zero part depend on each other: leave some out")
            columns = tuple(f"x{j}" for j in range(z.shape[1])) if columns is None else columns
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "zero", z)
        object.__setattr__(self, "columns", tuple(columns or ()))
        object.__setattr__(self, "offset", None if offset is None else np.array(offset, np.float64))
        object.__setattr__(self, "effects", tuple((group, tuple(names)) for group, names in effects))
        object.__setattr__(self, "name", f"{type(self).name}_{base.name.removeprefix('truncated_')}")

    kind: ClassVar[str]
    apart: ClassVar[bool]  # whether the counts have no zeros of their own

    def at(self, zero: Array | None, offset: Array | None) -> TwoPart:
        """The same family for other rows."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, zero=zero, offset=offset)
        return other

    def with_effects(self, effects: Sequence[tuple[str, tuple[str, ...]]]) -> TwoPart:
        """The same family with other random effects of the log odds."""
        other = self.at(self.zero, self.offset)
        other.__dict__.update(effects=tuple(effects))
        return other

    @property
    def names(self) -> tuple[str, ...]:
        """zi.Intercept, ..., the counts' own parameter, and zi.sd_... of the random effects."""
        own = () if self.base.parameter is None else (self.base.parameter,)
        return (*(f"zi.{name}" for name in self.columns), *own, *(f"zi.{name}" for name in self.effect_names))

    @property
    def effect_names(self) -> tuple[str, ...]:
        """sd_Intercept|g, cor_x.Intercept|g, sd_x|g: of each term the lower triangle column by column."""
        found = []
        for group, columns in self.effects:
            for j, column in enumerate(columns):
                found.append(f"sd_{column}|{group}")
                found += [f"cor_{other}.{column}|{group}" for other in columns[j + 1 :]]
        return tuple(found)

    @property
    def logs(self) -> tuple[bool, ...]:
        """The counts' own parameter is a logarithm."""
        own = (True,) * self.base.n_extra
        return (*(False for _ in self.columns), *own, *(False for _ in self.effect_names))

    @property
    def rho_range(self) -> Any:  # type: ignore[override]
        """The counts' own parameter has a range; a constant log odds has one, too."""
        k = len(self.columns)
        low, high = np.full(self.n_extra, -np.inf), np.full(self.n_extra, np.inf)
        if k == 1 and not self.effects:
            low[0], high[0] = -MOST_LOG_ODDS, MOST_LOG_ODDS
        own = slice(k, k + self.base.n_extra)
        low[own], high[own] = self.base.rho_range
        return low, high

    def naturals(self, rho: Any) -> Array:
        """Zeta, the counts' own parameter as users know it, standard deviations and correlations."""
        zeta, own = self.split(rho)
        natural = [self.base.natural(own)] if self.base.n_extra else []
        sizes: list[float] = []
        for factor in self.zero_factors(rho):
            size = np.sqrt((factor**2).sum(axis=1))
            with np.errstate(invalid="ignore", divide="ignore"):
                unit = factor / size[:, None]
            for j in range(len(factor)):
                sizes += [size[j], *(unit[j + 1 :] @ unit[j])]
        return np.array([*zeta, *natural, *sizes])

    def natural_slopes(self, rho: Any) -> Array:
        """Their derivatives."""
        zeta, own = self.split(rho)
        slope = [self.base.natural_slope(own)] if self.base.n_extra else []
        return np.array([*np.ones(len(zeta)), *slope, *np.ones(len(self.effect_names))])

    def natural_jacobian(self, rho: Any) -> Array:
        """Their derivatives in all of rho; those of standard deviations and correlations by differences.

        NaN in the rows of those at a limit, where they say nothing.
        """
        out = np.diag(self.natural_slopes(rho))
        first = self.n_extra - len(self.effect_names)
        for k in range(first, self.n_extra):
            ends = [self.naturals(rho + sign * STEP * np.eye(self.n_extra)[k])[first:] for sign in (1.0, -1.0)]
            out[first:, k] = (ends[0] - ends[1]) / (2.0 * STEP)
        found, cor = self.naturals(rho)[first:], [name.startswith("cor_") for name in self.effect_names]
        out[first:][np.where(cor, np.abs(found) > 1.0 - NEAR**2, np.abs(found) < NEAR)] = np.nan
        return out

    def at_limit(self, rho: Any) -> bool:
        """Whether the counts' own parameter is at its limit."""
        return bool(self.base.n_extra) and self.base.at_limit(self.split(rho)[1])

    def split(self, rho: Any) -> tuple[Array, float]:
        """Zeta, and the counts' rho."""
        k = len(self.columns)
        return rho[:k], float(rho[k]) if self.base.n_extra else 0.0

    def zero_theta(self, rho: Any) -> Array:
        """Covariance parameters of the log odds' random effects."""
        return np.asarray(rho[len(self.columns) + self.base.n_extra :])

    def zero_factors(self, rho: Any) -> list[Array]:
        """Their covariance factor (l, l) of each term."""
        theta, at, out = self.zero_theta(rho), 0, []
        for _, columns in self.effects:
            l = len(columns)
            factor = np.zeros((l, l))
            for j in range(l):
                factor[j:, j] = theta[at : at + l - j]
                at += l - j
            out.append(factor)
        return out

    def log_odds(self, rho: Any) -> Array:
        """Logit pi of each row (n,), or of all (1,)."""
        zeta, _ = self.split(rho)
        odds = np.asarray(zeta if self.zero is None else self.zero @ zeta)
        return odds if self.offset is None else odds + self.offset

    def zero_probability(self, rho: Any) -> Array:
        """The probability pi of each row, the share of zeros that are not the counts' own."""
        return np.asarray(expit(self.log_odds(rho)))

    # ------------------------------------------------------------------ rows

    def vector_rows(self, y: Array, eta: Array, m: Array, rho: Any, threads: int = 1) -> VectorRows:
        """Derivatives of rows, see `VectorFamily.vector_rows`."""
        n, k = len(y), len(self.columns)
        columns = np.ones((n, 1)) if self.zero is None else self.zero
        _, own = self.split(rho)
        odds = np.ascontiguousarray(np.broadcast_to(self.log_odds(rho), y.shape))
        o = two_part_rows(self.base.code, self.link.code, self.apart, y, eta, odds, own, threads)
        o *= m
        l, s, w, we, slope, l_rho, l_rho_rho, s_rho, w_rho, l_z, l_zz, s_z, w_z, l_z_rho = o[:14]
        r = self.n_extra
        lr, lrr, sr, wr = np.zeros(r), np.zeros((r, r)), np.zeros((r, n)), np.zeros((r, n))
        lr[:k], lrr[:k, :k] = columns.T @ l_z, (columns.T * l_zz) @ columns
        sr[:k], wr[:k] = columns.T * s_z, columns.T * w_z
        if self.base.n_extra:
            lr[k], lrr[k, k], sr[k], wr[k] = l_rho.sum(), l_rho_rho.sum(), s_rho, w_rho
            lrr[:k, k] = lrr[k, :k] = columns.T @ l_z_rho
        return VectorRows(l, s, w, slope, we, lr, lrr, sr, wr)

    def joint_rows(self, y: Array, eta: Array, odds: Array, own: float, threads: int = 1) -> Array:
        """Derivatives (18, n) of rows in both linear predictors and the counts' own parameter, see `two_part_rows`."""
        return two_part_rows(self.base.code, self.link.code, self.apart, y, eta, odds, own, threads)

    def constant(self, y: Array, m: Array, freq: Array, rho: Any) -> tuple[float, Any, Any]:
        """That of the positive counts."""
        seen = y > 0.0
        k = len(self.columns)
        _, own = self.split(rho)
        total, first, second = self.base.constant(y[seen], m[seen], freq[seen] if len(freq) else freq, own)
        lr, lrr = np.zeros(self.n_extra), np.zeros((self.n_extra, self.n_extra))
        if self.base.n_extra:
            lr[k], lrr[k, k] = first, second
        return total, lr, lrr

    # ------------------------------------------------------------------ moments

    def response_mean(self, mu: Array, rho: Any) -> Array:
        """Mean of a count, zeros of both kinds included."""
        return (1.0 - self.zero_probability(rho)) * self.conditional_mean(mu, rho)

    def conditional_mean(self, mu: Array, rho: Any) -> Array:
        """Mean of a count that is not one of the zero part's zeros."""
        return self.base.response_mean(mu, self.split(rho)[1])

    def variance(self, mu: Array, m: Array, rho: Any) -> Array:
        """Variance of a response, see `Family.variance`."""
        p, mean = self.zero_probability(rho), self.conditional_mean(mu, rho)
        own = self.base.variance(mu, np.ones_like(mu), self.split(rho)[1])
        return np.asarray((1.0 - p) * (own + p * mean**2) / m)

    def simulate(self, rng: np.random.Generator, mu: Array, m: Array, rho: Any) -> Array:
        """A response drawn for each row."""
        counts = self.base.simulate(rng, mu, m, self.split(rho)[1])
        return np.where(rng.random(len(mu)) < self.zero_probability(rho), 0.0, counts)

    # ------------------------------------------------------------------ data and starts

    def check(self, y: Array, m: Array) -> None:
        """Refuse responses outside the support (DataError), and those without any zero (ModelError)."""
        self.refuse(~((y >= 0) & (y == np.rint(y))), f"{self.name} responses must be whole numbers, not negative")
        if not (y == 0.0).any():
            raise ModelError(f"none of the {len(y)} counts is zero: there is nothing to estimate a zero part from")
        if not (y > 0.0).any():
            raise ModelError("every response is 0: there is no variation to model")
        for given in (self.zero, self.offset):
            if given is not None and len(given) != len(y):
                raise ModelError(f"the zero part has {len(given)} rows, but there are {len(y)} responses")

    def initial_mean(self, y: Array, m: Array) -> Array:
        """Means to start from: of zeros that of all."""
        return np.where(y > 0.0, y, max(float(y.mean()), 0.1))

    def first_rho(self, y: Array, m: Array) -> Array:
        """Part of the zeros, and the counts' own parameter in the middle of what is likely."""
        zeta = self.logistic(self.weight_of_zero * (y == 0.0), m)
        return np.array([*zeta, *([0.0] * self.base.n_extra), *self.first_theta()])

    def first_theta(self) -> Array:
        """Covariance parameters to start from: independent effects of a middling size."""
        return np.array([FIRST_SD if name.startswith("sd_") else 0.0 for name in self.effect_names])

    weight_of_zero: ClassVar[float] = 1.0

    def logistic(self, share: Array, m: Array) -> Array:
        """Coefficients of a rough logistic regression of shares in [0, 1] on the zero part's columns."""
        x = np.ones((len(share), 1)) if self.zero is None else self.zero
        known = np.zeros(len(share)) if self.offset is None else self.offset
        z = np.full(len(share), logit(np.clip(np.average(share, weights=m), 0.02, 0.98)))
        zeta = np.zeros(x.shape[1])
        for _ in range(STEPS):
            p = expit(z)
            w = np.maximum(m * p * (1.0 - p), 1e-6)
            gram = (x.T * w) @ x
            gram[np.diag_indices(len(gram))] *= 1.0 + 1e-6
            zeta = np.linalg.solve(gram, x.T @ (w * (np.clip(z, -6.0, 6.0) - known) + m * (share - p)))
            z = x @ zeta + known
        return zeta


@dataclass(frozen=True, init=False, eq=False)
class Hurdle(TwoPart):
    """Zeros, and counts above zero, each with a part of the parameters: two independent likelihoods.

    Parameters
    ----------
    base : TruncatedPoisson, TruncatedNegativeBinomial or TruncatedNegativeBinomial1
    zero, columns, offset, effects
        As in `TwoPart`.
    """

    name = "hurdle"
    bases = (TruncatedPoisson, TruncatedNegativeBinomial, TruncatedNegativeBinomial1)
    kind = "hurdle model"
    apart = True

    @property
    def one_mode(self) -> bool:
        """As of the positive counts: the zeros' own part is a logistic regression."""
        return self.base.one_mode

    def start_rho(self, y: Array, mu: Array, m: Array, rank: int) -> Any:
        """A logistic regression of the zeros, and the likeliest of some values of the counts' own parameter."""
        seen = y > 0.0
        own = [self.base.start_rho(y[seen], mu[seen], m[seen], rank)] if self.base.n_extra else []
        return np.array([*self.logistic((y == 0.0) * 1.0, m), *own, *self.first_theta()])


@dataclass(frozen=True, init=False, eq=False)
class ZeroInflated(TwoPart):
    """Counts with more zeros than their own.

    Parameters
    ----------
    base : Poisson, NegativeBinomial or NegativeBinomial1
    zero, columns, offset, effects
        As in `TwoPart`.
    """

    name = "zero_inflated"
    bases = (Poisson, NegativeBinomial, NegativeBinomial1)
    kind = "zero-inflated model"
    apart = False
    weight_of_zero = 0.5

    def start_rho(self, y: Array, mu: Array, m: Array, rank: int) -> Any:
        """Some steps of Lambert's EM algorithm for zeta at some values of the counts' own parameter."""
        eta, at = np.log(mu), y == 0.0
        best, found = -np.inf, self.first_rho(y, m)
        for own in RHOS if self.base.n_extra else (0.0,):
            zeta = self.first_rho(y, m)[: len(self.columns)]
            rho = np.array([*zeta, *([own] if self.base.n_extra else []), *self.first_theta()])
            zeros = np.exp(self.base.row(np.zeros(int(at.sum())), eta[at], np.ones(int(at.sum())), own).l)
            for _ in range(STEPS):
                p = np.broadcast_to(self.zero_probability(rho), y.shape)[at]
                share = np.zeros(len(y))
                share[at] = p / (p + (1.0 - p) * zeros)
                rho[: len(zeta)] = self.logistic(share, m)
            value = float(self.row(y, eta, m, rho).l.sum()) + self.constant(y, m, np.empty(0), rho)[0]
            if value > best:
                best, found = value, rho.copy()
        return found
