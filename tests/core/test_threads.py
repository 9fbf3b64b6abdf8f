"""The bound on BLAS threads that evaluations are run under."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

import problems
from fastlmm_core.core import fit
from fastlmm_core.core.threads import BLOCKS, blas_libraries, one_blas_thread
from fastlmm_core.errors import NumericalError


@pytest.fixture
def start():
    """Every library at two threads, whatever it had."""
    before = [library.num_threads for library in blas_libraries()]
    for library in blas_libraries():
        library.set_num_threads(2)
    yield counts()
    for library, count in zip(blas_libraries(), before, strict=True):
        library.set_num_threads(count)


def counts():
    return [library.num_threads for library in blas_libraries()]


def test_there_is_a_blas_to_bound():
    assert blas_libraries()


def test_the_bound_ends_with_its_block(start):
    with one_blas_thread():
        assert set(counts()) == {1}
    assert counts() == start


def test_blocks_inside_each_other(start):
    with one_blas_thread():
        with one_blas_thread():
            assert set(counts()) == {1}
        assert set(counts()) == {1}
    assert counts() == start


def test_a_thread_keeps_its_bound_when_another_leaves(start):
    """The first to enter leaves first: BLAS stays bounded until the other has left too."""
    inside, leave = Event(), Event()

    def other():
        with one_blas_thread():
            inside.set()
            leave.wait(60)

    with ThreadPoolExecutor(1) as pool:
        with one_blas_thread():
            done = pool.submit(other)
            assert inside.wait(60)
        assert set(counts()) == {1}
        leave.set()
        done.result()
    assert counts() == start


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking with threads, which is the point
def test_a_child_inherits_no_other_threads_bound(start):
    """Forked while another thread is inside a block and holds the lock: the child has neither."""
    inside, leave = Event(), Event()

    def other():
        with one_blas_thread(), BLOCKS.lock:
            inside.set()
            leave.wait(60)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(other)
        assert inside.wait(60)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            good = counts() == start
            with one_blas_thread():
                good = good and set(counts()) == {1}
            os._exit(0 if good and counts() == start else 1)
        status = os.waitpid(child, 0)[1]
        leave.set()
        done.result()
    assert status == 0
    assert counts() == start


def test_leaving_in_another_order(start):
    first, second = one_blas_thread(), one_blas_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert set(counts()) == {1}
    second.__exit__(None, None, None)
    assert counts() == start


def test_an_error_ends_the_block(start):
    with pytest.raises(RuntimeError), one_blas_thread():
        raise RuntimeError
    assert counts() == start


@pytest.mark.parametrize("threads", [1, 2])
def test_an_evaluation_leaves_the_bound_as_it_was(start, threads):
    objective = problems.build("crossed").objective(threads=threads)
    objective.derivatives(objective.start)
    assert counts() == start
    with pytest.raises(NumericalError):
        objective(1e300 * objective.start)
    assert counts() == start


def test_a_callback_sees_the_bound_and_may_evaluate(start):
    """Fits inside a fit's report: the outer bound applies again after each."""
    problem = problems.build("slope")
    inner = problems.build("crossed")
    seen = []

    def report(*row):
        inner.fit()
        seen.append(counts())

    fit(problem.y, problem.X, problem.core_terms(), on_evaluation=report)
    assert seen
    assert all(set(found) == {1} for found in seen)
    assert counts() == start
