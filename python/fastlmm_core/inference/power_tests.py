"""The tests whose power is asked for: rows of coefficients, estimates, or a smaller model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.fitting.generalised import glmm_of
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.fitting.models import arrays_of, core_terms
from fastlmm_core.inference.estimates import Estimates
from fastlmm_core.inference.hypotheses import read_hypotheses
from fastlmm_core.inference.nested_tests import check_nested_designs

if TYPE_CHECKING:
    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["PowerTest", "estimated", "read_test", "true_values"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PowerTest:
    """One test of every draw: rows (l, rank) and their values; or estimates; or a smaller model."""

    labels: list[str]
    rows: Array = field(default_factory=lambda: np.empty((0, 0)))
    values: Array = field(default_factory=lambda: np.empty(0))
    estimates: Estimates | None = None
    smaller: Callable[[Array, int | None], Array] | None = None
    df: int = 0

    @property
    def single(self) -> bool:
        """Whether each p-value belongs to one row with an estimate."""
        return self.estimates is not None or len(self.rows) == 1


def read_test(model: FittedModel, test: Any) -> PowerTest:
    """What is to be done for one test."""
    design = model.design
    kept = ~np.isnan(model.core.beta)
    if isinstance(test, Estimates):
        if test.L.shape[1] != len(kept):
            raise DataError(f"the estimates have {test.L.shape[1]} coefficients, and the model {len(kept)}")
        if not test.estimable.all():
            raise ModelError("some of the estimates are not estimable: leave them out")
        texts = [" ".join(map(str, row)) for row in test.labels.itertuples(index=False)]
        family = [f"any of {len(texts)}", f"all of {len(texts)}"] if len(texts) > 1 else []
        return PowerTest([*texts, *family], estimates=test)
    if not isinstance(test, str):
        raise ModelError(f"a test is a text or Estimates, not {test!r}")
    if "~" in test:
        return _smaller(model, test)
    columns = dict(design.x_terms)
    if test in design.x_names:
        rows, values = np.eye(len(kept))[[list(design.x_names).index(test)]], np.zeros(1)
    elif test in columns:
        rows = np.eye(len(kept))[columns[test]]
        values = np.zeros(len(rows))
    else:
        found = read_hypotheses(test, design.x_names)
        rows, values = found.rows, found.values
    if not model.core.estimable(rows).all():
        raise ModelError(f"the test {test!r} is not estimable in this design")
    return PowerTest([test], rows=np.ascontiguousarray(rows[:, kept]), values=values)


def _smaller(model: FittedModel, formula: str) -> PowerTest:
    """A likelihood-ratio test against the model of another right side, in the same rows and response."""
    from fastlmm_core.formula import build_design, parse_formula
    from fastlmm_core.formula.side import without_intercept

    design = model.design
    used = np.zeros(design.n_total, bool)
    used[design.row_index] = True
    right = parse_formula(f"y ~{formula.split('~', 1)[1]}")
    smaller = build_design(
        replace(right, response=design.formula.response),
        model.rows_kept(),
        subset=used,
        na_action="raise",
        env=design.context,
        response=lambda *_: design.y,
        observation_level=isinstance(model, GeneralisedModel),
    )
    if isinstance(model, GeneralisedModel) and model.family.no_intercept:
        smaller = without_intercept(smaller)
    df = check_nested_designs(smaller, design, formula, model.formula)
    arrays = arrays_of(design).with_columns(smaller.X).with_terms(core_terms(smaller))
    if isinstance(model, GeneralisedModel):
        general = glmm_of(arrays, model.options)
        return PowerTest([formula], smaller=lambda Y, _: general.fit_many(Y).criterion, df=df)
    linear = arrays.model(False, model.options.control)
    return PowerTest([formula], smaller=lambda Y, threads: linear.fit_many(Y, threads=threads).criterion, df=df)


def true_values(tests: list[PowerTest], beta: Array) -> dict[str, float]:
    """True values less hypothesised ones, of tests of one row."""
    values = ((test.labels, estimated(test, beta[None])[0].tolist()) for test in tests if test.single)
    return {label: v for labels, row in values for label, v in zip(labels, row, strict=True) if not np.isnan(v)}


def estimated(test: PowerTest, beta: Array) -> Array:
    """Estimates (k, labels) less the hypothesised values, of tests of one row, for k sets of coefficients."""
    out = np.full((len(beta), len(test.labels)), np.nan)
    if test.estimates is not None:
        e = test.estimates
        out[:, : len(e)] = beta @ e.functions.rows.T + e.offset - e.null
    elif test.single:
        out[:, 0] = beta @ test.rows[0] - test.values[0]
    return out
