"""`lmer` by the iterative engine: the results that it has, those that it refuses, and when it is chosen."""

import pickle
import re
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import lmer
from fastlmm_core.core import Accumulator, BatchTerm, Control, Model, StreamedModel, Term
from fastlmm_core.core.iterative import choice
from fastlmm_core.core.iterative.problem import crossed_problem, row_form_bytes
from fastlmm_core.core.iterative.system import System
from fastlmm_core.core.iterative.traces import Probes
from fastlmm_core.errors import MemoryLimitError, ModelError

FORMULA = "y ~ x + (x | user) + (1 | item)"


@pytest.fixture(scope="module")
def ratings():
    rng = np.random.default_rng(4)
    n = 6000
    user, item, x = rng.integers(0, 300, n), rng.integers(0, 150, n), rng.normal(size=n)
    slopes = rng.normal(size=(300, 2)) @ [[0.7, 0.2], [0.0, 0.3]]
    y = 2.0 + 0.3 * x + slopes[user, 0] + slopes[user, 1] * x + 0.5 * rng.normal(size=150)[item] + rng.normal(size=n)
    return pd.DataFrame({"y": y, "x": x, "user": user, "item": item})


@pytest.fixture(scope="module")
def exact(ratings):
    return lmer(FORMULA, ratings)


@pytest.fixture(scope="module")
def fit(ratings):
    return lmer(FORMULA, ratings, control=Control(engine="iterative"))


def test_estimates_are_the_exact_ones_within_the_errors_claimed(fit, exact):
    errors = fit.monte_carlo
    assert (np.abs(fit.theta - exact.theta) < 4.0 * errors.theta_se + 1e-5 * errors.theta_sd).all()
    assert errors.max_relative < 0.01
    np.testing.assert_allclose(fit.params, exact.params, atol=1e-4 * exact.bse.min())
    np.testing.assert_allclose(fit.bse, exact.bse, rtol=1e-4)
    assert abs(fit.criterion - exact.criterion) < 4.0 * errors.criterion_se + 1e-3
    assert exact.monte_carlo is None


