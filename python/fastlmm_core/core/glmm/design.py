"""A generalised mixed model without its response: checked arrays in conditioned coordinates, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core._native.rows.crossprod import level_blocks, level_sums
from fastlmm_core.core.arguments import as_floats, as_response, check_finite
from fastlmm_core.core.conditioning import condition_columns
from fastlmm_core.core.crossprod import DesignProducts, group_columns, identified
from fastlmm_core.core.identifiability import Unidentified
from fastlmm_core.core.terms import Term, check_design, group_terms
from fastlmm_core.core.theta import theta_map
from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.families import Family, TwoPart
from fastlmm_core.lazy import cached_property

__all__ = ["GlmmDesign"]

Array = NDArray[np.float64]


class GlmmDesign:
    """What a fit owes to X, the terms and what is known of each row.

    Parameters are psi = (theta, gamma, rho): conditioned covariance parameters; coefficients of columns that are
    orthogonal with a mean square of one, so that a step in either is one of the linear predictor; the logarithm of the
    family's extra parameter, if that is estimated.

    Parameters
    ----------
    X : (n, p) or None
    terms : sequence of Term
    family : Family
    weights, trials, freq_weights, offset : (n,), optional
    zero_terms : sequence of Term
        As in `core.glmm.Model`.

    Raises
    ------
    DataError, ModelError
        See `check_design`.
    """

    def __init__(
        self,
        X: ArrayLike | None,
        terms: Sequence[Term],
        family: Family,
        *,
        weights: ArrayLike | None = None,
        trials: ArrayLike | None = None,
        freq_weights: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        zero_terms: Sequence[Term] = (),
    ) -> None:
        self.X, w, shift = check_design(X, terms, weights, offset)
        self.terms, self.family = tuple(terms), family
        self.zero_terms = checked_zero_terms(zero_terms, family, len(self.X))
        self.n = n = len(self.X)
        # copies: what is read off a fit later must not move with the caller's arrays
        self.offset = np.zeros(n) if shift is None else shift.copy()
        if trials is not None:
            if family.name != "binomial":
                raise ModelError(f"trials belong to the binomial family, not to {family.name}")
            if w is not None:
                raise ModelError("give trials or weights, not both: a binomial row's weight is its number of trials")
            w = as_floats(trials, "trials")
            if w.shape != (n,):
                raise DataError(f"trials has shape {w.shape}, but there are {n} observations")
        self.m = np.ones(n) if w is None else w.copy()
        self.freq = np.empty(0)
        if freq_weights is not None:
            self.freq = as_floats(freq_weights, "freq_weights").copy()
            if self.freq.shape != (n,):
                raise DataError(f"freq_weights has shape {self.freq.shape}, but there are {n} observations")
            if (self.freq < 0).any():
                raise DataError(f"freq_weights must not be negative: {int((self.freq < 0).sum())} of {n} are")
        columns = self.X
        if family.no_intercept:  # the family's parameters have its place, and move with the columns' means
            self.centre = columns.mean(axis=0)
            columns = columns - self.centre
        self.keep, r, *_ = condition_columns(columns, None)
        self.rank = len(self.keep)
        if n <= self.rank:
            raise ModelError(f"{n} observations cannot determine {self.rank} fixed effects")
        self.to_beta = np.linalg.inv(r) * np.sqrt(n)  # beta[keep] = to_beta gamma
        self.from_beta = r / np.sqrt(n)
        self.columns = np.ascontiguousarray(columns[:, self.keep] @ self.to_beta)
        self.groups = group_terms(terms)
        self.transforms: tuple[Array, ...] = (np.eye(1),)
        self.unidentified: Unidentified | None = None
        if len(terms) == 1 and terms[0].z is None:
            self.theta_map = theta_map(terms, self.groups, self.transforms, 1.0)
        else:  # the linear predictor's covariance Z D Z' may be the same for several D
            self.transforms, self.theta_map = self.products.transforms, self.products.theta_map
            self.unidentified = self.products.unidentified
        self.codes = [terms[group.terms[0]].codes for group in self.groups]
        self.z = [group_columns(group, terms, self.transforms, n) for group in self.groups]
        self.n_theta = len(self.theta_map.index)
        self.n_free = self.n_theta + self.rank + family.n_extra

    @cached_property
    def products(self) -> DesignProducts:
        """Which levels occur together, for the linear model's layout; what no response can tell is held at zero."""
        return identified(lambda held: DesignProducts(None, self.terms, held=held), False, noise=False)

    @cached_property
    def free(self) -> NDArray[np.intp]:
        """Places of psi that are not held at zero."""
        held = self.theta_map.held
        every = np.arange(self.n_free)
        return every if held is None else np.setdiff1d(every, held)

    @property
    def counts(self) -> Array:
        """(n,) how often each row counts."""
        return self.freq if len(self.freq) else np.ones(self.n)

    def response(self, y: ArrayLike) -> Array:
        """A checked response (n,), a copy.

        Raises
        ------
        DataError
            Not n finite numbers in the family's support.
        ModelError
            It is constant where that leaves nothing to estimate.
        """
        out = as_response(y, self.n).copy()
        check_finite(out, "y")
        self.family.check(out, self.m)
        share = self.family.saturated(out, self.m)
        if share.max() == share.min() and self.family.link.name != "identity":
            bound = float(share[0])
            if bound == 0.0 or (bound == 1.0 and self.family.name == "binomial"):
                raise ModelError(f"every response is {bound:g}: there is no variation to model")
        return out

    # ------------------------------------------------------------------ parameters

    @cached_property
    def to_user(self) -> Array:
        """(n_free, n_free): the user's (theta, beta[keep], rho) from psi."""
        out = block_diagonal(self.theta_map.to_user, self.to_beta, self.family.n_extra)
        if self.family.no_intercept:
            beta = slice(self.n_theta, self.n_theta + self.rank)
            out[self.n_theta + self.rank :, beta] = self.centre[self.keep] @ self.to_beta
        return out

    @cached_property
    def to_conditioned(self) -> Array:
        """(n_free, n_free): the inverse of `to_user`."""
        out = block_diagonal(self.theta_map.to_conditioned, self.from_beta, self.family.n_extra)
        if self.family.no_intercept:
            beta = slice(self.n_theta, self.n_theta + self.rank)
            out[self.n_theta + self.rank :, beta] = -self.centre[self.keep]
        return out

    def rho(self, psi: Array) -> Any:
        """The extra parameter's logarithm: the last of psi, or the one given; 0 where there is none.

        An array where the family has one; it goes with `fixed_part`, not with the user's columns.
        """
        family = self.family
        return family.rho_of(np.clip(psi[len(psi) - family.n_extra :], *family.rho_range))

    def idle(self, psi: Array) -> NDArray[np.intp]:
        """Places of extra parameters beyond their range, where nothing depends on them."""
        first = self.n_free - self.family.n_extra
        low, high = self.family.rho_range
        return first + np.flatnonzero(~((low < psi[first:]) & (psi[first:] < high)))

    def user_rho(self, psi: Array) -> Any:
        """`rho` for the user's columns."""
        if not self.family.no_intercept:
            return self.rho(psi)
        return self.family.rho_of(self.to_user[-self.family.n_extra :] @ psi)

    def user_shift(self, psi: Array) -> float:
        """X beta + offset less `fixed_part`."""
        if not self.family.no_intercept:
            return 0.0
        return float(self.centre[self.keep] @ self.to_beta @ psi[self.n_theta : self.n_theta + self.rank])

    def fixed_part(self, psi: Array) -> Array:
        """(n,) X beta + offset."""
        return np.asarray(self.columns @ psi[self.n_theta : self.n_theta + self.rank] + self.offset)

    def user_modes(self, by_group: Sequence[Array]) -> tuple[Array, ...]:
        """B of each term (q, l) in the user's units from conditioned ones of each group."""
        out: list[Array] = [np.empty(0)] * len(self.terms)
        for group, modes in zip(self.groups, by_group, strict=True):
            for k, o in zip(group.terms, group.offsets, strict=True):
                t = self.transforms[k]
                out[k] = modes[:, o : o + len(t)] @ t.T
        return tuple(out)

    def user_covariances(self, by_group: Sequence[Array]) -> tuple[Array, ...]:
        """Covariances (q, l, l) of each term's b from conditioned ones of each group."""
        out: list[Array] = [np.empty(0)] * len(self.terms)
        for group, blocks in zip(self.groups, by_group, strict=True):
            for k, o in zip(group.terms, group.offsets, strict=True):
                t = self.transforms[k]
                out[k] = t @ blocks[:, o : o + len(t), o : o + len(t)] @ t.T
        return tuple(out)

    def random_part(self, by_group: Sequence[Array]) -> Array:
        """(n,) Z b from conditioned modes of each group."""
        out = np.zeros(self.n)
        for codes, z, modes in zip(self.codes, self.z, by_group, strict=True):
            rows = modes[codes]
            out += rows[:, 0] if z is None else np.einsum("ij,ij->i", z, rows)
        return out

    def blocks(self, w: Array) -> list[Array]:
        """Diagonal blocks (q, l, l) of Z'WZ of each group."""
        return [
            level_blocks(codes, group.n_levels, z, w)
            for codes, group, z in zip(self.codes, self.groups, self.z, strict=True)
        ]

    def sums(self, d: Array) -> list[Array]:
        """Z'd (q l, k) of each group for d (n, k)."""
        out = []
        for codes, group, z in zip(self.codes, self.groups, self.z, strict=True):
            target = np.zeros((group.size, d.shape[1]))
            level_sums(codes, z, None, d, target)
            out.append(target)
        return out


