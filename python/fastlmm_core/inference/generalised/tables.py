"""Tables of a generalised fit: coefficients with z tests, Wald's chi-squared tests of terms, tidy, augment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import chdtrc, ndtr

from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import ModelError
from fastlmm_core.families import Ordinal, TwoPart
from fastlmm_core.fitting.models import arrays_of
from fastlmm_core.fitting.predict import predict as linear_predictions
from fastlmm_core.fitting.var_corr import var_corr
from fastlmm_core.fitting.zero_part import design_and_fit
from fastlmm_core.inference import tidy as plain
from fastlmm_core.inference.anova import anova_type, drop1_columns, f_table, likelihood_ratios
from fastlmm_core.inference.coef_table import coefficients
from fastlmm_core.inference.comparison import aicc
from fastlmm_core.inference.contrasts import term_hypotheses
from fastlmm_core.inference.generalised.classes import categorical
from fastlmm_core.inference.generalised.rows import deviance, lawless, prior_weights, residuals
from fastlmm_core.inference.levels import quantile_of_level
from fastlmm_core.inference.reductions import Reduction, reductions
from fastlmm_core.inference.robust import covariance_method
from fastlmm_core.inference.table import Table, table

if TYPE_CHECKING:
    from fastlmm_core.fitting.generalised_model import GeneralisedModel

__all__ = ["augment", "chisq_table", "coef_table", "drop1", "glance", "reduced_criteria", "tidy"]


def coef_table(result: GeneralisedModel, *, exp: bool = False, level: float = 0.95) -> Table:
    """Estimates, standard errors, z and p; see `GlmerResult.coef_table`."""
    with one_blas_thread():
        method = covariance_method(result, "normal")
        estimate, std_error, _, z, p = coefficients(result, method)
    columns = {"estimate": estimate, "std_error": std_error, "z": z, "p": p}
    if exp:
        half = quantile_of_level(level) * std_error
        ratio = np.exp(estimate)
        columns |= {"estimate": ratio, "std_error": ratio * std_error}
        columns |= {"lower": np.exp(estimate - half), "upper": np.exp(estimate + half)}
    return table(np.array(list(columns.values())).T, result.design.x_names, method.notes, tuple(columns))


def chisq_table(result: GeneralisedModel, *, type: int | str = 3) -> Table:
    """Wald's tests of each term; see `GlmerResult.anova`."""
    kept = ~np.isnan(result.core.beta)
    return _wald(result, term_hypotheses(result.design, kept, anova_type(type)))


def _wald(result: GeneralisedModel, hypotheses: dict[str, Any]) -> Table:
    found = f_table(result, hypotheses, "normal")
    df = found["num_df"].to_numpy()
    chisq = df * found["F"].to_numpy()
    p = np.where(df > 0, chdtrc(np.maximum(df, 1), chisq), np.nan)
    return table({"chisq": chisq, "df": df, "p": p}, found.index, found.notes)


def drop1(result: GeneralisedModel, *, test: str = "chisq") -> Table:
    """Each term left out that no other contains; see `GlmerResult.drop1`."""
    from fastlmm_core.fitting.generalised import glmm_of

    columns = drop1_columns(result.design)
    if test.lower() == "wald":
        rows = term_hypotheses(result.design, ~np.isnan(result.core.beta), 2)
        return _wald(result, {name: rows[name] for name in columns})
    if test.lower() not in ("chisq", "lrt"):
        raise ModelError(f"test {test!r} does not exist: use 'chisq' or 'wald'")

    def without(X: np.ndarray) -> tuple[int, float]:
        core = glmm_of(arrays_of(result.design).with_columns(X), result.options).fit(result.design.y)
        return core.rank + len(core.theta) + core.family.n_extra, core.criterion

    return likelihood_ratios(result, columns, without)


def reduced_criteria(result: GeneralisedModel, reduce_terms: bool) -> Iterator[tuple[Reduction, float]]:
    """Each way to make the random part smaller by a step, and then that of zeros, with minus twice its log-likelihood.

    A fit is made as it is asked for.
    """
    from fastlmm_core.fitting.generalised import glmm_of

    design, options = result.design, result.options
    for reduction in reductions(design, reduce_terms):
        if reduction.terms:
            left = glmm_of(arrays_of(design).with_terms(reduction.terms), options)
            yield reduction, left.fit(design.y).criterion
        else:
            yield reduction, glmm_of(design, options).fixed_criterion(design.y)
    family, part = options.family, options.zero
    if part is None or not isinstance(family, TwoPart):
        return
    for reduction in reductions(part, reduce_terms):
        effects = list(family.effects)
        group, columns = effects.pop(reduction.term)
        if len(reduction.terms) > len(effects):
            effects.insert(reduction.term, (group, columns[: reduction.terms[reduction.term].n_columns]))
        fewer = replace(options, family=family.with_effects(effects), zero_terms=reduction.terms)
        yield replace(reduction, label=f"zero: {reduction.label}"), glmm_of(design, fewer).fit(design.y).criterion


