"""F tests of the fixed effects' terms, and single-term deletions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import chdtrc

from fastlmm_core.errors import ModelError
from fastlmm_core.fitting.models import model_of
from fastlmm_core.fitting.text import listed
from fastlmm_core.formula.terms import coding
from fastlmm_core.inference.contrasts import containing_terms, full_rank_codings, term_hypotheses
from fastlmm_core.inference.ddf import FTest
from fastlmm_core.inference.monte_carlo import warn_of_error
from fastlmm_core.inference.refits import ml_fit
from fastlmm_core.inference.robust import covariance_method
from fastlmm_core.inference.table import Table, table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.formula import Design
    from fastlmm_core.formula.fixed import MatrixSpec

__all__ = ["anova_table", "anova_type", "drop1", "drop1_columns", "f_table", "likelihood_ratios"]


def anova_table(result: FittedModel, *, type: int | str = 3, ddf: str = "satterthwaite", **covariance: Any) -> Table:
    """F tests of each term; see `LmerResult.anova`."""
    kept = ~np.isnan(result.core.beta)
    return f_table(result, term_hypotheses(result.design, kept, anova_type(type)), ddf, **covariance)


def anova_type(type: int | str) -> int:
    """1, 2 or 3, also from "I", "II", "III" and the numbers as text; ModelError for anything else."""
    kinds = {"1": 1, "i": 1, "2": 2, "ii": 2, "3": 3, "iii": 3}
    kind = kinds.get(str(type).strip().lower())
    if kind is None or isinstance(type, bool):
        other = "; the likelihood-ratio table of several models is anova(m0, m1)" if hasattr(type, "design") else ""
        raise ModelError(f"anova type {type!r} does not exist: use 1, 2 or 3{other}")
    return kind


def f_table(result: FittedModel, hypotheses: dict[str, NDArray[np.float64]], ddf: str, **covariance: Any) -> Table:
    """The tests of several hypotheses as a table, with notes on terms that have lost degrees of freedom."""
    method = covariance_method(result, ddf, **covariance)
    tests: list[FTest] = [method.f_test(rows) for rows in hypotheses.values()]
    columns = {
        "sum_sq": [t.sum_sq for t in tests],
        "mean_sq": [t.mean_sq for t in tests],
        "num_df": np.array([t.num_df for t in tests], dtype=np.int64),
        "den_df": [t.den_df for t in tests],
        "F": [t.F for t in tests],
        "p": [t.p for t in tests],
    }
    why = [f"{name}: {note}" for name, test in zip(hypotheses, tests, strict=True) for note in test.notes]
    left = {name: test.num_df for name, test in zip(hypotheses, tests, strict=True)}
    notes = (*rank_notes(result.design, ~np.isnan(result.core.beta), left), *why, *method.notes)
    return table(columns, pd.Index(list(hypotheses), name="term", dtype=object), notes)


def rank_notes(design: Design, kept: NDArray[np.bool_], left: dict[str, int]) -> list[str]:
    """Sentences on empty cells and on terms whose columns depend on others.

    Parameters
    ----------
    design : Design
    kept : (p,) bool
        Columns that have a coefficient.
    left : dict
        Degrees of freedom with which each term is tested.
    """
    if kept.all():
        return []
    notes = []
    columns = dict(design.x_terms)
    names = {":".join(term): term for term in design.spec.terms.terms}
    for name, df in left.items():
        where, factors = columns[name], names[name]
        width = where.stop - where.start
        if df == width or df == 0:
            continue
        if len(factors) > 1 and set(factors) <= set(design.spec.factors) and not kept[where].all():
            there, cells = occupied_cells(design, factors)
            if there < cells:
                empty = cells - there
                notes.append(
                    f"{name}: {empty} of {cells} cells {'is' if empty == 1 else 'are'} empty; its terms are tested by "
                    "what the others determine, which depends on where the empty ones are"
                )
                continue
        notes.append(f"{name}: {df} of {width} degrees of freedom are left beside the other terms")
    nothing = [name for name, df in left.items() if df == 0]
    if nothing:
        notes.append(f"{listed(nothing)}: nothing to test, as the other terms' columns span what is asked")
    return notes


def occupied_cells(design: Design, factors: tuple[str, ...]) -> tuple[int, int]:
    """Combinations of the factors' levels that occur in the data, and how many there could be."""
    columns = dict(design.x_terms)
    inside = [columns[":".join(term)] for term in design.spec.terms.terms if set(term) <= set(factors)]
    coded = np.hstack([design.X[:, where] for where in inside])
    return len(np.unique(coded, axis=0)), prod(len(design.spec.factors[name].levels) for name in factors)


