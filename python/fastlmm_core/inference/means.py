"""Marginal means and slopes of a fit, and tests of its terms at the reference grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.core.arguments import is_real
from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.inference.comparison import variance_shares
from fastlmm_core.inference.contrast_matrices import DEGREES
from fastlmm_core.inference.ddf import FTest, Method
from fastlmm_core.inference.estimates import Estimates, f_columns
from fastlmm_core.inference.functions import functions_of
from fastlmm_core.inference.grid import ReferenceGrid, mentions, over_data, reference_grid
from fastlmm_core.inference.levels import checked_level
from fastlmm_core.inference.robust import covariance_method
from fastlmm_core.inference.specs import read_specs
from fastlmm_core.inference.transformations import Transformation, of_link, of_response

if TYPE_CHECKING:
    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["Averaging", "emmeans", "emtrends", "joint_tests"]

Array = NDArray[np.float64]
Names = str | Sequence[str]


@dataclass(frozen=True)
class Averaging:
    """How means or slopes are averaged, and with which errors: the arguments of `LmerResult.emmeans`."""

    by: Names | None
    at: Mapping[str, Any] | None
    weights: str
    over: str
    ddf: str | None
    level: float
    cov_reduce: Any
    data: Any
    cov_type: str
    cluster: Any
    offset: float | None = None

    def estimates(
        self, result: FittedModel, specs: Names, variable: str | None = None, max_degree: int = 1
    ) -> tuple[Estimates, Any]:
        """Means of the specs' combinations, or slopes by a variable, and the contrasts that the specs ask for."""
        keep, inner, contrasts = read_specs(specs, self.by, result.design)
        grid = reference_grid(result.design, self.at, self.cov_reduce, self.data)
        if variable is not None:
            grid.covariate_of(variable)
            if max_degree > 1 and (grid.column_named(variable) is None or "degree" in [*keep, *inner]):
                raise ModelError("trends of higher degrees are by a column, beside which none is called degree")
        method = covariance_method(result, self.ddf, cov_type=self.cov_type, cluster=self.cluster)
        each = [
            _estimates(result, method, grid, keep, inner, self.weights, self.over, self.level, self.data, variable, k)
            for k in range(1, max_degree + 1)
        ]
        found = each[0] if max_degree == 1 else _by_degree(each)
        if self.offset is not None:
            if not is_real(self.offset) or not np.isfinite(self.offset):
                raise DataError(f"offset must be one finite number, not {self.offset!r}")
            known = np.full(len(found), float(self.offset))
            found = replace(found, functions=replace(found.functions, offset=known))
        return found, contrasts


def emmeans(
    result: FittedModel, specs: Names, averaging: Averaging, *, scale: str = "link", bias_adjust: bool = False
) -> Estimates:
    """Marginal means; see `LmerResult.emmeans`."""
    if scale not in ("link", "response"):
        raise ModelError(f'scale must be "link" or "response", not {scale!r}')
    if scale == "response" and isinstance(result, GeneralisedModel) and result.core.family.no_intercept:
        raise ModelError(
            "these means stand on a scale without an origin, and no response belongs to one of them: compare them on "
            "it, or ask predict() for the probabilities of the categories"
        )
    estimates, contrasts = averaging.estimates(result, specs)
    if scale == "response" or bias_adjust:
        estimates = estimates.transform("response", bias_adjust=bias_adjust)
    return estimates if contrasts is None else estimates.contrast(contrasts)


def emtrends(
    result: FittedModel, variable: str, specs: Names, averaging: Averaging, *, max_degree: int = 1
) -> Estimates:
    """Marginal slopes; see `LmerResult.emtrends`."""
    if max_degree not in range(1, 6):
        raise ModelError(f"max_degree must be a whole number from 1 to 5, not {max_degree!r}")
    if not isinstance(variable, str):
        raise DataError(f"variable must be a text, not a {type(variable).__name__}: a column, or an expression of one")
    estimates, contrasts = averaging.estimates(result, specs, variable, max_degree)
    return estimates if contrasts is None else estimates.contrast(contrasts)


