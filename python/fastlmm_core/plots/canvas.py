"""Figures without pyplot: no global state, nothing to close, safe from any thread."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.errors import DependencyError, ModelError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["BAND", "FIT", "MUTED", "POINT", "canvas", "panels", "reference_quantiles"]

POINT = "#2f6f9f"
FIT = "#b5432f"
BAND = "#2f6f9f"
MUTED = "0.55"

PANEL = (3.4, 2.9)
"""Inches of one panel of several."""

NAME = 0.115
"""Inches that a level's name takes along an axis."""

SINGLE = (5.6, 4.0)
"""Inches of a figure with one panel."""


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure that shows itself in a notebook.

    Raises
    ------
    DependencyError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DependencyError(
            "plots need matplotlib, which is not installed: pip install matplotlib, or fastlmm-core[plots]"
        ) from None

    class ShownFigure(Figure):
        def _repr_png_(self) -> bytes:
            out = io.BytesIO()
            self.savefig(out, format="png", dpi=110, bbox_inches="tight")
            return out.getvalue()

    return ShownFigure(figsize=size, layout="constrained")


def canvas(ax: Axes | None) -> tuple[Figure, Axes]:
    """The axes given and their figure, or new ones."""
    if ax is None:
        figure = new_figure(SINGLE)
        return figure, plain(figure.subplots())
    return root(ax), ax


def root(ax: Axes) -> Figure:
    """The figure that axes belong to."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ModelError("ax belongs to no figure")
    return figure


def panels(
    n: int, *, columns: int | None = None, names: int = 0, ax: Any = None, **options: Any
) -> tuple[Figure, list[Axes]]:
    """``n`` panels of a new figure, high enough for so many names beside each other, or the ``n`` axes given."""
    if ax is not None:
        given = [a for a in np.ravel(np.asarray(ax, dtype=object)) if a is not None]
        if len(given) != n:
            raise ModelError(f"ax has {len(given)} axes, but this figure needs {n}")
        return root(given[0]), given
    wide = columns or min(n, math.ceil(math.sqrt(n)))
    high = math.ceil(n / wide)
    figure = new_figure((PANEL[0] * wide, max(PANEL[1], 0.8 + NAME * names) * high))
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.08)  # inches: titles are not to touch the labels above
    grid = figure.subplots(high, wide, squeeze=False, **options)
    for spare in grid.ravel()[n:]:
        spare.remove()
    return figure, [plain(a) for a in grid.ravel()[:n]]


def plain(ax: Axes) -> Axes:
    """Axes without the box on top and right."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def reference_quantiles(n: int) -> NDArray[np.float64]:
    """Probabilities (n,) at which ordered values stand in a quantile plot (Hazen's)."""
    return (np.arange(n) + 0.5) / n
