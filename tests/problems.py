"""Random mixed models for the tests: one registry, named so that a failing case says what it is.

A `Problem` is plain arrays. The oracle reads it as it is; `Problem.core_terms()` makes the package's terms of it.
Everything is drawn from a seed; nothing here depends on the package except `core_terms`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import oracle

Array = NDArray[Any]

__all__ = ["REGISTRY", "Problem", "ProblemTerm", "build", "random_problem", "references", "split_plot", "thetas"]


@contextmanager
def _rank_warning_ignored() -> Iterator[None]:
    """Dependent columns are dropped on purpose in some of these models."""
    from fastlmm_core.errors import RankWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        yield


@dataclass(frozen=True)
class ProblemTerm:
    """One random-effects term: codes (n,), covariates z (n, l) or None, covariance "us" or "diag"."""

    codes: Array
    z: Array | None = None
    cov: str = "us"
    n_levels: int | None = None


@dataclass(frozen=True)
class Problem:
    """y (n,), X (n, p), terms, weights (n,) or None, offset (n,) or None."""

    y: Array
    X: Array
    terms: tuple[ProblemTerm, ...]
    weights: Array | None = None
    offset: Array | None = None
    name: str = field(default="", compare=False)

    @property
    def n_theta(self) -> int:
        return oracle.n_theta(self.terms)

    def core_terms(self) -> list[Any]:
        """The same terms as the package's own; terms that share a codes array keep sharing it."""
        from fastlmm_core.core import Term

        return [Term(t.codes, z=t.z, cov=t.cov, n_levels=t.n_levels) for t in self.terms]

    def objective(self, reml: bool = True, engine: str = "auto", **control: Any) -> Any:
        """The package's criterion of this model."""
        from fastlmm_core.core import Control, objective

        with _rank_warning_ignored():
            return objective(
                self.y,
                self.X,
                self.core_terms(),
                weights=self.weights,
                offset=self.offset,
                reml=reml,
                control=Control(engine=engine, **control),
            )

    def fit(self, reml: bool = True, engine: str = "auto", start: Array | None = None, **control: Any) -> Any:
        """The package's fit of this model."""
        from fastlmm_core.core import Control, fit

        with _rank_warning_ignored():
            return fit(
                self.y,
                self.X,
                self.core_terms(),
                weights=self.weights,
                offset=self.offset,
                reml=reml,
                control=Control(engine=engine, **control),
                start=start,
            )

    def but(self, **changes: Any) -> Problem:
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def rows(self, order: Array) -> Problem:
        """The same model on `order` of its rows (a permutation, a subset, or repeats)."""
        terms = tuple(
            replace(t, codes=t.codes[order], z=None if t.z is None else t.z[order], n_levels=oracle.term_levels(t))
            for t in self.terms
        )
        pick = lambda v: None if v is None else v[order]  # noqa: E731
        return Problem(self.y[order], self.X[order], terms, pick(self.weights), pick(self.offset), self.name)


# ---------------------------------------------------------------------------------------------------------- ingredients


def all_levels(rng: np.random.Generator, n: int, q: int) -> Array:
    """(n,) codes in which every one of the q levels occurs."""
    codes = np.concatenate([np.arange(q), rng.integers(0, q, n - q)]).astype(np.int32)
    return rng.permutation(codes)


def covariates(rng: np.random.Generator, n: int, width: int) -> Array:
    """(n, width): an intercept and correlated, uncentred slopes, as data have them."""
    z = np.ones((n, width))
    for j in range(1, width):
        z[:, j] = rng.normal(size=n) + 0.7 * j + 0.4 * z[:, j - 1]
    return z


