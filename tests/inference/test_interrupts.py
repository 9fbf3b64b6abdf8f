"""Ctrl-C ends what takes long after a fit within a second, and the fit can be asked again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import LmerResult, lmer


@pytest.fixture(scope="module")
def fit() -> LmerResult:
    rng = np.random.default_rng(7)
    n = 6000
    a, b = rng.integers(0, 300, n), rng.integers(0, 150, n)
    x = rng.normal(size=n)
    y = rng.normal(size=300)[a] + 0.5 * rng.normal(size=150)[b] + 0.3 * rng.normal(size=300)[a] * x + rng.normal(size=n)
    return lmer("y ~ x + (x | a) + (1 | b)", pd.DataFrame({"y": y, "x": x, "a": a, "b": b}))


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[float], list[float]]]:
    """Send SIGINT after some seconds; the handler is Python's own, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threads = []

    def after(seconds: float) -> list[float]:
        sent: list[float] = []

        def send() -> None:
            time.sleep(seconds)
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        threads.append(threading.Thread(target=send))
        threads[-1].start()
        return sent

    yield after
    for thread in threads:
        thread.join()
    signal.signal(signal.SIGINT, before)


LONG: dict[str, Callable[[LmerResult], object]] = {
    "profile": lambda m: m.profile(),
    "influence, refit": lambda m: m.influence("a", method="refit"),
    "influence, one step": lambda m: m.influence(method="one-step"),
    "bootstrap": lambda m: m.bootstrap(1_000_000, seed=1),
    "bootstrap of a statistic": lambda m: m.bootstrap(1_000_000, seed=1, statistic=lambda again: again.sigma),
    "jackknife": lambda m: m.conf_int("boot", kind="bca", draws=pd.DataFrame(np.zeros((9, 7)), columns=NAMES)),
}
NAMES = ["sd_Intercept|a", "cor_x.Intercept|a", "sd_x|a", "sd_Intercept|b", "sigma", "Intercept", "x"]


@pytest.mark.parametrize("name", LONG)
def test_it_ends_within_a_second(name: str, fit: LmerResult, ctrl_c: Callable[[float], list[float]]) -> None:
    before = answers(fit)
    sent = ctrl_c(0.3)
    with pytest.raises(KeyboardInterrupt):
        LONG[name](fit)
    latency = time.perf_counter() - sent[0]
    assert latency < 1.0
    for one, two in zip(before, answers(fit), strict=True):
        np.testing.assert_array_equal(one, two)


def answers(fit: LmerResult) -> list[np.ndarray]:
    again = fit.refit(fit.design.y[::-1].copy())
    return [
        fit.coef_table().to_numpy(),
        fit.predict(fit_rows(fit), interval="confidence").to_numpy(),
        again.theta.to_numpy(),
        fit.bootstrap(3, seed=2).to_numpy(),
        fit.ranef_cov()["a"].to_numpy(),
    ]


def fit_rows(fit: LmerResult) -> pd.DataFrame:
    return pd.DataFrame({"x": [0.0, 1.0], "a": [3, 4], "b": [5, 6]})
