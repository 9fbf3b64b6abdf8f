"""Settings that every test shares, and models that several look at, fitted once."""

import os
import signal

# before NumPy is loaded: dense oracles beside other workers, whose BLAS's threads would spin for one another's
# processors; tests of the package's own bound ask for more
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest
from hypothesis import settings

from fastlmm_core import LmerResult, lmer, load_dataset
from fastlmm_core.core.threads import blas_libraries

# no deadline: machines differ and a debug build is slow
# in CI the same examples every time, so that a failure is due to the change
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def sleepstudy() -> pd.DataFrame:
    return load_dataset("sleepstudy")


@pytest.fixture(scope="session")
def slopes(sleepstudy: pd.DataFrame) -> LmerResult:
    return lmer("Reaction ~ Days + (Days | Subject)", sleepstudy)


@pytest.fixture(scope="session")
def zerocorr(sleepstudy: pd.DataFrame) -> LmerResult:
    return lmer("Reaction ~ Days + (Days || Subject)", sleepstudy, reml=False)


@pytest.fixture(scope="session")
def crossed() -> LmerResult:
    return lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", load_dataset("Penicillin"))


@pytest.fixture(scope="session")
def weighted(sleepstudy: pd.DataFrame) -> LmerResult:
    """Weights, an offset, two missing responses and an index of its own."""
    data = sleepstudy.assign(w=np.tile([0.5, 1.0, 2.0], 60), off=np.linspace(0.0, 9.0, 180))
    data.loc[[3, 40], "Reaction"] = np.nan
    data.index = [f"row{i}" for i in range(180)]
    return lmer("Reaction ~ Days + (Days | Subject)", data, weights="w", offset="off")


@pytest.fixture
def two_blas_threads():
    """Every library at two threads, whatever it had; (n_libraries,) counts."""
    before = [library.num_threads for library in blas_libraries()]
    for library in blas_libraries():
        library.set_num_threads(2)
    yield [library.num_threads for library in blas_libraries()]
    for library, count in zip(blas_libraries(), before, strict=True):
        library.set_num_threads(count)


@pytest.fixture
def ctrl_c():
    """A function that presses Ctrl-C, with Python's own answer to it: shells start background jobs that ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)
