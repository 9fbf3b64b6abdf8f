"""Random effects and offsets in the part for zeros: glmmTMB's fits and predictions, and every method that reads them.

Figures of glmmTMB 1.1.5 with h = scale(HEIGHT), o = h / 10, YEAR a factor, ``se`` of vcov and ``sd`` of VarCorr:

    glmmTMB(TICKS ~ YEAR + h + (1 | LOCATION), ziformula = ~h + (1 | LOCATION), grouseticks, truncated_nbinom2)
    glmmTMB(TICKS ~ YEAR + h + (1 | BROOD) + (1 | LOCATION),
            ziformula = ~YEAR + (1 | BROOD) + (1 | LOCATION) + offset(o), grouseticks, truncated_poisson)
    glmmTMB(TICKS ~ YEAR + h + (1 | LOCATION), ziformula = ~h + offset(o), grouseticks, nbinom2)
    glmmTMB(TICKS ~ YEAR + h + (1 | BROOD), ziformula = ~h + (1 | LOCATION), grouseticks, poisson)
"""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fastlmm_core import DataError, ModelError, glmer, load, load_dataset

PLACES = "TICKS ~ YEAR + h + (1 | LOCATION)"
FITS = {
    "hurdle": (PLACES, "truncated_nbinom2", "~ h + (1 | LOCATION)"),
    "crossed": (
        "TICKS ~ YEAR + h + (1 | BROOD) + (1 | LOCATION)",
        "truncated_poisson",
        "~ YEAR + (1 | BROOD) + (1 | LOCATION) + offset(o)",
    ),
    "offset": (PLACES, "negativebinomial", "~ h + offset(o)"),
    "none": ("TICKS ~ YEAR + h + (1 | BROOD)", "poisson", "~ h + (1 | LOCATION)"),
}
REFERENCE = {
    "hurdle": {
        "criterion": 1883.76774184,
        "beta": [0.965799825, 0.779849930, -1.344819533, -0.786607538],
        "se": [0.201883625, 0.189112084, 0.231286615, 0.156796886],
        "zi": [-1.08172331, 1.09252494],
        "zi_se": [0.202610556, 0.209879638],
        "sd": [0.8707806],
        "zi_sd": [0.9417564],
        "modes": [0.35958508, 0.59720299, 0.33729425],
        "zprob": [0.48078569, 0.48078569, 0.40830923, 0.35892959],
        "response": [1.5882748, 1.5882748, 3.1015943, 1.2200249],
    },
    "crossed": {
        "criterion": 1997.52051987,
        "beta": [0.926616842, 0.767726460, -0.936858195, -0.718353776],
        "se": [0.199286296, 0.225026253, 0.277608722, 0.128034210],
        "zi": [-0.439737215, -2.762628249, 0.667030371],
        "zi_se": [0.338879503, 0.536480071, 0.416987451],
        "sd": [0.6782101, 0.5152095],
        "zi_sd": [0.4930529, 1.2803438],
        "modes": [0.154487371, 0.090207983, -0.054816111],
        "zprob": [0.68225703, 0.68225703, 0.62892821, 0.55637171],
        "response": [0.8361339, 0.8361339, 1.2153366, 1.0154975],
    },
    "offset": {"criterion": 1811.31782999},
    "none": {"criterion": 1963.29237072},  # their standard deviation 5e-4, ours zero
}


@pytest.fixture(scope="module")
def ticks():
    data = load_dataset("grouseticks")
    h = (data["HEIGHT"] - data["HEIGHT"].mean()) / data["HEIGHT"].std()
    return data.assign(h=h, o=h / 10)


@pytest.fixture(scope="module")
def fits(ticks):
    return {name: glmer(model, ticks, family, zero=zero) for name, (model, family, zero) in FITS.items()}


