"""A fork after threads: the child has the parent's memory but none of its threads."""

import os
import signal
import threading
import warnings

import numpy as np
import pytest

from fastlmm_core.core import Control, Model, Term

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
