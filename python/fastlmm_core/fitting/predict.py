"""Predicted responses: for the rows of the fit or for new ones, with all, some or none of the random effects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastlmm_core.errors import ModelError
from fastlmm_core.fitting.coefficients import undetermined
from fastlmm_core.formula import parse_formula
from fastlmm_core.formula.terms import parse_terms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.core import CoreFit
    from fastlmm_core.formula import Design, NewRandom, RandomDesign, RandomTerm

__all__ = ["included_columns", "predict", "row_index"]


def row_index(design: Design) -> pd.Index:
    """Index of the rows used: the data's own where pandas held them, their positions otherwise."""
    return pd.Index(design.row_index) if design.index is None else design.index


def predict(
    design: Design, core: CoreFit, newdata: Any = None, *, re_form: str | None = "all", allow_new_levels: bool = False
) -> pd.Series:
    """Xβ + offset + the chosen part of Zb, as a Series; see `LmerResult.predict`."""
    masks = included_columns(design, re_form)
    if newdata is None:
        if re_form == "all":
            return pd.Series(core.fitted, index=row_index(design), dtype=float, copy=True)
        return pd.Series(_linear(design.X, design.offset, design.random, core, masks), index=row_index(design))
    wanted = [k for k, mask in enumerate(masks) if mask.any()]
    new = design.rebuild(newdata, random=wanted, allow_new_levels=allow_new_levels)
    assert new.X is not None  # `fixed` is asked for by default
    unknown, notes = undetermined(design, core, new.X)
    values = _linear(new.X, new.offset, new.random, core, masks)
    values[unknown] = np.nan
    found = pd.Series(values, index=new.index)
    found.attrs["notes"] = notes
    return found


def _linear(
    X: NDArray[np.float64],
    offset: NDArray[np.float64] | None,
    random: Sequence[RandomDesign | NewRandom | None],
    core: CoreFit,
    masks: Sequence[NDArray[np.bool_]],
) -> NDArray[np.float64]:
    """Xβ + offset + Σ z·b over the columns that `masks` includes; code −1 (a new level) adds nothing."""
    out: NDArray[np.float64] = X @ np.nan_to_num(core.beta)
    if offset is not None:
        out = out + offset
    for part, b, mask in zip(random, core.b, masks, strict=True):
        if part is None or not mask.any():
            continue
        effects = np.where(mask, b, 0.0)[part.codes]
        effects[part.codes < 0] = 0.0
        out += effects[:, 0] if part.z is None else np.einsum("ij,ij->i", part.z, effects)
    return out


def included_columns(design: Design, re_form: str | None) -> list[NDArray[np.bool_]]:
    """Which columns of each random term `re_form` includes.

    Parameters
    ----------
    design : Design
        The model's.
    re_form : str or None
        "all"; None for none; or random terms such as "(1 | g) + (0 + x | g)", each a part of the model's own.

    Returns
    -------
    list of ndarray (l,) of bool
        One a random term.

    Raises
    ------
    ModelError
        A requested term is not in the model.
    FormulaError
        `re_form` cannot be read.
    """
    if re_form is None or re_form == "all":
        return [np.full(len(t.columns), re_form == "all") for t in design.random]
    if not isinstance(re_form, str):
        raise ModelError(f're_form must be "all", None or a formula of random terms, not {re_form!r}')
    masks = [np.zeros(len(t.columns), dtype=bool) for t in design.random]
    requested = parse_formula(f"{design.formula.response} ~ 1 + {re_form.strip().removeprefix('~')}")
    if requested.fixed.strip() != "1":
        raise ModelError(f"re_form takes random terms only, such as (1 | g); the fixed part is always in: {re_form!r}")
    for term in requested.random:
        for effect in _requested_effects(term, design):
            found = False
            for model_term, mask in zip(design.random, masks, strict=True):
                if sorted(term.label.split(":")) == sorted(model_term.group.split(":")):  # a:b is b:a
                    where = _columns_of_effects(model_term).get(effect)
                    if where is not None:
                        mask[where] = found = True
            if not found:
                have = ", ".join(f"({' + '.join(t.columns)} | {t.group})" for t in design.random)
                asked = ":".join(sorted(effect)) or "Intercept"
                raise ModelError(f"re_form asks for {asked} | {term.label}, but the model's random effects are {have}")
    return masks


def _requested_effects(term: RandomTerm, design: Design) -> list[frozenset[str]]:
    """The effects left of a bar, each as the set of expressions it multiplies; the empty set is the intercept."""
    known = {expr for t in design.random if t.spec is not None for expr in t.spec.terms.factors}
    terms = parse_terms(term.expr, known)
    return [frozenset()] * terms.intercept + [_effect(factors) for factors in terms.terms]


def _columns_of_effects(term: RandomDesign) -> dict[frozenset[str], slice]:
    """Which columns of a term come from which effect: a factor's slope has several."""
    if term.spec is None:
        return {frozenset(): slice(0, 1)}
    terms = term.spec.terms
    effects = [frozenset[str]()] * terms.intercept + [_effect(factors) for factors in terms.terms]
    return {effect: where for effect, (_, where) in zip(effects, term.spec.term_columns, strict=True)}


def _effect(factors: tuple[str, ...]) -> frozenset[str]:
    return frozenset(expr.replace(" ", "") for expr in factors)
