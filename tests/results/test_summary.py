from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core import LmerResult, lmer, load_dataset

SLEEPSTUDY = """\
Linear mixed model fit by REML; t-tests use Satterthwaite's method
Formula: Reaction ~ Days + (Days | Subject)

REML criterion at convergence: 1743.6

Scaled residuals:
    Min      1Q Median     3Q    Max
-3.9536 -0.4634 0.0231 0.4634 5.1793

Random effects:
 Groups   Name      Variance Std.Dev. Corr
 Subject  Intercept   612.09   24.740
          Days         35.07    5.922 0.07
 Residual             654.94   25.592
Number of obs: 180, groups: Subject, 18

Fixed effects:
          Estimate Std. Error    df t value Pr(>|t|)
Intercept  251.405      6.825 17.00  36.838   <2e-16
Days        10.467      1.546 17.00   6.771 3.26e-06

Correlation of Fixed Effects:
     (Intr)
Days -0.138"""


def test_is_lme4s_page(slopes: LmerResult) -> None:
    assert str(slopes.summary()) == SLEEPSTUDY
    assert str(slopes) == SLEEPSTUDY
    assert repr(slopes.summary()) == SLEEPSTUDY


def test_ml_shows_the_information_criteria(zerocorr: LmerResult) -> None:
    text = str(zerocorr.summary())
    assert "fit by maximum likelihood" in text
    names, values = text.splitlines()[3:5]
    assert names.split() == ["AIC", "BIC", "logLik", "deviance", "df.resid"]
    assert values.split() == ["1762.0", "1778.0", "-876.0", "1752.0", "175"]
    assert " Subject.1 Days" in text


def test_missing_rows_are_counted_and_residuals_scaled_by_weights(weighted: LmerResult) -> None:
    summary = weighted.summary()
    assert "Number of obs: 178, groups: Subject, 18\n(2 rows with missing values dropped)" in str(summary)
    assert weighted.design.weights is not None
    scaled = weighted.resid * np.sqrt(weighted.design.weights) / weighted.sigma
    assert summary.residuals["Min"] == pytest.approx(scaled.min())
    assert summary.residuals["Median"] == pytest.approx(scaled.median())


def test_singular_fit_is_said(crossed: LmerResult) -> None:
    text = str(lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff2")).summary())
    assert "boundary (singular) fit: a variance is zero or a correlation is one in absolute value\n" in text
    assert text.endswith("parameters on the boundary count as known")
    assert "boundary" not in str(crossed.summary())


def test_several_groups_are_counted(crossed: LmerResult) -> None:
    text = str(crossed.summary())
    assert "groups: plate, 24; sample, 6" in text
    assert "Correlation of Fixed Effects" not in text  # one coefficient


def test_many_coefficients_have_no_correlation_table() -> None:
    fit = lmer("angle ~ recipe * temperature + (1 | recipe:replicate)", load_dataset("cake"))
    summary = fit.summary()
    assert len(summary.correlation) == 18
    assert "Correlation of Fixed Effects" not in str(summary)


def test_no_fixed_effects_at_all(sleepstudy: object) -> None:
    fit = lmer("Reaction ~ 0 + (1 | Subject)", sleepstudy)
    assert len(fit.params) == 0
    assert "Fixed effects" not in str(fit.summary())


def test_notebooks_get_tables(slopes: LmerResult) -> None:
    page = slopes._repr_html_()
    assert page.count("<table>") == 5
    assert "REML criterion" in page
