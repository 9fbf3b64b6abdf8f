"""One variance tested by the exact distribution of its likelihood ratio.

With mu_s the eigenvalues of Z'(I - X(X'X)^-1X')Z and xi_s those of Z'Z, w_s independent chi-squared of one degree of
freedom and R of n - p - K, the (restricted) likelihood ratio is under the null hypothesis distributed as (Crainiceanu
and Ruppert 2004, theorem 1)

    sup_l  nu log(1 + N(l) / D(l)) - sum_s log(1 + l k_s),
    N = sum_s l mu_s / (1 + l mu_s) w_s,     D = sum_s w_s / (1 + l mu_s) + R,                                   (1)

nu = n - p and k = mu for REML, nu = n and k = xi for maximum likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from fastlmm_core.core.arguments import checked_count, seed_sequence
from fastlmm_core.errors import ModelError
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.fitting.spelling import METHOD_ARGUMENTS, answered
from fastlmm_core.inference.nested_tests import NestedTest, tie_bound
from fastlmm_core.inference.reductions import column_basis, criterion_without, whole_term

if TYPE_CHECKING:
    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.formula import Design

__all__ = ["exact_test", "exact_test_of"]

Array = NDArray[np.float64]
Seed = int | Sequence[int] | np.random.SeedSequence | None

CHUNK_NUMBERS = 1 << 22
"""Numbers in a chunk of draws."""

MOST_LEVELS = 5_000
"""The exact distribution needs the eigenvalues of a matrix of this order, at most."""

GRID = np.exp(np.linspace(-9.0, 9.0, 200))
"""Ratios of the variance to the residual's at which (1) is maximised, over the mean eigenvalue."""


@answered(METHOD_ARGUMENTS)
def exact_test(result: FittedModel, term: str | int, *, n: int = 100_000, seed: Seed = None) -> NestedTest:
    """Test one scalar variance by the exact distribution of its (restricted) likelihood ratio, which needs no fits.

    Parameters
    ----------
    result : LmerResult
        By REML: the restricted likelihood ratio; by maximum likelihood: the likelihood ratio.
    term : str or int
        The random term, "(1 | g)" or its grouping factor, or its position in `design.random`. It has one effect.
    n : int
        Draws from the distribution.
    seed : int, sequence, SeedSequence or None

    Returns
    -------
    NestedTest
        `p` counts draws as large as the statistic or larger, so that a statistic of 0 has p = 1.

    Raises
    ------
    ModelError
        A term of several effects, or with more than 5,000 levels.

    Notes
    -----
    Crainiceanu and Ruppert (2004), as R's RLRsim. With other random terms in the model the distribution is that of a
    model without them (Greven et al. 2008), which a note says.

    Examples
    --------
    >>> from fastlmm_core import exact_test, lmer, load_dataset
    >>> fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
    >>> test = exact_test(fit, "(1 | Batch)", seed=1)
    >>> round(test.lrt, 3), bool(0.003 < test.p < 0.006)
    (6.369, True)
    """
    if isinstance(result, GeneralisedModel):
        raise ModelError("the exact distribution is that of linear models: use bootstrap_test, or ranova()")
    k = _term_position(result.design, term)
    random = result.design.random[k]
    if len(random.columns) != 1:
        raise ModelError(
            f"({' + '.join(random.columns)} | {random.group}) has {len(random.columns)} effects: the exact "
            "distribution is known for one variance; use bootstrap_test"
        )
    observed = max(0.0, criterion_without(result, whole_term(result, k)) - result.criterion)
    return exact_test_of(result, k, observed, n, seed)


