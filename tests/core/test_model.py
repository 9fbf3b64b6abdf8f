"""One design, many responses: `Model` and `fit_many` give what separate fits give."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import problems
from fastlmm_core.core import Control, Model, Term, fit, fit_many
from fastlmm_core.errors import ConvergenceWarning, DataError, ModelError

NAMES = ["crossed", "mixed_weights", "three_columns", "shared_codes", "deficient_X", "no_X", "unobserved_levels"]


def model_of(problem, reml=True, **control):
    return Model(
        problem.X,
        problem.core_terms(),
        weights=problem.weights,
        offset=problem.offset,
        reml=reml,
        control=Control(**control),
    )


def responses(problem, k=4, seed=0):
    """The problem's response and draws from about the same model."""
    rng = np.random.default_rng(seed)
    Y = [problem.y]
    for _ in range(k - 1):
        Y.append(problems.simulate(rng, problem.X, problem.terms, problem.weights))
    return np.array(Y)


def same_bits(one, two):
    for field in ("theta", "beta", "cov_beta", "fitted", "sigma", "criterion", "message"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    for field in ("b", "L"):
        for a, b in zip(getattr(one, field), getattr(two, field), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("reml", [True, False], ids=["REML", "ML"])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_fits_as_fit_does(name, reml):
    problem = problems.build(name)
    model = model_of(problem, reml)
    for y in responses(problem, 3):
        same_bits(model.fit(y), problem.but(y=y).fit(reml))


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_a_model_remembers_nothing_of_earlier_responses(engine):
    problem = problems.build("mixed_weights")
    model = model_of(problem, engine=engine)
    first, second = responses(problem, 2)
    before = model.fit(first)
    model.fit(second)
    same_bits(model.fit(first), before)


def test_an_interrupted_fit_leaves_the_model_usable():
    problem = problems.build("mixed_weights")
    model = model_of(problem)
    expected = model.fit(problem.y)

    def stop(*row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(responses(problem, 2)[1], on_evaluation=stop)
    same_bits(model.fit(problem.y), expected)


def agree(many, i, single, *, singular=False):
    """Row i of many fits and a fit of its own."""
    np.testing.assert_allclose(many.criterion[i], single.criterion, rtol=0, atol=1e-8)
    theta_tol, other_tol = (2e-3, 1e-4) if singular else (1e-4, 1e-5)
    scale = max(1.0, np.abs(single.theta).max())
    np.testing.assert_allclose(many.theta[i], single.theta, rtol=0, atol=theta_tol * scale)
    np.testing.assert_allclose(many.beta[i], single.beta, rtol=other_tol, atol=other_tol * single.sigma)
    np.testing.assert_allclose(many.se[i], np.sqrt(np.diagonal(single.cov_beta)), rtol=other_tol)
    np.testing.assert_allclose(many.sigma[i], single.sigma, rtol=other_tol)
    assert many.converged[i] == single.converged


@pytest.mark.parametrize("reml", [True, False], ids=["REML", "ML"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_fits(name, reml):
    """Weights, offsets, shared groups, dependent columns, no columns at all."""
    problem = problems.build(name)
    model = model_of(problem, reml)
    Y = responses(problem)
    singles = [model.fit(y) for y in Y]
    start = np.mean([single.theta for single in singles], axis=0)
    many = model.fit_many(Y, start=start)
    assert len(many) == len(Y)
    n_theta, p = problem.n_theta, problem.X.shape[1]
    assert many.theta.shape == (len(Y), n_theta)
    assert many.beta.shape == many.se.shape == (len(Y), p)
    assert many.n_evaluations.dtype == np.int32
    for i, y in enumerate(Y):
        single = model.fit(y, start=start)
        agree(many, i, single, singular=single.is_singular)
        np.testing.assert_array_equal(np.isnan(many.beta[i]), np.isnan(single.beta))


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_rows_are_the_fits_with_every_engine(engine):
    problem = problems.build("mixed_weights")
    model = model_of(problem, engine=engine)
    Y = responses(problem)
    many = model.fit_many(Y)
    for i, y in enumerate(Y):
        agree(many, i, model.fit(y), singular=True)


def test_weights_and_offset():
    problem = problems.build("mixed_weights")
    rng = np.random.default_rng(1)
    n = len(problem.y)
    problem = problem.but(weights=rng.uniform(0.2, 4.0, n), offset=rng.normal(size=n))
    Y = responses(problem)
    terms = problem.core_terms()
    many = fit_many(Y, problem.X, terms, weights=problem.weights, offset=problem.offset)
    bare = fit_many(Y - problem.offset, problem.X, terms, weights=problem.weights)
    for field in ("theta", "beta", "se", "sigma", "criterion"):
        np.testing.assert_allclose(getattr(many, field), getattr(bare, field), rtol=1e-9)
    for i, y in enumerate(Y):
        agree(many, i, problem.but(y=y).fit(), singular=True)


def test_dependent_columns_are_nan_in_every_row():
    problem = problems.build(NAMES[0])
    X = np.column_stack([problem.X, problem.X @ np.ones(problem.X.shape[1])])
    Y = responses(problem)
    many = fit_many(Y, X, problem.core_terms())
    plain = fit_many(Y, problem.X, problem.core_terms())
    assert np.isnan(many.beta[:, -1]).all()
    assert np.isnan(many.se[:, -1]).all()
    np.testing.assert_allclose(many.beta[:, :-1], plain.beta, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(many.se[:, :-1], plain.se, rtol=1e-6)
    np.testing.assert_allclose(many.criterion, plain.criterion, rtol=0, atol=1e-7)


@pytest.mark.parametrize("ratio", [1e5, 1e8])
def test_a_response_nearly_in_the_span_of_X(ratio):
    """What is left of y is far below y itself; other responses of the batch are not touched."""
    problem = problems.build(NAMES[0])
    X, terms = problem.X, problem.core_terms()
    shift = ratio * X @ np.arange(1.0, X.shape[1] + 1)
    Y = np.array([problem.y, problem.y + shift, problem.y])
    many = fit_many(Y, X, terms)
    np.testing.assert_array_equal(many.theta[0], many.theta[2])
    np.testing.assert_allclose(many.theta[1], many.theta[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(many.sigma[1], many.sigma[0], rtol=1e-14 * ratio + 1e-6)
    agree(many, 1, fit(Y[1], X, terms), singular=True)


def test_a_response_in_the_span_of_X_is_refused():
    problem = problems.build(NAMES[0])
    Y = np.array([problem.X @ np.ones(problem.X.shape[1])] * 2)
    with pytest.raises(ModelError, match="nothing is left"):
        fit_many(Y, problem.X, problem.core_terms())


def test_bad_responses_among_good_ones_leave_the_others_alone():
    """Constant, reproduced by X, or too large: NaN in their rows, and one warning that counts them."""
    problem = problems.build(NAMES[0])
    good = responses(problem, 6)
    Y = np.insert(good, [0, 3, 5], 7.0, axis=0)
    Y[4] = problem.X @ np.arange(1.0, 1.0 + problem.X.shape[1])
    Y[7] *= 1e200 / np.abs(Y[7]).max() if not np.ptp(Y[7]) else 1.0
    bad = np.array([0, 4, 7])
    start = problem.fit().theta
    with pytest.warns(ConvergenceWarning, match=r"3 of 9 responses could not be fitted, the first of them row 0 of Y"):
        many = fit_many(Y, problem.X, problem.core_terms(), start=start)
    for field in ("theta", "beta", "se", "sigma", "criterion"):
        assert np.isnan(getattr(many, field)[bad]).all()
    assert not many.converged[bad].any()
    rest = np.delete(np.arange(9), bad)
    expected = fit_many(good, problem.X, problem.core_terms(), start=start)
    np.testing.assert_allclose(many.criterion[rest], expected.criterion, rtol=0, atol=1e-9)
    assert (many.converged[rest] == expected.converged).all()


def singular_responses(q=10, r=6, k=5, seed=0):
    """Responses whose level means vary less than chance has it: variance estimates of zero."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(q), r)
    Y = rng.normal(size=(k, q * r))
    Y -= 0.9 * Y.reshape(k, q, r).mean(axis=2)[:, codes]
    return codes, Y


def test_singular_responses():
    codes, Y = singular_responses()
    model = Model(np.ones((len(codes), 1)), [Term(codes)])
    many = model.fit_many(Y)
    assert many.converged.all()
    np.testing.assert_allclose(many.theta, 0.0, atol=1e-3)
    for i, y in enumerate(Y):
        single = model.fit(y)
        assert single.is_singular
        agree(many, i, single, singular=True)


def test_singular_and_ordinary_responses_side_by_side():
    codes, Y = singular_responses()
    Y[1::2] += np.random.default_rng(4).normal(size=10)[codes]
    model = Model(np.ones((len(codes), 1)), [Term(codes)])
    many = model.fit_many(Y)
    for i, y in enumerate(Y):
        single = model.fit(y)
        assert single.is_singular == (i % 2 == 0)
        agree(many, i, single, singular=single.is_singular)


class TestShapes:
    """What is not (k, n) numbers is refused before any fit."""

    problem = problems.build("mixed_weights")

    @pytest.mark.parametrize("shape", ["y", "(n, k)", "(k, n - 1)", "(1, k, n)"])
    def test_shape(self, shape):
        Y = responses(self.problem, 3)
        wrong = {"y": Y[0], "(n, k)": Y.T, "(k, n - 1)": Y[:, 1:], "(1, k, n)": Y[None]}[shape]
        with pytest.raises(DataError, match="shape"):
            model_of(self.problem).fit_many(wrong)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_not_finite(self, bad):
        Y = responses(self.problem, 3)
        Y[2, 5] = bad
        with pytest.raises(DataError, match=r"Y has 1 value.*row 2, column 5"):
            model_of(self.problem).fit_many(Y)

    def test_start_of_the_wrong_length(self):
        with pytest.raises(DataError, match="theta has shape"):
            model_of(self.problem).fit_many(responses(self.problem, 2), start=[1.0])

    def test_response_of_the_wrong_length(self):
        with pytest.raises(DataError, match="rows"):
            model_of(self.problem).fit(self.problem.y[1:])

    def test_no_response_at_all(self):
        many = model_of(self.problem).fit_many(np.empty((0, len(self.problem.y))))
        assert len(many) == 0
        assert many.theta.shape == (0, self.problem.n_theta)
        assert many.beta.shape == (0, self.problem.X.shape[1])

    def test_a_list_of_lists(self):
        Y = responses(self.problem, 2)
        a, b = model_of(self.problem).fit_many(Y.tolist()), model_of(self.problem).fit_many(Y)
        np.testing.assert_array_equal(a.theta, b.theta)

    def test_responses_are_not_written_to(self):
        Y = responses(self.problem, 3)
        copy = Y.copy()
        Y.flags.writeable = False
        model_of(self.problem).fit_many(Y)
        np.testing.assert_array_equal(Y, copy)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_threads_do_not_change_a_bit(engine):
    problem = problems.build("mixed_weights")
    Y = responses(problem, 7)
    answers = [model_of(problem, engine=engine).fit_many(Y, threads=threads) for threads in (1, 2, 3, 50)]
    for other in answers[1:]:
        for field in ("theta", "beta", "se", "sigma", "criterion", "converged", "n_evaluations"):
            np.testing.assert_array_equal(getattr(other, field), getattr(answers[0], field))


@pytest.mark.parametrize("threads", [0, -3])
def test_threads_that_are_no_number_of_threads(threads):
    problem = problems.build(NAMES[0])
    with pytest.raises(ModelError, match="threads must be at least 1"):
        model_of(problem).fit_many(responses(problem, 2), threads=threads)


def test_a_model_goes_through_pickle_before_its_first_fit():
    problem = problems.build("mixed_weights")
    again = pickle.loads(pickle.dumps(model_of(problem)))
    same_bits(again.fit(problem.y), model_of(problem).fit(problem.y))


def test_figures_made_later_are_those_made_at_once():
    """Other responses have gone through the model's workspace in the meantime."""
    problem = problems.build("mixed_weights")
    model = model_of(problem)
    Y = responses(problem, 3)
    at_once = [model.fit(y).complete() for y in Y]
    later = [model.fit(y) for y in Y]
    for one, two in zip(at_once, later, strict=True):
        same_bits(one, two)
        for field in ("theta", "criterion", "radius"):
            np.testing.assert_array_equal(getattr(one.log, field), getattr(two.log, field))
        for a, b in zip(one.cross.dense, two.cross.dense, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_fit_does_not_look_at_its_arrays_again():
    problem = problems.build("slope")
    X = problem.X.copy()
    found = fit(problem.y, X, problem.core_terms())
    X *= 2.0
    np.testing.assert_array_equal(found.fitted, fit(problem.y, problem.X, problem.core_terms()).fitted)


@pytest.mark.parametrize(("room", "workers"), [(1.5, 1), (2.5, 2), (3.5, 3), (50.0, 3)])
def test_no_more_workspaces_than_the_memory_limit_holds(monkeypatch, room, workers):
    from fastlmm_core.core import model as module

    problem = problems.build("mixed_weights")
    Y = responses(problem, 7)
    needed = model_of(problem).objective(Y[0]).plan.total_bytes
    pools = []
    monkeypatch.setattr(module, "ThreadPoolExecutor", lambda size: pools.append(size) or ThreadPoolExecutor(size))
    model_of(problem, memory_limit=int(room * needed)).fit_many(Y, threads=3)
    assert pools == [workers]


def test_a_row_does_not_depend_on_its_neighbours():
    """Batches are conditioned together: only rounding may differ."""
    problem = problems.build("mixed_weights")
    model = model_of(problem)
    Y = responses(problem, 6)
    start = model.fit(Y[0]).theta
    together = model.fit_many(Y, start=start)
    for i in range(len(Y)):
        alone = model.fit_many(Y[i : i + 1], start=start)
        np.testing.assert_allclose(alone.criterion[0], together.criterion[i], rtol=0, atol=1e-9)
        np.testing.assert_allclose(alone.theta[0], together.theta[i], rtol=1e-6, atol=1e-6)


def test_more_responses_than_a_batch(monkeypatch):
    from fastlmm_core.core import model as module

    problem = problems.build(NAMES[0])
    Y = responses(problem, 7)
    whole = model_of(problem).fit_many(Y)
    monkeypatch.setattr(module, "BATCH", 3)
    parts = model_of(problem).fit_many(Y)
    np.testing.assert_allclose(parts.criterion, whole.criterion, rtol=0, atol=1e-9)
    np.testing.assert_allclose(parts.theta, whole.theta, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_separate_models_in_two_threads(engine):
    """Models share nothing: fits that overlap are the fits one after another."""
    given = [problems.build(name) for name in (NAMES[0], "mixed_weights")] * 3
    expected = [problem.fit(engine=engine) for problem in given]

    def work(problem):
        model = model_of(problem, engine=engine)
        return [model.fit(problem.y) for _ in range(3)]

    with ThreadPoolExecutor(2) as pool:
        for fits, single in zip(pool.map(work, given), expected, strict=True):
            for got in fits:
                same_bits(got, single)


def test_many_fits_in_two_threads():
    problem = problems.build("mixed_weights")
    Y = responses(problem, 4)
    expected = model_of(problem).fit_many(Y)
    with ThreadPoolExecutor(2) as pool:
        for got in pool.map(lambda _: model_of(problem).fit_many(Y, threads=2), range(4)):
            np.testing.assert_array_equal(got.theta, expected.theta)


def test_an_objective_has_a_workspace_of_its_own():
    problem = problems.build("mixed_weights")
    model = model_of(problem)
    first, second = responses(problem, 2)
    one = model.objective(first)
    theta = one.start
    value = one(theta)
    assert model.objective(second)(theta) != value
    model.fit(second)
    assert one(theta) == value
