"""Marginal means, slopes and their tests as methods of a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from fastlmm_core.fitting.spelling import answering

if TYPE_CHECKING:
    import pandas as pd

    from fastlmm_core.inference.estimates import Estimates
    from fastlmm_core.results.result import LmerResult

__all__ = ["MeansMethods"]


@answering
class MeansMethods:
    """What is asked of a fitted model after its coefficients: means, slopes, tests within groups."""

    def emmeans(
        self,
        specs: str | Sequence[str],
        *,
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        weights: str = "equal",
        over: str = "grid",
        ddf: str | None = None,
        level: float = 0.95,
        scale: str = "link",
        bias_adjust: bool = False,
        cov_reduce: Any = "mean",
        offset: float | None = None,
        data: Any = None,
        cov_type: str = "model",
        cluster: Any = None,
    ) -> Estimates:
        """Estimated marginal means: the linear predictor at the levels of some predictors, averaged over the others.

        Parameters
        ----------
        specs : str or list of str
            Columns of the fixed part whose combinations have a mean each, the first fastest; "1" for the grand mean.
            R's text works too: "~ A | B" means A within B, and "pairwise ~ A | B" returns the contrasts.
        by : str or list of str, optional
            Columns within whose combinations contrasts and families of tests stay.
        at : mapping, optional
            Column to value or list of values, instead of a factor's levels or a covariate's mean.
        weights : {"equal", "proportional", "outer", "cells", "flat"}
            Of the factors averaged over: each level the same; the frequencies with which their combinations occur; the
            products of their single frequencies; those within each mean's own cells; equal for cells that occur.
        over : {"grid", "data"}
            Average over the reference grid, or over the rows of the fit with the specs set to each level
            (g-computation; standardisation).
        ddf : str, optional
            Degrees of freedom, for each mean and each contrast on its own at any number of rows; as in `coef_table`.
            Satterthwaite's where left out; a generalised model has normal quantiles only.
        level : float
            Of the confidence intervals.
        scale : {"link", "response"}
            "response" undoes the link, or a transformation such as `log(y)` in the formula; tests stay where they were.
        bias_adjust : bool
            Back-transformed means of the response rather than medians; see `Estimates.transform`.
        cov_reduce : {"mean", "median"}, callable or False
            What stands for a covariate; False for all its values. One with two values is averaged over both.
        offset : float, optional
            The model's offset at every mean: 0 for rates of one unit of exposure. Where left out it is the mean of the
            fit's, or what the columns that `at` names make it.
        data : table, optional
            The table of the fit, for ``over="data"`` and a callable `cov_reduce`. The former finds it without while
            somebody holds it.
        cov_type, cluster
            A cluster-robust covariance, as in `coef_table`.

        Returns
        -------
        Estimates
            Rows in the order of the levels; `.to_frame()`, `.contrast()`, `.pairs()`, `.letters()`, `.test()`. Means
            that the data do not determine (an empty cell) are NaN.

        Raises
        ------
        DataError
            An unknown column or level; a grouping factor; a column with one value.
        ModelError
            A grid of more than 100,000 rows, or a method that does not exist.

        Notes
        -----
        Searle, Speed and Milliken (1980); the conventions and names are those of R's emmeans.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("angle ~ recipe + temperature + (1 | recipe:replicate)", load_dataset("cake"))
        >>> fit.emmeans("recipe")
        recipe estimate std_error df lower upper
        A         33.12      1.74 42 29.62 36.63
        B         31.64      1.74 42 28.14 35.15
        C         31.60      1.74 42 28.09 35.11
        <BLANKLINE>
        confidence level: 0.95
        degrees of freedom: satterthwaite
        averaged over temperature with equal weights
        """
        from fastlmm_core.inference.means import Averaging, emmeans

        averaging = Averaging(by, at, weights, over, ddf, level, cov_reduce, data, cov_type, cluster, offset)
        return emmeans(cast("LmerResult", self), specs, averaging, scale=scale, bias_adjust=bias_adjust)

    def emtrends(
        self,
        variable: str,
        specs: str | Sequence[str] = "1",
        *,
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        weights: str = "equal",
        over: str = "grid",
        ddf: str | None = None,
        level: float = 0.95,
        max_degree: int = 1,
        cov_reduce: Any = "mean",
        data: Any = None,
        cov_type: str = "model",
        cluster: Any = None,
    ) -> Estimates:
        """Estimated marginal slopes: the derivative of the linear predictor by a covariate, averaged as `emmeans` does.

        Parameters
        ----------
        variable : str
            A numeric column, or an expression of one such as "log(conc)": the slope is then by that.
        specs, by, at, weights, over, ddf, level, cov_reduce, data, cov_type, cluster
            As in `emmeans`.
        max_degree : int
            Above 1 (5 at most), the coefficients of x, x², ... in the predictor's Taylor series, group by group: at a
            covariate's mean those of a polynomial, whatever it was written in.

        Returns
        -------
        Estimates

        Raises
        ------
        DataError, FormulaError
            The variable is a factor, unknown, or depends on several columns.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> fit.emtrends("Days").to_frame().iloc[:, 1:5].round(3)
           estimate  std_error    df  lower
        0    10.467      1.546  17.0  7.206
        """
        from fastlmm_core.inference.means import Averaging, emtrends

        averaging = Averaging(by, at, weights, over, ddf, level, cov_reduce, data, cov_type, cluster)
        return emtrends(cast("LmerResult", self), variable, specs, averaging, max_degree=max_degree)

    def joint_tests(
        self,
        *,
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        weights: str = "equal",
        ddf: str | None = None,
        cov_type: str = "model",
        cluster: Any = None,
    ) -> pd.DataFrame:
        """F tests of every term at the reference grid, within the levels of `by` (simple effects).

        Parameters
        ----------
        by : str or list of str, optional
            Factors within whose levels the others are tested.
        at, weights, ddf, cov_type, cluster
            As in `emmeans`.

        Returns
        -------
        DataFrame
            The columns of `by`, then term, num_df, den_df, F, p. Denominators are Fai and Cornelius' (1996), or Kenward
            and Roger's with their scale of F.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("angle ~ recipe * temperature + (1 | recipe:replicate)", load_dataset("cake"))
        >>> fit.joint_tests(by="recipe")[["recipe", "term", "num_df", "F"]].round(2)
          recipe         term  num_df     F
        0      A  temperature       5  8.58
        1      B  temperature       5  7.21
        2      C  temperature       5  6.75
        """
        from fastlmm_core.inference.means import joint_tests

        return joint_tests(
            cast("LmerResult", self), by=by, at=at, weights=weights, ddf=ddf, cov_type=cov_type, cluster=cluster
        )