def checked_zero_terms(terms: Sequence[Term], family: Family, n: int) -> tuple[Term, ...]:
    """Random-effects terms of a family's zero part.

    Raises
    ------
    ModelError
        The family has none, or not as many covariance parameters as its names say.
    DataError
        Another number of rows.
    """
    effects = family.effects if isinstance(family, TwoPart) else ()
    if len(terms) and not isinstance(family, TwoPart):
        raise ModelError(f"zero_terms belong to a family with a zero part, not to {family.name}")
    widths = [term.n_columns for term in terms]
    if widths != [len(columns) for _, columns in effects] or any(term.cov != "us" for term in terms):
        raise ModelError(
            f"zero_terms have {widths} columns, but effects= of {type(family).__name__} names "
            f"{[len(columns) for _, columns in effects]}: a name for each, of terms with any covariance"
        )
    for term in terms:
        if len(term.codes) != n:
            raise DataError(f"a term of zero_terms has {len(term.codes)} rows, but there are {n} observations")
    return tuple(terms)


def block_diagonal(first: Array, second: Array, ones: int) -> Array:
    """Two blocks and a tail of ones."""
    a, b = len(first), len(second)
    out = np.eye(a + b + ones)
    out[:a, :a], out[a : a + b, a : a + b] = first, second
    return out
