from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core import IdentifiabilityWarning, LmerResult, lmer, load_dataset
from fastlmm_core.fitting.var_corr import TermCov, VarCorr, theta_labels

three = VarCorr(
    (TermCov("g", "g", ("Intercept", "a", "b"), np.array([[4.0, 1.0, 0.5], [1.0, 1.0, 0.0], [0.5, 0.0, 0.25]])),), 2.0
)


def test_frame_has_variances_then_covariances_then_the_residual() -> None:
    frame = three.to_frame()
    assert list(frame.columns) == ["grp", "var1", "var2", "vcov", "sdcor"]
    assert list(zip(frame.var1, frame.var2, strict=True)) == [
        ("Intercept", None),
        ("a", None),
        ("b", None),
        ("Intercept", "a"),
        ("Intercept", "b"),
        ("a", "b"),
        (None, None),
    ]
    assert list(frame.vcov) == [4.0, 1.0, 0.25, 1.0, 0.5, 0.0, 4.0]
    np.testing.assert_allclose(frame.sdcor, [2.0, 1.0, 0.5, 0.5, 0.5, 0.0, 2.0])
    assert list(frame.grp) == ["g"] * 6 + ["Residual"]


def test_prints_as_lme4(slopes: LmerResult) -> None:
    assert str(slopes.var_corr()).splitlines() == [
        " Groups   Name      Std.Dev.  Corr",
        " Subject  Intercept  24.7405",
        "          Days        5.9221 0.066",
        " Residual            25.5918",
    ]


def test_three_columns_print_a_triangle_of_correlations() -> None:
    assert str(three).splitlines() == [
        " Groups   Name      Std.Dev.  Corr",
        " g        Intercept      2.0",
        "          a              1.0 0.500",
        "          b              0.5 0.500 0.000",
        " Residual                2.0",
    ]


def test_a_zero_variance_has_no_correlation() -> None:
    vc = VarCorr((TermCov("g", "g", ("Intercept", "x"), np.diag([1.0, 0.0])),), 1.0)
    assert np.isnan(vc.to_frame().sdcor[2])
    assert "NaN" in str(vc)


def test_terms_by_name(slopes: LmerResult) -> None:
    cov = slopes.var_corr()["Subject"]
    assert cov.loc["Days", "Intercept"] == cov.loc["Intercept", "Days"]
    with pytest.raises(KeyError, match="Subject"):
        slopes.var_corr()["Batch"]


def test_a_second_term_on_a_group_has_its_own_name(zerocorr: LmerResult) -> None:
    assert [t.grp for t in zerocorr.var_corr()] == ["Subject", "Subject.1"]
    assert len(zerocorr.var_corr()) == 2


def test_theta_is_labelled_as_lme4_does(slopes: LmerResult, zerocorr: LmerResult, crossed: LmerResult) -> None:
    assert list(slopes.theta.index) == ["Subject.Intercept", "Subject.Days.Intercept", "Subject.Days"]
    assert list(zerocorr.theta.index) == ["Subject.Intercept", "Subject.Days"]
    assert list(crossed.theta.index) == ["plate.Intercept", "sample.Intercept"]


def test_theta_labels_are_never_shared(sleepstudy: object) -> None:
    with pytest.warns(IdentifiabilityWarning, match=r"\(1 \| Subject\) from that of \(1 \+ Days \| Subject\)"):
        fit = lmer("Reaction ~ Days + (1 | Subject) + (Days | Subject)", load_dataset("sleepstudy"))
    labels = theta_labels(fit.design)
    assert len(set(labels)) == len(labels)


def test_html(slopes: LmerResult) -> None:
    assert "<table>" in slopes.var_corr()._repr_html_()