@pytest.mark.parametrize("name", FITS)
def test_fits_are_glmmtmbs(fits, ticks, name):
    fit, reference = fits[name], REFERENCE[name]
    assert fit.converged
    assert -1e-6 < reference["criterion"] - fit.criterion < 2e-6
    if "beta" not in reference:
        return
    k = len(reference["zi"])
    assert_allclose(fit.params, reference["beta"], atol=1e-4)
    assert_allclose(fit.bse, reference["se"], rtol=1e-4)
    assert_allclose(fit.theta, reference["sd"], rtol=1e-4)
    own = fit.family_params
    assert_allclose(own["estimate"].iloc[:k], reference["zi"], atol=1e-4)
    assert_allclose(own["std_error"].iloc[:k], reference["zi_se"], rtol=1e-4)
    assert_allclose(fit.var_corr("zero").to_frame()["sdcor"], reference["zi_sd"], rtol=1e-4)
    assert_allclose(own["estimate"].iloc[-len(reference["zi_sd"]) :], reference["zi_sd"], rtol=1e-4)
    assert_allclose(fit.ranef("zero")["condval"].head(3), reference["modes"], atol=1e-4)
    for kind in ("zprob", "response"):
        assert_allclose(fit.predict(kind=kind).head(4), reference[kind], rtol=1e-4)
        assert_allclose(fit.predict(ticks.head(4), kind=kind), reference[kind], rtol=1e-4)
    assert_allclose(fit.fittedvalues.head(4), reference["response"], rtol=1e-4)


def test_what_is_at_zero_has_no_standard_error(fits):
    fit = fits["none"]
    assert fit.is_singular
    assert fit.var_corr("zero").to_frame()["sdcor"][0] < 1e-3
    assert np.isnan(fit.family_params.loc["zi.sd_Intercept|LOCATION", "std_error"])
    assert fit.bse.notna().all()


def test_levels_that_were_not_seen(fits, ticks):
    fit, new = fits["hurdle"], ticks.head(3).assign(LOCATION="elsewhere")
    assert_allclose(fit.predict(new, allow_new_levels=True), fit.predict(new, kind="population"))
    with pytest.raises(DataError, match="LOCATION that the model was not fitted to: 'elsewhere'"):
        fit.predict(new, kind="zprob")
    assert_allclose(
        fit.predict(new, kind="zprob", allow_new_levels=True), fit.predict(new, kind="zprob", re_form="none")
    )
    rows = ticks.head(4).astype({"h": float})
    rows.loc[rows.index[1], "h"] = np.nan
    found = fit.predict(rows)
    assert found.isna().tolist() == [False, True, False, False]
    assert_allclose(found.dropna(), fit.predict().head(4).iloc[[0, 2, 3]])


def test_means_over_groups_and_draws(fits, ticks):
    fit = fits["crossed"]
    mean = fit.predict(kind="marginal")
    found = fit.predict(ticks.head(5), kind="marginal", interval="confidence")
    assert_allclose(found["fit"], mean.head(5))
    assert ((found["lower"] < found["fit"]) & (found["fit"] < found["upper"])).all()
    drawn = fit.simulate(400, seed=1)
    assert_allclose(drawn.to_numpy().mean(), mean.mean(), rtol=0.05)
    zeros = (fit.simulate(400, seed=2, re_form="all") == 0).to_numpy()
    assert_allclose(zeros.mean(), fit.predict(kind="zprob").mean(), atol=0.005)
    some = fit.simulate(300, newdata=ticks.head(6), seed=3)
    assert_allclose(some.to_numpy().mean(), mean.head(6).mean(), rtol=0.25)
    link = fit.predict(ticks.head(3), kind="link", interval="confidence")
    assert (link["std_error"] > 0).all()


