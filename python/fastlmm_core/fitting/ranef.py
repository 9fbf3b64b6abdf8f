"""Conditional modes of the random effects as tables, and the per-level coefficients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fastlmm_core.fitting.unidentified import unidentified_elements

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.core import CoreFit
    from fastlmm_core.formula import Design

__all__ = ["coef", "n_groups", "random_effects", "ranef"]


def n_groups(design: Design) -> dict[str, int]:
    """Number of levels of each grouping factor, in the model's order."""
    # not `levels`: the labels of an interaction are written when first read, and there may be millions
    return {term.group: len(term.level_set) for term in design.random}


def ranef(design: Design, core: CoreFit, *, condsd: bool = True) -> pd.DataFrame:
    """Every conditional mode in a long table, one row an effect of a level.

    Built by repeating codes, never by a loop over levels: a million levels take a fraction of a second.
    """
    grpvars = list(n_groups(design))
    terms = list(dict.fromkeys(c for t in design.random for c in t.columns))
    categories, offset_of = _all_levels(design)
    whole, real = np.zeros(0, np.int32), np.zeros(0)  # there may be no random term
    grpvar_codes, term_codes, grp_codes, values, sds = [whole], [whole], [whole], [real], [real]
    cond_var = core.cond_var() if condsd else None
    unknown = unidentified_elements(core) if condsd else set()
    for group in grpvars:  # terms on one group stand together, as in lme4
        for k, term in enumerate(design.random):
            if term.group != group:
                continue
            b = core.b[k]
            q, width = b.shape
            grpvar_codes.append(np.full(q * width, grpvars.index(group), np.int32))
            term_codes.append(np.repeat(np.array([terms.index(c) for c in term.columns], np.int32), q))
            grp_codes.append(np.tile(offset_of[group], width))
            values.append(b.T.ravel())
            if cond_var is not None:
                sd = np.sqrt(np.diagonal(cond_var[k], axis1=1, axis2=2))
                blind = [(k, j, j) in unknown for j in range(width)]
                sds.append(np.where(blind, np.nan, sd).T.ravel())

    frame = pd.DataFrame(
        {
            "grpvar": pd.Categorical.from_codes(np.concatenate(grpvar_codes), categories=grpvars),
            "term": pd.Categorical.from_codes(np.concatenate(term_codes), categories=terms),
            "grp": pd.Categorical.from_codes(np.concatenate(grp_codes), categories=categories),
            "condval": np.concatenate(values),
        }
    )
    if condsd:
        frame["condsd"] = np.concatenate(sds)
    return frame


def _all_levels(design: Design) -> tuple[pd.Index, dict[str, NDArray[np.int64]]]:
    """The distinct levels of all groups, and for each group where its levels stand among them."""
    of_group = {t.group: np.asarray(t.levels) for t in design.random}
    if not of_group:
        return pd.Index([], dtype=object), {}
    if len(of_group) == 1:
        ((group, levels),) = of_group.items()
        return pd.Index(levels), {group: np.arange(len(levels))}
    joined = np.concatenate([levels.astype(object) for levels in of_group.values()])
    codes, categories = pd.factorize(joined)
    ends = np.cumsum([len(levels) for levels in of_group.values()])[:-1]
    return pd.Index(categories), dict(zip(of_group, np.split(codes, ends), strict=True))


def random_effects(design: Design, core: CoreFit) -> dict[str, pd.DataFrame]:
    """Conditional modes as one wide table a grouping factor: rows are levels, columns effects of all its terms."""
    out = {}
    for group in n_groups(design):
        members = [k for k, t in enumerate(design.random) if t.group == group]
        names = _distinct([c for k in members for c in design.random[k].columns])
        index = pd.Index(design.random[members[0]].levels, name=group)
        out[group] = pd.DataFrame(np.hstack([core.b[k] for k in members]), index=index, columns=names)
    return out


def _distinct(names: list[str]) -> list[str]:
    """A name met again gets ".1", ".2", ...: two terms on one group may both have an intercept."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        n = seen.get(name, 0)
        seen[name] = n + 1
        out.append(f"{name}.{n}" if n else name)
    return out


def coef(design: Design, core: CoreFit) -> dict[str, pd.DataFrame]:
    """Fixed effects plus a level's random effects, one wide table a grouping factor."""
    kept = ~np.isnan(core.beta)
    fixed = {name: float(value) for name, value, keep in zip(design.x_names, core.beta, kept, strict=True) if keep}
    of_effect = {_effect(name): name for name in fixed}
    out = {}
    for group, q in n_groups(design).items():
        members = [k for k, t in enumerate(design.random) if t.group == group]
        sums = {name: np.full(q, value) for name, value in fixed.items()}
        for k in members:
            for j, column in enumerate(design.random[k].columns):
                # a:b among the random effects is b:a among the fixed ones; one without a counterpart varies around zero
                name = of_effect.setdefault(_effect(column), column)
                sums[name] = sums.get(name, np.zeros(q)) + core.b[k][:, j]
        out[group] = pd.DataFrame(sums, index=pd.Index(design.random[members[0]].levels, name=group))
    return out


def _effect(column: str) -> tuple[str, ...]:
    """What a column multiplies, in an order of its own; colons between brackets belong to levels and calls."""
    parts, depth = [""], 0
    for char in column:
        depth += (char in "([{") - (char in ")]}")
        if char == ":" and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return tuple(sorted(parts))
