"""Fixed effects that separate successes from failures or zeros from counts, or a zero part's that do.

Albert and Anderson (1984), Biometrika 71; of counts with the log link, whose mean runs to zero along a direction in
which no count above zero moves, Santos Silva and Tenreyro (2010), Econ. Lett. 107. Found by a linear programme.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fastlmm_core.families import TwoPart
from fastlmm_core.fitting.text import listed

if TYPE_CHECKING:
    from fastlmm_core.core.glmm import GlmmFit
    from fastlmm_core.core.glmm.design import GlmmDesign

__all__ = ["separated_direction", "separation"]

COUNTS = ("poisson", "negativebinomial", "negativebinomial1")

CERTAIN = 1e-5
"""Fitted probabilities (of the fixed part) this near to 0 or 1 are looked into."""

LARGE = 20.0
"""Standard error of a coefficient, times its column's root mean square, that no ordinary data have."""


def separation(core: GlmmFit, design: GlmmDesign, names: tuple[str, ...] = ()) -> str:
    """What the fixed effects separate, or the zero part's, as a sentence; empty where they do not.

    The linear programme is solved only where some fitted probabilities or means vanish and a Wald variance explodes.
    Of a zero part that separates zeros from counts the likelihood rises without end whatever the counts' own zeros are;
    that of an inflated one may do so elsewhere too, where the counts alone have as many zeros as there are.
    """
    family = core.family
    if isinstance(family, TwoPart) and family.zero is not None:
        columns = family.columns
        zero = (core.y == 0.0).astype(np.float64)
        p, what = family.zero_probability(core.rho), "zeros and counts above zero are separated by the zero part"
        found = _direction(
            family.zero,
            lambda: np.array([core.family_params_se[f"zi.{name}"] for name in columns]),
            p,
            zero,
            np.ones(len(zero)),
            list(columns),
        )
    elif family.name == "binomial" and core.rank:
        labels = [names[j] if names else f"column {j}" for j in design.keep]
        p, what = family.mean(design.fixed_part(core.psi)), "successes and failures are separated by the fixed effects"
        found = _direction(design.X[:, design.keep], lambda: core.se[design.keep], p, core.y, design.m, labels)
    elif family.name in COUNTS and family.link.name == "log" and core.rank:
        labels = [names[j] if names else f"column {j}" for j in design.keep]
        with np.errstate(over="ignore"):
            p = np.minimum(np.exp(design.fixed_part(core.psi)), 0.5)
        seen = core.y > 0.0
        what = "zeros are separated from counts above zero by the fixed effects"
        found = _direction(design.X[:, design.keep], lambda: core.se[design.keep], p, seen * 1.0, 1.0 + seen, labels)
    else:
        return ""
    if not found:
        return ""
    return (
        f"{what} along {found}: the likelihood rises "
        "without end in that direction, and these estimates and standard errors show only how far the search went"
    )


def _direction(
    X: np.ndarray,
    errors_of: Callable[[], np.ndarray],
    p: np.ndarray,
    y: np.ndarray,
    m: np.ndarray,
    labels: list[str],
) -> str:
    """Columns and signs of a direction that separates y = m from y = 0; empty where nothing hints at one.

    Standard errors take as long as a small fit: they are made where some probabilities vanish.
    """
    if float(np.min(p * (1.0 - p))) > CERTAIN:
        return ""
    errors = errors_of()
    size = np.sqrt(np.mean(X**2, axis=0))
    with np.errstate(invalid="ignore"):
        large = errors * size > LARGE
    if not (large | np.isnan(errors)).any():
        return ""
    direction = separated_direction(X / size, y, m)
    if direction is None:
        return ""
    return listed(
        [f"{label} ({'+' if d > 0 else '-'})" for label, d in zip(labels, direction, strict=True) if abs(d) > 1e-6]
    )


def separated_direction(X: np.ndarray, y: np.ndarray, m: np.ndarray) -> np.ndarray | None:
    """A direction d with x'd >= 0 for rows of successes, <= 0 for failures, = 0 for mixed rows, not all zero.

    Parameters
    ----------
    X : (n, p)
        Columns of about unit size.
    y, m : (n,)
        Successes and trials.

    Returns
    -------
    (p,) within [-1, 1], or None where there is none
    """
    from scipy.optimize import linprog

    sign = np.where(y == m, 1.0, np.where(y == 0.0, -1.0, 0.0))
    cells = np.unique(np.column_stack([sign, X]), axis=0)
    sign, rows = cells[:, 0], cells[:, 1:]
    pure = rows[sign != 0] * sign[sign != 0, None]
    mixed = rows[sign == 0]
    found = linprog(
        -pure.sum(axis=0),
        A_ub=-pure,
        b_ub=np.zeros(len(pure)),
        A_eq=mixed if len(mixed) else None,
        b_eq=np.zeros(len(mixed)) if len(mixed) else None,
        bounds=(-1.0, 1.0),
    )
    if not found.success or -found.fun <= 1e-6:
        return None
    direction: np.ndarray = found.x
    return direction