def simulate(
    rng: np.random.Generator, X: Array, terms: tuple[ProblemTerm, ...], weights: Array | None, effects: float = 1.0
) -> Array:
    """Draw y with unit-scale fixed effects, noise, and random effects of about the size `effects`."""
    n = X.shape[0]
    y = X @ rng.normal(size=X.shape[1]) * 0.5 + rng.normal(size=n) / np.sqrt(1.0 if weights is None else weights)
    for t in terms:
        z = oracle.term_z(t)
        factor = effects * (np.tril(rng.normal(size=(z.shape[1],) * 2)) * 0.4 + np.eye(z.shape[1]))
        b = rng.normal(size=(oracle.term_levels(t), z.shape[1])) @ factor.T
        y = y + (z * b[t.codes]).sum(axis=1)
    return y


def fixed(rng: np.random.Generator, n: int, p: int) -> Array:
    """(n, p): an intercept and normal covariates off zero."""
    X = rng.normal(size=(n, p)) + 0.5
    if p:
        X[:, 0] = 1.0
    return X


def make(
    name: str,
    n: int,
    terms: Callable[[np.random.Generator, int], list[ProblemTerm]],
    *,
    seed: int,
    p: int = 3,
    weights: str | None = None,
    offset: bool = False,
    effects: float = 1.0,
    X: Callable[[np.random.Generator, int], Array] | None = None,
) -> Problem:
    """One simulated problem. `weights` is None, "real" or "integer"."""
    rng = np.random.default_rng(seed)
    design = fixed(rng, n, p) if X is None else X(rng, n)
    made = tuple(terms(rng, n))
    w = None
    if weights == "real":
        w = rng.uniform(0.2, 3.0, n)
    elif weights == "integer":
        w = rng.integers(1, 5, n).astype(float)
    y = simulate(rng, design, made, w, effects)
    off = rng.normal(size=n) * 2 if offset else None
    return Problem(y if off is None else y + off, np.ascontiguousarray(design), made, w, off, name)


def intercept(q: int) -> Callable[[np.random.Generator, int], list[ProblemTerm]]:
    return lambda rng, n: [ProblemTerm(all_levels(rng, n, q))]


def slopes(q: int, width: int, cov: str = "us") -> Callable[[np.random.Generator, int], list[ProblemTerm]]:
    return lambda rng, n: [ProblemTerm(all_levels(rng, n, q), covariates(rng, n, width), cov)]


def crossed(*levels: int) -> Callable[[np.random.Generator, int], list[ProblemTerm]]:
    return lambda rng, n: [ProblemTerm(all_levels(rng, n, q)) for q in levels]


