"""Predicted responses: for the rows of the fit or for new ones, with all, some or none of the random effects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd

from fastlmm_core.errors import DataError, FormulaError, ModelError
from fastlmm_core.fitting.coefficients import undetermined
from fastlmm_core.formula import parse_formula
from fastlmm_core.formula.terms import parse_terms

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

    from fastlmm_core.core import CoreFit
    from fastlmm_core.core.glmm import GlmmFit
    from fastlmm_core.core.structures.equations_fit import EquationsFit
    from fastlmm_core.formula import Design, NewDesign, RandomDesign, RandomTerm

__all__ = ["included_columns", "linear_predictor", "predict", "row_weights", "sparse_part", "target_rows"]


def predict(
    design: Design, core: CoreFit, newdata: Any = None, *, re_form: str = "all", allow_new_levels: bool = False
) -> pd.Series:
    """Xβ + offset + the chosen part of Zb, as a Series; see `LmerResult.predict`."""
    masks = included_columns(design, re_form)
    rows = target_rows(design, newdata, masks, allow_new_levels=allow_new_levels)
    values = linear_predictor(rows, core, masks)
    if newdata is None:
        values = values + sparse_part(design, core)
    found = rows.by_row(values)
    found.attrs["notes"] = undetermined(design, core, rows)
    return found


def sparse_part(design: Design, core: CoreFit | GlmmFit) -> NDArray[np.float64] | float:
    """What `sparse()` fixed effects add to X beta in the fit's rows (n,); zero where the model has none."""
    return cast("EquationsFit", core).sparse_part if design.sparse else 0.0


def row_weights(design: Design, given: ArrayLike | None, rows: NewDesign, own: bool) -> NDArray[np.float64]:
    """Weights (n,) of the rows predicted: those given, the model's own for its own rows, 1 elsewhere."""
    if given is None:
        assert rows.X is not None
        return design.weights if own and design.weights is not None else np.ones(len(rows.X))
    w = rows.taken(given, "weights")
    if not (np.isfinite(w).all() and (w > 0).all()):
        raise DataError("weights must be positive and finite")
    return w


def target_rows(
    design: Design,
    newdata: Any,
    masks: Sequence[NDArray[np.bool_]],
    *,
    allow_new_levels: bool = False,
    all_columns: bool = False,
    residual: Literal["none", "variance", "known"] = "none",
) -> NewDesign:
    """The rows that a prediction is for: those of the fit where `newdata` is None.

    Terms of which `masks` includes nothing are left out, or have their columns only with `all_columns`; `residual` is
    what `Design.rebuild` reads for a residual structure.
    """
    if newdata is None:
        return design.own_rows()
    wanted = [k for k, mask in enumerate(masks) if mask.any()]
    others = [k for k in range(len(masks)) if k not in wanted] if all_columns else []
    return design.rebuild(
        newdata, random=wanted, columns_only=others, allow_new_levels=allow_new_levels, residual=residual
    )


def linear_predictor(rows: NewDesign, core: CoreFit, masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
    """Xβ + offset + Σ z·b (n,) over the columns that `masks` includes; code −1 (a new level) adds nothing.

    NaN where the data do not determine Xβ.
    """
    assert rows.X is not None  # `fixed` is asked for by default
    out: NDArray[np.float64] = rows.X @ np.nan_to_num(core.beta)
    out[~core.estimable(rows.X)] = np.nan
    if rows.offset is not None:
        out = out + rows.offset
    for part, b, mask in zip(rows.random, core.b, masks, strict=True):
        if part is None or not mask.any():
            continue
        effects = np.where(mask, b, 0.0)[part.codes]
        effects[part.codes < 0] = 0.0
        out += effects[:, 0] if part.z is None else np.einsum("ij,ij->i", part.z, effects)
    return out


def included_columns(design: Design, re_form: str) -> list[NDArray[np.bool_]]:
    """Which columns of each random term `re_form` includes.

    Parameters
    ----------
    design : Design
        The model's.
    re_form : str
        "all"; "none" (R's NA and ~0 are read as that); or random terms such as "(1 | g) + (0 + x | g)", each a part of
        the model's own.

    Returns
    -------
    list of ndarray (l,) of bool
        One a random term.

    Raises
    ------
    ModelError
        A requested term is not in the model; `re_form` is None, or no text.
    FormulaError
        `re_form` cannot be read.
    """
    if re_form is pd.NA or (isinstance(re_form, float) and np.isnan(re_form)):
        re_form = "none"
    if not isinstance(re_form, str):
        ambiguous = (
            '; R\'s NULL is "all" and R\'s NA is "none", so that None would be read in opposite ways'
            if re_form is None
            else ""
        )
        raise ModelError(f're_form must be "all", "none" or random terms such as "(1 | g)", not {re_form!r}{ambiguous}')
    text = re_form.strip().removeprefix("~").strip()
    if text in ("all", "none", "NA", "0"):
        return [np.full(len(t.columns), text == "all") for t in design.random]
    masks = [np.zeros(len(t.columns), dtype=bool) for t in design.random]
    try:
        requested = parse_formula(f"y ~ {text}")
    except FormulaError as error:
        raise FormulaError(
            f're_form must be "all", "none" or random terms such as "(1 | g)", not {re_form!r}: {error}'
        ) from None
    if requested.fixed.strip() != "1":
        raise ModelError(f"re_form takes random terms only, such as (1 | g); the fixed part is always in: {re_form!r}")
    for term in requested.random:
        for effect in _requested_effects(term, design):
            found = False
            for model_term, mask in zip(design.random, masks, strict=True):
                if sorted(term.label.split(":")) == sorted(model_term.group.split(":")):  # a:b is b:a
                    where = _columns_of_effects(model_term).get(effect)
                    if where is not None and where.stop > where.start:
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
