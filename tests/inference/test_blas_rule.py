"""One rule for BLAS: one thread, in everything that is asked of a fit, and nothing else sets its threads."""

import ast
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fastlmm_core
from fastlmm_core import Control, exact_test, glmer, lmer
from fastlmm_core.core import threads

QUESTIONS = {
    "summary": lambda fit, data: str(fit.summary()),
    "kenward-roger": lambda fit, data: fit.coef_table(ddf="kenward-roger"),
    "hatvalues": lambda fit, data: fit.hatvalues(),
    "cooks_distance": lambda fit, data: fit.cooks_distance(),
    "residuals": lambda fit, data: fit.residuals("studentized"),
    "ranef": lambda fit, data: fit.ranef(),
    "ranef_cov": lambda fit, data: fit.ranef_cov(),
    "cov_params": lambda fit, data: fit.cov_params(levels={"b": list(range(50))}),
    "anova 1": lambda fit, data: fit.anova(type=1),
    "anova 2": lambda fit, data: fit.anova(type=2),
    "anova 3": lambda fit, data: fit.anova(type=3),
    "drop1": lambda fit, data: fit.drop1(),
    "emmeans": lambda fit, data: fit.emmeans("f", ddf="kenward-roger").pairs().to_frame(),
    "ranova": lambda fit, data: fit.ranova(),
    "exact_test": lambda fit, data: exact_test(fit, 1, n=500, seed=1),
    "predict": lambda fit, data: fit.predict(data, interval="prediction"),
    "report": lambda fit, data: str(fit.convergence_report()),
    "influence": lambda fit, data: fit.influence("b"),
    "augment": lambda fit, data: fit.augment(),
    "tidy": lambda fit, data: fit.tidy(),
    "r2": lambda fit, data: fit.r2(),
    "profile": lambda fit, data: fit.profile(which=["sigma", "x1"]),
    "refit": lambda fit, data: fit.refit(fit.design.y + data["x1"].to_numpy()),
    "refit_ml": lambda fit, data: fit.refit_ml(),
}


X = " + ".join(f"x{i}" for i in range(24))

OTHERS = {
    "glmer profile": (
        lambda data: glmer(f"c ~ {X} + (1 | a)", data, "poisson", control=Control(threads=1)),
        lambda fit: fit.profile(which=["x1"]),
    ),
    "glmer influence": (
        lambda data: glmer(f"c ~ {X} + (1 | a) + (1 | few)", data, "poisson", control=Control(threads=1)),
        lambda fit: fit.influence("few"),
    ),
    "structured refit": (
        lambda data: lmer(f"y ~ {X}", data, residual="ar1(visit | subject)", control=Control(threads=1)),
        lambda fit: fit.refit(fit.design.y),
    ),
    "structured ranef": (
        lambda data: lmer(f"y ~ {X} + (1 | b)", data, residual="ar1(visit | subject)", control=Control(threads=1)),
        lambda fit: fit.ranef(),
    ),
}
"""Questions to fits of other kinds, in which BLAS has much to do."""


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    n = 4000
    table = pd.DataFrame(random.normal(size=(n, 24)), columns=[f"x{i}" for i in range(24)])
    table["f"] = pd.Categorical.from_codes(random.integers(0, 4, n), list("pqrs"))
    table["a"], table["b"] = random.integers(0, 200, n), random.integers(0, 150, n)
    table["c"], table["few"] = random.poisson(np.exp(0.3 * table.x0)), random.integers(0, 5, n)
    table["subject"], table["visit"] = np.repeat(np.arange(n // 5), 5), np.tile(np.arange(5), n // 5)
    table["y"] = table.x0 + random.normal(size=200)[table.a] + random.normal(size=150)[table.b] + random.normal(size=n)
    return table


@pytest.fixture
def three_blas_threads():
    """BLAS as it is on a machine of three processors."""
    before = [library.num_threads for library in threads.blas_libraries()]
    for library in threads.blas_libraries():
        library.set_num_threads(3)
    yield
    for library, count in zip(threads.blas_libraries(), before, strict=True):
        library.set_num_threads(count)


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_no_other_thread_works_for_a_fit_on_one_thread(question, data, three_blas_threads):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = lmer(f"y ~ f + {X} + (1 + x0 | a) + (1 | b)", data, control=Control(threads=1))
        nobody_else_works(lambda: question(fit, data))


@pytest.mark.parametrize(("fitted", "question"), OTHERS.values(), ids=OTHERS)
def test_nor_for_fits_of_other_kinds(fitted, question, data, three_blas_threads):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = fitted(data)
        nobody_else_works(lambda: question(fit))


def nobody_else_works(answer):
    """BLAS's threads spin while they wait: they would show as processor time that this thread has not used."""
    time.sleep(0.1)  # whoever spins from before goes to sleep
    process, own = time.process_time(), time.thread_time()
    answer()
    process, own = time.process_time() - process, time.thread_time() - own
    assert process - own < 0.01 + 0.1 * own


def test_blas_is_held_to_one_thread_and_to_no_other_number(monkeypatch, data, three_blas_threads):
    """With two threads for the kernels: a bound may be one, or be given back."""
    asked = []
    honest = threads.set_threads
    monkeypatch.setattr(threads, "set_threads", lambda library, count: asked.append(count) or honest(library, count))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = lmer("y ~ f + x1 + (1 + x0 | a) + (1 | b)", data, control=Control(threads=2))
        for question in ("summary", "kenward-roger", "hatvalues", "anova 3", "predict", "profile"):
            QUESTIONS[question](fit, data)
    assert set(asked) == {1, 3}


def test_nothing_else_sets_the_threads_of_blas():
    package = Path(fastlmm_core.__file__).parent
    words = {
        "set_num_threads",
        "threadpool_limits",
        "ThreadpoolController",
        "threadpoolctl",
        "openblas_set_num_threads",
    }
    for path in package.rglob("*.py"):
        names = {
            getattr(node, field, None)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for field in ("id", "attr", "module", "name")
        }
        found = {str(name).split(".")[0] for name in names} & words
        assert not found or path == package / "core/threads.py", (path, found)
