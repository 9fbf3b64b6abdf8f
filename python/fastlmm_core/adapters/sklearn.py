"""A mixed model as a scikit-learn regressor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.core import Control, Model, Term
from fastlmm_core.errors import DataError, DependencyError, ModelError
from fastlmm_core.formula.levels import Factor, Levels, code_values

try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.utils.validation import _check_sample_weight, check_array, check_is_fitted, validate_data
except ImportError as error:
    raise DependencyError('MixedModelRegressor needs scikit-learn 1.6 or newer: pip install "scikit-learn>=1.6"') from (
        error
    )

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastlmm_core.core import CoreFit

__all__ = ["MixedModelRegressor"]

Column = int | str
Slopes = Column | Sequence[Column] | Mapping[Column, Sequence[Column]] | None


class MixedModelRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A linear mixed model whose grouping factors are columns of X.

    The other columns are the fixed effects, beside an intercept. Levels seen in `fit` are predicted with their random
    effects, others with the fixed effects alone: cross-validate with `GroupKFold` for new groups, with `KFold` for new
    rows of known ones. Without groups the fit is least squares, that of the least norm where columns depend on others.

    Parameters
    ----------
    groups : int, str or sequence of these, optional
        Columns of X that hold grouping factors, by position or, in a table, by name. Each has random intercepts.
    slopes : int, str, sequence of these, or mapping, optional
        Columns whose effects vary between the levels of the first grouping factor, with correlations; or for each
        grouping factor a list of columns.
    reml : bool
        REML, or maximum likelihood. Without groups, of no effect.
    control : Control, optional
        The optimiser's options.

    Attributes
    ----------
    coef_ : (p,)
        Fixed effects of the columns that are no groups, in their order; zero for one that depends on earlier ones.
    intercept_ : float
    random_effects_ : list of (q, l)
        Of each grouping factor: intercepts, and slopes, of its levels.
    levels_ : list of (q,)
        The levels of each.
    core_ : CoreFit or None
        The fit: `theta`, `sigma`, `cov_beta`, ...; None without groups.

    Examples
    --------
    >>> from fastlmm_core import load_dataset
    >>> from fastlmm_core.adapters.sklearn import MixedModelRegressor
    >>> data = load_dataset("sleepstudy")
    >>> model = MixedModelRegressor(groups="Subject", slopes="Days").fit(data[["Days", "Subject"]], data["Reaction"])
    >>> round(model.intercept_, 3), model.coef_.round(3).tolist()
    (251.405, [10.467])
    >>> model.predict(data[["Days", "Subject"]][:2]).round(2).tolist()
    [253.66, 273.33]
    """

    coef_: NDArray[np.float64]
    intercept_: float

    def __init__(
        self,
        groups: Column | Sequence[Column] | None = None,
        *,
        slopes: Slopes = None,
        reml: bool = True,
        control: Control | None = None,
    ) -> None:
        self.groups = groups
        self.slopes = slopes
        self.reml = reml
        self.control = control

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> MixedModelRegressor:
        """Fit the model.

        Parameters
        ----------
        X : (n, k) array or table
        y : (n,)
        sample_weight : (n,), optional
            A row's residual variance is σ² divided by its weight; rows of weight zero are left out.

        Returns
        -------
        MixedModelRegressor
            Itself.
        """
        fixed, grouped, answer = self._first_look(X, y)
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, fixed, dtype=np.float64)
        if weights is not None:
            if (weights < 0.0).any() or not (weights > 0.0).any():
                raise DataError("sample_weight must not be negative, and some of it must be positive")
            used = weights > 0.0
            fixed, answer, weights = fixed[used], answer[used], weights[used]
            grouped = [np.asarray(column)[used] for column in grouped]
        if grouped:
            self._mixed(fixed, grouped, answer, weights)
        else:
            self._least_squares(fixed, answer, weights)
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Predicted means (n,): with the random effects of levels that the fit has seen, without them for others."""
        check_is_fitted(self)
        if not self._groups:
            rows = validate_data(self, X, dtype=np.float64, reset=False)
            return np.asarray(rows @ self.coef_ + self.intercept_)
        validate_data(self, X, reset=False, skip_check_array=True)
        fixed, grouped = self._split(X)
        out = np.asarray(fixed @ self.coef_ + self.intercept_)
        for column, levels, effects, z in zip(
            grouped, self._lookup, self.random_effects_, self._columns_of_terms(fixed), strict=True
        ):
            codes = levels.place([_factor(column)])
            of_row = np.where((codes >= 0)[:, None], effects[codes], 0.0)
            out += of_row[:, 0] if z is None else np.einsum("ij,ij->i", z, of_row)
        return out

    def _first_look(self, X: Any, y: ArrayLike) -> tuple[NDArray[np.float64], list[Any], NDArray[np.float64]]:
        """Fixed-effects columns, grouping columns and response; learns where they stand."""
        if self.groups is None:
            if self.slopes is not None:
                raise ModelError("slopes vary between the levels of groups: name a column in groups")
            fixed, answer = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
            self._groups: list[int] = []
            return fixed, [], np.asarray(answer, dtype=np.float64)
        validate_data(self, X, skip_check_array=True)
        self._groups = [self._position(c) for c in _listed(self.groups)]
        self._fixed = [j for j in range(self.n_features_in_) if j not in self._groups]
        asked = self.slopes if isinstance(self.slopes, Mapping) else {_listed(self.groups)[0]: _listed(self.slopes)}
        of_group = {self._position(g): [self._position(c) for c in _listed(columns)] for g, columns in asked.items()}
        if stray := [g for g in of_group if g not in self._groups]:
            raise ModelError(f"slopes names column {stray[0]}, which is not among the groups")
        if stray := [c for columns in of_group.values() for c in columns if c in self._groups]:
            raise ModelError(f"the slope of column {stray[0]} cannot vary: it is a grouping factor")
        self._slopes = [[self._fixed.index(c) for c in of_group.get(g, [])] for g in self._groups]
        fixed, grouped = self._split(X)
        answer = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        if answer.shape != (len(fixed),):
            raise DataError(f"y has shape {answer.shape}, but X has {len(fixed)} rows")
        return fixed, grouped, answer

    def _position(self, column: Column) -> int:
        if isinstance(column, str):
            names = list(getattr(self, "feature_names_in_", ()))
            if column not in names:
                known = f"its columns are {', '.join(names)}" if names else "it has no names: give positions"
                raise DataError(f"X has no column {column!r}; {known}")
            return names.index(column)
        at = int(column) + (self.n_features_in_ if column < 0 else 0)
        if not 0 <= at < self.n_features_in_:
            raise DataError(f"X has {self.n_features_in_} columns, but column {column} is asked for")
        return at

    def _split(self, X: Any) -> tuple[NDArray[np.float64], list[Any]]:
        """The fixed-effects columns as numbers, and the grouping columns as they are."""
        if hasattr(X, "iloc"):
            columns = [X.iloc[:, j] for j in range(self.n_features_in_)]
        elif hasattr(X, "columns") and not isinstance(X, np.ndarray):
            columns = [X[name] for name in X.columns]
        else:
            array = np.asarray(X)
            columns = [array[:, j] for j in range(self.n_features_in_)]
        n = len(columns[0])
        fixed = np.empty((n, len(self._fixed)))
        if self._fixed:
            fixed = check_array(
                np.column_stack([np.asarray(columns[j]) for j in self._fixed]), dtype=np.float64, input_name="X"
            )
        return fixed, [np.asarray(columns[j]) for j in self._groups]

    def _columns_of_terms(self, fixed: NDArray[np.float64]) -> list[NDArray[np.float64] | None]:
        ones = np.ones((len(fixed), 1))
        return [np.hstack([ones, fixed[:, columns]]) if columns else None for columns in self._slopes]

    def _mixed(
        self,
        fixed: NDArray[np.float64],
        grouped: list[Any],
        y: NDArray[np.float64],
        weights: NDArray[np.float64] | None,
    ) -> None:
        factors = [_factor(column) for column in grouped]
        for factor, j in zip(factors, self._groups, strict=True):
            if (missing := int((factor.codes < 0).sum())) > 0:
                raise DataError(f"grouping column {j} of X has {missing} missing values: leave these rows out")
            if len(factor.levels) < 2:
                raise ModelError(f"grouping column {j} of X has a single level, which has no variance")
        terms = [
            Term(factor.codes, z, n_levels=len(factor.levels))
            for factor, z in zip(factors, self._columns_of_terms(fixed), strict=True)
        ]
        X = np.hstack([np.ones((len(fixed), 1)), fixed])
        self.core_: CoreFit | None
        core = Model(X, terms, weights=weights, reml=self.reml, control=self.control).fit(y).complete()
        self.core_ = core
        beta = np.nan_to_num(core.beta)
        self.intercept_, self.coef_ = float(beta[0]), beta[1:]
        self.random_effects_ = list(core.b)
        self.levels_ = [factor.levels for factor in factors]
        self._lookup = [Levels(levels) for levels in self.levels_]

    def _least_squares(
        self, fixed: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64] | None
    ) -> None:
        middle, level = np.average(fixed, axis=0, weights=weights), np.average(y, weights=weights)
        root = np.ones(len(y)) if weights is None else np.sqrt(weights)
        found = np.linalg.lstsq((fixed - middle) * root[:, None], (y - level) * root, rcond=None)[0]
        self.coef_ = np.asarray(found, dtype=np.float64)
        self.intercept_ = float(level - middle @ self.coef_)
        self.core_, self.random_effects_, self.levels_ = None, [], []


def _listed(columns: Any) -> list[Column]:
    if columns is None:
        return []
    if isinstance(columns, str):
        return [columns]
    return [int(columns)] if isinstance(columns, (int, np.integer)) else list(columns)


def _factor(column: Any) -> Factor:
    """Levels and codes of a grouping column; numbers that are whole are read as such, whatever array held them."""
    return code_values(column)
