"""A fork after threads: the child has the parent's memory but none of its threads."""

import os
import signal
import threading
import warnings

import numpy as np
import pytest

from fastlmm_core.core import Control, Model, Term, glmm, objective
from fastlmm_core.core.spool import KeptRows
from fastlmm_core.core.threads import blas_libraries, one_blas_thread
from fastlmm_core.errors import InUseError
from fastlmm_core.lazy import cached_property

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(work):
    """Exit status of a forked child that does ``work``; killed after a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is the point
        child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(60)
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


@pytest.fixture(scope="module")
def model():
    random = np.random.default_rng(0)
    n, q = 20_000, 400
    a, b = random.integers(0, q, n), random.integers(0, q, n)
    made = Model(np.ones((n, 1)), [Term(a), Term(b)], control=Control(threads=2))
    return made, random.normal(size=n) + random.normal(size=q)[a] + random.normal(size=q)[b]


def test_a_child_fits_what_its_parent_fitted(model):
    made, y = model
    expected = made.fit(y)
    assert expected.converged

    def work():
        again = made.fit(y)
        fresh = Model(np.ones((len(y), 1)), made.products.terms, control=Control(threads=2)).fit(y)
        return again.criterion == fresh.criterion == expected.criterion and Control().n_threads == 1

    assert in_child(work) == 0
    assert made.fit(y).criterion == expected.criterion


def test_a_child_has_many_responses_and_threads_of_its_own(model):
    made, y = model
    Y = np.stack([y, y[::-1]])
    expected = made.fit_many(Y, threads=2)

    def work():
        found = []
        thread = threading.Thread(target=lambda: found.append(made.fit(y).criterion))
        thread.start()
        thread.join(50)
        return found and np.array_equal(made.fit_many(Y, threads=2).theta, expected.theta)

    assert in_child(work) == 0


def test_a_fork_while_another_thread_fits(model):
    made, y = model
    expected = made.fit(y).criterion
    done = threading.Event()

    def fits():
        while not done.is_set():
            made.fit(y)

    thread = threading.Thread(target=fits)
    thread.start()
    try:
        assert in_child(lambda: made.fit(y).criterion == expected) == 0
    finally:
        done.set()
        thread.join()


def held_elsewhere(begin):
    """A thread that has begun ``begin(pause)`` and stands still in its ``pause``; call what comes back to let it go."""
    inside, go_on = threading.Event(), threading.Event()

    def pause(*_):
        inside.set()
        go_on.wait(60)

    thread = threading.Thread(target=begin, args=(pause,))
    thread.start()
    assert inside.wait(60)

    def end():
        go_on.set()
        thread.join()

    return end


class Points(list):
    """Thetas, with a pause before the first."""

    def __init__(self, points, pause):
        super().__init__(points)
        self.pause, self.shape = pause, (len(points), len(points[0]))

    def __iter__(self):
        self.pause()
        return super().__iter__()


def begin_gradients(criterion):
    return lambda pause: criterion.gradients(Points([criterion.to_conditioned(np.ones(criterion.n_theta))], pause))


def begin_search(criterion):
    return lambda pause: criterion.newton.minimise(criterion.to_conditioned(criterion.start), pause)


@pytest.mark.parametrize("begin", [begin_gradients, begin_search], ids=["lock", "workspace"])
def test_a_criterion_that_another_thread_was_at_work_on(model, begin):
    made, y = model
    criterion = objective(y, np.ones((len(y), 1)), made.products.terms, control=Control(threads=2))
    value, slopes = criterion([0.5, 0.7]), criterion.gradient([0.5, 0.7])
    end = held_elsewhere(begin(criterion))
    try:
        assert (
            in_child(
                lambda: (
                    criterion.at([0.5, 0.7]).value == criterion([0.5, 0.7]) == value
                    and np.array_equal(criterion.gradient([0.5, 0.7]), slopes)
                )
            )
            == 0
        )
    finally:
        end()
    assert criterion([0.5, 0.7]) == value


@pytest.mark.parametrize("factors", [1, 2], ids=["by level", "Laplace"])
def test_a_generalised_model_that_another_thread_was_fitting(factors):
    random = np.random.default_rng(1)
    codes = random.integers(0, 20, (factors, 400))
    made = glmm.Model(np.ones((400, 1)), [Term(c) for c in codes], "poisson")
    y, other = random.poisson(2.0 + codes.sum(axis=0) / 10, (2, 400)).astype(float)
    fit = made.fit(y)
    criterion = made.objective(y)
    at = np.concatenate([fit.theta, fit.beta])
    expected, value = fit.criterion, criterion(at)

    def work():
        found = []
        thread = threading.Thread(target=lambda: found.append(made.fit(y).criterion))
        thread.start()
        thread.join(50)
        # a look at a fit of before, a criterion of before, and another fit
        with fit.engine() as engine:
            again = engine.value(fit.psi)
        return found == [expected] and abs(again - expected) < 1e-9 and criterion(at) == value

    end = held_elsewhere(lambda pause: made.fit(other, on_evaluation=pause))
    try:
        assert in_child(work) == 0
    finally:
        end()
    assert made.fit(y).criterion == expected


def test_a_fork_from_within_a_fit():
    """The thread that forks goes on in the child, and holds there what it held."""
    random = np.random.default_rng(1)
    codes = random.integers(0, 20, 400)
    counts = glmm.Model(np.ones((400, 1)), [Term(codes)], "poisson")
    y = random.poisson(2.0 + codes / 10).astype(float)
    expected = counts.fit(y).criterion
    statuses = []

    def refused():
        with pytest.raises(InUseError):
            counts.fit(y)
        return True

    def report(k, *_):
        if k == 2:
            statuses.append(in_child(refused))

    assert counts.fit(y, on_evaluation=report).criterion == expected
    assert statuses == [0]


def test_attributes_of_two_objects_are_made_at_once():
    """A lock that all objects of a class share would be inherited by a child in the middle of one's attribute."""

    class Lazy:
        def __init__(self, pause):
            self.pause = pause

        @cached_property
        def value(self):
            self.pause()
            return 1

    end = held_elsewhere(lambda pause: Lazy(pause).value)
    try:
        assert in_child(lambda: Lazy(lambda: None).value == 1) == 0
    finally:
        end()
    assert isinstance(Lazy.value, cached_property)


def test_blas_is_brought_back_to_its_threads_in_a_child(two_blas_threads):
    counts = two_blas_threads

    def begin(pause):
        with one_blas_thread():
            pause()

    end = held_elsewhere(begin)
    try:
        assert in_child(lambda: [library.num_threads for library in blas_libraries()] == counts) == 0
    finally:
        end()
    assert [library.num_threads for library in blas_libraries()] == counts


def test_a_child_leaves_its_parents_rows_in_a_file_alone():
    def rows(seed):
        rng = np.random.default_rng(seed)
        return [rng.integers(0, 50, 700).astype(np.int32) for _ in range(2)], [rng.normal(size=(700, 2)), None], None

    kept = KeptRows()
    kept.add(*rows(0))
    kept.spill()

    def work():
        kept.add(*rows(1))
        ((codes, _, _),) = kept.pieces()
        return len(kept) == 1400 and np.array_equal(codes[1], np.concatenate([rows(0)[0][1], rows(1)[0][1]]))

    assert in_child(work) == 0
    kept.add(*rows(2))
    ((codes, columns, _),) = kept.pieces()
    np.testing.assert_array_equal(codes[1], np.concatenate([rows(0)[0][1], rows(2)[0][1]]))
    np.testing.assert_array_equal(columns[0], np.concatenate([rows(0)[1][0], rows(2)[1][0]]))
