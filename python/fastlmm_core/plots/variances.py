"""Where the variance of an observation comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.inference.comparison import variance_shares
from fastlmm_core.inference.generalised.checks import level_one_variance
from fastlmm_core.plots.canvas import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["variance_decomposition"]


def variance_decomposition(fit: FittedModel, *, ax: Any = None) -> Figure:
    """Shares of the fixed part, each random term and the residual; see `Plots.variance`."""
    fixed, random, residual = variance_shares(fit.design, fit.core)
    if isinstance(fit, GeneralisedModel):
        residual = level_one_variance(fit)
    parts = {"fixed effects": fixed, **{str(k): float(v) for k, v in random.items()}, "residual": residual}
    total = sum(parts.values())
    figure, place = canvas(ax)
    rows = np.arange(len(parts))[::-1]
    shares = [value / total for value in parts.values()]
    bars = place.barh(rows, shares, color=[f"C{k}" for k in range(len(parts))])
    place.bar_label(bars, [f"{share:.1%}" for share in shares], padding=3, fontsize=8)
    place.set_yticks(rows, list(parts))
    place.set_xlim(0.0, max(shares) * 1.15)
    place.set_xlabel(f"share of the variance of an observation, {total:.4g}")
    return figure