def exact_test_of(result: FittedModel, k: int, observed: float, n: int, seed: Seed) -> NestedTest:
    """`exact_test` of random term k, of one effect, whose likelihood ratio is known."""
    checked_count(n, "n")
    design, random = result.design, result.design.random[k]
    draws = exact_draws(result, k, n, seed)
    p = float(np.mean(draws >= tie_bound(observed)))
    notes: tuple[str, ...] = ()
    if len(design.random) > 1:
        notes = ("the other random terms are left out of the null distribution (Greven et al. 2008)",)
    kind = "restricted likelihood ratio" if result.reml else "likelihood ratio"
    return NestedTest(
        lrt=observed,
        df=1,
        p_chi2=float(chdtrc(1, observed)),
        p=p,
        mcse=float(np.sqrt(p * (1.0 - p) / n)),
        p_bartlett=np.nan,
        p_gamma=np.nan,
        p_f=np.nan,
        n=n,
        n_failed=0,
        draws=draws,
        title=f"Exact {kind} of ({random.columns[0].replace('Intercept', '1')} | {random.group}) in {result.formula}",
        notes=notes,
        kind="exact",
    )


def _term_position(design: Design, term: Any) -> int:
    """Which random term is meant."""
    if isinstance(term, (int, np.integer)):
        if not -len(design.random) <= term < len(design.random):
            raise ModelError(f"there is no random term {term}: the model has {len(design.random)}")
        return int(term) % len(design.random)
    text = str(term).replace(" ", "").strip("()")
    names = []
    for k, random in enumerate(design.random):
        left = "+".join(random.columns).replace(" ", "")
        label = f"{left}|{random.group}".replace(" ", "")
        names.append(f"({' + '.join(random.columns)} | {random.group})")
        readable = label.replace("Intercept", "1")
        if text in (readable, label, random.grp, f"0+{label}"):
            return k
    raise ModelError(f"the model has no random term {term!r}: it has {', '.join(names) or 'none'}")


def exact_draws(result: FittedModel, k: int, n: int, seed: Seed) -> Array:
    """Draws (n,) from the null distribution (1) of the variance of random term k."""
    design = result.design
    random = design.random[k]
    q = len(random.level_set)
    if q > MOST_LEVELS:
        raise ModelError(
            f"{random.group} has {q:,} levels, and the exact distribution needs the eigenvalues of a matrix of that "
            "order: use bootstrap_test"
        )
    root = np.ones(len(design.y)) if design.weights is None else np.sqrt(design.weights)
    z = root if random.z is None else root * random.z[:, 0]
    zz: Array = np.asarray(np.bincount(random.codes, z * z, q), dtype=np.float64)
    basis = column_basis(design.X * root[:, None]) if design.X.shape[1] else np.empty((len(root), 0))
    zx = np.stack([np.bincount(random.codes, z * c, q) for c in basis.T], axis=1) if basis.size else np.zeros((q, 0))
    mu = np.maximum(np.linalg.eigvalsh(np.diag(zz) - zx @ zx.T), 0.0)
    df_x, size = basis.shape[1], len(root)
    mu = mu[mu > 1e-10 * mu.max()]
    distinct, count = _with_multiplicity(mu)
    rest = size - df_x - int(count.sum())
    ratio = np.r_[0.0, GRID / mu.mean()]
    shrink = 1.0 / (1.0 + np.outer(distinct, ratio))
    values, times = (distinct, count) if result.reml else _with_multiplicity(zz)
    penalty = times @ np.log1p(np.outer(values, ratio))
    nu = size - df_x if result.reml else size
    rng = np.random.default_rng(seed_sequence(seed))
    out = np.empty(n)
    step = max(1, CHUNK_NUMBERS // (len(ratio) + len(distinct)))
    for start in range(0, n, step):
        m = min(step, n - start)
        w = rng.chisquare(count, (m, len(count)))
        within = rng.chisquare(rest, m)[:, None] if rest > 0 else np.zeros((m, 1))
        kept = w @ shrink
        gained = w.sum(axis=1, keepdims=True) - kept
        out[start : start + m] = np.max(nu * np.log1p(gained / (kept + within)) - penalty, axis=1)
    return np.maximum(out, 0.0)


def _with_multiplicity(values: Array) -> tuple[Array, Array]:
    """Distinct values, to rounding, and how often each occurs: a balanced design has few."""
    ordered = np.sort(values)
    new = np.r_[True, np.diff(ordered) > 1e-9 * ordered[-1]]
    group = np.cumsum(new) - 1
    count = np.bincount(group).astype(np.float64)
    return np.bincount(group, ordered) / count, count
