"""Fits as plain tables, with the columns that broom.mixed gives: one row a parameter, a model, or an observation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.fitting.predict import predict
from fastlmm_core.fitting.ranef import ranef
from fastlmm_core.fitting.var_corr import var_corr
from fastlmm_core.inference.coef_table import coef_table
from fastlmm_core.inference.comparison import aicc
from fastlmm_core.inference.diagnostics import cooks_distance, residuals
from fastlmm_core.inference.expand import as_pandas
from fastlmm_core.inference.levels import checked_level
from fastlmm_core.inference.leverage import leverages
from fastlmm_core.inference.table import Table, table

if TYPE_CHECKING:
    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.formula import Design, NewDesign

__all__ = ["EFFECTS", "augment", "glance", "tidy", "with_answers"]

EFFECTS = ("fixed", "ran_pars", "ran_vals")


def tidy(
    fit: FittedModel,
    effects: str | Sequence[str] = ("fixed", "ran_pars"),
    *,
    conf_int: bool = False,
    level: float = 0.95,
    ddf: str | None = "satterthwaite",
) -> Table:
    """One row a parameter; see `LmerResult.tidy`."""
    wanted = [effects] if isinstance(effects, str) else list(effects)
    for effect in wanted:
        if effect not in EFFECTS:
            raise ModelError(f"effects has no {effect!r}: choose among {', '.join(map(repr, EFFECTS))}")
    checked_level(level)
    tables = {"fixed": lambda: _fixed(fit, ddf), "ran_pars": lambda: _ran_pars(fit), "ran_vals": lambda: _ran_vals(fit)}
    parts = [tables[effect]() for effect in wanted]
    if not parts:
        raise ModelError("effects is empty")
    frame = pd.DataFrame({name: list(chain.from_iterable(part[name] for part in parts)) for name in parts[0]})
    if "ran_vals" not in wanted:
        frame = frame.drop(columns="level", errors="ignore")
    if ddf is None or "fixed" not in wanted:
        frame = frame.drop(columns=["df", "p_value"])
    if conf_int:
        # no degrees of freedom, no t: the normal quantile
        df = np.clip(frame["df"].fillna(np.inf), None, 1e12) if "df" in frame else 1e12
        half = stdtrit(df, 0.5 + 0.5 * level) * frame["std_error"]
        frame = frame.assign(conf_low=frame["estimate"] - half, conf_high=frame["estimate"] + half)
    return table(frame)


Columns = dict[str, list[Any]]


def _columns(
    effect: str,
    group: list[Any],
    level: list[Any],
    term: list[Any],
    estimate: Any,
    error: Any,
    df: pd.Series | None = None,
    p_value: pd.Series | None = None,
) -> Columns:
    estimate, error = np.asarray(estimate, dtype=float), np.asarray(error, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = estimate / error
    return {
        "effect": [effect] * len(term),
        "group": group,
        "level": level,
        "term": term,
        "estimate": estimate.tolist(),
        "std_error": error.tolist(),
        "statistic": statistic.tolist(),
        "df": [np.nan] * len(term) if df is None else df.tolist(),
        "p_value": [np.nan] * len(term) if p_value is None else p_value.tolist(),
    }


def _fixed(fit: FittedModel, ddf: str | None) -> Columns:
    p = len(fit.params)
    where = ("fixed", [None] * p, [None] * p, list(fit.params.index))
    if ddf is None:
        return _columns(*where, fit.params, fit.bse)
    table = coef_table(fit, ddf=ddf)
    return _columns(*where, table["estimate"], table["std_error"], table["df"], table["p"])


def _ran_pars(fit: FittedModel) -> Columns:
    table = var_corr(fit.design, fit.core).to_frame()
    terms = [
        "sd__Observation"
        if row.grp == "Residual"
        else f"sd__{row.var1}"
        if row.var2 is None
        else f"cor__{row.var1}.{row.var2}"
        for row in table.itertuples()
    ]
    blank = [np.nan] * len(terms)
    return _columns("ran_pars", list(table["grp"]), [None] * len(terms), terms, table["sdcor"], blank)


def _ran_vals(fit: FittedModel) -> Columns:
    table = ranef(fit.design, fit.core)
    return _columns(
        "ran_vals", list(table["grpvar"]), list(table["grp"]), list(table["term"]), table["condval"], table["condsd"]
    )


def glance(fit: FittedModel) -> Table:
    """One row for the model; see `LmerResult.glance`."""
    return table(
        {
            "nobs": [fit.nobs],
            "sigma": [fit.sigma],
            "llf": [fit.llf],
            "aic": [fit.aic],
            "aicc": [aicc(fit)],
            "bic": [fit.bic],
            "remlcrit" if fit.reml else "deviance": [fit.criterion],
            "df_resid": [fit.df_resid],
        }
    )


def augment(fit: FittedModel, data: Any = None) -> Table:
    """One row an observation; see `LmerResult.augment`."""
    design, core = fit.design, fit.core
    rows = design.own_rows()  # all of the table's with na_action="exclude"
    out: dict[str, Any] = {
        "fitted": rows.full(core.fitted),
        "resid": rows.full(design.y - core.fitted),
        "fixed": predict(design, core, re_form="none"),
        "hat": rows.full(leverages(design, core)),
        "cooksd": cooks_distance(design, core),
        "std_resid": residuals(design, core, "studentized"),
    }
    return with_answers(design, rows, out, data)


def with_answers(design: Design, rows: NewDesign, out: dict[str, Any], data: Any) -> Table:
    """Columns named with a dot, beside the model's own or those of the table of the fit."""
    if design.offset is not None:
        out["offset"] = rows.full(design.offset)
    if design.weights is not None:
        out["weights"] = rows.full(design.weights)
    frame = _model_frame(design, rows) if data is None else _table_rows(design, rows, data)
    answers = {f".{name}": np.asarray(values) for name, values in out.items()}
    twice = [name for name in answers if name in frame]
    if twice:
        raise DataError(f"data has a column {twice[0]!r} already, which augment adds: rename or drop it first")
    # by position: the labels of rows need not be unique
    return table(frame.assign(**answers))


def _model_frame(design: Design, rows: NewDesign) -> pd.DataFrame:
    """Response, fixed-effects columns and grouping factors of the rows."""
    frame: dict[str, Any] = {design.formula.response: rows.full(design.y)}
    frame.update({name: rows.full(design.X[:, j]) for j, name in enumerate(design.x_names) if name != "Intercept"})
    for term in design.random:
        codes = np.nan_to_num(rows.full(term.codes.astype(np.float64)), nan=-1.0).astype(np.int64)
        frame[term.group] = pd.Categorical.from_codes(codes, categories=pd.Index(term.levels))
    return pd.DataFrame(frame, index=rows.index)


def _table_rows(design: Design, rows: NewDesign, data: Any) -> pd.DataFrame:
    """The table's rows that `rows` stands for."""
    frame = as_pandas(data)
    if len(frame) != design.n_total:
        raise DataError(f"data has {len(frame)} rows, but the table of the fit had {design.n_total}")
    if isinstance(data, pd.DataFrame):
        frame = design.in_order(frame, "data")
    used = frame.iloc[design.row_index] if rows.rows is None else frame
    return used.set_axis(rows.index)