def test_other_methods(fits, ticks, tmp_path):
    fit = fits["hurdle"]
    page = str(fit.summary())
    assert "Zero part, random effects:" in page
    assert "zi.sd" not in page
    assert_allclose(fit.refit(fit.design.y).criterion, fit.criterion, atol=1e-6)
    for again in (pickle.loads(pickle.dumps(fit)), saved(fit, tmp_path)):
        assert_allclose(again.predict(ticks.head(3)), fit.predict().head(3))
        assert_allclose(again.ranef("zero")["condsd"], fit.ranef("zero")["condsd"])
    draws = fit.bootstrap(4, seed=1)
    assert (draws["zi.sd_Intercept|LOCATION"] > 0).all()
    frame = fit.tidy()
    assert list(frame["term"][frame["component"] == "zi"]) == ["Intercept", "h", "sd__Intercept"]
    full = fit.update("~ . - h")
    assert_allclose(full.family_params.loc["zi.h", "estimate"], fit.family_params.loc["zi.h", "estimate"], rtol=1e-3)
    without = np.where(ticks["LOCATION"].astype(str) == "32", "32", "others")
    lost = fit.influence(without, method="refit").params.loc["32"]
    rest = ticks[ticks["LOCATION"].astype(str) != "32"]
    assert_allclose(lost, glmer(PLACES, rest, "truncated_nbinom2", zero="~ h + (1 | LOCATION)").params, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Laplace's approximation is rough")
def test_a_hurdles_zeros_are_a_logistic_model_of_their_own(ticks):
    """Profiles and tests of the zero part's random effects are those of the answers to: is it zero?"""
    some = ticks.head(200)
    fit = glmer("TICKS ~ h + (1 | BROOD)", some, "truncated_poisson", zero="~ h + (1 | LOCATION)")
    alone = glmer("none ~ h + (1 | LOCATION)", some.assign(none=some["TICKS"] == 0))
    limits = fit.conf_int("profile", parm="zi.sd_Intercept|LOCATION")
    assert_allclose(limits, alone.conf_int("profile", parm="sd_Intercept|LOCATION"), rtol=1e-4)
    tested = fit.ranova()
    assert list(tested.index) == ["<none>", "(1 | BROOD)", "zero: (1 | LOCATION)"]
    assert_allclose(tested["lrt"].iloc[2], alone.ranova()["lrt"].iloc[1], atol=1e-5)
    assert list(tested["npar"]) == [6, 5, 5]


def saved(fit, folder):
    fit.save(folder / "fit.flc", data=True)
    return load(folder / "fit.flc")


def test_missing_values_of_either_part(ticks):
    data = ticks.assign(z=ticks["h"].where(ticks.index % 50 != 3), place=ticks["LOCATION"].astype(str))
    data.loc[data.index[5], "place"] = None
    data.loc[data.index[8], "h"] = np.nan
    fit = glmer("TICKS ~ h + (1 | LOCATION)", data, "truncated_poisson", zero="~ z + (1 | place)")
    rest = data.dropna(subset=["z", "place", "h"])
    again = glmer("TICKS ~ h + (1 | LOCATION)", rest, "truncated_poisson", zero="~ z + (1 | place)")
    assert fit.n_missing == len(data) - len(rest)
    assert_allclose(fit.criterion, again.criterion, atol=1e-8)
    kept = glmer("TICKS ~ h + (1 | LOCATION)", data, "truncated_poisson", zero="~ z + (1 | place)", na_action="exclude")
    drawn, expected = (each.simulate(2, seed=1) for each in (kept, fit))
    assert len(drawn) == len(data)
    assert_allclose(drawn.loc[rest.index], expected.loc[rest.index])
    assert drawn.isna().sum().tolist() == [len(data) - len(rest)] * 2
    assert_allclose(kept.bootstrap(2, seed=1), fit.bootstrap(2, seed=1))
    assert_allclose(kept.residuals("simulated", n=20).dropna(), fit.residuals("simulated", n=20))
    assert_allclose(fit.predict(data, kind="marginal").loc[rest.index], again.predict(kind="marginal"), rtol=1e-6)


def test_what_there_is_none_of(fits):
    fit = fits["hurdle"]
    for ask, match in (
        (lambda: fit.predict(interval="confidence"), "no interval at the modes of the zero part's random effects"),
        (lambda: fit.laplace_check(), "not available where the zero part has random effects"),
        (lambda: fit.var_corr("zi"), 'part must be "mean" or "zero"'),
        (lambda: fits["offset"].ranef("zero"), "no random effects in a zero part"),
        (lambda: fit.simulate(re_form="(1 | LOCATION)"), 're_form is "all" or "none"'),
    ):
        with pytest.raises(ModelError, match=match):
            ask()
