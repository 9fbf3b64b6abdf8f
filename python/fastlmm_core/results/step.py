"""Backward elimination: random terms by likelihood ratios, then fixed terms by F tests, as lmerTest's `step`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastlmm_core.errors import DataError, FastLMMWarning, ModelError
from fastlmm_core.formula import Design
from fastlmm_core.formula.parse import RandomTerm
from fastlmm_core.formula.terms import Terms
from fastlmm_core.formula.update import fixed_text, random_effects_text
from fastlmm_core.inference.anova import drop1
from fastlmm_core.inference.levels import checked_level
from fastlmm_core.inference.ranova import ranova
from fastlmm_core.inference.reductions import reduced_criteria, reductions
from fastlmm_core.results.update import update

if TYPE_CHECKING:
    from fastlmm_core.results.result import LmerResult

__all__ = ["StepResult", "step"]

CAUTION = (
    "caution: p-values and intervals of the final model ignore the selection, and are too small and too narrow; "
    "test what you meant to test in the model you began with"
)


@dataclass(frozen=True, eq=False, repr=False)
class StepResult:
    """A backward elimination.

    Attributes
    ----------
    table : DataFrame
        A row a test that decided, in order: kind ("random", "fixed"), term, eliminated (1, 2, ...; 0 for a term that
        stays), statistic (likelihood ratio or F), num_df, den_df (NaN for a likelihood ratio), p.
    result : LmerResult
        The final model.
    """

    table: pd.DataFrame
    result: LmerResult

    def __repr__(self) -> str:
        shown = self.table.copy()
        shown["p"] = ["<.0001" if p < 1e-4 else f"{p:.4f}" for p in shown["p"]]
        text = shown.to_string(index=False, na_rep="", float_format=lambda v: f"{v:.4g}")
        return f"Backward elimination\n{text}\n\nfinal model: {self.result.formula}\n{CAUTION}"


def step(
    result: LmerResult,
    *,
    random: bool = True,
    fixed: bool = True,
    keep: Sequence[str] | str | None = None,
    alpha_random: float = 0.1,
    alpha_fixed: float = 0.05,
    ddf: str = "satterthwaite",
    data: Any = None,
) -> StepResult:
    """Backward elimination; see `LmerResult.step`."""
    alpha_random, alpha_fixed = checked_level(alpha_random, "alpha_random"), checked_level(alpha_fixed, "alpha_fixed")
    kept = [keep] if isinstance(keep, str) else list(keep or [])
    known = {_canonical(":".join(t)) for t in result.design.spec.terms.terms}
    known |= {_canonical(r.label) for r in reductions(result.design, True)}
    for name in kept:
        if _canonical(name) not in known:
            raise DataError(f"keep names {name!r}, which is no term of the model: {result.formula}")
    stay = {_canonical(name) for name in kept}
    rows: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastLMMWarning)  # of the models on the way
        if random:
            result = _random_phase(result, alpha_random, stay, rows, data)
        if fixed:
            result = _fixed_phase(result, alpha_fixed, stay, rows, ddf, data)
    return StepResult(pd.DataFrame(rows, columns=COLUMNS), result)


COLUMNS = ["kind", "term", "eliminated", "statistic", "num_df", "den_df", "p"]


def _random_phase(
    result: LmerResult, alpha: float, stay: set[str], rows: list[dict[str, Any]], data: Any
) -> LmerResult:
    """Take out the random effect with the largest p while that is above ``alpha``; one has to remain."""
    count = 0
    while True:
        found = list(reduced_criteria(result, True))
        table = ranova(result, found)
        tests = [(r, float(table.loc[r.label, "lrt"]), float(table.loc[r.label, "p"])) for r, _ in found]
        free = [t for t in tests if t[0].terms and _canonical(t[0].label) not in stay]
        worst = max(free, key=lambda t: t[2], default=None)
        if worst is None or worst[2] <= alpha:
            rows += [_row("random", r.label, 0, lrt, r.df, np.nan, p) for r, lrt, p in tests]
            return result
        count += 1
        reduction, lrt, p = worst
        rows.append(_row("random", reduction.label, count, lrt, reduction.df, np.nan, p))
        terms = [_random_text(result.design, k) for k in range(len(result.design.random))]
        effects = _left_effects(result.design, reduction.term)
        name = reduction.label.split(" in (")[0] if " in (" in reduction.label else None
        left = [e for e in effects if e != name] if name is not None else []
        if name is not None and not any(e != name for e in effects):  # one dummy a level becomes an intercept
            left = ["Intercept"]
        replaced = _written(result.design, reduction.term, left) if left else None
        terms[reduction.term : reduction.term + 1] = [replaced] if replaced is not None else []
        result = _again(result, fixed_text(result.design.spec.terms), terms, data)


def _fixed_phase(
    result: LmerResult, alpha: float, stay: set[str], rows: list[dict[str, Any]], ddf: str, data: Any
) -> LmerResult:
    """Take out the fixed term with the largest p, among those that no other contains, while that is above ``alpha``."""
    count = 0
    while any(result.design.spec.terms.terms):
        table = drop1(result, test="F", ddf=ddf)
        free = [name for name in table.index if _canonical(name) not in stay]
        p = table.loc[free, "p"]
        if not len(p) or not p.max() > alpha:
            rows += [_f_row(table, name, 0) for name in table.index]
            break
        worst = str(p.idxmax())
        count += 1
        rows.append(_f_row(table, worst, count))
        was = result.design.spec.terms
        smaller = Terms(was.intercept, tuple(t for t in was.terms if ":".join(t) != worst), was.computed)
        terms = [_random_text(result.design, k) for k in range(len(result.design.random))]
        result = _again(result, fixed_text(smaller), terms, data)
    return result


def _again(result: LmerResult, fixed: str, random: list[str], data: Any) -> LmerResult:
    """The fit with another right-hand side, on the same rows."""
    design = result.design
    offsets = [f"offset({text})" for text in design.formula.offsets]
    changed = update(result, f". ~ {' + '.join([fixed, *offsets, *random])}", data)
    if len(changed.design.y) != len(design.y):
        raise ModelError(
            f"without a term the model has {len(changed.design.y)} rows instead of {len(design.y)}: leave out the rows "
            "with missing values first"
        )
    return changed


def _left_effects(design: Design, k: int) -> list[str]:
    spec = design.random[k].spec
    return ["Intercept"] if spec is None else [name for name, _ in spec.term_columns]


def _random_text(design: Design, k: int) -> str:
    return _written(design, k, _left_effects(design, k))


def _written(design: Design, k: int, effects: list[str]) -> str:
    group = next(t.group for t in design.formula.random if t.label == design.random[k].group)
    return str(RandomTerm(random_effects_text(effects), group))


def _canonical(text: str) -> str:
    """A term's text without blanks, its factors sorted."""
    bare = text.replace(" ", "")
    return bare if "|" in bare else ":".join(sorted(bare.split(":")))


def _row(kind: str, term: str, count: int, statistic: float, num_df: float, den_df: float, p: float) -> dict[str, Any]:
    return dict(zip(COLUMNS, (kind, term, count, statistic, num_df, den_df, p), strict=True))


def _f_row(table: pd.DataFrame, name: str, count: int) -> dict[str, Any]:
    at = table.loc[name]
    return _row("fixed", name, count, at["F"], at["num_df"], at["den_df"], at["p"])
