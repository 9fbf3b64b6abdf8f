"""F tests of the fixed effects' terms, and single-term deletions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import chdtrc

from fastlmm_core.core import fit
from fastlmm_core.errors import ModelError
from fastlmm_core.fitting.fit import core_terms, refit_ml
from fastlmm_core.inference.contrasts import containing_terms, full_rank_codings, term_hypotheses
from fastlmm_core.inference.ddf import FTest
from fastlmm_core.inference.robust import covariance_method

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["anova_table", "drop1"]


def anova_table(result: FittedModel, *, type: int = 3, ddf: str = "satterthwaite", **covariance: Any) -> pd.DataFrame:
    """F tests of each term; see `LmerResult.anova`."""
    kept = ~np.isnan(result.core.beta)
    hypotheses = term_hypotheses(result.design, kept, type)
    return f_table(result, hypotheses, ddf, **covariance)


def f_table(
    result: FittedModel, hypotheses: dict[str, NDArray[np.float64]], ddf: str, **covariance: Any
) -> pd.DataFrame:
    """The tests of several hypotheses as a table."""
    method = covariance_method(result, ddf, stacklevel=5, **covariance)
    tests: list[FTest] = [method.f_test(rows) for rows in hypotheses.values()]
    frame = pd.DataFrame(
        {
            "sum_sq": [t.sum_sq for t in tests],
            "mean_sq": [t.mean_sq for t in tests],
            "num_df": np.array([t.num_df for t in tests], dtype=np.int64),
            "den_df": [t.den_df for t in tests],
            "F": [t.F for t in tests],
            "p": [t.p for t in tests],
        },
        index=pd.Index(list(hypotheses), name="term", dtype=object),
    )
    frame.attrs["notes"] = list(method.notes)
    return frame


def drop1(result: FittedModel, *, test: str = "F", ddf: str = "satterthwaite") -> pd.DataFrame:
    """Tests of each term that no other contains; see `LmerResult.drop1`."""
    design = result.design
    above = containing_terms(design.spec)
    # R's rule of marginality looks at names alone: x stays while a:x is there
    named = {":".join(term): set(term) for term in design.spec.terms.terms}
    scope = [name for name in above if not any(named[other] > named[name] for other in named)]
    if full_rank_codings(design.spec):
        raise ModelError(
            "drop1 compares nested columns, and without an intercept or a main effect they change meaning when a term "
            "is left out: fit the smaller models and compare them with anova(m0, m1)"
        )
    columns = dict(design.x_terms)
    if test == "F":
        kept = ~np.isnan(result.core.beta)
        place = np.cumsum(kept) - 1
        identity = np.eye(int(kept.sum()))
        rows = {name: identity[[int(place[j]) for j in range(len(kept))[columns[name]] if kept[j]]] for name in scope}
        return f_table(result, rows, ddf)
    if test.lower() not in ("chisq", "lrt"):
        raise ModelError(f"test {test!r} does not exist: use 'F' or 'chisq'")
    return _likelihood_ratios(result, {name: columns[name] for name in scope})


def _likelihood_ratios(result: FittedModel, columns: dict[str, slice]) -> pd.DataFrame:
    """Maximum-likelihood fits without each set of columns."""
    full = refit_ml(result)
    design = result.design
    terms = core_terms(design)
    table = [(full.df_model, full.aic, full.criterion, np.nan, np.nan, np.nan)]
    for where in columns.values():
        X = np.delete(design.X, np.arange(design.X.shape[1])[where], axis=1)
        core = fit(
            design.y,
            X,
            terms,
            weights=design.weights,
            offset=design.offset,
            reml=False,
            control=result.options.control,
        )
        npar = core.rank + len(core.theta) + 1
        chisq, df = max(0.0, core.criterion - full.criterion), full.df_model - npar
        p = float(chdtrc(df, chisq)) if df else np.nan
        table.append((npar, core.criterion + 2.0 * npar, core.criterion, chisq, df, p))
    frame = pd.DataFrame(
        table,
        columns=["npar", "aic", "deviance", "chisq", "df", "p"],
        index=pd.Index(["<none>", *columns], name="term", dtype=object),
    )
    return frame.astype({"npar": np.int64})
