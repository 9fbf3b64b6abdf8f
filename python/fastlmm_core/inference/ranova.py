"""Tests of the random effects: each term left out or reduced in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import chdtrc

from fastlmm_core.core import Term, fit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.formula import RandomDesign
    from fastlmm_core.formula.fixed import MatrixSpec

__all__ = ["NOTE", "ranova"]

NOTE = (
    "a variance of zero lies on the boundary of the parameters: p, from chi-squared with df degrees of freedom, is too "
    "large; where one variance is removed, p_mixture is from the equal mixture of df and df - 1 degrees of freedom "
    "(Stram and Lee 1994)"
)


def ranova(result: FittedModel, *, reduce_terms: bool = True) -> pd.DataFrame:
    """Likelihood-ratio tests of the random effects; see `LmerResult.ranova`."""
    from fastlmm_core.fitting.fit import core_terms

    design, options = result.design, result.options
    terms = core_terms(design)
    npar, criterion = result.df_model, result.criterion
    rows = [(npar, result.llf, result.aic, np.nan, np.nan, np.nan, np.nan)]
    labels = ["<none>"]
    for k, random in enumerate(design.random):
        for label, z, l in _reductions(random, reduce_terms):
            reduced = [t for h, t in enumerate(terms) if h != k]
            if l:
                reduced.insert(k, Term(terms[k].codes, z, n_levels=terms[k].n_levels))
            if reduced:
                value = fit(
                    design.y,
                    design.X,
                    reduced,
                    weights=design.weights,
                    offset=design.offset,
                    reml=result.reml,
                    control=options.control,
                ).criterion
            else:  # no random effect left: the same criterion at theta = 0 is the linear model's
                with result.core.workspace() as objective:
                    value = objective(np.zeros(len(result.core.theta)))
            df = terms[k].n_theta - l * (l + 1) // 2
            chisq = max(0.0, value - criterion)
            p = float(chdtrc(df, chisq))
            mixture = np.nan
            if terms[k].n_columns - l == 1:
                mixture = 0.5 * p + 0.5 * (float(chdtrc(df - 1, chisq)) if df > 1 else float(chisq <= 0.0))
            rows.append((npar - df, -0.5 * value, value + 2.0 * (npar - df), chisq, float(df), p, mixture))
            labels.append(label)
    frame = pd.DataFrame(
        rows, columns=["npar", "llf", "aic", "lrt", "df", "p", "p_mixture"], index=pd.Index(labels, name="term")
    )
    frame.attrs["notes"] = [NOTE]
    return frame


def _reductions(random: RandomDesign, reduce_terms: bool) -> Iterator[tuple[str, NDArray[np.float64] | None, int]]:
    """Smaller versions of one random term: a label, and the z and number of columns that stay.

    As lmerTest: a term of several effects loses one at a time, but never the intercept beside others; one dummy a level
    of a factor becomes an intercept; a term of one effect goes altogether.
    """
    if random.z is None or random.spec is None:
        yield f"(1 | {random.group})", None, 0
        return
    whole = f"({_left_side(random.spec)} | {random.group})"
    parts = random.spec.term_columns
    l = random.z.shape[1]
    if reduce_terms and len(parts) > 1:
        names = {name: set(name.split(":")) for name, _ in parts}
        for name, columns in parts:
            if name == "Intercept" or any(names[other] > names[name] for other in names):
                continue
            stay = np.delete(np.arange(l), columns)
            yield f"{name} in {whole}", np.ascontiguousarray(random.z[:, stay]), len(stay)
    elif reduce_terms and l > 1 and np.allclose(random.z.sum(axis=1), 1.0):
        yield f"{parts[0][0]} in {whole}", None, 1
    else:
        yield whole, None, 0


def _left_side(spec: MatrixSpec) -> str:
    names = [name for name, _ in spec.term_columns]
    return " + ".join(["1", *names[1:]] if spec.terms.intercept else ["0", *names])
