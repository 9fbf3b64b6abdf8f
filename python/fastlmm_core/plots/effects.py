"""What the model predicts along a predictor: for the population with bands, and for single levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.errors import DataError
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.inference.levels import checked_level
from fastlmm_core.plots.canvas import FIT, MUTED, POINT, canvas, panels
from fastlmm_core.plots.random_effects import no_effects

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["effects", "fitted_lines"]

GRID = 60
"""Values of a numeric predictor at which a band is drawn."""


def effects(
    fit: Any,
    x: str,
    *,
    by: str | None = None,
    at: Any = None,
    level: float = 0.95,
    ddf: str | None = None,
    ax: Any = None,
) -> Figure:
    """Marginal predictions along ``x``; see `Plots.effects`."""
    checked_level(level)
    columns = fit.design.grid_info.columns
    for name in (x, by):
        if name is not None and name not in columns:
            raise DataError(f"{name!r} is no predictor of the fixed part, which has {', '.join(columns) or 'none'}")
    column = columns[x]
    given = dict(at or {})
    numeric = column.kind == "number"
    if numeric and x not in given:
        given[x] = np.linspace(column.low, column.high, GRID).tolist()
    names = [x] if by is None else [x, by]
    generalised = isinstance(fit, GeneralisedModel)
    options: dict[str, Any] = {"scale": "response"} if generalised else {}
    options["ddf"] = ddf or ("normal" if generalised else "satterthwaite")
    frame = fit.emmeans(names, at=given, level=level, **options).to_frame(tests=False)
    value = next(c for c in frame.columns if c not in (*names, "std_error", "df", "lower", "upper"))
    figure, place = canvas(ax)
    parts = [(None, frame)] if by is None else list(frame.groupby(by, sort=False, observed=True))
    for number, (name, part) in enumerate(parts):
        colour = f"C{number}"
        label = None if name is None else f"{by} = {name}"
        lower, middle, upper = (part[c].to_numpy(dtype=float) for c in ("lower", value, "upper"))
        if numeric:
            along = part[x].to_numpy(dtype=float)
            place.fill_between(along, lower, upper, color=colour, alpha=0.18, linewidth=0.0)
            place.plot(along, middle, color=colour, linewidth=1.6, label=label)
        else:
            along = np.arange(len(part)) + (number - (len(parts) - 1) / 2) * 0.15
            place.errorbar(along, middle, yerr=[middle - lower, upper - middle], fmt="o", color=colour, label=label)
            place.set_xticks(np.arange(len(part)), part[x].astype(str))
    place.set_xlabel(x)
    place.set_ylabel(f"{fit.design.formula.response}, {level:.0%} {'band' if numeric else 'interval'}")
    if by is not None:
        place.legend(frameon=False)
    return figure


def fitted_lines(fit: Any, data: Any, x: str, group: str | None = None, *, n: int = 12, ax: Any = None) -> Figure:
    """Rows, own line and population line of single levels; see `Plots.fitted_lines`."""
    design = fit.design
    terms = {t.group: t for t in design.random}
    name = group if group is not None else next(iter(terms), None)
    if name not in terms:
        raise no_effects(group, terms)
    if x not in data:
        raise DataError(f"there is no column {x!r} in the table given")
    term = terms[name]
    y = design.y
    if isinstance(fit, GeneralisedModel) and fit.family.name == "binomial" and design.weights is not None:
        y = y / design.weights  # proportions, as the means are
    along = np.asarray(data[x])[design.row_index]
    own = fit.predict(data).to_numpy()[design.row_index]
    population = fit.predict(data, re_form="none").to_numpy()[design.row_index]
    counts = np.bincount(term.codes, minlength=len(term.level_set))
    shown = np.flatnonzero(counts)[: max(1, n)]
    labels = np.asarray(term.levels)
    columns = min(len(shown), 4)
    figure, axes = panels(len(shown), columns=columns, ax=ax, sharex=True, sharey=True)
    for level, place in zip(shown, axes, strict=True):
        rows = np.flatnonzero(term.codes == level)
        rows = rows[np.argsort(along[rows], kind="stable")]
        place.plot(along[rows], y[rows], "o", color=POINT, markersize=3)
        place.plot(along[rows], population[rows], color=MUTED, linewidth=1.0, linestyle="--")
        place.plot(along[rows], own[rows], color=FIT, linewidth=1.3)
        place.set_title(f"{name} {labels[level]}", fontsize=8)
    for place in axes if ax is not None else axes[-columns:]:  # those without another beneath
        place.set_xlabel(x, fontsize=8)
        place.tick_params(labelbottom=True)
    axes[0].set_ylabel(design.formula.response)
    return figure