def test_what_is_exact_at_a_theta(ratings, fit):
    """β, its covariance, σ and the modes are those of the exact engine at the θ that was found."""
    columns = np.column_stack([np.ones(len(ratings)), ratings.x])
    terms = [Term(ratings.user.to_numpy(), columns), Term(ratings.item.to_numpy())]
    at = Model(columns, terms).at(ratings.y.to_numpy(), fit.theta.to_numpy())
    np.testing.assert_allclose(fit.core.beta, at.beta, rtol=1e-9)
    np.testing.assert_allclose(fit.core.cov_beta, at.cov_beta, rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(fit.core.fitted, at.fitted, atol=1e-8)
    for one, two in zip(fit.core.L, at.L, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-14)  # theta went to conditioned coordinates and back
    for one, two, error in zip(fit.core.cond_var(), at.cond_var(), fit.core.cond_sd_error(), strict=True):
        sd = np.sqrt(np.diagonal(two, axis1=1, axis2=2))
        over = (np.sqrt(np.diagonal(one, axis1=1, axis2=2)) - sd) / error
        assert 0.7 < np.sqrt((over**2).mean()) < 1.3  # the errors claimed are those made
        assert (error < 0.05 * sd).all()


def test_degrees_of_freedom(fit, exact):
    """By the average information, which differs from the observed one by what large samples forget."""
    np.testing.assert_allclose(fit.coef_table()["df"], exact.coef_table()["df"], rtol=0.03)
    np.testing.assert_allclose(fit.coef_table()["p"], exact.coef_table()["p"], rtol=1e-2, atol=1e-12)


def test_pages_and_tables(fit, exact):
    text = str(fit.summary())
    assert "iterative engine: variance parameters have a Monte Carlo error of at most" in text
    assert str(fit.engine_report()).startswith("Engine: iterative (150 random effects in its tail), since it was asked")
    assert len(fit.ranef()) == len(exact.ranef())
    np.testing.assert_allclose(fit.ranef()["condsd"], exact.ranef()["condsd"], rtol=0.1)
    assert len(fit.fit_log) == fit.monte_carlo.evaluations
    again = pickle.loads(pickle.dumps(fit))
    assert again.params.equals(fit.params)
    assert again.monte_carlo.max_relative == fit.monte_carlo.max_relative


def test_the_same_seed_gives_the_same_bits(ratings, fit):
    one = lmer(FORMULA, ratings, control=Control(engine="iterative", threads=1))
    assert one.theta.equals(fit.theta)
    assert one.criterion == fit.criterion
    other = lmer(FORMULA, ratings, control=Control(engine="iterative", seed=7))
    assert not other.theta.equals(fit.theta)


def test_refits_begin_where_the_fit_ended(ratings, fit, exact):
    y = ratings.y + np.random.default_rng(0).normal(size=len(ratings)) / 10
    moved = fit.refit(y)
    assert moved.monte_carlo.evaluations <= fit.monte_carlo.evaluations
    np.testing.assert_allclose(moved.theta, exact.refit(y).theta, atol=0.05 * moved.monte_carlo.theta_sd.min())


def test_many_responses(ratings, fit):
    columns = np.column_stack([np.ones(len(ratings)), ratings.x])
    terms = [Term(ratings.user.to_numpy(), columns), Term(ratings.item.to_numpy())]
    model = Model(columns, terms, control=Control(engine="iterative"))
    y = ratings.y.to_numpy()
    found = model.fit_many([y, y + 1.0])
    np.testing.assert_allclose(found.theta[0], fit.theta, rtol=1e-6)
    np.testing.assert_allclose(found.beta[1], [fit.params.iloc[0] + 1.0, fit.params.iloc[1]], rtol=1e-5)
    with pytest.raises(ModelError, match="information=True"):
        model.fit_many([y], information=True)


@pytest.mark.parametrize(
    "question",
    [
        lambda fit: fit.profile(),
        lambda fit: fit.hatvalues(),
        lambda fit: fit.coef_table(ddf="kenward-roger"),
        lambda fit: fit.influence(),
    ],
)
def test_what_needs_a_factor_is_refused_in_a_sentence(fit, question):
    with pytest.raises(ModelError, match="not available for a fit by the iterative engine, which has no factor"):
        question(fit)


@pytest.mark.parametrize("options", [{}, {"interval": "prediction"}, {"re_form": "none"}, {"theta_known": False}])
def test_intervals_of_predictions(ratings, fit, exact, options):
    new = pd.DataFrame({"user": [0, 1, 1, 999, 7], "item": [3, 3, 149, 2, 999], "x": [0.0, 1.0, -1.0, 0.5, 2.0]})
    options = {"interval": "confidence", "allow_new_levels": True, **options}
    found, expected = (f.predict(new, **options) for f in (fit, exact))
    np.testing.assert_allclose(found["fit"], expected["fit"], atol=1e-3 * expected["std_error"].min())
    np.testing.assert_allclose(found["std_error"], expected["std_error"], rtol=1e-3)
    np.testing.assert_allclose(found["df"], expected["df"], rtol=0.05)


def test_intervals_of_too_many_rows_are_refused(fit):
    with pytest.raises(ModelError, match=r"intervals of 6000 different combinations .* at most 512 of them"):
        fit.predict(interval="confidence")
    assert len(fit.predict(interval="confidence", re_form="none")) == 6000


def test_the_convergence_report(fit, exact):
    report = fit.convergence_report()
    assert report.ok
    assert "Monte Carlo error" in str(report)
    assert report.condition == pytest.approx(exact.convergence_report().condition, rel=0.1)


def test_a_tail_of_correlated_slopes(ratings, monkeypatch):
    """All that follows a fit finds the tail's columns where they are."""
    rng = np.random.default_rng(9)
    slopes = rng.normal(size=(150, 2)) @ [[0.6, 0.3], [0.0, 0.4]]
    y = ratings.y + slopes[ratings.item, 0] + slopes[ratings.item, 1] * ratings.x
    data = ratings.assign(y=y)
    formula = "y ~ x + (1 | user) + (x | item)"
    found, exact = (lmer(formula, data, control=Control(engine=engine)) for engine in ("iterative", "auto"))
    assert (np.abs(found.theta - exact.theta) < 4.0 * found.monte_carlo.theta_se + 1e-4 * found.bse.min()).all()
    np.testing.assert_allclose(found.coef_table()["df"], exact.coef_table()["df"], rtol=0.05)
    for one, two in zip(found.core.b, exact.core.b, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-3)
    for one, two in zip(found.core.cond_var(), exact.core.cond_var(), strict=True):
        np.testing.assert_allclose(one, two, atol=0.1 * two.max())
    np.testing.assert_allclose(found.fittedvalues, exact.fittedvalues, atol=1e-3)
    new = data[["user", "item", "x"]].iloc[:20]
    intervals = [f.predict(new, interval="confidence")["std_error"] for f in (found, exact)]
    np.testing.assert_allclose(*intervals, rtol=1e-3)
    ours = found.convergence_report().gradient.index
    assert list(ours) == list(exact.convergence_report().gradient.index)
    monkeypatch.setattr(choice, "SMALL", 10)
    assert lmer(formula, data, control=Control(memory_limit=600_000)).engine_report().engine == "iterative"


def test_other_models_are_refused(ratings):
    by_iteration = Control(engine="iterative")
    with pytest.raises(ModelError, match="without covariance structures"):
        lmer("y ~ x + ar1(0 + factor(item) | user)", ratings.assign(item=ratings.item % 5), control=by_iteration)
    with pytest.raises(ModelError, match="has no factor to evaluate a criterion with"):
        lmer(FORMULA, ratings, objective_only=True, control=by_iteration)


def test_one_factor_leaves_nothing_to_iterate_over(ratings):
    one = lmer("y ~ x + (1 | user)", ratings, control=Control(engine="iterative"))
    assert one.monte_carlo is None
    assert one.criterion == lmer("y ~ x + (1 | user)", ratings).criterion


def test_auto_takes_it_where_no_exact_engine_is_within_reach(ratings, monkeypatch):
    monkeypatch.setattr(choice, "SMALL", 10)
    assert lmer(FORMULA, ratings).engine_report().engine == "dense"  # within reach
    small = Control(memory_limit=500_000)
    found = lmer(FORMULA, ratings, control=small)
    report = found.engine_report()
    assert report.engine == "iterative"
    assert "would take" in report.reason
    with pytest.raises(MemoryLimitError):  # two terms that say the same: not one for the iterative engine
        lmer("y ~ x + (x | user) + (1 | item) + (1 | copy)", ratings.assign(copy=ratings.item), control=small)
    monkeypatch.setattr(choice, "REACH", 0.0)
    monkeypatch.setattr(choice, "ENTRIES", 10.0)
    assert "a sample shows" in lmer(FORMULA, ratings).engine_report().reason
    monkeypatch.setattr(choice, "ENTRIES", np.inf)
    assert "would take" in lmer(FORMULA, ratings).engine_report().reason


@pytest.mark.parametrize("engine", ["iterative", "auto"])
def test_its_own_memory_has_the_limit_too(ratings, monkeypatch, engine):
    monkeypatch.setattr(choice, "SMALL", 10)
    design = Model(
        np.column_stack([np.ones(6000), ratings.x]),
        [Term(ratings.user, np.column_stack([np.ones(6000), ratings.x])), Term(ratings.item)],
    ).products
    needed = row_form_bytes(design.groups, design.at_hand, design.rank + 1, 8)
    assert needed > 6000 * (4 + 2 * 8) + 8 * 150 * 64  # codes and columns, a buffer of eight parts
    words = re.escape(f"would take {needed / 2**30:.3g} GiB for 6000 rows and 150 random effects")
    limit = re.escape(f"but {(needed - 1) / 2**30:.3g} GiB can be used")
    with pytest.raises(MemoryLimitError, match=f"{words}.*{limit}"):
        lmer(FORMULA, ratings, control=Control(engine=engine, memory_limit=needed - 1))
    assert lmer(FORMULA, ratings, control=Control(engine=engine, memory_limit=needed)).converged


def test_the_prediction_covers_what_is_allocated(ratings):
    """Traced bytes at the peak of one evaluation, of a problem whose vectors are most of it."""
    rng = np.random.default_rng(0)
    n, q, m = 60_000, 12_000, 20_000
    x = rng.normal(size=n)
    X = np.column_stack([np.ones(n), x])
    model = Model(X, [Term(rng.integers(0, q, n), X), Term(rng.integers(0, m, n))])
    found = model.products.response(rng.normal(size=n))
    tracemalloc.start()
    problem = crossed_problem(model.products, found, Control())
    Probes(problem, 0).traces(System(problem, problem.start + 0.5), 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    predicted = row_form_bytes(model.products.groups, model.products.at_hand, model.products.rank + 1, 8)
    assert 0.75 * predicted < peak < 1.25 * predicted


@pytest.mark.parametrize("weighted", [False, True])
def test_cells_of_two_factors_are_rows_with_weights(weighted):
    rng = np.random.default_rng(8)
    g, h, x = rng.integers(0, 40, 8000), rng.integers(0, 15, 8000), rng.normal(size=8000)
    y = x + rng.normal(size=40)[g] + rng.normal(size=15)[h] + rng.normal(size=8000)
    w = rng.uniform(0.5, 2.0, 8000) if weighted else None
    X = np.column_stack([np.ones(8000), x])
    total = Accumulator([BatchTerm(0), BatchTerm(1)], 2, 0)
    for part in (slice(0, 3000), slice(3000, 8000)):
        total.add(y[part], X[part], [g[part], h[part]], weights=None if w is None else w[part])
    total.store.collapse()
    control = Control(engine="iterative")
    found = StreamedModel(total, control=control).fit()
    rows = Model(X, [Term(g), Term(h)], weights=w, control=control).fit(y)
    np.testing.assert_allclose(found.theta, rows.theta, rtol=1e-8)
    np.testing.assert_allclose(found.se, rows.se, rtol=1e-8)
    assert found.criterion == pytest.approx(rows.criterion, rel=1e-9)


def test_the_sample_counts_the_pattern(ratings):
    """Of a tail no larger than the sample the count is the pattern's own."""
    few = ratings.item.to_numpy() % 20
    design = Model(np.ones((len(ratings), 1)), [Term(ratings.user.to_numpy()), Term(few)]).products
    assert choice.sampled_entries(design) == 0.5 * 20 * 20


def test_the_sample_of_a_heavy_tail_is_near():
    rng = np.random.default_rng(3)
    g, h = (
        rng.integers(0, 3000, 20_000),
        np.unique((2000 * rng.random(20_000) ** 3).astype(int), return_inverse=True)[1],
    )
    design = Model(np.ones((20_000, 1)), [Term(g), Term(h)]).products
    both = np.zeros((3000, h.max() + 1))
    both[g, h] = 1.0
    entries = np.count_nonzero(both.T @ both)
    assert choice.sampled_entries(design) == pytest.approx(0.5 * entries, rel=0.3)