def _estimates(
    result: FittedModel,
    method: Method,
    grid: ReferenceGrid,
    specs: list[str],
    by: list[str],
    weights: str,
    over: str,
    level: float,
    data: Any,
    variable: str | None,
    degree: int = 1,
) -> Estimates:
    """Averages of the grid's rows, or of their derivatives by `variable`, with their labels and notes."""
    keep = [*specs, *by]
    if variable is None:
        rows: Callable[[Any], tuple[Array, Array]] = grid.matrix
    elif degree == 1:
        rows = partial(grid.slopes, variable)
    else:
        rows = partial(grid.curvatures, grid.covariate_of(variable), degree=degree)
    if over == "grid":
        A = grid.averaging(keep, weights)
        X, offset = grid.rows() if variable is None else rows(grid.columns())
        empty = np.isnan(A[:, 0])
        A = np.where(empty[:, None], 0.0, A)
        L, known = A @ X, A @ offset
        L[empty] = np.nan
    elif over == "data":
        data = result.kept_data() if data is None else data
        means = [[part.mean(axis=0) for part in rows(columns)] for columns in over_data(grid, data, keep)]
        L, known = np.array([m[0] for m in means]), np.array([m[1] for m in means], dtype=np.float64)
    else:
        raise ModelError(f'over must be "grid" or "data", not {over!r}')
    labels = {name: grid.label(name, place) for name, place in grid.combinations(keep).items()}
    frame = pd.DataFrame(labels) if keep else pd.DataFrame({"1": ["overall"]})
    return Estimates(
        functions_of(result, L, known),
        frame,
        tuple(by),
        method,
        "means" if variable is None else "slopes",
        checked_level(level),
        response=_response(result),
        total_sd=_total_sd(result),
        notes=(*_notes(grid, keep, weights, over, variable), *([] if variable else _scale_notes(result))),
    )


def _by_degree(each: Sequence[Estimates]) -> Estimates:
    """Trends of the degrees one after another, as groups."""
    first, names = each[0], DEGREES[: len(each)]
    functions = replace(
        first.functions,
        L=np.vstack([e.functions.L for e in each]),
        offset=np.concatenate([e.functions.offset for e in each]),
    )
    degree = pd.Categorical(np.repeat(names, len(first)), categories=list(names))
    labels = pd.concat([e.labels for e in each], ignore_index=True).assign(degree=degree)
    return replace(first, functions=functions, labels=labels, by=(*first.by, "degree"))


def _response(result: FittedModel) -> Transformation | None:
    """The scale on which the linear predictor stands, where it is a known one."""
    if isinstance(result, GeneralisedModel):
        if result.core.family.no_intercept:  # the scale has no origin: differences alone mean something
            return None
        return of_link(result.core.family.link)
    try:
        return of_response(result.design.formula.response)
    except ModelError:
        return None


def _total_sd(result: FittedModel) -> float:
    """Standard deviation of a response about the fixed part at an average row: random terms and residual.

    On the scale of a generalised model's linear predictor there are the random terms alone.
    """
    if result.design.residual is not None:  # rows differ: no one figure stands for them
        return np.nan
    if isinstance(result, GeneralisedModel):
        each = zip(result.design.random, result.core.L, strict=True)
        return float(
            np.sqrt(sum(np.sum(L**2) if t.z is None else np.mean(np.sum((t.z @ L) ** 2, axis=1)) for t, L in each))
        )
    _, random, residual = variance_shares(result.design, result.core)
    return float(np.sqrt(random.sum() + residual))


def _notes(grid: ReferenceGrid, keep: list[str], weights: str, over: str, variable: str | None) -> list[str]:
    notes = [] if variable is None else [f"slopes by {variable}"]
    averaged = grid.averaged(keep)
    if over == "data":
        notes.append(f"averaged over the {len(grid.design.y)} rows of the fit")
    elif averaged:
        notes.append(f"averaged over {', '.join(averaged)} with {weights} weights")
    notes += [f"{name} is nested in {', '.join(within)}" for name, within in grid.nests.items() if over == "grid"]
    columns = grid.info.columns
    involved = [
        name
        for name in keep
        for term in grid.design.spec.terms.terms
        if over == "grid"
        and mentions(term, name, columns)
        and any(mentions(term, other, columns) for other in averaged)
    ]
    if involved:
        listed = ", ".join(dict.fromkeys(involved))
        notes.append(f"{listed} may mislead on its own: the model has interactions with what was averaged over")
    return notes


