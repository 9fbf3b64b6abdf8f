"""Which cases move the estimates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.errors import ModelError
from fastlmm_core.plots.canvas import FIT, MUTED, POINT, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastlmm_core.inference.influence import Influence

__all__ = ["influence"]


def influence(found: Influence, *, label: int = 5, ax: Any = None) -> Figure:
    """Cook's distances, and the change of each coefficient in standard errors; see `Plots.influence`."""
    cases = len(found.cooks_distance)
    if cases == 0:
        raise ModelError("the influence table has no cases")
    changes = found.dfbetas
    figure, (left, right) = panels(2, columns=2, ax=ax)
    distance = found.cooks_distance.to_numpy()
    left.vlines(np.arange(cases), 0.0, distance, color=POINT, linewidth=0.9)
    names = found.cooks_distance.index
    for case in np.argsort(-np.nan_to_num(distance))[: max(0, label)]:
        left.annotate(str(names[case]), (case, distance[case]), fontsize=7, rotation=90, ha="center", va="bottom")
    left.margins(y=0.15)  # room for the names above the bars
    left.set(xlabel=f"case ({found.by})", ylabel="Cook's distance")
    for j, name in enumerate(changes.columns):
        values = changes[name].to_numpy()
        right.plot(np.full(cases, j) + np.linspace(-0.25, 0.25, cases), values, "o", color=POINT, markersize=2.5)
    for bound in (-2.0, 2.0):
        right.axhline(bound / np.sqrt(cases), color=FIT, linewidth=0.8, linestyle="--")
    right.axhline(0.0, color=MUTED, linewidth=0.8)
    right.set_xticks(range(len(changes.columns)), list(changes.columns), rotation=30, ha="right", fontsize=7)
    right.set_ylabel("change / standard error")
    return figure
