"""maketables' tables of wrapped fits."""

from maketables import ETable

from fastlmm_core import lmer, load_dataset
from fastlmm_core.adapters.maketables import wrap


def test_a_wrapped_fit_has_its_own_statistics():
    data = load_dataset("sleepstudy")
    fits = lmer("Reaction ~ Days + (1 | Subject)", data), lmer("Reaction ~ Days + (Days | Subject)", data, reml=False)
    text = ETable(list(map(wrap, fits)), coef_fmt="b (se) [ci95l, ci95u]").make(type="tex")
    low, high = fits[0].conf_int(parm="Days").loc["Days"]
    for cell in (f"10.467 (0.804) [{low:.3f}, {high:.3f}]", "Residual SD", "Groups: Subject", "Observations", "18"):
        assert cell in text, text
    assert "R^2" not in text


def test_a_bare_fit_is_taken_for_one_of_statsmodels():
    fit = lmer("Reaction ~ Days + (1 | Subject)", load_dataset("sleepstudy"))
    assert "(0.804)" in ETable([fit]).make(type="tex")


def test_degrees_of_freedom_and_unknown_statistics():
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
    wrapped = wrap(fit, "normal")
    assert wrapped.__maketables_coef_table__.loc["Intercept", "p"] == fit.coef_table("normal").loc["Intercept", "p"]
    assert wrapped.__maketables_stat__("groups:Batch") == 6
    assert wrapped.__maketables_stat__("r2") is None