def _scale_notes(result: FittedModel) -> list[str]:
    """What means on a scale without an origin can be used for."""
    if not isinstance(result, GeneralisedModel) or not result.core.family.no_intercept:
        return []
    return [
        f"linear predictors without the thresholds, on the {result.core.family.link.name} scale: it has no origin, and "
        "only differences mean something"
    ]


def joint_tests(
    result: FittedModel,
    *,
    by: Names | None = None,
    at: Mapping[str, Any] | None = None,
    weights: str = "equal",
    ddf: str | None = None,
    cov_type: str = "model",
    cluster: Any = None,
) -> pd.DataFrame:
    """F tests of the terms at the reference grid; see `LmerResult.joint_tests`."""
    from itertools import combinations

    design = result.design
    _, inner, _ = read_specs("1", by, design)
    grid = reference_grid(design, at)
    method = covariance_method(result, ddf, cov_type=cov_type, cluster=cluster)
    names = [name for name, values in grid.levels.items() if name not in inner and _is_varied(grid, name, values)]
    terms = [
        frozenset(name for name in names if mentions(term, name, grid.info.columns)) for term in design.spec.terms.terms
    ]
    sets = {
        frozenset(c) for term in terms for size in range(1, len(term) + 1) for c in combinations(sorted(term), size)
    }
    frames = []
    sets = {s for s in sets if all(s.issuperset(grid.nests.get(name, ())) for name in s)}  # b alone is within a
    for term in sorted(sets, key=lambda s: (len(s), [k for k, n in enumerate(names) if n in s])):
        frames.append(_joint_test(result, method, grid, [n for n in names if n in term], inner, weights))
    if not frames:
        raise DataError("the fixed part has no term to test")
    frame = pd.concat(frames, ignore_index=True)
    if inner:
        frame = frame.sort_values(inner, kind="stable", ignore_index=True)
    frame = frame[[*inner, "term", "num_df", "den_df", "F", "p"]]
    frame.attrs["notes"] = list(method.notes)
    return frame


def _is_varied(grid: ReferenceGrid, name: str, values: Sequence[Any]) -> bool:
    """Whether there is anything to test of a column: several levels, or a slope."""
    column = grid.info.columns[name]
    return len(values) > 1 or (column.kind == "number" and name not in grid.info.offset_only and column.n_distinct != 1)


def _joint_test(
    result: FittedModel, method: Method, grid: ReferenceGrid, names: list[str], inner: list[str], weights: str
) -> pd.DataFrame:
    """One term: consecutive differences of its factors' levels, and of those in the slope where it has a covariate.

    Further covariates are put at two values, a quarter of their range from where they are.
    """
    covariates = [name for name in names if len(grid.levels[name]) == 1]
    variable = covariates[0] if covariates else None
    for name in covariates[1:]:
        column, at = grid.info.columns[name], grid.levels[name][0]
        step = 0.25 * (column.high - column.low)
        grid = replace(grid, levels={**grid.levels, name: (at - step, at + step)})
    groups = [name for name in names if any(name in grid.nests.get(other, ()) for other in names)]
    varied = [name for name in names if name != variable and name not in groups]
    found = _estimates(result, method, grid, varied, [*inner, *groups], weights, "grid", 0.95, None, variable)
    if varied:
        found = replace(found.contrast(interaction=["consec"] * len(varied)), by=tuple(inner))
    return _joint(found, ":".join(names))


def _joint(estimates: Estimates, term: str) -> pd.DataFrame:
    found = estimates.joint()
    frame = f_columns([found]) if isinstance(found, FTest) else found
    return frame.assign(term=term)
