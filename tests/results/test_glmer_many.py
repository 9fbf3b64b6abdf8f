"""Many responses of a generalised family: each fit is `glmer`'s, whatever the others miss."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from fastlmm_core import DataError, FormulaError, ModelError, SeparationWarning, glmer, glmer_many


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "person": np.repeat(np.arange(20), 4),
            "day": np.tile(np.arange(4), 20),
            "dose": np.tile([0, 1, 0, 1], 20),
            "size": rng.uniform(0.5, 2, 80),
            "n": rng.integers(1, 9, 80),
        }
    )


@pytest.fixture(scope="module")
def counts(samples):
    rng = np.random.default_rng(1)
    mean = np.exp(1.5 + 0.4 * rng.normal(size=(8, 20))[:, samples["person"]]) * samples["size"].to_numpy()
    y = rng.negative_binomial(3, 3 / (3 + mean)).astype(float)
    y[1, :6] = np.nan
    y[2, :6] = np.nan
    y[3, :] = 0.0
    y[4] = np.where(samples["dose"] == 0, y[4], 0.0)
    y[5, 3] = 0.5
    return y


@pytest.mark.filterwarnings("ignore:zeros are separated")
@pytest.mark.parametrize("family", ["poisson", "negativebinomial"])
def test_counts_are_glmers(samples, counts, family):
    found = glmer_many("~ dose + (1 | person)", samples, counts, family, exposure="size")
    for i in (0, 1, 2, 4, 6, 7):
        fit = glmer("y ~ dose + (1 | person)", samples.assign(y=counts[i]), family, exposure="size")
        assert found.fits.criterion[i] == fit.criterion
        assert found.fits.n[i] == fit.nobs
        assert_allclose(found.params.iloc[i], fit.params, rtol=1e-12)
        assert_allclose(found.fits.theta[i], fit.theta, rtol=1e-12)
        if i != 4:
            assert_allclose(found.bse.iloc[i], fit.bse, rtol=1e-9)
            row = found.table("dose").iloc[i]
            assert_allclose(row[["estimate", "z", "p"]].astype(float), fit.coef_table().loc["dose"].iloc[[0, 2, 3]])
        if family == "negativebinomial":
            assert_allclose(found.family_params["alpha"].iloc[i], fit.family_params["estimate"].iloc[0], rtol=1e-9)
    message = found.table()["message"]
    assert message[["0", "1", "2", "6", "7"]].eq("").all()
    assert "every response is 0" in message["3"]
    assert "zeros are separated from counts above zero by the fixed effects along dose (-)" in message["4"]
    assert "whole numbers" in message["5"]
    assert np.isnan(found.table().loc["3", "estimate"])
    ratio = found.table("dose", exp=True)["estimate"]
    assert_allclose(ratio, np.exp(found.table("dose")["estimate"]))
    assert "8 responses, 3 with a message" in repr(found)


def test_binomial_responses_with_trials_of_their_own(samples):
    rng = np.random.default_rng(2)
    trials = rng.integers(1, 9, (3, 80))
    y = rng.binomial(trials, 0.3 + 0.3 * samples["dose"].to_numpy()).astype(float)
    frame = pd.DataFrame(y.T, columns=["a", "b", "c"])
    many = glmer_many("~ dose + (1 | person)", samples, frame, "binomial", trials=trials, link="probit", n_agq=3)
    for i, name in enumerate(frame):
        data = samples.assign(y=y[i], m=trials[i])
        fit = glmer("y ~ dose + (1 | person)", data, "binomial", trials="m", link="probit", n_agq=3)
        assert_allclose(many.fits.criterion[i], fit.criterion, rtol=1e-12)
        assert_allclose(many.params.loc[name], fit.params, rtol=1e-10)
    shared = samples.assign(**{name: np.minimum(frame[name], samples["n"]) for name in frame})
    once = glmer_many("~ dose + (1 | person)", shared, ["b", "a"], "binomial", trials="n")
    fit = glmer("a ~ dose + (1 | person)", shared, "binomial", trials="n")
    assert_allclose(once.params.loc["a"], fit.params, rtol=1e-12)
    both = glmer_many(
        "~ dose + day + (1 | person)", shared, ["a"], "binomial", trials="n", contrasts={"sum": "dose + day = 0"}
    )
    fit = glmer("a ~ dose + day + (1 | person)", shared, "binomial", trials="n")
    test = fit.t_test("dose + day = 0").iloc[0]
    assert_allclose(both.table("sum")["std_error"].iloc[0], test["std_error"], rtol=1e-8)


def test_crossed_effects_offsets_and_frequencies(samples, counts):
    formula = "~ dose + offset(log(size)) + (1 | person) + (1 | day)"
    twice = np.full(80, 2.0)
    found = glmer_many(
        formula, samples, counts[:2], "poisson", offset=np.tile(samples["size"], (2, 1)), freq_weights=twice
    )
    data = samples.assign(y=counts[1], w=2)
    fit = glmer(f"y {formula}", data, "poisson", offset="size", freq_weights="w")
    assert_allclose(found.params.iloc[1], fit.params, rtol=1e-9)
    assert_allclose(found.fits.criterion[1], fit.criterion, rtol=1e-12)


@pytest.mark.parametrize(
    ("family", "options", "error", "match"),
    [
        ("ordinal", {}, ModelError, "no ordinal family"),
        ("poisson", {"trials": "n"}, ModelError, "trials belong to the binomial family"),
        ("binomial", {"weights": "n"}, ModelError, "say trials= in place of weights="),
        ("binomial", {"exposure": "n"}, ModelError, "needs the log link, not logit"),
        ("poisson", {"exposure": "dose"}, DataError, "exposure must be positive, which 40 values are not"),
        ("poisson", {"offset": np.zeros((2, 80))}, DataError, "offset has shape \\(2, 80\\)"),
        ("poisson", {"offset": "nowhere"}, DataError, "nowhere"),
        ("poisson", {"contrasts": "nobody"}, FormulaError, "no coefficient .nobody."),
    ],
)
def test_what_is_refused(samples, counts, family, options, error, match):
    with pytest.raises(error, match=match):
        glmer_many("~ dose + (1 | person)", samples, counts, family, **options)


def test_counts_that_a_factor_separates_from_zeros(samples):
    rng = np.random.default_rng(3)
    y = rng.poisson(3, 80)
    arm = np.array(list("abcd"))[samples["day"]]
    data = samples.assign(y=np.where(arm == "c", 0, y), arm=arm)
    with pytest.warns(SeparationWarning, match=r"zeros are separated from counts above zero .* along arm\[T.c\] \(-\)"):
        fit = glmer("y ~ arm + size + (1 | person)", data, "poisson")
    assert fit.params["arm[T.c]"] < -10
    glmer("y ~ size + (1 | person)", data, "poisson")  # no warning
    glmer("y ~ arm + size + (1 | person)", data.assign(y=y), "poisson")


def test_rows_of_a_response_that_tell_no_effects(samples):
    y = np.random.default_rng(5).integers(0, 2, 80).astype(float)
    Y = np.array([np.where(samples["day"] == 0, y, np.nan), np.where(samples["person"] == 0, y, np.nan), y * np.nan, y])
    found = glmer_many("~ 1 + (1 | person)", samples, Y, "binomial").table()
    assert found["estimate"].isna().tolist() == [True, True, True, False]
    for i, match in enumerate(("20 levels for 20 rows", "more than one level: person has")):
        assert match in found["message"].iloc[i]
        with pytest.raises(ModelError, match=match):
            glmer("y ~ 1 + (1 | person)", samples.assign(y=Y[i]), "binomial")
    assert found["message"].iloc[2] == "the response has no values"


def test_a_frame_for_each_response_is_read_as_the_responses_are(samples):
    rng = np.random.default_rng(6)
    exposure, Y = rng.uniform(1, 20, (80, 80)), rng.poisson(9, (80, 80))
    data = samples.set_axis([f"r{i}" for i in range(80)])
    frame = pd.DataFrame(exposure.T, index=data.index).iloc[::-1]
    some = "~ dose + (1 | person)", data
    given = glmer_many(*some, pd.DataFrame(Y.T, index=data.index), "poisson", exposure=frame)
    assert_allclose(given.params, glmer_many(*some, Y, "poisson", exposure=exposure).params, rtol=1e-12)


@pytest.mark.parametrize("what", ["weights", "freq_weights"])
def test_rows_of_weight_zero_are_left_out(samples, what):
    y, w = np.random.default_rng(7).poisson(4, (2, 80)), np.tile([0.0, 1.0, 2.0, 1.0], 20)
    w[:8] = 0.0
    found = glmer_many("~ dose + (1 | person)", samples, y, "poisson", **{what: np.array([w, 1.0 + w])})
    for i, own in enumerate((w, 1.0 + w)):
        fit = glmer("y ~ dose + (1 | person)", samples.assign(y=y[i]), "poisson", **{what: own})
        assert found.fits.n[i] == fit.nobs
        assert found.fits.criterion[i] == fit.criterion