def drop1_columns(design: Design) -> dict[str, slice]:
    """The columns of each term that no other contains.

    Raises
    ------
    ModelError
        Without one of them the factors of another are coded otherwise: columns change their meaning.
    """
    above = containing_terms(design.spec)
    # R's rule of marginality looks at names alone: x stays while a:x is there
    named = {":".join(term): set(term) for term in design.spec.terms.terms}
    scope = [name for name in above if not any(named[other] > named[name] for other in named)]
    recoded = [name for name in scope if full_rank_codings(design.spec) and _recodes(design.spec, name)]
    if recoded:
        raise ModelError(
            f"drop1 compares nested columns, and without {listed(recoded)} those of other terms change meaning, as "
            "happens without an intercept or a main effect: fit the smaller models and compare them with anova(m0, m1)"
        )
    columns = dict(design.x_terms)
    return {name: columns[name] for name in scope}


def _recodes(spec: MatrixSpec, name: str) -> bool:
    """Whether factors of other terms are coded otherwise once the term `name` is left out."""
    left = [(term, codes) for term, codes in zip(spec.terms.terms, spec.codes, strict=True) if ":".join(term) != name]
    smaller = replace(spec.terms, terms=tuple(term for term, _ in left))
    return any(
        was != now and expr in spec.factors
        for (term, before), after in zip(left, coding(smaller, spec.factors), strict=True)
        for expr, was, now in zip(term, before, after, strict=True)
    )


def drop1(result: FittedModel, *, test: str = "F", ddf: str = "satterthwaite") -> Table:
    """Tests of each term that no other contains; see `LmerResult.drop1`."""
    design = result.design
    columns = drop1_columns(design)
    if test.lower() == "f":
        rows = term_hypotheses(design, ~np.isnan(result.core.beta), 2)
        return f_table(result, {name: rows[name] for name in columns}, ddf)
    if test.lower() not in ("chisq", "lrt"):
        raise ModelError(f"test {test!r} does not exist: use 'F' or 'chisq'")
    options = replace(result.options, reml=False, start=None)

    def without(X: NDArray[np.float64]) -> tuple[int, float]:
        core = model_of(replace(design, X=X), options).fit(design.y)
        return core.rank + core.n_parameters + 1, core.criterion

    return likelihood_ratios(ml_fit(result), columns, without)


def likelihood_ratios(
    full: FittedModel, columns: dict[str, slice], without: Callable[[NDArray[np.float64]], tuple[int, float]]
) -> Table:
    """A maximum-likelihood fit against those without each set of columns.

    Parameters
    ----------
    full : FittedModel
    columns : dict
    without : callable
        Number of parameters and deviance of the model with these fixed-effects columns (n, k).
    """
    design = full.design
    rows = [(full.df_model, full.aic, full.criterion, np.nan, np.nan, np.nan)]
    for where in columns.values():
        npar, deviance = without(np.delete(design.X, np.arange(design.X.shape[1])[where], axis=1))
        chisq, df = max(0.0, deviance - full.criterion), full.df_model - npar
        warn_of_error(full, chisq)
        p = float(chdtrc(df, chisq)) if df else np.nan
        rows.append((npar, deviance + 2.0 * npar, deviance, chisq, df, p))
    names = ("npar", "aic", "deviance", "chisq", "df", "p")
    left = dict(zip(columns, (int(row[4]) for row in rows[1:]), strict=True))
    return table(
        dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)),
        pd.Index(["<none>", *columns], name="term", dtype=object),
        rank_notes(design, ~np.isnan(full.core.beta), left),
    )
