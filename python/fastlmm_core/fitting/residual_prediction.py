"""What the residuals of a fit say about those of other rows of its subjects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.core.residuals import CrossedFit, PatternFit
from fastlmm_core.core.residuals.new_rows import NewRows, ResidualRows, meetings, residual_inverses
from fastlmm_core.errors import ModelError, no_such
from fastlmm_core.fitting.coefficients import undetermined
from fastlmm_core.fitting.predict import included_columns, linear_predictor, row_weights, sparse_part, target_rows

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

    from fastlmm_core.core import CoreFit
    from fastlmm_core.formula import Design, NewDesign

__all__ = ["RESIDUALS", "check_residual", "known_residuals", "new_rows", "predict_conditional"]

RESIDUALS = ("marginal", "conditional")


def check_residual(design: Design, residual: str) -> bool:
    """Whether the residuals of a subject's other rows are wanted.

    Raises
    ------
    ModelError
        No such option, or residuals of different rows are independent.
    """
    if residual not in RESIDUALS:
        raise ModelError(no_such("residual", residual, RESIDUALS))
    if residual == "marginal":
        return False
    if design.residual is None or design.residual.parsed is None:
        raise ModelError(
            'residual="conditional" needs a residual structure, as in lmer(..., residual="ar1(visit | subject)"): in '
            "this model the residual of one row says nothing about another's"
        )
    return True


def new_rows(design: Design, rows: NewDesign, weights: NDArray[np.float64]) -> NewRows:
    """Rows to predict, of weights (n,), as the core takes them."""
    n, seen = len(weights), rows.residual
    if seen is None:
        return NewRows(np.full(n, -1, np.int64), np.zeros(n, np.int64), None, None, None, weights)
    known = design.residual is not None and design.residual.parsed is not None
    subject = seen.subject if known else np.full(n, -1, np.int64)  # without a structure each row is its own subject
    return NewRows(subject, seen.positions, seen.coordinates, seen.group, seen.columns, weights)


def known_residuals(design: Design, core: CoreFit, new: NewRows) -> NDArray[np.float64]:
    """Best linear predictions a'(y - X beta - Z b) of the residuals (n,); zero for subjects that the fit has not."""
    assert isinstance(core, PatternFit | CrossedFit)
    model, phi, root = core.model, core.residual_phi, core.model.root
    e = design.y - core.fitted
    e = e if root is None else e * root
    residual, out = ResidualRows(model, new), np.zeros(len(new.subject))
    inverses = residual_inverses(model.model, core.parts, phi)
    unit = core.model.unit if isinstance(core, PatternFit) else residual.subject
    of_subject = np.empty(int(residual.subject.max()) + 1, np.int64)
    of_subject[residual.subject] = unit
    known = np.flatnonzero(new.subject >= 0)
    for meeting in meetings(core.parts, unit, known, of_subject[new.subject[known]]):
        r = residual.covariances(phi, meeting)
        out[meeting.new] = np.einsum("km,kmj,kj->k", r, inverses[meeting.batch][meeting.pattern], e[meeting.rows])
    return out


def predict_conditional(
    design: Design,
    core: CoreFit,
    newdata: Any,
    *,
    re_form: str,
    allow_new_levels: bool,
    weights: ArrayLike | None,
) -> pd.Series:
    """As `predict.predict`, the residuals' predictions added; see `StructuredResult.predict`."""
    masks = included_columns(design, re_form)
    rows = target_rows(design, newdata, masks, allow_new_levels=allow_new_levels, residual="known")
    new = new_rows(design, rows, row_weights(design, weights, rows, newdata is None))
    values = linear_predictor(rows, core, masks) + known_residuals(design, core, new)
    if newdata is None:
        values = values + sparse_part(design, core)
    found = rows.by_row(values)
    found.attrs["notes"] = undetermined(design, core, rows)
    return found
