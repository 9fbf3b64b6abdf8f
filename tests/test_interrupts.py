"""Ctrl-C ends whatever runs within a second, and everything can be used again."""

import sys
import threading
import time
import warnings

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import lmer
from fastlmm_core.core import Control, Model, Term

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are delivered differently there")


def interrupted(press, work, after=0.3):
    """Seconds from Ctrl-C until ``work`` has ended by it."""
    pressed = []

    def now():
        pressed.append(time.perf_counter())
        press()

    timer = threading.Timer(after, now)
    try:
        timer.start()
        begin = time.perf_counter()
        while time.perf_counter() < begin + 60:  # the work may end before
            work()
    except KeyboardInterrupt:
        return time.perf_counter() - pressed[0]
    finally:
        timer.cancel()
        timer.join()
    raise AssertionError("Ctrl-C was not heard")


@pytest.mark.parametrize("threads", [1, 2])
def test_many_fits(ctrl_c, threads):
    random = np.random.default_rng(0)
    codes = np.repeat(np.arange(12), 10)
    model = Model(np.column_stack([np.ones(120), random.normal(size=120)]), [Term(codes)])
    Y = random.normal(size=(40_000, 120))
    expected = model.fit_many(Y[:50])
    assert interrupted(ctrl_c, lambda: model.fit_many(Y, threads=threads)) < 1.0
    again = model.fit_many(Y[:50])
    np.testing.assert_array_equal(again.theta, expected.theta)


@pytest.fixture(scope="module")
def crossed():
    random = np.random.default_rng(1)
    a, b = random.integers(0, 60, 2000), random.integers(0, 50, 2000)
    x = random.normal(size=2000)
    y = x + random.normal(size=60)[a] * (1 + x) + random.normal(size=50)[b] + random.normal(size=2000)
    table = pd.DataFrame({"y": y, "x": x, "a": a, "b": b})
    return lmer("y ~ x + (x | a) + (1 | b)", table, control=Control(threads=1))


NAMES = ["sd_Intercept|a", "cor_x.Intercept|a", "sd_x|a", "sd_Intercept|b", "sigma", "Intercept", "x"]

QUESTIONS = {
    "bootstrap": lambda fit: fit.bootstrap(1_000_000, seed=1),
    "statistic": lambda fit: fit.bootstrap(1_000_000, seed=1, statistic=lambda again: again.sigma),
    "jackknife": lambda fit: fit.conf_int("boot", kind="bca", draws=pd.DataFrame(np.zeros((9, 7)), columns=NAMES)),
    "profile": lambda fit: fit.profile(),
    "profile, maximum likelihood": lambda fit: fit.refit_ml().conf_int(method="profile"),
    "influence, refits": lambda fit: fit.influence("obs", method="refit"),
    "influence, refits of groups": lambda fit: fit.influence("a", method="refit"),
    "influence, one step": lambda fit: fit.influence("b", method="one-step"),
    "ranova": lambda fit: fit.ranova(),
    "kenward-roger": lambda fit: fit.summary(ddf="kenward-roger"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_after_a_fit(ctrl_c, crossed, name):
    before = answers(crossed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert interrupted(ctrl_c, lambda: QUESTIONS[name](crossed)) < 1.0
    for one, two in zip(before, answers(crossed), strict=True):
        np.testing.assert_array_equal(one, two)


def answers(fit):
    """What a fit says, by each of the workspaces that a question may have been interrupted in."""
    again = fit.refit(fit.design.y[::-1].copy())
    rows = pd.DataFrame({"x": [0.0, 1.0], "a": [3, 4], "b": [5, 6]})
    return [
        fit.coef_table().to_numpy(),
        fit.predict(rows, interval="confidence").to_numpy(),
        again.theta.to_numpy(),
        fit.bootstrap(3, seed=2).to_numpy(),
        fit.ranef_cov()["a"].to_numpy(),
    ]
