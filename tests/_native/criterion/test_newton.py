"""The optimiser on small models: minima known in closed form, statuses, logs, interruptions."""

import signal

import numpy as np
import pytest

from fastlmm_core._native.criterion.newton import Newton
from fastlmm_core.core import Model, Term
from kernel_oracle import both, problem

CONVERGED, OUT_OF_EVALUATIONS, FAILED_AT_START = 0, 1, 3


def newton_for(levels=(13, 7), widths=(1, 1), *, limit=100, tol=1e-10, **options):
    objective, _ = both(problem(levels, widths, **options))
    return objective, Newton(objective.evaluator, limit, tol), objective.to_conditioned(objective.start)


def one_way(q=12, r=5, seed=0):
    """A balanced one-way layout, its response and the REML estimate of theta^2 from its mean squares."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(q), r)
    y = rng.normal(size=q)[codes] + rng.normal(size=q * r)
    means = y.reshape(q, r).mean(axis=1)
    between = r * np.sum((means - y.mean()) ** 2) / (q - 1)
    within = np.sum((y - means[codes]) ** 2) / (q * (r - 1))
    return codes, y, max(between - within, 0.0) / (r * within)


@pytest.mark.parametrize("start", [0.05, 0.9, 5.0, 60.0])
@pytest.mark.parametrize("seed", range(4))
def test_balanced_one_way_layout(seed, start):
    codes, y, square = one_way(seed=seed)
    assert square > 0
    objective = Model(np.ones((len(y), 1)), [Term(codes)]).objective(y)
    newton = Newton(objective.evaluator, 100, 1e-10)
    theta, value, status = newton.minimise(objective.to_conditioned([start]))
    assert status == CONVERGED
    np.testing.assert_allclose(abs(objective.to_user(theta)), np.sqrt(square), rtol=1e-5)
    assert value == newton.value == objective.evaluator.value(theta)
    assert newton.n_evaluations <= 15


@pytest.mark.parametrize(
    ("levels", "widths"),
    [((13, 7), (1, 1)), ((11,), (3,)), ((11, 6), (3, 1)), ((25, 7), (1, 2)), ((30, 6, 5), (2, 1, 3))],
)
@pytest.mark.parametrize("seed", range(3))
def test_minimum(levels, widths, seed):
    """No gradient left, no lower neighbour, few evaluations, and a start there ends at once."""
    objective, newton, start = newton_for(levels, widths, n=240, seed=seed)
    theta, value, status = newton.minimise(start)
    assert status == CONVERGED
    assert newton.n_evaluations <= 25
    hessian = newton.last_derivatives()[1]
    assert np.linalg.eigvalsh(hessian)[0] > -1e-6 * np.abs(hessian).max()
    at_end = objective.evaluator.derivatives(theta)[1]
    assert np.abs(at_end).max() < 1e-3
    for step in 1e-3 * np.vstack([np.eye(len(theta)), -np.eye(len(theta))]):
        assert objective.evaluator.value(theta + step) > value - 1e-9
    again, value_again, status = newton.minimise(theta)
    assert status == CONVERGED
    assert newton.n_evaluations <= 4
    np.testing.assert_allclose(value_again, value, atol=1e-9)
    np.testing.assert_allclose(again, theta, atol=1e-4)


def test_steps_shrink_the_gradient_by_a_steady_factor():
    _, newton, start = newton_for((40,), (2,), n=600)
    newton.minimise(start)
    norms = newton.evaluations()[:, -2]
    norms = norms[np.isfinite(norms)]
    assert (norms[2:] < 0.5 * norms[1:-1]).all()


def test_log_has_a_row_an_evaluation():
    objective, newton, start = newton_for((25, 7), (1, 2))
    calls = []
    theta, value, _ = newton.minimise(start, lambda *row: calls.append(row))
    k, nt = newton.n_evaluations, objective.n_theta
    rows = newton.evaluations()
    assert rows.shape == (k, nt + 3)
    log_theta, (criterion, norm, radius) = rows[:, :nt], rows[:, nt:].T
    np.testing.assert_array_equal(log_theta[0], start)
    for row, expected in zip(log_theta, criterion, strict=True):
        assert objective.evaluator.value(row) == expected
    assert np.isfinite(norm).sum() == newton.n_derivatives
    assert (radius > 0).all()
    assert value == criterion.min()
    np.testing.assert_array_equal(log_theta[criterion.argmin()], theta)
    assert [c[0] for c in calls] == list(range(1, k + 1))
    np.testing.assert_array_equal([c[1] for c in calls], log_theta)
    np.testing.assert_array_equal([c[2] for c in calls], criterion)
    np.testing.assert_array_equal([c[3] for c in calls], norm)
    np.testing.assert_array_equal([c[4] for c in calls], radius)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_out_of_evaluations(limit):
    objective, newton, start = newton_for(limit=limit)
    theta, value, status = newton.minimise(start)
    assert status == OUT_OF_EVALUATIONS
    assert newton.messages[status] == "stopped at the limit on evaluations"
    assert newton.n_evaluations == limit
    criterion = newton.evaluations()[:, -3]
    assert len(criterion) == limit
    assert value == criterion.min() == objective.evaluator.value(theta)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_a_start_that_cannot_be_evaluated(bad):
    _, newton, start = newton_for()
    expected = newton.minimise(start)
    wrong = start.copy()
    wrong[0] = bad
    assert newton.minimise(wrong)[2] == FAILED_AT_START
    assert newton.n_evaluations == 1
    for a, b in zip(newton.minimise(start), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_start_of_the_wrong_length():
    _, newton, start = newton_for()
    with pytest.raises(ValueError, match="length 1"):
        newton.minimise(start[:1])


def test_a_start_is_not_written_to():
    _, newton, start = newton_for()
    start.flags.writeable = False
    newton.minimise(start)


@pytest.mark.parametrize("error", [ValueError("from the report"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
@pytest.mark.parametrize("at", [1, 3])
def test_an_exception_of_the_report_comes_through(error, at):
    _, newton, start = newton_for((25, 7), (1, 2))
    expected = newton.minimise(start)
    assert newton.n_evaluations > at

    def report(k, *row):
        if k == at:
            raise error

    with pytest.raises(type(error)) as caught:
        newton.minimise(start, report)
    assert caught.value is error
    assert newton.n_evaluations == at
    for a, b in zip(newton.minimise(start), expected, strict=True):  # nothing is left half-done
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an interval timer")
def test_a_signal_stops_between_evaluations():
    """Ctrl-C without any Python code in the loop: here a timer's signal, whose handler raises."""
    _, newton, start = newton_for((900, 500), (1, 1), n=20_000)  # milliseconds an evaluation: the tail is full
    expected = newton.minimise(start)
    n_evaluations = newton.n_evaluations

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        with pytest.raises(KeyboardInterrupt):
            newton.minimise(start)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert newton.n_evaluations < n_evaluations
    for a, b in zip(newton.minimise(start), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_many_responses_one_of_which_fails():
    """A response that is not a number leaves NaN and does no harm to the next."""
    given = problem((25, 7), (1, 2))
    model = given.model()
    Y = np.column_stack([given.y, given.y[::-1], given.y + 1.0])
    found = model.products.responses(Y)
    objective = model.objective(given.y)
    newton = Newton(objective.evaluator, 100, 1e-10)
    start = objective.to_conditioned(objective.start)
    k, nt, p = 3, objective.n_theta, 2
    place = (objective.plan.offsets[0][:, None] + np.arange(2)).ravel()
    tail = np.empty((14, k))
    tail[place] = found.dense[1]

    def run(lead):
        theta, value, beta = np.empty((k, nt)), np.empty(k), np.empty((k, p))
        ld, outcome = np.zeros((k, p + 1, p + 1)), np.empty((k, 2), np.int32)
        newton.minimise_many(lead, tail, found.xty, np.zeros(k), start, theta, value, beta, ld, outcome)
        return theta, value, beta, ld, outcome

    good = run(found.dense[0])
    assert (good[-1][:, 0] == CONVERGED).all()
    assert (good[-1][:, 1] > 1).all()
    spoilt = found.dense[0].copy()
    spoilt[:, 1] = np.nan
    theta, value, beta, ld, outcome = run(spoilt)
    np.testing.assert_array_equal(outcome[:, 0], [CONVERGED, FAILED_AT_START, CONVERGED])
    assert np.isnan(theta[1]).all()
    assert np.isnan(value[1])
    assert np.isnan(beta[1]).all()
    for a, b in zip((theta, value, beta, ld), good, strict=False):
        np.testing.assert_array_equal(a[[0, 2]], b[[0, 2]])