def tidy(
    result: GeneralisedModel,
    effects: str | Sequence[str] = ("fixed", "ran_pars"),
    *,
    conf_int: bool = False,
    level: float = 0.95,
    exp: bool = False,
) -> Table:
    """One row a parameter; see `GlmerResult.tidy`."""
    found = plain.tidy(result, effects, conf_int=conf_int, level=level, ddf="normal")
    frame = pd.DataFrame(found).drop(columns="df", errors="ignore")
    if result.core.family.vector:
        wanted = [effects] if isinstance(effects, str) else list(effects)
        frame.insert(1, "component", "cond")
        if "fixed" in wanted:
            frame = _below(frame, _own_coefficients(result, level))
        if "ran_pars" in wanted and result.core.zero_part is not None:
            frame = _below(frame, _zero_spread(result))
        if {"fixed", "ran_pars"} & set(wanted):
            places = frame["effect"].map({effect: place for place, effect in enumerate(wanted)})
            frame = frame.iloc[np.argsort(places.to_numpy(), kind="stable")].reset_index(drop=True)
    if exp:
        fixed = frame["effect"] == "fixed"
        ratio = np.exp(frame.loc[fixed, "estimate"].astype(float))
        frame.loc[fixed, "std_error"] *= ratio
        frame.loc[fixed, "estimate"] = ratio
        for name in ("conf_low", "conf_high"):
            if name in frame:
                frame.loc[fixed, name] = np.exp(frame.loc[fixed, name].astype(float))
    return table(frame, None, found.notes)


def _own_coefficients(result: GeneralisedModel, level: float) -> pd.DataFrame:
    """Thresholds, or the zero part's coefficients, as rows of `tidy`; that a threshold is zero is no hypothesis."""
    family = result.core.family
    ordinal = isinstance(family, Ordinal)
    rows = result.family_params[~np.array(family.logs, dtype=bool)]
    if isinstance(family, TwoPart):
        rows = rows.iloc[: len(family.columns)]
    estimate, error = rows["estimate"].to_numpy(), rows["std_error"].to_numpy()
    z = estimate / error
    half = quantile_of_level(level) * error
    return pd.DataFrame(
        {
            "effect": "fixed",
            "component": "alpha" if ordinal else "zi",
            "group": None,
            "level": None,
            "term": [str(name).removeprefix("zi.") for name in rows.index],
            "estimate": estimate,
            "std_error": error,
            "statistic": z,
            "p_value": np.full(len(z), np.nan) if ordinal else 2.0 * ndtr(-np.abs(z)),
            "conf_low": estimate - half,
            "conf_high": estimate + half,
        }
    )


def _below(frame: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """The rows of both, in the columns of the first."""
    more = more.reindex(columns=frame.columns)
    return pd.DataFrame({name: [*frame[name], *more[name]] for name in frame})


def _zero_spread(result: GeneralisedModel) -> pd.DataFrame:
    """Standard deviations and correlations of the zero part's random effects."""
    found = var_corr(*design_and_fit(result, "zero")).to_frame()
    pairs = zip(found["var1"], found["var2"], strict=True)
    terms = [f"sd__{a}" if b is None else f"cor__{a}.{b}" for a, b in pairs]
    parts = {"effect": "ran_pars", "component": "zi", "group": found["grp"], "level": None, "term": terms}
    return pd.DataFrame({**parts, "estimate": found["sdcor"]})


def glance(result: GeneralisedModel) -> Table:
    """One row for the model; see `GlmerResult.glance`."""
    return table(
        {
            "nobs": [result.nobs],
            "llf": [result.llf],
            "aic": [result.aic],
            "aicc": [aicc(result)],
            "bic": [result.bic],
            "deviance": [deviance(result)],
            "df_resid": [result.df_resid],
        }
    )


def augment(result: GeneralisedModel, data: Any = None) -> Table:
    """One row an observation; see `GlmerResult.augment`."""
    design, core = result.design, result.core
    rows, kind = design.own_rows(), "deviance"
    if core.family.vector:  # rows have no deviance
        kind = "pearson" if lawless(core.family, prior_weights(result)) else "quantile"
    out: dict[str, Any] = {
        "fitted": rows.full(core.fitted),
        "resid": residuals(result, kind),
        "link": rows.full(core.eta),
        "fixed": linear_predictions(design, core, re_form="none"),  # type: ignore[arg-type]
    }
    frame = plain.with_answers(design, rows, out, data)
    if isinstance(core.family, Ordinal) and data is None:
        frame[design.formula.response] = categorical(core.family, rows.full(design.y))
    return frame
