"""Pictures of the conditional modes: with intervals, against normal quantiles, beside what each level says alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from fastlmm_core.errors import ModelError
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.inference.levels import checked_level
from fastlmm_core.plots.canvas import FIT, MUTED, POINT, panels, reference_quantiles

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["caterpillar", "chosen_effects", "no_effects", "random_qq", "shrinkage"]

NAMED = 40
"""Levels beyond which their names would overlap."""


def no_effects(name: str | None, have: Iterable[str]) -> ModelError:
    """The error about effects of a name that a fit does not have, among those that it has."""
    listed = ", ".join(have)
    if not listed:
        return ModelError("this model has no random effects to draw")
    return ModelError(f"no random effects of {name!r}: the model has {listed}")


def chosen_effects(fit: Any, group: str | None, term: str | None) -> list[tuple[str, str, pd.DataFrame]]:
    """Conditional modes by grouping factor and effect; ModelError where a name does not occur."""
    table = fit.ranef()
    if len(table) == 0:
        raise no_effects(group, [])
    for name, column in ((group, "grpvar"), (term, "term")):
        have = list(dict.fromkeys(table[column].astype(str)))
        if name is not None and name not in have:
            raise no_effects(name, have)
    keep = np.ones(len(table), bool)
    if group is not None:
        keep &= (table["grpvar"] == group).to_numpy()
    if term is not None:
        keep &= (table["term"] == term).to_numpy()
    parts = table[keep].groupby(["grpvar", "term"], observed=True, sort=False)
    return [(str(g), str(t), part) for (g, t), part in parts]


def caterpillar(
    fit: Any,
    group: str | None = None,
    term: str | None = None,
    *,
    level: float = 0.95,
    sort: bool = True,
    ax: Any = None,
) -> Figure:
    """Conditional modes with intervals; see `Plots.caterpillar`."""
    parts = chosen_effects(fit, group, term)
    z = float(ndtri(0.5 + 0.5 * checked_level(level)))
    named = max((len(part) for *_, part in parts if len(part) <= NAMED), default=0)
    figure, axes = panels(len(parts), columns=min(len(parts), 3), names=named, ax=ax)
    for (grp, effect, part), place in zip(parts, axes, strict=True):
        modes, sd = part["condval"].to_numpy(), part["condsd"].to_numpy()
        order = np.argsort(modes, kind="stable") if sort else np.arange(len(modes))[::-1]
        rows = np.arange(len(modes))
        place.axvline(0.0, color=MUTED, linewidth=0.8)
        place.hlines(rows, (modes - z * sd)[order], (modes + z * sd)[order], color=POINT, linewidth=1.1)
        place.plot(modes[order], rows, "o", color=POINT, markersize=3.5 if len(rows) <= NAMED else 1.5)
        if len(rows) <= NAMED:
            place.set_yticks(rows, part["grp"].astype(str).to_numpy()[order], fontsize=7)
        else:
            place.set_yticks([])
            place.set_ylabel(f"{len(rows)} levels")
        place.set_title(f"{effect} | {grp}", fontsize=10)
        place.set_xlabel(f"conditional mode, {level:.0%} interval", fontsize=8)
    return figure


def random_qq(fit: Any, group: str | None = None, term: str | None = None, *, ax: Any = None) -> Figure:
    """Standardised conditional modes against normal quantiles; see `Plots.random_qq`."""
    parts = chosen_effects(fit, group, term)
    figure, axes = panels(len(parts), columns=min(len(parts), 3), ax=ax)
    for (grp, effect, part), place in zip(parts, axes, strict=True):
        values = np.sort(part["condval"].to_numpy())
        normal = ndtri(reference_quantiles(len(values)))
        spread = float(values.std())
        place.plot(normal, values, "o", color=POINT, markersize=3)
        place.axline((0.0, float(values.mean())), slope=spread, color=FIT, linewidth=1.0)
        place.set_title(f"{effect} | {grp}", fontsize=10)
        place.set_xlabel("normal quantile", fontsize=8)
        place.set_ylabel("conditional mode", fontsize=8)
    return figure


def shrinkage(fit: Any, group: str | None = None, *, ax: Any = None) -> Figure:
    """Each level's own estimate beside its shrunken one; see `Plots.shrinkage`."""
    if isinstance(fit, GeneralisedModel):
        raise ModelError("a generalised fit has no least-squares effects of a level by itself: see caterpillar()")
    design = fit.design
    groups = list(dict.fromkeys(t.group for t in design.random))
    if group is None:
        group = groups[0] if groups else None
    members = [t for t in design.random if t.group == group]
    if not members:
        raise no_effects(group, groups)
    columns = [c for t in members for c in t.columns]
    n = len(design.y)
    z = np.column_stack([np.ones((n, 1)) if t.z is None else t.z for t in members])
    partial = fit.residuals("response").to_numpy() if len(fit.residuals("response")) == n else None
    if partial is None:
        raise ModelError("shrinkage is drawn for fits whose residuals are those of the rows used")
    codes = members[0].codes
    table = fit.ranef()
    part = table[table["grpvar"] == group]
    modes = np.column_stack([part.loc[part["term"] == c, "condval"].to_numpy() for c in dict.fromkeys(columns)])
    partial = partial + np.einsum("ij,ij->i", z, modes[codes])
    alone = _within_level(z, partial, codes, len(modes))
    named = len(modes) if z.shape[1] == 1 and len(modes) <= NAMED else 0
    figure, axes = panels(max(1, z.shape[1] - 1), names=named, ax=ax)
    if z.shape[1] == 1:
        place, rows = axes[0], np.arange(len(modes))
        order = np.argsort(alone[:, 0])
        place.plot(alone[order, 0], rows, "o", color=MUTED, markersize=3.5, label="level alone")
        place.plot(modes[order, 0], rows, "o", color=POINT, markersize=3.5, label="conditional mode")
        place.hlines(rows, alone[order, 0], modes[order, 0], color=POINT, linewidth=0.8)
        place.axvline(0.0, color=MUTED, linewidth=0.8)
        if len(rows) <= NAMED:
            place.set_yticks(rows, np.asarray(members[0].levels).astype(str)[order], fontsize=7)
        place.set_xlabel(f"{columns[0]} | {group}")
        place.legend(frameon=False, fontsize=8)
        return figure
    for j, place in enumerate(axes, start=1):
        for a, b in zip(alone, modes, strict=True):
            place.plot([a[0], b[0]], [a[j], b[j]], color=MUTED, linewidth=0.7)
        place.plot(alone[:, 0], alone[:, j], "o", color=MUTED, markersize=3.5, label="level alone")
        place.plot(modes[:, 0], modes[:, j], "o", color=POINT, markersize=3.5, label="conditional mode")
        place.set_xlabel(f"{columns[0]} | {group}", fontsize=8)
        place.set_ylabel(f"{columns[j]} | {group}", fontsize=8)
        place.legend(frameon=False, fontsize=8)
    return figure


def _within_level(z: np.ndarray, y: np.ndarray, codes: np.ndarray, levels: int) -> np.ndarray:
    """Least-squares effects of every level from its own rows (levels, l); NaN where they do not determine them."""
    width = z.shape[1]
    gram = np.zeros((levels, width, width))
    cross = np.zeros((levels, width))
    np.add.at(gram, codes, z[:, :, None] * z[:, None, :])
    np.add.at(cross, codes, z * y[:, None])
    known = np.linalg.matrix_rank(gram) == width
    out = np.full((levels, width), np.nan)
    out[known] = np.linalg.solve(gram[known], cross[known][:, :, None])[:, :, 0]
    return out
