"""Linear functions of the fixed effects as one object: marginal means, slopes, and contrasts of them.

Rows L and a `Method` carry everything: L beta + offset, its standard error and degrees of freedom, limits and tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.errors import DataError, ModelError, no_such
from fastlmm_core.fitting.spelling import answering
from fastlmm_core.inference.ddf import FTest, Method
from fastlmm_core.inference.estimate_contrasts import interaction_contrasts, plain_contrasts
from fastlmm_core.inference.estimate_scale import on_scale, regridded, transformed
from fastlmm_core.inference.families import SIDES, family_results
from fastlmm_core.inference.functions import Functions
from fastlmm_core.inference.levels import checked_level
from fastlmm_core.inference.multiplicity import adjustment_name
from fastlmm_core.inference.transformations import Transformation
from fastlmm_core.lazy import cached_property

__all__ = ["Estimates", "f_columns"]

Array = NDArray[np.float64]


@answering
@dataclass(frozen=True, eq=False, repr=False)
class Estimates:
    """Marginal means, slopes or contrasts, as `emmeans`, `emtrends` and `contrast` return them.

    Attributes
    ----------
    functions : Functions
        The rows L (k, p) and the offset (k,).
    labels : DataFrame
        What each row is: the levels of its factors, or a contrast's name, and the group.
    by : tuple of str
        Columns of `labels` that set groups apart: contrasts and families of tests stay within them.
    method : Method
        Covariance and degrees of freedom.
    kind : {"means", "slopes", "contrasts"}
    level : float, of the intervals
    adjust : str
        For the number of tests in a group; see `contrast`.
    scale : {"link", "response"}
    notes : tuple of str
    """

    functions: Functions
    labels: pd.DataFrame
    by: tuple[str, ...]
    method: Method
    kind: str = "means"
    level: float = 0.95
    adjust: str = "none"
    null: Any = 0.0
    side: str = "two-sided"
    delta: float = 0.0
    pairwise: bool = False
    response: Transformation | None = None
    scale: str = "link"
    sigma: float = 0.0
    total_sd: float = np.nan
    notes: tuple[str, ...] = ()

    # --- figures -------------------------------------------------------------------------------------------------

    @property
    def L(self) -> Array:
        """(k, p) coefficients of the functions, over all columns of X."""
        return self.functions.L

    @property
    def offset(self) -> Array:
        """(k,) known parts added to L beta."""
        return self.functions.offset

    @property
    def estimable(self) -> NDArray[np.bool_]:
        """(k,) whether the data determine each row."""
        return self.functions.estimable

    @cached_property
    def estimate(self) -> Array:
        """(k,) on the scale of the linear predictor; NaN where not estimable."""
        f = self.functions
        return np.where(f.estimable, f.rows @ self.method.beta + f.offset, np.nan)

    @cached_property
    def cov(self) -> Array:
        """(k, k) covariance of the estimates; rows and columns that are not estimable are zero."""
        return np.asarray(self.functions.rows @ self.method.cov @ self.functions.rows.T)

    @cached_property
    def std_error(self) -> Array:
        """(k,) on the scale of the linear predictor."""
        rows = self.functions.rows
        return np.where(self.estimable, np.sqrt(np.maximum(0.0, self.method.variances(rows))), np.nan)

    @cached_property
    def df(self) -> Array:
        """(k,) degrees of freedom of each row on its own."""
        out = np.full(len(self.L), np.nan)
        asked = self.estimable & (self.std_error > 0.0)
        if asked.any():
            out[asked] = self.method.df(self.functions.rows[asked])
        return out

    def __len__(self) -> int:
        return len(self.L)

    def groups(self) -> list[NDArray[np.int64]]:
        """Positions of the rows of each group, in the order in which groups first appear."""
        if not self.by:
            return [np.arange(len(self.L))]
        codes = self.labels.groupby(list(self.by), sort=False, observed=True).ngroup().to_numpy()
        return [np.flatnonzero(codes == g) for g in dict.fromkeys(codes.tolist())]

    # --- tables --------------------------------------------------------------------------------------------------

    def to_frame(
        self, *, level: float | None = None, adjust: str | None = None, tests: bool = True, adjusted_limits: bool = True
    ) -> pd.DataFrame:
        """The estimates with standard errors, degrees of freedom, limits and tests.

        Parameters
        ----------
        level, adjust : optional
            Instead of the object's own.
        tests : bool
            Include t and p.
        adjusted_limits : bool
            Limits that hold for all rows of a group at once, by the same adjustment as p.

        Returns
        -------
        DataFrame
            The labels, then estimate (or ratio), std_error, df, lower, upper, t, p. Rows that the data do not determine
            are NaN.
        """
        other = self if level is None and adjust is None else self._with(level=level, adjust=adjust)
        t, p, lower, upper, _ = other._tested if adjusted_limits else family_results(other, False)
        name, value, se, lower, upper = on_scale(other, lower, upper)
        figures = {name: value, "std_error": se, "df": other.df, "lower": lower, "upper": upper}
        if tests:
            figures |= {"t": t, "p": p}
        frame = pd.concat([self.labels.reset_index(drop=True), pd.DataFrame(figures)], axis=1)
        frame.attrs["notes"] = list(other.all_notes())
        return frame

    def _with(self, *, level: float | None = None, adjust: str | None = None) -> Estimates:
        changes: dict[str, Any] = {}
        if level is not None:
            changes["level"] = checked_level(level)
        if adjust is not None:
            changes["adjust"] = adjustment_name(adjust)
        return replace(self, **changes)

    @cached_property
    def _tested(self) -> tuple[Array, Array, Array, Array, list[str]]:
        return family_results(self, True)

    def all_notes(self) -> tuple[str, ...]:
        """Notes on the estimates, the method, the scale and the adjustment."""
        notes = [f"degrees of freedom: {self.method.name}", *self.method.notes, *self.notes]
        missing = int((~self.estimable).sum())
        if missing:
            notes.append(f"{missing} of {len(self)} rows are not estimable: the data do not determine them")
        if self.scale == "response" and self.response is not None:
            what = f", bias adjusted with sigma = {self.sigma:.4g}" if self.sigma else ""
            notes.append(f"back-transformed from the {self.response.name} scale{what}; tests stay on it")
        elif self.response is not None and self.response.name != "identity":
            notes.append(f"on the {self.response.name} scale")
        notes += self._tested[4]
        return tuple(dict.fromkeys(notes))

    # --- contrasts -----------------------------------------------------------------------------------------------

    def contrast(
        self,
        method: Any = "pairwise",
        *,
        by: str | Sequence[str] | None = "same",
        adjust: str | None = None,
        ref: int | str = 0,
        reverse: bool = False,
        names: Sequence[str] | None = None,
        simple: str | Sequence[str] | None = None,
        interaction: str | Sequence[Any] | None = None,
        level: float | None = None,
    ) -> Any:
        """Contrasts of the rows of each group.

        Parameters
        ----------
        method : str, mapping, array (c, k) or callable
            "pairwise", "revpairwise", "trt_vs_ctrl" (against `ref`), "consec" (each less the one before), "mean_chg"
            (mean after less mean before), "poly", "helmert", "eff" (against the mean of all), "del_eff" (of the
            others), "identity"; names and coefficients; coefficients; a function from the levels' names to a mapping.
        by : str or list, optional
            Groups; those of the estimates where left out, none for None.
        adjust : str, optional
            For the tests of a group: "none", "tukey", "mvt" or "dunnett" (the largest of the correlated t statistics),
            "sidak", "scheffe", "bonferroni", "holm", "hochberg", "hommel", "BH", "BY". By default "tukey" for all
            pairs, "mvt" for comparisons with a control, "none" otherwise.
        ref : int or str
            Position or level of the control.
        reverse : bool
            Differences the other way round.
        names : sequence of str, optional
            Of the contrasts.
        simple : str, list of str, or "each"
            Contrasts of these factors within each combination of the others; "each": a list, one factor at a time.
        interaction : str or list
            A method a factor, the first for the first: products of contrasts.
        level : float, optional
            Of the intervals.

        Returns
        -------
        Estimates
            Rows group by group; a list of them for ``simple="each"``.

        Raises
        ------
        ModelError, DataError
            No such contrasts, factor or level.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("angle ~ recipe + temperature + (1 | recipe:replicate)", load_dataset("cake"))
        >>> fit.emmeans("recipe").contrast("trt_vs_ctrl").to_frame()[["contrast", "estimate", "p"]].round(3)
          contrast  estimate      p
        0    B - A    -1.478  0.773
        1    C - A    -1.522  0.761
        """
        if simple is not None:
            return self._simple(method, simple, adjust=adjust, ref=ref, reverse=reverse, names=names, level=level)
        within = self.by if by == "same" else ((by,) if isinstance(by, str) else tuple(by or ()))
        for name in within:
            if name not in self.labels:
                raise DataError(f"by names {name!r}, but the estimates have {', '.join(self.labels)}")
        here = replace(self, by=within)
        if interaction is not None:
            made = interaction_contrasts(
                here, [interaction] if isinstance(interaction, str) else list(interaction), ref
            )
            default = "none"
        else:
            made = plain_contrasts(here, method, ref, reverse, names)
            default = {"trt_vs_ctrl": "mvt"}.get(method if isinstance(method, str) else "", "none")
            default = "tukey" if made.pairwise else default
        made = made._with(level=level, adjust=default if adjust is None else adjust)
        return made.transform("response") if self.scale == "response" else made

    def _simple(self, method: Any, simple: str | Sequence[str], **arguments: Any) -> Any:
        factors = list(self.labels)
        if simple == "each":
            return [self._simple(method, name, **arguments) for name in factors]
        chosen = [simple] if isinstance(simple, str) else list(simple)
        for name in chosen:
            if name not in factors:
                raise DataError(f"simple names {name!r}, but the estimates have {', '.join(factors)}")
        return self.contrast(method, by=[name for name in factors if name not in chosen], **arguments)

    def pairs(self, *, adjust: str = "tukey", reverse: bool = False) -> Estimates:
        """All pairwise differences in each group: ``contrast("pairwise")``."""
        found: Estimates = self.contrast("pairwise", adjust=adjust, reverse=reverse)
        return found

    # --- tests ---------------------------------------------------------------------------------------------------

    def test(self, null: ArrayLike = 0.0, *, side: str = "two-sided", delta: float = 0.0) -> Estimates:
        """The same estimates with another hypothesis.

        Parameters
        ----------
        null : float or (k,)
            Hypothesised values, on the scale of the linear predictor.
        side : {"two-sided", "greater", "less", "noninferiority", "nonsuperiority", "equivalence"}
            The alternative: beyond the null by any amount; above null - delta; below null + delta; within delta of it.
        delta : float
            Margin, not negative.

        Returns
        -------
        Estimates
            One-sided ones have one-sided limits.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("angle ~ recipe + temperature + (1 | recipe:replicate)", load_dataset("cake"))
        >>> pairs = fit.emmeans("recipe").pairs()
        >>> pairs.test(side="equivalence", delta=6.0).to_frame()[["contrast", "t", "p"]].round(3)
          contrast      t      p
        0    A - B -1.841  0.105
        1    A - C -1.823  0.109
        2    B - C -2.425  0.029
        """
        if side not in SIDES:
            raise ModelError(no_such("side", side, SIDES))
        if not np.isfinite(delta) or delta < 0.0:
            raise DataError(f"delta must be a margin, 0 or more, not {delta!r}")
        if side in ("equivalence", "noninferiority", "nonsuperiority") and delta == 0.0:
            raise DataError(f"{side} needs a margin: delta above 0")
        values = np.asarray(null, dtype=np.float64)
        if values.ndim and values.shape != (len(self),):
            raise DataError(f"null has shape {values.shape}, but there are {len(self)} estimates")
        return replace(self, null=values if values.ndim else float(values), side=side, delta=float(delta))

    def joint(self, null: float = 0.0) -> Any:
        """Test all rows at once: an `FTest`, or a table with a row a group where there are groups.

        Rows that follow from others are left out; of rows that are not estimable the combinations that are remain.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("angle ~ recipe + temperature + (1 | recipe:replicate)", load_dataset("cake"))
        >>> fit.emmeans("temperature").contrast("consec").joint()
        <FTest: F = 20.51 on 5 and 220 df, p = 8.506e-17>
        """
        tests = []
        for group in self.groups():
            rows, offset = self.functions.determined(group)
            values = null - offset
            tests.append(self.method.f_test(rows, values if values.any() else None))
        if not self.by:
            return tests[0]
        frame = pd.DataFrame({name: [self.labels[name].iloc[g[0]] for g in self.groups()] for name in self.by})
        return pd.concat([frame, f_columns(tests)], axis=1)

    def letters(self, *, alpha: float = 0.05, adjust: str = "tukey") -> pd.DataFrame:
        """Compact letter display: levels of a group that share a letter do not differ significantly.

        Parameters
        ----------
        alpha : float
            Level of the pairwise tests.
        adjust : str
            As in `contrast`.

        Returns
        -------
        DataFrame
            As `to_frame`, sorted by the estimates within groups, with a column `group`. A note says that sharing a
            letter is no evidence of equality.
        """
        from fastlmm_core.inference.letters import letters

        return letters(self, alpha, adjust)

    # --- scale ---------------------------------------------------------------------------------------------------

    def transform(
        self,
        to: str | Transformation | tuple[Callable[[Array], Array], Callable[[Array], Array]] = "response",
        *,
        bias_adjust: bool = False,
        sigma: float | None = None,
    ) -> Estimates:
        """The estimates on another scale: means, limits and standard errors (delta method); tests stay as they are.

        Parameters
        ----------
        to : {"response", "link"}, or a pair of callables
            "response" undoes the transformation in the formula; a pair is an inverse and its derivative.
        bias_adjust : bool
            Add sigma^2 / 2 times the second derivative: the mean of the back-transformed response, not its median.
        sigma : float, optional
            Total standard deviation of a response on the transformed scale, random effects included; that of an average
            row of the fit where left out.

        Returns
        -------
        Estimates
            Differences of logarithms become ratios; contrasts on other scales stay where they are, with a note.
        """
        return transformed(self, to, bias_adjust, sigma)

    def regrid(self) -> Estimates:
        """Means as estimates of the response itself, so that their differences can be taken on its scale.

        L is replaced by h'(eta) L, the delta method's rows.
        """
        return regridded(self)

    def plot(self, kind: str = "interval", *, x: str | None = None, trace: str | None = None, ax: Any = None) -> Any:
        """Draw the estimates with their limits; needs matplotlib.

        Parameters
        ----------
        kind : {"interval", "line"}
            A horizontal interval a row, or lines over `x`, one a level of `trace`.
        x, trace : str, optional
            Columns of `labels`; the first and the second by default.
        ax : matplotlib Axes, optional

        Returns
        -------
        matplotlib Axes
        """
        from fastlmm_core.plots.estimates import draw

        return draw(self, kind, x=x, trace=trace, ax=ax)

    def __repr__(self) -> str:
        from fastlmm_core.inference.estimates_text import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from fastlmm_core.inference.estimates_text import as_html

        return as_html(self)


def f_columns(tests: Sequence[FTest]) -> pd.DataFrame:
    """F tests as columns."""
    return pd.DataFrame(
        {
            "num_df": np.array([t.num_df for t in tests], dtype=np.int64),
            "den_df": [t.den_df for t in tests],
            "F": [t.F for t in tests],
            "p": [t.p for t in tests],
        }
    )