def nested(outer: int, inner: int) -> Callable[[np.random.Generator, int], list[ProblemTerm]]:
    """(1 | a / b): the inner levels are blocks of the outer ones."""

    def terms(rng: np.random.Generator, n: int) -> list[ProblemTerm]:
        codes = all_levels(rng, n, outer * inner)
        return [ProblemTerm(codes), ProblemTerm((codes // inner).astype(np.int32))]

    return terms


def mixed(rng: np.random.Generator, n: int) -> list[ProblemTerm]:
    """(1 + x + u | a) + (x || b) + (1 | c)."""
    return [
        ProblemTerm(all_levels(rng, n, 12), covariates(rng, n, 3)),
        ProblemTerm(all_levels(rng, n, 8), covariates(rng, n, 2), "diag"),
        ProblemTerm(all_levels(rng, n, 5)),
    ]


def shared(rng: np.random.Generator, n: int) -> list[ProblemTerm]:
    """(1 | a) + (0 + x | a) + (1 + u | b): the first two terms share one codes array."""
    codes = all_levels(rng, n, 10)
    return [
        ProblemTerm(codes),
        ProblemTerm(codes, covariates(rng, n, 2)[:, 1:]),
        ProblemTerm(all_levels(rng, n, 6), covariates(rng, n, 2)),
    ]


def unobserved(rng: np.random.Generator, n: int) -> list[ProblemTerm]:
    """Levels that no row has, at the end and in the middle."""
    first = all_levels(rng, n, 9) * 2
    second = all_levels(rng, n, 5)
    return [ProblemTerm(first.astype(np.int32), covariates(rng, n, 2), n_levels=20), ProblemTerm(second, n_levels=8)]


def slope_no_intercept(rng: np.random.Generator, n: int) -> list[ProblemTerm]:
    """(0 + x | a) + (1 | b), where the slope is zero for one whole level."""
    codes = all_levels(rng, n, 8)
    z = rng.normal(size=(n, 1))
    z[codes == 3] = 0.0
    return [ProblemTerm(codes, z), ProblemTerm(all_levels(rng, n, 6))]


def factor_slope(rng: np.random.Generator, n: int) -> list[ProblemTerm]:
    """(0 + f | a) with a three-level factor, crossed with (1 | b): indicator columns, most cells zero."""
    z = np.eye(3)[rng.integers(0, 3, n)]
    return [ProblemTerm(all_levels(rng, n, 10), z), ProblemTerm(all_levels(rng, n, 7))]


def deficient_X(rng: np.random.Generator, n: int) -> Array:
    """(n, 6) of rank 4: a sum of earlier columns and a repeated one."""
    X = fixed(rng, n, 4)
    return np.column_stack([X[:, 0], X[:, 1], X[:, 0] - 2 * X[:, 1], X[:, 2], X[:, 1], X[:, 3]])


def wide_X(rng: np.random.Generator, n: int) -> Array:
    """(n, n // 2) of full rank."""
    return fixed(rng, n, n // 2)


def wider_than_long_X(rng: np.random.Generator, n: int) -> Array:
    """(n, n + 10) of rank 8."""
    base = fixed(rng, n, 8)
    return np.column_stack([base, base @ rng.normal(size=(8, n + 2))])


def no_X(rng: np.random.Generator, n: int) -> Array:
    return np.zeros((n, 0))


REGISTRY: dict[str, Callable[[], Problem]] = {}


def register(name: str, n: int, terms: Any, **options: Any) -> None:
    REGISTRY[name] = lambda: make(name, n, terms, seed=len(name) * 1009 + n, **options)


register("intercept", 40, intercept(8))
register("intercept_only_mean", 30, intercept(6), p=1)
register("one_row_levels", 40, intercept(35))
register("slope", 80, slopes(10, 2))
register("slope_diag", 80, slopes(10, 2, "diag"))
register("three_columns", 120, slopes(12, 3))
register("three_columns_diag", 120, slopes(12, 3, "diag"))
register("levels_shorter_than_columns", 40, slopes(12, 3))
register("crossed", 90, crossed(15, 11))
register("crossed_three", 150, crossed(20, 12, 6))
register("crossed_four", 120, crossed(14, 9, 7, 4))
register("nested", 96, nested(6, 4))
register("mixed", 200, mixed)
register("mixed_weights", 150, mixed, weights="real", offset=True)
register("integer_weights", 70, slopes(9, 2), weights="integer")
register("crossed_weights", 80, crossed(12, 7), weights="real")
register("offset", 50, intercept(7), offset=True)
register("shared_codes", 110, shared)
register("unobserved_levels", 100, unobserved)
register("slope_no_intercept", 80, slope_no_intercept)
register("factor_slope", 120, factor_slope)
register("deficient_X", 70, crossed(9, 6), X=deficient_X)
register("wide_X", 80, slopes(9, 2), X=wide_X)
register("wider_than_long_X", 50, intercept(6), X=wider_than_long_X)
register("no_effect", 90, crossed(12, 8), effects=0.0)
register("no_slope_effect", 100, slopes(12, 3), effects=0.0)
register("no_X", 60, crossed(9, 5), X=no_X)


def build(name: str) -> Problem:
    """The registered problem of that name (drawn anew, identical every time)."""
    return REGISTRY[name]()


def random_problem(seed: int, n_max: int = 60) -> Problem:
    """A problem whose every feature is drawn: terms, widths, structure, weights, offset, X."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(25, n_max + 1))
    made: list[ProblemTerm] = []
    for _ in range(int(rng.integers(1, 4))):
        if made and rng.random() < 0.25:
            codes = made[-1].codes
        elif made and made[-1].codes.max() > 2 and rng.random() < 0.3:
            codes = (made[-1].codes // 2).astype(np.int32)
        else:
            codes = all_levels(rng, n, int(rng.integers(2, n // 3 - 2)))
        width = int(rng.integers(1, 4))
        z = None if width == 1 and rng.random() < 0.5 else covariates(rng, n, width)
        extra = int(rng.integers(0, 3)) if rng.random() < 0.3 else None
        n_levels = None if extra is None else int(codes.max()) + 1 + extra
        made.append(ProblemTerm(codes, z, "diag" if rng.random() < 0.4 else "us", n_levels))
    X = fixed(rng, n, int(rng.integers(1, 6)))
    if rng.random() < 0.2:
        X = np.column_stack([X, X.sum(axis=1)])
    w = rng.uniform(0.2, 3.0, n) if rng.random() < 0.4 else None
    y = simulate(rng, X, tuple(made), w, float(rng.choice([0.0, 0.5, 1.0])))
    off = rng.normal(size=n) if rng.random() < 0.3 else None
    return Problem(y, np.ascontiguousarray(X), tuple(made), w, off, f"random {seed}")


def thetas(problem: Problem, seed: int = 0) -> dict[str, Array]:
    """Parameter values worth evaluating at: ordinary, singular in several ways, and far out."""
    rng = np.random.default_rng(seed)
    ordinary = rng.normal(size=problem.n_theta)
    identity, singular, first_zero = [], ordinary.copy(), ordinary.copy()
    start = 0
    for t in problem.terms:
        places = oracle.entries(t)
        identity += [1.0 if i == j else 0.0 for i, j in places]
        last = max(i for i, _ in places)
        for a, (i, j) in enumerate(places):
            if i == j == last:  # L singular through its last diagonal entry, the off-diagonals stay
                singular[start + a] = 0.0
            if i == j == 0:  # L singular with a zero leading variance and non-zero off-diagonals below it
                first_zero[start + a] = 0.0
        start += len(places)
    one_term_zero = ordinary.copy()
    one_term_zero[: len(oracle.entries(problem.terms[0]))] = 0.0
    return {
        "identity": np.array(identity),
        "ordinary": ordinary,
        "small": 1e-6 * ordinary,
        "large": 30.0 * ordinary,
        "zero": np.zeros(problem.n_theta),
        "term_zero": one_term_zero,
        "singular": singular,
        "first_zero": first_zero,
    }


@dataclass(frozen=True)
class Reference:
    """The oracle's answers at one theta, in float64."""

    label: str
    theta: Array
    criterion: float
    gradient: Array
    hessian: Array  # average information


@cache
def references(which: str | int, reml: bool) -> tuple[Reference, ...]:
    """The oracle at every theta worth trying: of a registered problem (name) or a random one (seed). Computed once."""
    problem = random_problem(which) if isinstance(which, int) else build(which)
    out = []
    for label, theta in thetas(problem, which if isinstance(which, int) else 0).items():
        ev = oracle.evaluate(problem, theta, reml=reml)
        slopes, curvature = oracle.gradient(ev).astype(float), oracle.ai_hessian(ev).astype(float)
        out.append(Reference(label, theta, float(oracle.profiled(ev)), slopes, curvature))
    return tuple(out)


def split_plot() -> Problem:
    """The balanced split-plot of the SAS PROC MIXED documentation: y ~ A * B + (1 | A:block) + (1 | block), 24 rows."""
    y = np.array([56, 41, 50, 36, 39, 35, 30, 25, 36, 28, 33, 30, 32, 24, 31, 27, 15, 19, 30, 25, 35, 30, 17, 18.0])
    block, a, b = (v.ravel().astype(np.int32) for v in np.indices((4, 3, 2)))
    A, B = np.eye(3)[a][:, 1:], np.eye(2)[b][:, 1:]
    X = np.column_stack([np.ones(24), A, B, A * B])
    return Problem(y, X, (ProblemTerm((block * 3 + a).astype(np.int32)), ProblemTerm(block)), name="split_plot")
