"""Pictures of the residuals: the usual four, and their ranks among simulated ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from fastlmm_core.errors import ModelError
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.plots.canvas import FIT, MUTED, POINT, panels, reference_quantiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["residual_panel", "simulated_panel", "simulated_ranks"]

MANY = 20_000
"""Points beyond which a scatter is drawn as a density."""

WINDOWS = 30
"""Windows of equally many points whose medians make the trend line."""


def residual_panel(fit: Any, *, ax: Any = None) -> Figure:
    """Four views of the residuals; see `Plots.residuals`."""
    ordered_classes = is_ordinal(fit)
    name, along = ("quantile", "linear predictor") if ordered_classes else ("Pearson", "fitted value")
    standardised = fit.residuals(name.lower()).to_numpy()
    sigma = float(np.sqrt(np.nanmean(standardised**2)))
    standardised = standardised / sigma
    fitted = (fit.linear_predictor if ordered_classes else fit.fittedvalues).to_numpy()
    leverage = fit.hatvalues().to_numpy()
    figure, (first, second, third, fourth) = panels(4, columns=2, ax=ax)
    scatter(first, fitted, standardised)
    first.axhline(0.0, color=MUTED, linewidth=0.8)
    trend(first, fitted, standardised)
    first.set(xlabel=along, ylabel=f"{name} residual / its RMS", title="Residuals and fit")
    root = np.sqrt(np.abs(standardised))
    scatter(second, fitted, root)
    trend(second, fitted, root)
    second.set(xlabel=along, ylabel="√|residual|", title="Scale and location")
    ordered = np.sort(standardised[np.isfinite(standardised)])
    scatter(third, ndtri(reference_quantiles(len(ordered))), ordered)
    third.axline((0.0, 0.0), slope=1.0, color=FIT, linewidth=1.0)
    third.set(xlabel="normal quantile", ylabel="residual", title="Normality")
    scatter(fourth, leverage, standardised)
    fourth.axhline(0.0, color=MUTED, linewidth=0.8)
    fourth.set(xlabel="leverage", ylabel="residual", title="Leverage")
    return figure


def is_ordinal(fit: Any) -> bool:
    """Whether the response is classes in order, which have probabilities and no mean."""
    return isinstance(fit, GeneralisedModel) and fit.family.name == "ordinal"


def simulated_ranks(fit: Any, n: int, seed: Any) -> NDArray[np.float64]:
    """Rank of each response among ``n`` drawn from the model (rows,), ties broken at random: uniform if it is right.

    Random effects are drawn anew (Dunn & Smyth 1996; Gelman & Hill 2007, section 8.3).
    """
    if n < 20:
        raise ModelError(f"n must be at least 20 simulations, not {n}")
    generalised = isinstance(fit, GeneralisedModel)
    if generalised:  # counts of trials, weights: its own residuals know
        own = fit.residuals("simulated", n=n, seed=seed).to_numpy()
        return np.asarray(own[np.isfinite(own)])
    drawn = fit.simulate(n, seed=seed).to_numpy()
    y = np.asarray(fit.design.y, dtype=float)
    if len(drawn) != len(y):  # padded rows of na_action="exclude"
        drawn = drawn[np.isfinite(drawn).all(axis=1)]
    below = (drawn < y[:, None]).sum(axis=1)
    ties = (drawn == y[:, None]).sum(axis=1)
    jitter = np.random.default_rng(seed).uniform(size=len(y))
    return (below + jitter * (ties + 1)) / (n + 1)


def simulated_panel(fit: Any, *, n: int = 250, seed: Any = 1, ax: Any = None) -> Figure:
    """Ranks among simulated responses; see `Plots.simulated_residuals`."""
    ranks = simulated_ranks(fit, n, seed)
    # conditional means would follow the responses' own ranks: their random effects are not drawn anew
    scale, along = ({"kind": "link"}, "linear predictor") if is_ordinal(fit) else ({}, "mean")
    fitted = np.asarray(fit.predict(re_form="none", **scale), dtype=float)
    fitted = fitted[np.isfinite(fitted)]
    figure, (left, right) = panels(2, columns=2, ax=ax)
    scatter(left, reference_quantiles(len(ranks)), np.sort(ranks))
    left.axline((0.0, 0.0), slope=1.0, color=FIT, linewidth=1.0)
    left.set(xlabel="uniform quantile", ylabel=f"rank among {n} simulations", title="Distribution")
    scatter(right, fitted, ranks)
    for share in (0.25, 0.5, 0.75):
        right.axhline(share, color=MUTED, linewidth=0.8, linestyle="--")
        trend(right, fitted, ranks, share)
    right.set(xlabel=f"population {along}", ylabel="rank", ylim=(-0.02, 1.02), title="Quartiles along the fit")
    return figure


def scatter(ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """Points, or their density where there are many."""
    keep = np.isfinite(x) & np.isfinite(y)
    if keep.sum() > MANY:
        ax.hexbin(x[keep], y[keep], gridsize=60, bins="log", cmap="Blues", mincnt=1, linewidths=0.0)
    else:
        ax.plot(x[keep], y[keep], "o", color=POINT, markersize=3, alpha=0.6, markeredgewidth=0.0)


def trend(ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64], share: float = 0.5) -> None:
    """A quantile of y along x, in windows of equally many points."""
    keep = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[keep], kind="stable")
    windows = min(WINDOWS, len(order) // 20)
    if windows < 3 or np.ptp(x[keep]) == 0.0:
        return
    parts = np.array_split(order, windows)
    middle = [float(np.median(x[keep][part])) for part in parts]
    ax.plot(middle, [float(np.quantile(y[keep][part], share)) for part in parts], color=FIT, linewidth=1.2)
