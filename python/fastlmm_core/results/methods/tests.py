"""Tests and degrees of freedom as methods of a result; each is one call into `fastlmm_core.inference`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastlmm_core.fitting.spelling import answering

if TYPE_CHECKING:
    import pandas as pd

    from fastlmm_core.inference.coef_table import CoefArrays
    from fastlmm_core.inference.ddf import FTest
    from fastlmm_core.inference.table import Table
    from fastlmm_core.results.result import LmerResult

__all__ = ["DdfMethods"]

Seed = int | Sequence[int] | np.random.SeedSequence | None


@answering
class DdfMethods:
    """Coefficient tables, linear hypotheses and analysis of variance of a fitted model."""

    def coef_table(self, ddf: str = "satterthwaite", *, cov_type: str = "model", cluster: Any = None) -> pd.DataFrame:
        """Coefficients with standard errors, degrees of freedom, t statistics and two-sided p-values.

        Parameters
        ----------
        ddf : {"satterthwaite", "kenward-roger" (or "KR"), "residual", "normal"}
            Denominator degrees of freedom: Satterthwaite's from the observed information of the variance parameters
            (as lmerTest), Kenward and Roger's (1997) with adjusted standard errors (as pbkrtest; a maximum-likelihood
            fit is refitted by REML), `nobs` less the number of coefficients, or infinitely many.
        cov_type : {"model", "CR0", "CR1", "CR1S", "CR2", "CR3"}
            Covariance: the model's, or cluster-robust ones (Pustejovsky and Tipton 2018), which hold where the model's
            variances do not; with them "satterthwaite" is Bell and McCaffrey's (2002). theta is not made robust.
        cluster : str or array, optional
            Clusters for a robust covariance: a column of the fit's table, or a value a row; by default the coarsest
            grouping factor. Every grouping factor's levels have to lie within them.

        Returns
        -------
        DataFrame
            Columns estimate, std_error, df, t, p; a row a coefficient, NaN for a dropped one. A note about a singular
            fit is in ``.attrs["notes"]``.

        Raises
        ------
        ModelError
            No such method, or a model too large for Kenward and Roger's.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> fit.coef_table().round(3)
                   estimate  std_error    df       t    p
        Intercept   251.405      6.825  17.0  36.838  0.0
        Days         10.467      1.546  17.0   6.771  0.0
        """
        from fastlmm_core.inference.coef_table import coef_table

        return coef_table(cast("LmerResult", self), ddf=ddf, cov_type=cov_type, cluster=cluster)

    def coef_arrays(self, ddf: str = "satterthwaite", *, cov_type: str = "model", cluster: Any = None) -> CoefArrays:
        """The columns of `coef_table` as plain arrays, for a program that reads the numbers of many fits.

        Parameters
        ----------
        ddf, cov_type, cluster
            As in `coef_table`.

        Returns
        -------
        CoefArrays
            A named tuple of estimate, std_error, df, t and p, each (p,): NaN for a dropped coefficient.

        Raises
        ------
        ModelError
            As `coef_table`.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> fit.coef_arrays().df.round(3)
        array([17., 17.])
        """
        from fastlmm_core.inference.coef_table import coef_arrays

        return coef_arrays(cast("LmerResult", self), ddf=ddf, cov_type=cov_type, cluster=cluster)

    @property
    def pvalues(self) -> pd.Series:
        """Two-sided p-values of `tvalues` with Satterthwaite's degrees of freedom, as in `coef_table` and `summary`."""
        from fastlmm_core.inference.coef_table import coef_table

        return coef_table(cast("LmerResult", self))["p"].rename(None)

    def t_test(
        self, hypotheses: Any, *, ddf: str = "satterthwaite", cov_type: str = "model", cluster: Any = None
    ) -> Table:
        """Test linear hypotheses R β = q, each on its own.

        Parameters
        ----------
        hypotheses : str, list of str, array (p,) or (k, p), or tuple (array, values)
            Text such as ``"Days = 0, Intercept = 250"``: equations in the coefficients' names separated by commas, set
            to zero where there is no "=". An array has a column a coefficient.
        ddf, cov_type, cluster
            As in `coef_table`.

        Returns
        -------
        Table
            A row a hypothesis: estimate (R β), value (q), std_error, df, t, p. Where columns depend on others, a row is
            answered if the data determine it, whatever column was dropped; otherwise it is NaN, with a note.

        Raises
        ------
        FormulaError
            The text is not a linear equation in the coefficients.
        DataError
            An array of another width.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> fit.t_test("Days = 10, Intercept + 9 * Days = 350").round(3)
                                  estimate  value  std_error    df      t      p
        hypothesis
        Days = 10                   10.467   10.0      1.546  17.0  0.302  0.766
        Intercept + 9 Days = 350   345.611  350.0     14.629  17.0 -0.300  0.768
        """
        from fastlmm_core.inference.hypotheses import t_test

        return t_test(cast("LmerResult", self), hypotheses, ddf=ddf, cov_type=cov_type, cluster=cluster)

    def f_test(
        self, hypotheses: Any, *, ddf: str = "satterthwaite", cov_type: str = "model", cluster: Any = None
    ) -> FTest:
        """Test linear hypotheses R β = q all at once.

        Parameters
        ----------
        hypotheses, ddf, cov_type, cluster
            As in `t_test`. Rows that follow from earlier ones are left out first.

        Returns
        -------
        FTest
            F, num_df, den_df, p, sum_sq, mean_sq. Satterthwaite's denominator is Fai and Cornelius' (1996), Kenward and
            Roger's comes with their scale of F, a robust covariance's is HTZ (Tipton and Pustejovsky 2015). NaN, with a
            note, where a row is not estimable.

        Raises
        ------
        FormulaError, DataError
            As `t_test`.
        ModelError
            Rows that follow from others have values that do not.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> fit.f_test("Days = 0, Intercept = 250")
        <FTest: F = 23.59 on 2 and 17 df, p = 1.249e-05>
        """
        from fastlmm_core.inference.hypotheses import f_test

        return f_test(cast("LmerResult", self), hypotheses, ddf=ddf, cov_type=cov_type, cluster=cluster)

    def anova(
        self, type: int | str = 3, ddf: str = "satterthwaite", *, cov_type: str = "model", cluster: Any = None
    ) -> Table:
        """F tests of the terms of the fixed part.

        Parameters
        ----------
        type : {3, 2, 1}, or "III", "II", "I"
            3: each term as if added last, factors taken to be coded by contrasts that sum to zero, whatever coding the
            fit uses. 2: each term beyond the others that do not contain it. 1: one after the other as written.
        ddf : str
            As in `coef_table`.

        Returns
        -------
        Table
            A row a term: sum_sq, mean_sq, num_df, den_df, F, p. The intercept has none. Where cells are empty, type 3
            follows the definition by estimable functions (SAS, lmerTest), which the table's notes say; a term whose
            columns the others span has 0 degrees of freedom and NaN.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("angle ~ recipe + temperature + (1 | recipe:replicate)", load_dataset("cake"))
        >>> fit.anova()[["num_df", "den_df", "F"]].round(2)
                     num_df  den_df      F
        term
        recipe            2    42.0   0.25
        temperature       5   220.0  20.51
        """
        from fastlmm_core.inference.anova import anova_table

        return anova_table(cast("LmerResult", self), type=type, ddf=ddf, cov_type=cov_type, cluster=cluster)

    def drop1(self, *, test: str = "F", ddf: str = "satterthwaite") -> Table:
        """Test each term of the fixed part that no other term contains, as if it alone were left out.

        Parameters
        ----------
        test : {"F", "chisq"}
            F tests with the columns of `anova`, or likelihood ratios of maximum-likelihood fits without the term:
            npar, aic, deviance, chisq, df, p, the full model in the first row.
        ddf : str
            As in `coef_table`; for the F tests.

        Raises
        ------
        ModelError
            Without a term the factors of another are coded otherwise, as in a model without an intercept.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> fit.drop1(test="chisq")[["npar", "deviance", "chisq", "df"]].round(2)
                npar  deviance  chisq   df
        term
        <none>     6   1751.94    NaN  NaN
        Days       5   1775.48  23.54  1.0
        """
        from fastlmm_core.inference.anova import drop1

        return drop1(cast("LmerResult", self), test=test, ddf=ddf)

    def ranova(
        self, *, reduce_terms: bool = True, test: str = "chisq", n: int | None = None, seed: Seed = None
    ) -> pd.DataFrame:
        """Likelihood-ratio tests of the random effects, by the criterion of the fit (REML or ML).

        Parameters
        ----------
        reduce_terms : bool
            Terms of several effects lose one at a time (the intercept stays); otherwise whole terms go.
        test : {"chisq", "bootstrap", "exact"}
            "bootstrap" adds p_bootstrap, of n (1,000) draws from the smaller model by the fit's criterion; "exact" adds
            p_exact, from n (100,000) draws of the exact distribution, where a single scalar variance goes.
        n, seed
            Draws, and where they come from.

        Returns
        -------
        DataFrame
            The full model, then a row a reduction: npar, llf, aic, lrt, df, p, p_mixture. A variance of zero lies on
            the boundary, so p is too large; `p_mixture` is from the equal mixture of df and df - 1 degrees of freedom
            (Stram and Lee 1994) where one variance is removed, and NaN elsewhere.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> fit.ranova()[["npar", "llf", "lrt", "df"]].round(2)
                                     npar     llf    lrt   df
        term
        <none>                          6 -871.81    NaN  NaN
        Days in (1 + Days | Subject)    4 -893.23  42.84  2.0
        """
        from fastlmm_core.inference.ranova import ranova
        from fastlmm_core.inference.reductions import reduced_criteria

        result = cast("LmerResult", self)
        return ranova(result, reduced_criteria(result, reduce_terms), test=test, n=n, seed=seed)
