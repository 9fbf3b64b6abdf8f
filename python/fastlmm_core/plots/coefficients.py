"""Fixed effects with intervals, of one model or several side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.errors import ModelError
from fastlmm_core.inference.levels import checked_level
from fastlmm_core.plots.canvas import MUTED, canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["forest"]


def forest(
    fits: Mapping[str, Any], *, level: float = 0.95, intercept: bool = False, exp: bool = False, ax: Any = None
) -> Figure:
    """Intervals of the fixed effects, a colour a model; see `Plots.forest`."""
    if not fits:
        raise ModelError("no model to draw")
    tables = {}
    for name, fit in fits.items():
        table = fit.tidy("fixed", conf_int=True, level=checked_level(level))
        if "component" in table:  # thresholds and zero parts are on scales of their own
            table = table[table["component"] == "cond"]
        tables[name] = table.set_index("term")
    terms = list(dict.fromkeys(t for table in tables.values() for t in table.index))
    if not intercept:
        terms = [t for t in terms if t not in ("Intercept", "(Intercept)")]
    if not terms:
        raise ModelError("the models have no fixed effects beside the intercept: pass intercept=True")
    figure, place = canvas(ax)
    rows = np.arange(len(terms))[::-1].astype(float)
    shift = np.linspace(0.25, -0.25, len(tables)) if len(tables) > 1 else np.zeros(1)
    back = np.exp if exp else np.asarray
    for (name, table), by in zip(tables.items(), shift, strict=True):
        part = table.reindex(terms)
        middle, low, high = (back(part[c].to_numpy(dtype=float)) for c in ("estimate", "conf_low", "conf_high"))
        place.errorbar(
            middle, rows + by, xerr=[middle - low, high - middle], fmt="o", markersize=4, linewidth=1.2, label=name
        )
    place.axvline(1.0 if exp else 0.0, color=MUTED, linewidth=0.8)
    if exp:
        place.set_xscale("log")
    place.set_yticks(rows, terms)
    place.set_ylim(-0.6, len(terms) - 0.4)
    place.set_xlabel(f"{'exp(estimate)' if exp else 'estimate'}, {level:.0%} interval")
    if len(tables) > 1:
        place.legend(frameon=False)
    return figure
