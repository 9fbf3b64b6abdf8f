"""Tables of models, here and by statsmodels; joblib and duckdb beside them."""

import duckdb
import joblib
import numpy as np
import pytest
from statsmodels.iolib.summary2 import summary_col

from fastlmm_core import glmer, lmer, load_dataset, model_table
from fastlmm_core.errors import ModelError


@pytest.fixture(scope="module")
def fits():
    data = load_dataset("sleepstudy")
    return lmer("Reaction ~ Days + (1 | Subject)", data), lmer("Reaction ~ Days + (Days | Subject)", data, reml=False)


def test_cells(fits):
    table = model_table(*fits, names=["intercepts", "slopes"], labels={"Days": "Days awake"}, stars=True)
    frame = table.to_frame()
    assert list(frame.columns) == ["intercepts", "slopes"]
    assert frame.loc["Days awake"].tolist() == ["10.467***", "10.47***"]
    assert frame.loc["sd Days | Subject"].tolist() == ["", "5.72"]
    assert frame.loc["cor Days, Intercept | Subject"].tolist() == ["", "0.081"]
    assert frame.loc["Observations"].tolist() == ["180", "180"]
    assert frame.loc["REML criterion"].tolist() == ["1786.5", ""]
    assert frame.loc["Deviance"].tolist() == ["", "1751.9"]
    assert "p < 0.05" in str(table)


def test_formats(fits):
    table = model_table(*fits)
    header, rule, *rows = table.to_markdown().split("\n\n")[0].splitlines()
    assert rule.count("-:") == 2
    assert {line.replace("\\|", "").count("|") for line in (header, rule, *rows)} == {4}
    latex = table.to_latex().splitlines()
    assert latex[:2] == [r"\begin{tabular}{lrr}", r"\toprule"]
    assert latex[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert sum(line == r"\midrule" for line in latex) == 3
    assert r"sd Days \textbar{} Subject &  & 5.72 \\" in latex
    assert table._repr_html_().count("<tr>") == len(rows) + 1


def test_latex_is_escaped():
    data = load_dataset("sleepstudy").rename(columns={"Days": "days_off"})
    fit = lmer("Reaction ~ I(days_off - 100) + (1 | Subject)", data)
    latex = fit.summary().to_latex()
    assert r"I(days\_off - 100)" in latex
    assert "$-$" not in latex.split("Fixed effects")[0]
    assert latex.count(r"\begin{tabular}") == 2
    assert fit.summary().to_markdown().count("\n| ---") == 2


def test_what_cannot_be_a_table(fits):
    with pytest.raises(ModelError, match="needs a fit"):
        model_table()
    with pytest.raises(ModelError, match="2 different ones"):
        model_table(*fits, names=["a", "a"])


def test_statsmodels_tables(fits):
    text = str(summary_col(list(fits), stars=True, info_dict={"N": lambda fit: f"{fit.nobs:d}"}))
    for cell in ("Reaction I", "10.4673***", "(1.5022)", "180"):
        assert cell in text


def test_alpha_is_one_less_the_level(fits):
    fit = fits[0]
    known = fit.conf_int(level=0.9, parm="beta_")
    for asked in (fit.conf_int(0.1), fit.conf_int(alpha=0.1)):
        np.testing.assert_array_equal(asked, known)
    assert fit.conf_int("wald", alpha=0.1, parm="Days").shape == (1, 2)


def test_joblib_fits_and_carries_results():
    names = ["Dyestuff", "Dyestuff2"]
    tasks = (joblib.delayed(lmer)("Yield ~ 1 + (1 | Batch)", load_dataset(name)) for name in names)
    found = joblib.Parallel(n_jobs=2)(tasks)
    known = [lmer("Yield ~ 1 + (1 | Batch)", load_dataset(name)).sigma for name in names]
    np.testing.assert_array_equal([fit.sigma for fit in found], known)


def test_duckdb_relations_are_tables():
    data = load_dataset("sleepstudy").astype({"Subject": str})
    known = lmer("Reaction ~ Days + (Days | Subject)", data)
    found = duckdb.sql("select * from data").arrow()
    found = found.read_all() if hasattr(found, "read_all") else found
    np.testing.assert_array_equal(lmer("Reaction ~ Days + (Days | Subject)", found).params, known.params)


def test_generalised_fits_have_their_own_rows():
    data = load_dataset("cbpp")
    binomial = glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", data, "binomial")
    counts = glmer("incidence ~ period + (1 | herd)", data, "negativebinomial", exposure="size")
    frame = model_table(binomial, counts, stars=True).to_frame()
    assert frame.loc["Intercept"].iloc[0] == "-1.399***"
    assert frame.loc["-2 log-likelihood"].iloc[0] == "184.1"
    assert frame.loc["alpha"].tolist()[0] == ""
    assert "sd residual" not in frame.index
